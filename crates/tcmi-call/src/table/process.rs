//! Identity, credentials, waiting for children, limits, the machine.

use super::Arg::*;
use super::Restart::{NoHandler, SaRestart};
use super::Size::*;
use super::When::{Changed, Interrupted, Positive, Return, Success};
use super::{Both, LocalIf, Row};

const RUSAGE: super::Arg = Out(Bytes(144), Positive);
const ID: super::Arg = Out(Bytes(4), Success);

pub(super) const ROWS: &[(usize, Row)] = &[
    // Home waits: the rest of a relative sleep survives a move.
    (35, Row::waits("nanosleep", NoHandler, &[Timeout, Out(Bytes(16), Interrupted)])),
    (56, Row::both("clone", Both::BeginThread, &[Value, Value, Value, Value, Value])),
    (57, Row::both("fork", Both::AtHome, &[])),
    (58, Row::both("vfork", Both::AtHome, &[])),
    (59, Row::both("execve", Both::AtHome, &[Value, Value, Value])),
    (60, Row::both("exit", Both::ExitThread, &[Value])),
    (61, Row::waits("wait4", SaRestart, &[Value, Out(Bytes(4), Positive), Value, RUSAGE])),
    (62, Row::forward("kill", &[Value, Value]).local_if(LocalIf::OwnPid)),
    (63, Row::asks("uname", &[Out(Bytes(390), Success)])),
    (97, Row::asks("getrlimit", &[Value, Out(Bytes(16), Success)])),
    (99, Row::asks("sysinfo", &[Out(Bytes(112), Success)])),
    (102, Row::asks("getuid", &[])),
    (103, Row::forward("syslog", &[Value, Out(Int(2), Return(1)), Value])),
    (104, Row::asks("getgid", &[])),
    (105, Row::forward("setuid", &[Value])),
    (106, Row::forward("setgid", &[Value])),
    (107, Row::asks("geteuid", &[])),
    (108, Row::asks("getegid", &[])),
    (109, Row::forward("setpgid", &[Value, Value])),
    (110, Row::asks("getppid", &[])),
    (111, Row::asks("getpgrp", &[])),
    (112, Row::forward("setsid", &[])),
    (113, Row::forward("setreuid", &[Value, Value])),
    (114, Row::forward("setregid", &[Value, Value])),
    (115, Row::asks("getgroups", &[Value, Out(Items(0, 4), Return(4))])),
    (116, Row::forward("setgroups", &[Value, In(Items(0, 4))])),
    (117, Row::forward("setresuid", &[Value, Value, Value])),
    (118, Row::asks("getresuid", &[ID, ID, ID])),
    (119, Row::forward("setresgid", &[Value, Value, Value])),
    (120, Row::asks("getresgid", &[ID, ID, ID])),
    (121, Row::asks("getpgid", &[Value])),
    (122, Row::forward("setfsuid", &[Value])),
    (123, Row::forward("setfsgid", &[Value])),
    (124, Row::asks("getsid", &[Value])),
    // Versions 2 and 3 have two data elements; an old version reads and writes only the first.
    (125, Row::forward("capget", &[InOut(Bytes(8), Changed), InOut(Bytes(24), Success)])),
    (126, Row::forward("capset", &[InOut(Bytes(8), Changed), In(Bytes(24))])),
    (
        129,
        Row::forward("rt_sigqueueinfo", &[Value, Value, In(Bytes(128))]).local_if(LocalIf::OwnPid),
    ),
    (140, Row::asks("getpriority", &[Value, Value])),
    (141, Row::forward("setpriority", &[Value, Value, Value])),
    (153, Row::forward("vhangup", &[])),
    (
        157,
        Row::both("prctl", Both::Prctl, &[Value, Prctl, Value, Value, Value])
            .local_if(LocalIf::ThreadOption),
    ),
    (159, Row::forward("adjtimex", &[InOut(Bytes(208), Success)])),
    (160, Row::forward("setrlimit", &[Value, In(Bytes(16))])),
    (163, Row::forward("acct", &[Path])),
    (164, Row::forward("settimeofday", &[In(Bytes(16)), In(Bytes(8))])),
    (170, Row::forward("sethostname", &[In(Int(1)), Value])),
    (171, Row::forward("setdomainname", &[In(Int(1)), Value])),
    (200, Row::forward("tkill", &[Value, Value]).local_if(LocalIf::MainThread)),
    // Continues the shadow thread's own restart block: a sleep begun before the move.
    (219, Row::waits("restart_syscall", NoHandler, &[])),
    (227, Row::forward("clock_settime", &[Value, In(Bytes(16))])),
    (
        230,
        Row::waits(
            "clock_nanosleep",
            NoHandler,
            &[Value, Value, Timeout, Out(Bytes(16), Interrupted)],
        )
        .local_if(LocalIf::AbsoluteTime),
    ),
    (231, Row::both("exit_group", Both::ExitGroup, &[Value])),
    (234, Row::forward("tgkill", &[Value, Value, Value]).local_if(LocalIf::OwnPid)),
    (
        247,
        Row::waits(
            "waitid",
            SaRestart,
            &[Value, Value, InOut(Bytes(128), Changed), Value, InOut(Bytes(144), Success)],
        ),
    ),
    (251, Row::forward("ioprio_set", &[Value, Value, Value])),
    (252, Row::forward("ioprio_get", &[Value, Value])),
    (
        297,
        Row::forward("rt_tgsigqueueinfo", &[Value, Value, Value, In(Bytes(128))])
            .local_if(LocalIf::OwnPid),
    ),
    (302, Row::forward("prlimit64", &[Value, Value, In(Bytes(16)), Out(Bytes(16), Success)])),
    (305, Row::forward("clock_adjtime", &[Value, InOut(Bytes(208), Success)])),
    (322, Row::both("execveat", Both::AtHome, &[Value, Value, Value, Value, Value])),
    (424, Row::forward("pidfd_send_signal", &[Fd, Value, In(Bytes(128)), Value])),
    (434, Row::forward("pidfd_open", &[Value, Value])),
    (435, Row::both("clone3", Both::BeginThread, &[Value, Value])),
    // Of itself, too: our own are nobody's.
    (438, Row::forward("pidfd_getfd", &[Fd, Fd, Value])),
];
