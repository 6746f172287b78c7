//! Memory: the guest's own, but for mappings of home's files.

use super::Arg::{Fd, Value};
use super::{Both, LocalIf, Row};

pub(super) const ROWS: &[(usize, Row)] = &[
    (
        9,
        Row::both("mmap", Both::MapFile, &[Value, Value, Value, Value, Fd, Value])
            .local_if(LocalIf::Anonymous),
    ),
    (10, Row::local("mprotect")),
    (11, Row::local("munmap")),
    (12, Row::local("brk")),
    (25, Row::both("mremap", Both::Remap, &[Value; 5]).local_if(LocalIf::Shrinks)),
    (26, Row::both("msync", Both::Sync, &[Value; 3])),
    (27, Row::local("mincore")),
    (28, Row::local("madvise")),
    (149, Row::local("mlock")),
    (150, Row::local("munlock")),
    (151, Row::local("mlockall")),
    (152, Row::local("munlockall")),
    (216, Row::both("remap_file_pages", Both::Remap, &[Value; 5])),
    (237, Row::local("mbind")),
    (238, Row::local("set_mempolicy")),
    (239, Row::local("get_mempolicy")),
    (310, Row::both("process_vm_readv", Both::OtherMemory, &[Value; 6]).local_if(LocalIf::Myself)),
    (311, Row::both("process_vm_writev", Both::OtherMemory, &[Value; 6]).local_if(LocalIf::Myself)),
    (325, Row::local("mlock2")),
    (329, Row::local("pkey_mprotect")),
    (330, Row::local("pkey_alloc")),
    (331, Row::local("pkey_free")),
    (450, Row::local("set_mempolicy_home_node")),
    (453, Row::local("map_shadow_stack")),
    (462, Row::local("mseal")),
];
