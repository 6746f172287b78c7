//! The first bytes of the image: [`tcmi_call::abi::BlobHeader`], filled in by the linker.

use core::mem::offset_of;
use tcmi_call::abi::{BLOB_MAGIC, BlobHeader};

// A field is the distance from itself to its symbol plus its own offset in the header, which
// stands at the image's start: resolved when linking, so that no relocation is left.
core::arch::global_asm!(
    ".pushsection .header, \"a\", @progbits",
    ".quad {magic}",
    ".quad blob_batch - . + {batch}",
    ".quad blob_serve - . + {serve}",
    ".quad blob_gate - . + {gate}",
    ".quad blob_on_signal - . + {on_signal}",
    ".quad blob_restorer - . + {restorer}",
    ".quad blob_steward - . + {steward}",
    ".quad blob_steward_syscall_end - . + {steward_syscall_end}",
    ".quad blob_window_start - . + {window_start}",
    ".quad blob_window_end - . + {window_end}",
    ".quad blob_window_abort - . + {window_abort}",
    ".quad blob_syscall_insn - . + {syscall_insn}",
    ".quad blob_end - . + {image_bytes}",
    ".popsection",
    magic = const BLOB_MAGIC,
    batch = const offset_of!(BlobHeader, batch),
    serve = const offset_of!(BlobHeader, serve),
    gate = const offset_of!(BlobHeader, gate),
    on_signal = const offset_of!(BlobHeader, on_signal),
    restorer = const offset_of!(BlobHeader, restorer),
    steward = const offset_of!(BlobHeader, steward),
    steward_syscall_end = const offset_of!(BlobHeader, steward_syscall_end),
    window_start = const offset_of!(BlobHeader, window_start),
    window_end = const offset_of!(BlobHeader, window_end),
    window_abort = const offset_of!(BlobHeader, window_abort),
    syscall_insn = const offset_of!(BlobHeader, syscall_insn),
    image_bytes = const offset_of!(BlobHeader, image_bytes),
);
const _: () = assert!(size_of::<BlobHeader>() == 13 * 8);
