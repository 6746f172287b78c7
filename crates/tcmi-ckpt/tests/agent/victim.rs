//! A program that knows what each of its registers holds and looks after them.

use std::arch::naked_asm;
use std::mem::offset_of;

pub const FAILED: u32 = 1;

/// What a victim and its test share.
#[repr(C, align(16))]
pub struct Watch {
    pub rounds: u32,
    /// Set by the test: end.
    pub stop: u32,
    /// [`FAILED`] if a register changed.
    pub verdict: u32,
    pub pad: u32,
    /// Values of all general registers but rsp and rdi (which holds the watch's address).
    pub expected: [u64; 14],
    pub xmm: [[u8; 16]; 16],
    /// The vector registers as they were at the end.
    pub xmm_at_end: [[u8; 16]; 16],
    pub rsp: u64,
}

impl Watch {
    pub fn fill(&mut self) {
        for (i, value) in self.expected.iter_mut().enumerate() {
            *value = (0x0101_0101_0101_0101 * (i as u64 + 1)) ^ 0x8000_7fff_0000_ffff;
        }
        for (i, value) in self.xmm.iter_mut().enumerate() {
            *value = [0xa0 + i as u8; 16];
        }
    }
}

macro_rules! each_general {
    ($before:literal, $after:literal) => {
        concat!(
            each_general!(@ $before, "rax", 0, $after), each_general!(@ $before, "rbx", 1, $after),
            each_general!(@ $before, "rcx", 2, $after), each_general!(@ $before, "rdx", 3, $after),
            each_general!(@ $before, "rsi", 4, $after), each_general!(@ $before, "rbp", 5, $after),
            each_general!(@ $before, "r8", 6, $after), each_general!(@ $before, "r9", 7, $after),
            each_general!(@ $before, "r10", 8, $after), each_general!(@ $before, "r11", 9, $after),
            each_general!(@ $before, "r12", 10, $after), each_general!(@ $before, "r13", 11, $after),
            each_general!(@ $before, "r14", 12, $after), each_general!(@ $before, "r15", 13, $after),
        )
    };
    (@ $before:literal, $register:literal, $index:literal, $after:literal) => {
        concat!($before, " ", $register, ", [rdi + {expected} + 8 * ", $index, "]\n", $after, "\n")
    };
}

/// Loads every register, then checks them for as long as `stop` is 0; leaves with
/// exit_group(0), or with [`FAILED`] in `verdict` and exit_group(1).
///
/// Most of a round has the carry flag set and nothing that changes it, and the red zone holds
/// two words that are looked at.
#[unsafe(naked)]
pub unsafe extern "C" fn watch_registers(_watch: *mut Watch) -> ! {
    naked_asm!(
        "lea r11, [rdi + {xmm}]",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movaps xmm\\n, [r11 + 16 * \\n]",
        ".endr",
        "mov [rdi + {rsp}], rsp",
        "mov qword ptr [rsp - 8], 0x1357",
        "mov qword ptr [rsp - 128], 0x2468",
        each_general!("mov", ""),
        "2:",
        "stc",
        ".rept 3000",
        "nop",
        ".endr",
        "jnc 9f",
        each_general!("cmp", "jne 9f"),
        "cmp rsp, [rdi + {rsp}]",
        "jne 9f",
        "cmp qword ptr [rsp - 8], 0x1357",
        "jne 9f",
        "cmp qword ptr [rsp - 128], 0x2468",
        "jne 9f",
        "lock inc dword ptr [rdi + {rounds}]",
        "cmp dword ptr [rdi + {stop}], 0",
        "je 2b",
        "lea r11, [rdi + {xmm_at_end}]",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movaps [r11 + 16 * \\n], xmm\\n",
        ".endr",
        "xor edi, edi",
        "jmp 8f",
        "9:",
        "mov dword ptr [rdi + {verdict}], {failed}",
        "mov edi, 1",
        "8:",
        "mov eax, {exit_group}",
        "syscall",
        "ud2",
        expected = const offset_of!(Watch, expected),
        xmm = const offset_of!(Watch, xmm),
        xmm_at_end = const offset_of!(Watch, xmm_at_end),
        rounds = const offset_of!(Watch, rounds),
        stop = const offset_of!(Watch, stop),
        verdict = const offset_of!(Watch, verdict),
        rsp = const offset_of!(Watch, rsp),
        failed = const FAILED,
        exit_group = const libc::SYS_exit_group,
    )
}
