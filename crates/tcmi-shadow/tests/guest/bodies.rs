//! What runs natively and as a guest. Each call logs its result and the memory it wrote.

use crate::rig::{Body, board, sys};

pub const ALL: &[(&str, Body)] = &[
    ("files", files),
    ("directories", directories),
    ("errors", errors),
    ("vectors", vectors),
    ("descriptors", descriptors),
    ("sockets", sockets),
    ("messages", messages),
    ("waiting", waiting),
    ("identity", identity),
    ("mapping", mapping),
    ("controls", controls),
    ("extended", extended),
    ("large", large),
];

const BAD: u64 = 0x10;
const AT_FDCWD: u64 = -100i64 as u64;

/// One entry of a log: label, result, memory.
fn note(label: &str, ret: i64, memory: &[u8]) {
    let mut entry = Vec::new();
    entry.extend((label.len() as u32).to_le_bytes());
    entry.extend((memory.len() as u32).to_le_bytes());
    entry.extend(ret.to_le_bytes());
    entry.extend(label.as_bytes());
    entry.extend(memory);
    board().log(&entry);
}

fn entries(log: &[u8]) -> Vec<(String, i64, &[u8])> {
    let mut rest = log;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let n = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("4")) as usize;
        let (label, memory) = (n(0), n(4));
        let ret = i64::from_le_bytes(rest[8..16].try_into().expect("8"));
        let text = String::from_utf8_lossy(&rest[16..16 + label]).into_owned();
        all.push((text, ret, &rest[16 + label..16 + label + memory]));
        rest = &rest[16 + label + memory..];
    }
    all
}

pub fn compare(name: &str, native: &[u8], guest: &[u8]) {
    let (native, guest) = (entries(native), entries(guest));
    for (at, (n, g)) in native.iter().zip(&guest).enumerate() {
        assert_eq!((&n.0, n.1), (&g.0, g.1), "{name}: result of entry {at}");
        assert!(n.2 == g.2, "{name}, {}: memory\n{:?}\n{:?}", n.0, n.2, g.2);
    }
    assert_eq!(native.len(), guest.len(), "{name}: calls");
}

fn nr(name: &str) -> i64 {
    i64::from(tcmi_call::table::number(name).expect("a system call's name"))
}

/// Makes a call and logs its result.
fn call(name: &str, args: &[u64]) -> i64 {
    let ret = sys(nr(name), args);
    note(name, ret, &[]);
    ret
}

/// Makes a call and logs its result and `memory` after it.
fn fills<const N: usize>(name: &str, memory: &mut [u8; N], args: impl Fn(u64) -> Vec<u64>) -> i64 {
    let args = args(memory.as_mut_ptr() as u64);
    let ret = sys(nr(name), &args);
    note(name, ret, memory);
    ret
}

/// The same where memory differs from run to run: only the result.
fn quiet<const N: usize>(name: &str, memory: &mut [u8; N], args: impl Fn(u64) -> Vec<u64>) -> i64 {
    call(name, &args(memory.as_mut_ptr() as u64))
}

fn p(s: &core::ffi::CStr) -> u64 {
    s.as_ptr() as u64
}

/// The kernel may write through it, which the compiler cannot see.
fn at<T: ?Sized>(value: &T) -> u64 {
    std::hint::black_box(std::ptr::from_ref(value)).cast::<u8>() as u64
}

fn create(path: &core::ffi::CStr) -> u64 {
    call("openat", &[AT_FDCWD, p(path), (libc::O_RDWR | libc::O_CREAT) as u64, 0o644]) as u64
}

fn files(_: usize) {
    call("umask", &[0o27]);
    let fd = create(c"file");
    call("write", &[fd, at(b"hello, world"), 12]);
    call("pwrite64", &[fd, at(b"HELLO"), 5, 2]);
    call("lseek", &[fd, 3, 0]);
    fills("read", &mut [9; 32], |b| vec![fd, b, 32]);
    fills("read", &mut [9; 32], |b| vec![fd, b, 32]);
    fills("pread64", &mut [9; 8], |b| vec![fd, b, 4, 1]);
    quiet("fstat", &mut [0; 144], |b| vec![fd, b]);
    quiet("stat", &mut [0; 144], |b| vec![p(c"file"), b]);
    quiet("lstat", &mut [0; 144], |b| vec![p(c"file"), b]);
    quiet("newfstatat", &mut [0; 144], |b| vec![AT_FDCWD, p(c"file"), b, 0]);
    quiet("statx", &mut [0; 256], |b| vec![AT_FDCWD, p(c"file"), 0, 0x7ff, b]);
    let stat = [0u8; 144];
    sys(libc::SYS_fstat, &[fd, at(&stat)]);
    note("mode and size", 0, &[&stat[24..28], &stat[48..56]].concat());
    call("ftruncate", &[fd, 4]);
    call("truncate", &[p(c"file"), 6]);
    call("fallocate", &[fd, 0, 0, 100]);
    call("fsync", &[fd]);
    call("fdatasync", &[fd]);
    call("fchmod", &[fd, 0o600]);
    call("chmod", &[p(c"file"), 0o640]);
    call("fchmodat", &[AT_FDCWD, p(c"file"), 0o644]);
    call("access", &[p(c"file"), 4]);
    call("faccessat", &[AT_FDCWD, p(c"none"), 4]);
    call("faccessat2", &[AT_FDCWD, p(c"file"), 4, 0]);
    call("utimensat", &[AT_FDCWD, p(c"file"), at(&[1u64, 2, 3, 4]), 0]);
    call("utimensat", &[AT_FDCWD, p(c"file"), 0, 0]);
    call("utime", &[p(c"file"), at(&[5u64, 6])]);
    call("utimes", &[p(c"file"), at(&[5u64, 6, 7, 8])]);
    call("fadvise64", &[fd, 0, 0, 0]);
    call("readahead", &[fd, 0, 10]);
    quiet("statfs", &mut [0; 120], |b| vec![p(c"."), b]);
    quiet("fstatfs", &mut [0; 120], |b| vec![fd, b]);
    let other = create(c"other");
    let offset = [0u64];
    call("copy_file_range", &[fd, at(&offset), other, 0, 5, 0]);
    note("offset", offset[0] as i64, &[]);
    let offset = [1u64];
    call("sendfile", &[other, fd, at(&offset), 3]);
    note("offset", offset[0] as i64, &[]);
    call("close", &[other]);
    call("close", &[fd]);
}

fn directories(_: usize) {
    call("mkdir", &[p(c"d"), 0o755]);
    call("mkdirat", &[AT_FDCWD, p(c"d/e"), 0o755]);
    call("symlink", &[p(c"target"), p(c"link")]);
    call("symlinkat", &[p(c"target2"), AT_FDCWD, p(c"link2")]);
    fills("readlink", &mut [1; 16], |b| vec![p(c"link"), b, 16]);
    fills("readlink", &mut [1; 16], |b| vec![p(c"link"), b, 3]);
    fills("readlinkat", &mut [1; 16], |b| vec![AT_FDCWD, p(c"link2"), b, 16]);
    call("readlink", &[p(c"link"), BAD, -1i64 as u64]);
    create(c"f");
    call("link", &[p(c"f"), p(c"g")]);
    call("linkat", &[AT_FDCWD, p(c"f"), AT_FDCWD, p(c"h"), 0]);
    call("rename", &[p(c"g"), p(c"i")]);
    call("renameat", &[AT_FDCWD, p(c"i"), AT_FDCWD, p(c"j")]);
    call("renameat2", &[AT_FDCWD, p(c"j"), AT_FDCWD, p(c"f"), 1]);
    call("unlink", &[p(c"h")]);
    call("unlinkat", &[AT_FDCWD, p(c"d/e"), libc::AT_REMOVEDIR as u64]);
    call("mknod", &[p(c"fifo"), 0o10644, 0]);
    call("mknodat", &[AT_FDCWD, p(c"fifo2"), 0o10644, 0]);
    let d = call("open", &[p(c"d"), libc::O_DIRECTORY as u64]) as u64;
    quiet("getdents64", &mut [0; 512], |b| vec![d, b, 512]);
    quiet("getdents64", &mut [0; 512], |b| vec![d, b, 4]);
    call("fchdir", &[d]);
    call("chdir", &[p(c"..")]);
    call("chdir", &[p(c"nowhere")]);
    quiet("getcwd", &mut [0; 512], |b| vec![b, 2]);
    let cwd = [0u8; 512];
    let n = sys(libc::SYS_getcwd, &[at(&cwd), 512]);
    note("getcwd is a path", i64::from(n > 1 && cwd[0] == b'/' && cwd[n as usize - 1] == 0), &[]);
    call("rmdir", &[p(c"d")]);
    call("rmdir", &[p(c"d")]);
    let ino = call("inotify_init1", &[0]) as u64;
    call("inotify_add_watch", &[ino, p(c"."), 0x100]);
    create(c"seen");
    fills("read", &mut [0; 64], |b| vec![ino, b, 64]);
    call("inotify_rm_watch", &[ino, 1]);
}

fn errors(_: usize) {
    let fd = create(c"file");
    let none = 99u64;
    for bad in [0, BAD, 0x7000_0000_0000, 1 << 63] {
        call("write", &[none, bad, 1]);
        call("write", &[fd, bad, 1]);
        call("read", &[none, bad, 1]);
        call("open", &[bad, 0]);
        call("openat", &[none, bad, 0]);
        call("stat", &[p(c"file"), bad]);
        call("stat", &[p(c"none"), bad]);
        call("getcwd", &[bad, 100]);
        call("pipe", &[bad]);
        call("uname", &[bad]);
        call("getgroups", &[100, bad]);
        call("writev", &[fd, bad, 1]);
        call("readv", &[none, bad, 1]);
        call("sendmsg", &[none, bad, 0]);
        call("poll", &[bad, 1, 0]);
        call("nanosleep", &[bad, 0]);
        call("rename", &[p(c"file"), bad]);
        call("wait4", &[-1i64 as u64, bad, 0, 0]);
        call("setsockopt", &[fd, 1, 2, bad, 4]);
        call("getsockopt", &[fd, 1, 2, bad, bad]);
        call("epoll_ctl", &[fd, 1, fd, bad]);
        call("prlimit64", &[0, 7, 0, bad]);
    }
    for count in [0, 1 << 62, u64::MAX, 1 << 47] {
        call("read", &[none, BAD, count]);
        call("write", &[fd, at(b"x"), count]);
        call("writev", &[fd, at(&[0u64; 2]), count]);
    }
    call("write", &[fd, 0, 0]);
    call("read", &[fd, 0, 0]);
    let long = [b'a'; 5000];
    call("open", &[at(&long), 0]);
    call("open", &[p(c""), 0]);
    call("close", &[none]);
    call("dup2", &[none, 5]);
    call("ioctl", &[fd, 0x5413, at(&[0u64; 1])]);
    call("fcntl", &[fd, 999, 0]);
    call("lseek", &[fd, -1i64 as u64, 0]);
    call("ppoll", &[0, 0, at(&[0u64, 0]), at(&[0u64]), 4]);
    call("nanosleep", &[at(&[0u64, 2_000_000_000]), 0]);
    call("nanosleep", &[at(&[-1i64, 0]), 0]);
    call("poll", &[at(&[0u64]), u64::MAX, 0]);
    call("select", &[-1i64 as u64, 0, 0, 0, 0]);
    call("epoll_wait", &[fd, at(&[0u64; 4]), 0, 0]);
    call("bind", &[fd, at(&[0u64; 4]), -1i64 as u64]);
    call("setgroups", &[-1i64 as u64, 0]);
    call("prctl", &[12345, 0, 0, 0, 0]);
    edge();
}

/// A buffer whose second page is missing.
fn edge() {
    let (rw, private) = (3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64);
    let page = sys(libc::SYS_mmap, &[0, 8192, rw, private, -1i64 as u64, 0]) as u64;
    sys(libc::SYS_munmap, &[page + 4096, 4096]);
    let pipe = [0u32; 2];
    call("pipe2", &[at(&pipe), 0]);
    let (r, w) = (u64::from(pipe[0]), u64::from(pipe[1]));
    call("fcntl", &[w, libc::F_SETPIPE_SZ as u64, 65536]);
    let fd = create(c"edge");
    call("write", &[fd, page + 4000, 200]);
    call("pread64", &[fd, page, 4096, 0]);
    call("pread64", &[fd, page + 4090, 90, 0]);
    call("write", &[w, at(b"0123456789"), 10]);
    call("read", &[r, page + 4090, 6]);
    call("open", &[page + 4095, 0]);
    call("uname", &[page + 4000]);
}

fn iov(parts: &[(u64, u64)]) -> Vec<u64> {
    parts.iter().flat_map(|&(a, n)| [a, n]).collect()
}

fn vectors(_: usize) {
    let fd = create(c"v");
    let out = iov(&[(at(b"hello "), 6), (0, 0), (at(b"world"), 5)]);
    call("writev", &[fd, at(&out[..]), 3]);
    call("pwritev", &[fd, at(&out[..]), 3, 20, 0]);
    call("pwritev2", &[fd, at(&out[..]), 3, 40, 0, 0]);
    let (a, b) = ([0u8; 4], [0u8; 20]);
    let into = iov(&[(at(&a), 4), (at(&b), 20)]);
    for (name, offset) in [("preadv", 0), ("preadv", 38), ("preadv2", 20), ("preadv", 1000)] {
        call(name, &[fd, at(&into[..]), 2, offset, 0, 0]);
        note("into", 0, &[&a[..], &b[..]].concat());
    }
    call("lseek", &[fd, 0, 0]);
    call("readv", &[fd, at(&into[..]), 2]);
    call("readv", &[fd, at(&into[..]), 0]);
    call("readv", &[fd, at(&into[..]), 1025]);
    let broken = iov(&[(at(b"ok"), 2), (BAD, 2)]);
    call("writev", &[fd, at(&broken[..]), 2]);
    call("writev", &[fd, at(&broken[2..]), 1]);
    let negative = iov(&[(at(&a), u64::MAX)]);
    call("writev", &[fd, at(&negative[..]), 1]);
}

fn descriptors(_: usize) {
    let pipe = [0u32; 2];
    call("pipe2", &[at(&pipe), libc::O_NONBLOCK as u64]);
    note("pipe", i64::from(pipe[1] > pipe[0]), &[]);
    let (r, w) = (u64::from(pipe[0]), u64::from(pipe[1]));
    call("read", &[r, at(&[0u8; 8]), 8]);
    call("write", &[w, at(b"abcdef"), 6]);
    call("fcntl", &[r, libc::F_GETFL as u64, 0]);
    call("fcntl", &[r, libc::F_SETFD as u64, 1]);
    call("fcntl", &[r, libc::F_GETFD as u64, 0]);
    call("dup3", &[r, 50, 0]);
    call("dup2", &[r, 51]);
    call("fcntl", &[r, libc::F_DUPFD as u64, 60]);
    fills("ioctl", &mut [7; 8], |b| vec![r, 0x541b, b]);
    call("ioctl", &[r, 0x5421, at(&[1u32])]);
    fills("read", &mut [0; 8], |b| vec![50, b, 3]);
    let second = [0u32; 2];
    call("pipe", &[at(&second)]);
    call("tee", &[r, u64::from(second[1]), 10, 0]);
    call("splice", &[r, 0, u64::from(second[1]), 0, 10, 0]);
    fills("read", &mut [0; 8], |b| vec![u64::from(second[0]), b, 8]);
    call("close_range", &[50, 70, 0]);
    call("close", &[51]);
    let e = call("eventfd2", &[3, 0]) as u64;
    fills("read", &mut [0; 8], |b| vec![e, b, 8]);
    call("write", &[e, at(&[1u64]), 8]);
    let ep = call("epoll_create1", &[0]) as u64;
    call("epoll_ctl", &[ep, 1, e, at(&[1u32, 0xabcd, 0x1234])]);
    fills("epoll_wait", &mut [0; 48], |b| vec![ep, b, 4, 1000]);
    fills("epoll_pwait", &mut [0; 48], |b| vec![ep, b, 4, 1000, 0, 8]);
    fills("epoll_pwait2", &mut [0; 48], |b| vec![ep, b, 4, at(&[1u64, 0]), 0, 8]);
    let t = call("timerfd_create", &[1, 0]) as u64;
    fills("timerfd_settime", &mut [1; 32], |b| vec![t, 0, at(&[0u64, 0, 0, 1000]), b]);
    fills("read", &mut [0; 8], |b| vec![t, b, 8]);
    quiet("timerfd_gettime", &mut [0; 32], |b| vec![t, b]);
    let m = call("memfd_create", &[p(c"m"), libc::MFD_ALLOW_SEALING as u64]) as u64;
    call("fcntl", &[m, libc::F_ADD_SEALS as u64, 2]);
    call("fcntl", &[m, libc::F_GET_SEALS as u64, 0]);
    let f = create(c"lock");
    call("flock", &[f, libc::LOCK_EX as u64]);
    let lock = [0u8; 32];
    call("fcntl", &[f, libc::F_SETLK as u64, at(&lock)]);
    fills("fcntl", &mut [0; 32], |b| vec![f, libc::F_GETLK as u64, b]);
}

fn sockets(_: usize) {
    let pair = [0u32; 2];
    call("socketpair", &[1, 1, 0, at(&pair)]);
    let (a, b) = (u64::from(pair[0]), u64::from(pair[1]));
    call("sendto", &[a, at(b"datagram"), 8, 0, 0, 0]);
    fills("recvfrom", &mut [0; 16], |m| vec![b, m, 16, 0, 0, 0]);
    call("recvfrom", &[b, BAD, 1, libc::MSG_DONTWAIT as u64, 0, 0]);
    let s = call("socket", &[2, 1, 0]) as u64;
    call("setsockopt", &[s, 1, 2, at(&[1u32]), 4]);
    let len = [4u32];
    fills("getsockopt", &mut [9; 8], |m| vec![s, 1, 3, m, at(&len)]);
    note("length", i64::from(len[0]), &[]);
    call("getsockopt", &[s, 1, 3, at(&[0u64]), at(&[-1i32])]);
    let address: [u8; 16] = [2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    call("bind", &[s, at(&address), 16]);
    call("listen", &[s, 5]);
    let (own, len) = ([0u8; 32], [32u32]);
    call("getsockname", &[s, at(&own), at(&len)]);
    note("length", i64::from(len[0]), &own[..2]);
    let short = [2u32];
    fills("getsockname", &mut [9; 8], |m| vec![s, m, at(&short)]);
    note("length", i64::from(short[0]), &[]);
    let c = call("socket", &[2, 1, 0]) as u64;
    call("connect", &[c, at(&own), 16]);
    let (peer, len) = ([0u8; 32], [32u32]);
    let n = call("accept4", &[s, at(&peer), at(&len), 0]) as u64;
    note("length", i64::from(len[0]), &peer[..2]);
    call("accept", &[99, 0, 0]);
    call("write", &[c, at(b"stream"), 6]);
    fills("read", &mut [0; 8], |m| vec![n, m, 8]);
    quiet("getpeername", &mut [0; 32], |m| vec![n, m, at(&[32u32])]);
    call("shutdown", &[n, 1]);
    call("read", &[c, at(&[0u8; 4]), 4]);
    call("getpeername", &[s, at(&[0u64; 4]), at(&[32u32])]);
}

fn header(name: u64, name_len: u64, iov: &[u64], control: u64, control_len: u64) -> [u64; 8] {
    [name, name_len, at(iov), iov.len() as u64 / 2, control, control_len, 0, 0]
}

fn messages(_: usize) {
    let pair = [0u32; 2];
    call("socketpair", &[1, 2, 0, at(&pair)]);
    let (a, b) = (u64::from(pair[0]), u64::from(pair[1]));
    let out = iov(&[(at(b"first "), 6), (at(b"second"), 6)]);
    // SCM_RIGHTS with one descriptor.
    let control = [20u64, 1 | 1 << 32, a];
    call("sendmsg", &[a, at(&header(0, 0, &out, at(&control), 20)), 0]);
    call("sendmsg", &[a, at(&header(0, 0, &out, BAD, 20)), 0]);
    call("sendmsg", &[a, at(&header(0, 0, &iov(&[(BAD, 4)]), 0, 0)), 0]);
    let (data, more) = ([0u8; 8], [0u8; 8]);
    let into = iov(&[(at(&data), 8), (at(&more), 8)]);
    let room = [0u64; 8];
    let received = header(0, 0, &into, at(&room), 64);
    call("recvmsg", &[b, at(&received), 0]);
    note("data", 0, &[&data[..], &more[..]].concat());
    note("control", received[5] as i64, &room[0].to_le_bytes());
    note("flags", received[6] as u32 as i64, &[]);
    note("pointers kept", i64::from(received[2] == at(&into[..]) && received[4] == at(&room)), &[]);
    call("fcntl", &[room[2] & 0xffff_ffff, libc::F_GETFD as u64, 0]);
    let mm = header(0, 0, &out, 0, 0);
    call("sendmmsg", &[a, at(&mm), 1, 0]);
    note("sent", mm[7] as i64, &[]);
    let mm = header(0, 0, &into, 0, 0);
    call("recvmmsg", &[b, at(&mm), 1, 0, 0]);
    note("received", mm[7] as i64, &[&data[..], &more[..]].concat());
    call("recvmsg", &[b, at(&received), libc::MSG_DONTWAIT as u64]);
    let many = [100u64, 1, 0, 5000, 0, 0, 0, 0];
    call("recvmsg", &[b, at(&many), 0]);
    let q = sys(nr("msgget"), &[0, 0o1600]) as u64;
    call("msgsnd", &[q, at(&[5u64, 0x6463_6261]), 4, 0]);
    fills("msgrcv", &mut [9; 32], |m| vec![q, m, 24, 0, 0]);
    call("msgctl", &[q, 0, 0]);
    let sem = sys(nr("semget"), &[0, 2, 0o1600]) as u64;
    call("semctl", &[sem, 1, 16, 3]);
    call("semop", &[sem, at(&[0xffff_0001_u32, 0]), 1]);
    call("semctl", &[sem, 1, 12, 0]);
    call("semtimedop", &[sem, at(&[0xfff0_0001_u32, 0]), 1, at(&[0u64, 1000])]);
    call("semctl", &[sem, 0, 0, 0]);
}

fn waiting(_: usize) {
    let pipe = [0u32; 2];
    sys(libc::SYS_pipe2, &[at(&pipe), 0]);
    let (r, w) = (u64::from(pipe[0]), u64::from(pipe[1]));
    let fds = [pipe[0], 1, pipe[1], 4];
    call("poll", &[at(&fds), 2, 0]);
    note("pollfd", 0, &(u64::from(fds[1]) << 32 | u64::from(fds[3])).to_le_bytes());
    call("poll", &[at(&fds), 1, 5]);
    let rest = [0u64, 5_000_000];
    call("ppoll", &[at(&fds), 1, at(&rest), 0, 8]);
    note("rest", (rest[0] + rest[1]) as i64, &[]);
    call("ppoll", &[at(&fds), 1, at(&[0u64, 1000]), at(&[0u64]), 8]);
    sys(libc::SYS_write, &[w, at(b"x"), 1]);
    let mut set = [0u64; 16];
    set[r as usize / 64] |= 1 << (r % 64);
    call("select", &[r + 1, at(&set), 0, 0, at(&[1u64, 0])]);
    note("set", i64::from(set[r as usize / 64] >> (r % 64) & 1 == 1), &[]);
    let empty = [0u64; 16];
    call("pselect6", &[64, at(&empty), 0, at(&empty), at(&[0u64, 1000]), 0]);
    call("pselect6", &[0, 0, 0, 0, at(&[0u64, 1000]), at(&[at(&[0u64]), 8])]);
    let rest = [7u64, 7];
    call("nanosleep", &[at(&[0u64, 1000]), at(&rest)]);
    note("rest untouched", (rest[0] + rest[1]) as i64, &[]);
    call("clock_nanosleep", &[1, 0, at(&[0u64, 1000]), at(&rest)]);
    call("clock_nanosleep", &[1, 1, at(&[0u64, 1000]), 0]);
    fills("wait4", &mut [9; 4], |b| vec![-1i64 as u64, b, 1, 0]);
    fills("waitid", &mut [9; 128], |b| vec![0, 0, b, 4, 0]);
}

fn identity(_: usize) {
    for name in ["getuid", "geteuid", "getgid", "getegid", "getpgrp", "getppid"] {
        call(name, &[]);
    }
    let ids = [9u32; 3];
    call("getresuid", &[at(&ids), at(&ids[1..]), at(&ids[2..])]);
    call("getresgid", &[at(&ids), at(&ids[1..]), at(&ids[2..])]);
    note("ids", 0, &[ids[0].to_le_bytes(), ids[1].to_le_bytes(), ids[2].to_le_bytes()].concat());
    call("getpgid", &[0]);
    call("getsid", &[0]);
    call("getpriority", &[0, 0]);
    fills("getgroups", &mut [9; 256], |b| vec![64, b]);
    call("getgroups", &[0, 0]);
    fills("uname", &mut [9; 400], |b| vec![b]);
    quiet("sysinfo", &mut [0; 112], |b| vec![b]);
    fills("getrlimit", &mut [9; 16], |b| vec![7, b]);
    fills("prlimit64", &mut [9; 16], |b| vec![0, 7, 0, b]);
    call("setrlimit", &[4, at(&[0u64, 0])]);
    fills("prlimit64", &mut [9; 16], |b| vec![0, 4, 0, b]);
    let caps = [0x2008_0522u32, 0];
    fills("capget", &mut [9; 24], |b| vec![at(&caps), b]);
    let old = [0u32, 0];
    call("capget", &[at(&old), 0]);
    note("version", i64::from(old[0]), &[]);
    call("setpgid", &[0, 0]);
    call("ioprio_get", &[1, 0]);
    call("prctl", &[38, 1, 0, 0, 0]);
    call("prctl", &[3, 0, 0, 0, 0]);
    fills("prctl", &mut [9; 4], |b| vec![2, b, 0, 0, 0]);
    call("prctl", &[15, p(c"renamed"), 0, 0, 0]);
    fills("prctl", &mut [0; 16], |b| vec![16, b, 0, 0, 0]);
    call("kill", &[1 << 22, 0]);
    call("tgkill", &[1 << 22, 1 << 22, 0]);
    call("pidfd_open", &[1 << 22, 0]);
    call("settimeofday", &[BAD, 0]);
    call("syslog", &[2, 0, -1i64 as u64]);
    fills("clock_adjtime", &mut [0; 208], |_| vec![99, BAD]);
}

fn mapping(_: usize) {
    let fd = create(c"mapped");
    let content: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    call("write", &[fd, at(&content[..]), 10_000]);
    let map = |prot: u64, flags: i32, offset: u64, len: u64| {
        let at = sys(libc::SYS_mmap, &[0, len, prot, flags as u64, fd, offset]);
        note("mmap", if at < 0 { at } else { 0 }, &[]);
        at
    };
    let whole = map(1, libc::MAP_PRIVATE, 0, 10_000);
    // SAFETY: just mapped, three pages readable up to the file's last page.
    note("bytes", 0, unsafe { std::slice::from_raw_parts(whole as *const u8, 12_288) });
    let second = map(3, libc::MAP_PRIVATE, 4096, 4096);
    // SAFETY: just mapped writable.
    unsafe { *(second as *mut u8) = 77 };
    // SAFETY: as above.
    note("written", 0, unsafe { std::slice::from_raw_parts(second as *const u8, 64) });
    fills("pread64", &mut [0; 64], |b| vec![fd, b, 64, 4096]);
    call("munmap", &[whole as u64, 10_000]);
    call("mmap", &[0, 0, 1, libc::MAP_PRIVATE as u64, fd, 0]);
    call("mmap", &[0, 4096, 1, libc::MAP_PRIVATE as u64, fd, 1]);
    call("mmap", &[0, 4096, 1, libc::MAP_PRIVATE as u64, 99, 0]);
    let pipe = [0u32; 2];
    call("pipe", &[at(&pipe)]);
    let d = call("open", &[p(c"."), libc::O_DIRECTORY as u64]) as u64;
    call("mmap", &[0, 4096, 1, libc::MAP_PRIVATE as u64, d, 0]);
    let w = call("open", &[p(c"mapped"), libc::O_WRONLY as u64]) as u64;
    call("mmap", &[0, 4096, 1, libc::MAP_PRIVATE as u64, w, 0]);
}

fn controls(_: usize) {
    let m = call("open", &[p(c"/dev/ptmx"), (libc::O_RDWR | libc::O_NOCTTY) as u64]) as u64;
    call("ioctl", &[m, 0x4004_5431, at(&[0u32])]);
    fills("ioctl", &mut [9; 36], |b| vec![m, 0x5401, b]);
    call("ioctl", &[m, 0x5414, at(&[40u16, 100, 0, 0])]);
    fills("ioctl", &mut [9; 8], |b| vec![m, 0x5413, b]);
    fills("ioctl", &mut [9; 8], |b| vec![m, 0x541b, b]);
    call("ioctl", &[m, 0x5413, BAD]);
    call("ioctl", &[99, 0x5401, BAD]);
    let f = create(c"f");
    call("ioctl", &[f, 0x5401, at(&[0u64; 8])]);
    call("ioctl", &[f, 0x5451, 0]);
    call("fcntl", &[f, libc::F_GETFD as u64, 0]);
    quiet("ioctl", &mut [0; 8], |b| vec![f, 0x8008_6601, b]);
    let z = call("open", &[p(c"/dev/zero"), 0]) as u64;
    fills("read", &mut [9; 16], |b| vec![z, b, 16]);
    let null = call("open", &[p(c"/dev/null"), 1]) as u64;
    call("write", &[null, at(b"gone"), 4]);
}

fn extended(_: usize) {
    let f = create(c"x");
    let name = p(c"user.note");
    call("setxattr", &[p(c"x"), name, at(b"value"), 5, 0]);
    call("fsetxattr", &[f, p(c"user.more"), at(b"v2"), 2, 0]);
    fills("getxattr", &mut [9; 16], |b| vec![p(c"x"), name, b, 16]);
    fills("fgetxattr", &mut [9; 16], |b| vec![f, name, b, 2]);
    call("lgetxattr", &[p(c"x"), name, 0, 0]);
    quiet("listxattr", &mut [0; 64], |b| vec![p(c"x"), b, 64]);
    call("flistxattr", &[f, 0, 0]);
    call("removexattr", &[p(c"x"), name]);
    call("fremovexattr", &[f, name]);
    call("openat2", &[AT_FDCWD, p(c"x"), at(&[0u64; 3]), 24]);
    call("openat2", &[AT_FDCWD, p(c"x"), at(&[0u64; 3]), 2]);
    quiet("cachestat", &mut [0; 32], |b| vec![f, at(&[0u64, 0]), b, 0]);
    call("sync_file_range", &[f, 0, 0, 0]);
    call("syncfs", &[f]);
    call("chown", &[p(c"x"), -1i64 as u64, -1i64 as u64]);
    call("fchownat", &[AT_FDCWD, p(c"none"), 0, 0, 0]);
}

fn large(_: usize) {
    let f = create(c"large");
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 255) as u8).collect();
    call("write", &[f, at(&data[..]), 3_000_000]);
    let back = vec![0u8; 3_000_000];
    call("pread64", &[f, at(&back[..]), 3_000_000, 0]);
    note("equal", i64::from(data == back), &[]);
    call("pread64", &[f, at(&back[..]), 3_000_000, 2_999_000]);
}
