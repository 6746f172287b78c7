//! Sockets, message queues, semaphores.

use super::Arg::*;
use super::Restart::{Never, NoHandler, SaRestart};
use super::Size::*;
use super::When::{Always, Return, ReturnPlus, Success};
use super::{Both, Row};

/// `struct sockaddr_storage`: the kernel gives no longer address.
const ADDRESS_MAX_BYTES: u32 = 128;
const OPTION_MAX_BYTES: u32 = 64 * 1024;

pub(super) const ROWS: &[(usize, Row)] = &[
    (41, Row::forward("socket", &[Value, Value, Value])),
    (42, Row::waits("connect", SaRestart, &[Fd, In(Int(2)), Value])),
    (43, Row::waits("accept", SaRestart, &[Fd, Measured(2, ADDRESS_MAX_BYTES), Length])),
    (44, Row::waits("sendto", SaRestart, &[Fd, In(Arg(2)), Value, Value, In(Int(5)), Value])),
    (
        45,
        Row::waits(
            "recvfrom",
            SaRestart,
            &[Fd, Out(Arg(2), Return(1)), Value, Value, Measured(5, ADDRESS_MAX_BYTES), Length],
        ),
    ),
    (46, Row::waits("sendmsg", SaRestart, &[Fd, MsghdrIn, Value])),
    (47, Row::waits("recvmsg", SaRestart, &[Fd, MsghdrOut, Value])),
    (48, Row::forward("shutdown", &[Fd, Value])),
    (49, Row::forward("bind", &[Fd, In(Int(2)), Value])),
    (50, Row::forward("listen", &[Fd, Value])),
    (51, Row::forward("getsockname", &[Fd, Measured(2, ADDRESS_MAX_BYTES), Length])),
    (52, Row::forward("getpeername", &[Fd, Measured(2, ADDRESS_MAX_BYTES), Length])),
    (53, Row::forward("socketpair", &[Value, Value, Value, InOut(Bytes(8), Always)])),
    (54, Row::forward("setsockopt", &[Fd, Value, Value, In(Int(4)), Value])),
    (55, Row::forward("getsockopt", &[Fd, Value, Value, Measured(4, OPTION_MAX_BYTES), Length])),
    (29, Row::forward("shmget", &[Value, Value, Value])),
    (30, Row::both("shmat", Both::AtHome, &[Value, Value, Value])),
    (31, Row::forward("shmctl", &[Value, Value, Shmctl])),
    // What it has stored there goes with it.
    (67, Row::both("shmdt", Both::AtHome, &[Value])),
    (64, Row::forward("semget", &[Value, Value, Value])),
    (65, Row::waits("semop", Never, &[Value, In(Items(2, 6)), Value])),
    (66, Row::forward("semctl", &[Value, Value, Value, Semctl])),
    (68, Row::forward("msgget", &[Value, Value])),
    (69, Row::waits("msgsnd", NoHandler, &[Value, In(Plus(2, 8)), Value, Value])),
    (
        70,
        Row::waits(
            "msgrcv",
            NoHandler,
            &[Value, Out(Plus(2, 8), ReturnPlus(8)), Value, Value, Value],
        ),
    ),
    (71, Row::forward("msgctl", &[Value, Value, Msgctl])),
    (220, Row::waits("semtimedop", Never, &[Value, In(Items(2, 6)), Value, Timeout])),
    (240, Row::forward("mq_open", &[Path, Value, Value, In(Bytes(64))])),
    (241, Row::forward("mq_unlink", &[Path])),
    (242, Row::waits("mq_timedsend", SaRestart, &[Fd, In(Arg(2)), Value, Value, In(Bytes(16))])),
    (
        243,
        Row::waits(
            "mq_timedreceive",
            SaRestart,
            &[Fd, Out(Arg(2), Return(1)), Value, Out(Bytes(4), Success), In(Bytes(16))],
        ),
    ),
    (245, Row::forward("mq_getsetattr", &[Fd, In(Bytes(64)), Out(Bytes(64), Success)])),
    (288, Row::waits("accept4", SaRestart, &[Fd, Measured(2, ADDRESS_MAX_BYTES), Length, Value])),
    (299, Row::waits("recvmmsg", SaRestart, &[Fd, MmsghdrOut, Value, Value, TimeoutRest])),
    (307, Row::waits("sendmmsg", SaRestart, &[Fd, MmsghdrIn, Value, Value])),
];
