//! `ioctl` and `fcntl`: what the third argument is, by request.

use super::Arg;
use super::Size::Bytes;
use super::When::{Changed, Success};

const OUT_INT: Arg = Arg::Out(Bytes(4), Success);
const IN_INT: Arg = Arg::In(Bytes(4));
const TERMIOS: u32 = 36;
const TERMIO: u32 = 18;
const IFREQ: Arg = Arg::InOut(Bytes(40), Changed);

/// Requests from before the size encoding.
const OLD: &[(u32, Arg)] = &[
    (0x0001, Arg::InOut(Bytes(4), Changed)),     // FIBMAP
    (0x0002, OUT_INT),                           // FIGETBSZ
    (0x5401, Arg::Out(Bytes(TERMIOS), Success)), // TCGETS
    (0x5402, Arg::In(Bytes(TERMIOS))),           // TCSETS
    (0x5403, Arg::In(Bytes(TERMIOS))),           // TCSETSW
    (0x5404, Arg::In(Bytes(TERMIOS))),           // TCSETSF
    (0x5405, Arg::Out(Bytes(TERMIO), Success)),  // TCGETA
    (0x5406, Arg::In(Bytes(TERMIO))),            // TCSETA
    (0x5407, Arg::In(Bytes(TERMIO))),            // TCSETAW
    (0x5408, Arg::In(Bytes(TERMIO))),            // TCSETAF
    (0x5409, Arg::Value),                        // TCSBRK
    (0x540a, Arg::Value),                        // TCXONC
    (0x540b, Arg::Value),                        // TCFLSH
    (0x540c, Arg::Value),                        // TIOCEXCL
    (0x540d, Arg::Value),                        // TIOCNXCL
    (0x540e, Arg::Value),                        // TIOCSCTTY
    (0x540f, OUT_INT),                           // TIOCGPGRP
    (0x5410, IN_INT),                            // TIOCSPGRP
    (0x5411, OUT_INT),                           // TIOCOUTQ
    (0x5412, Arg::In(Bytes(1))),                 // TIOCSTI
    (0x5413, Arg::Out(Bytes(8), Success)),       // TIOCGWINSZ
    (0x5414, Arg::In(Bytes(8))),                 // TIOCSWINSZ
    (0x5415, OUT_INT),                           // TIOCMGET
    (0x5416, IN_INT),                            // TIOCMBIS
    (0x5417, IN_INT),                            // TIOCMBIC
    (0x5418, IN_INT),                            // TIOCMSET
    (0x5419, OUT_INT),                           // TIOCGSOFTCAR
    (0x541a, IN_INT),                            // TIOCSSOFTCAR
    (0x541b, OUT_INT),                           // FIONREAD
    (0x541d, Arg::Value),                        // TIOCCONS
    (0x5420, IN_INT),                            // TIOCPKT
    (0x5421, IN_INT),                            // FIONBIO
    (0x5422, Arg::Value),                        // TIOCNOTTY
    (0x5423, IN_INT),                            // TIOCSETD
    (0x5424, OUT_INT),                           // TIOCGETD
    (0x5425, Arg::Value),                        // TCSBRKP
    (0x5427, Arg::Value),                        // TIOCSBRK
    (0x5428, Arg::Value),                        // TIOCCBRK
    (0x5429, OUT_INT),                           // TIOCGSID
    (0x5450, Arg::Value),                        // FIONCLEX
    (0x5451, Arg::Value),                        // FIOCLEX
    (0x5452, IN_INT),                            // FIOASYNC
    (0x5460, Arg::Out(Bytes(8), Success)),       // FIOQSIZE
    (0x8901, IN_INT),                            // FIOSETOWN
    (0x8902, IN_INT),                            // SIOCSPGRP
    (0x8903, OUT_INT),                           // FIOGETOWN
    (0x8904, OUT_INT),                           // SIOCGPGRP
    (0x8905, OUT_INT),                           // SIOCATMARK
    (0x8906, Arg::Out(Bytes(16), Success)),      // SIOCGSTAMP
    (0x8907, Arg::Out(Bytes(16), Success)),      // SIOCGSTAMPNS
    (0x8910, IFREQ),                             // SIOCGIFNAME
    (0x8912, Arg::Ifconf),                       // SIOCGIFCONF
    (0x8913, IFREQ),                             // SIOCGIFFLAGS
    (0x8914, IFREQ),                             // SIOCSIFFLAGS
    (0x8915, IFREQ),                             // SIOCGIFADDR
    (0x8917, IFREQ),                             // SIOCGIFDSTADDR
    (0x8919, IFREQ),                             // SIOCGIFBRDADDR
    (0x891b, IFREQ),                             // SIOCGIFNETMASK
    (0x891d, IFREQ),                             // SIOCGIFMETRIC
    (0x8921, IFREQ),                             // SIOCGIFMTU
    (0x8927, IFREQ),                             // SIOCGIFHWADDR
    (0x8933, IFREQ),                             // SIOCGIFINDEX
    (0x8934, IFREQ),                             // SIOCSIFPFLAGS
    (0x8935, IFREQ),                             // SIOCGIFPFLAGS
    (0x8942, IFREQ),                             // SIOCGIFTXQLEN
    (0x1260, Arg::Out(Bytes(8), Success)),       // BLKGETSIZE
    (0x125e, OUT_INT),                           // BLKROGET
    (0x1268, OUT_INT),                           // BLKSSZGET
];

/// Encoded requests whose argument is a value or whose encoding lies about the size.
const EXCEPTIONS: &[(u32, Arg)] = &[
    (0x4004_9409, Arg::Value),                  // FICLONE: a descriptor
    (0x8008_6601, Arg::Out(Bytes(4), Success)), // FS_IOC_GETFLAGS: an int
    (0x4008_6602, Arg::In(Bytes(4))),           // FS_IOC_SETFLAGS
    (0x8008_7601, Arg::Out(Bytes(4), Success)), // FS_IOC_GETVERSION
    (0x4008_7602, Arg::In(Bytes(4))),           // FS_IOC_SETVERSION
    (0x8004_5440, Arg::Value),                  // TIOCGPTPEER, in its two spellings
    (0x5441, Arg::Value),
];

const DIR_WRITE: u32 = 1;
const DIR_READ: u32 = 2;

/// None: nothing is known about the request; ENOTTY.
pub fn ioctl(request: u64) -> Option<Arg> {
    // The kernel takes an unsigned int.
    let request = request as u32;
    let known = |list: &[(u32, Arg)]| list.iter().find(|(r, _)| *r == request).map(|(_, a)| *a);
    if let Some(arg) = known(OLD).or_else(|| known(EXCEPTIONS)) {
        return Some(arg);
    }
    let size = Bytes(request >> 16 & 0x3fff);
    match request >> 30 {
        DIR_READ => Some(Arg::Out(size, Success)),
        DIR_WRITE => Some(Arg::In(size)),
        0 => None,
        _ => Some(Arg::InOut(size, Changed)),
    }
}

const FLOCK: u32 = 32;

/// The third argument of `fcntl`; what is unknown is a value, and home says EINVAL.
pub fn fcntl(cmd: u64) -> Arg {
    match cmd as u32 {
        5 | 36 => Arg::InOut(Bytes(FLOCK), Success), // F_GETLK, F_OFD_GETLK
        6 | 7 | 37 | 38 => Arg::In(Bytes(FLOCK)),    // F_SETLK(W), F_OFD_SETLK(W)
        15 => Arg::In(Bytes(8)),                     // F_SETOWN_EX
        16 => Arg::Out(Bytes(8), Success),           // F_GETOWN_EX
        17 => Arg::Out(Bytes(8), Success),           // F_GETOWNER_UIDS
        1035 | 1037 => Arg::Out(Bytes(8), Success),  // F_GET_RW_HINT, F_GET_FILE_RW_HINT
        1036 | 1038 => Arg::In(Bytes(8)),            // F_SET_RW_HINT, F_SET_FILE_RW_HINT
        _ => Arg::Value,
    }
}

/// Of a semaphore set, as many as the kernel may be set to allow: two bytes each.
const SEMAPHORES_BYTES: u32 = 2 * 65_536;

/// The fourth argument of `semctl`.
pub fn semctl(cmd: u64) -> Arg {
    match cmd as u32 & !0x100 {
        1 => Arg::In(Bytes(104)),                           // IPC_SET
        2 | 18 | 20 => Arg::Out(Bytes(104), Success),       // IPC_STAT, SEM_STAT(_ANY)
        3 | 19 => Arg::Out(Bytes(40), Success),             // IPC_INFO, SEM_INFO
        13 => Arg::InOut(Bytes(SEMAPHORES_BYTES), Changed), // GETALL
        17 => Arg::In(Bytes(SEMAPHORES_BYTES)),             // SETALL
        _ => Arg::Value,
    }
}

/// The third argument of `shmctl`.
pub fn shmctl(cmd: u64) -> Arg {
    match cmd as u32 & !0x100 {
        1 => Arg::In(Bytes(112)),                     // IPC_SET
        2 | 13 | 15 => Arg::Out(Bytes(112), Success), // IPC_STAT, SHM_STAT(_ANY)
        3 => Arg::Out(Bytes(72), Success),            // IPC_INFO
        14 => Arg::Out(Bytes(48), Success),           // SHM_INFO
        _ => Arg::Value,
    }
}

/// The third argument of `msgctl`.
pub fn msgctl(cmd: u64) -> Arg {
    match cmd as u32 & !0x100 {
        1 => Arg::In(Bytes(120)),                     // IPC_SET
        2 | 11 | 13 => Arg::Out(Bytes(120), Success), // IPC_STAT, MSG_STAT(_ANY)
        3 | 12 => Arg::Out(Bytes(32), Success),       // IPC_INFO, MSG_INFO
        _ => Arg::Value,
    }
}
