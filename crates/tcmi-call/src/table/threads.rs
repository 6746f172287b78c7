//! Threads, time, signals to oneself: the guest's kernel knows them as well as home does.

use super::Arg::{Out, Value};
use super::Size::Bytes;
use super::When::Success;
use super::{Both, LocalIf, Row};

pub(super) const ROWS: &[(usize, Row)] = &[
    (
        13,
        Row::both("rt_sigaction", Both::Disposition, &[Value, Value, Value, Value])
            .local_if(LocalIf::Query),
    ),
    (14, Row::local("rt_sigprocmask")),
    (15, Row::local("rt_sigreturn")),
    (24, Row::local("sched_yield")),
    (34, Row::local("pause")),
    (36, Row::local("getitimer")),
    (37, Row::local("alarm")),
    (38, Row::local("setitimer")),
    // The guest has its home pid and tids in a namespace of its own.
    (39, Row::local("getpid")),
    (96, Row::local("gettimeofday")),
    (98, Row::both("getrusage", Both::Usage, &[Value, Out(Bytes(144), Success)])),
    (100, Row::both("times", Both::Usage, &[Out(Bytes(32), Success)])),
    (127, Row::local("rt_sigpending")),
    (128, Row::local("rt_sigtimedwait")),
    (130, Row::local("rt_sigsuspend")),
    (131, Row::local("sigaltstack")),
    (135, Row::local("personality")),
    (142, Row::local("sched_setparam")),
    (143, Row::local("sched_getparam")),
    (144, Row::local("sched_setscheduler")),
    (145, Row::local("sched_getscheduler")),
    (146, Row::local("sched_get_priority_max")),
    (147, Row::local("sched_get_priority_min")),
    (148, Row::local("sched_rr_get_interval")),
    (158, Row::local("arch_prctl")),
    (186, Row::local("gettid")),
    (201, Row::local("time")),
    (202, Row::local("futex")),
    (203, Row::local("sched_setaffinity")),
    (204, Row::local("sched_getaffinity")),
    (218, Row::local("set_tid_address")),
    (222, Row::local("timer_create")),
    (223, Row::local("timer_settime")),
    (224, Row::local("timer_gettime")),
    (225, Row::local("timer_getoverrun")),
    (226, Row::local("timer_delete")),
    (
        228,
        Row::both("clock_gettime", Both::Usage, &[Value, Out(Bytes(16), Success)])
            .local_if(LocalIf::NoUsage),
    ),
    (229, Row::local("clock_getres")),
    (273, Row::local("set_robust_list")),
    (274, Row::local("get_robust_list")),
    (309, Row::local("getcpu")),
    (314, Row::local("sched_setattr")),
    (315, Row::local("sched_getattr")),
    (318, Row::local("getrandom")),
    (324, Row::local("membarrier")),
    (334, Row::local("rseq")),
    (449, Row::local("futex_waitv")),
    (454, Row::local("futex_wake")),
    (455, Row::local("futex_wait")),
    (456, Row::local("futex_requeue")),
];
