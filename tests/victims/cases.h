/*
 * One good call for each forwarded number, sometimes several. differ.c makes it as it stands and
 * then with one argument after the other replaced by each value of `odd`, but for the arguments
 * in `keep`: those would wait for ever, or cut the victim off from its test.
 */
#ifndef CASES_H
#define CASES_H

#include "stage.h"
#include <linux/capability.h>
#include <linux/openat2.h>
#include <poll.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>

/* Newer than the headers of some systems. */
#define NR_clone3 435
#define NR_cachestat 451
#define NR_fchmodat2 452
#define NR_file_getattr 468
#define NR_file_setattr 469

struct fill {
	uint64_t at;
	const void *bytes;
	size_t size;
};

enum {
	/* Not as root: it would reach beyond the victim. */
	USER = 1,
	/* Uses up what the world holds. */
	REFILL = 2,
	/* A number that differs from run to run. */
	VARIES = 4,
};

struct call {
	const char *name;
	long number;
	uint64_t args[6];
	int count;
	unsigned flags;
	unsigned keep;
	struct fill fills[4];
};

#define KEEP(i) (1U << (i))
#define ALL 0x3fU
#define NAMED(called, by, ...) .name = #called, .number = by, .args = { __VA_ARGS__ }, .count = sizeof((uint64_t[]){ __VA_ARGS__ }) / 8
#define CALL(name, ...) NAMED(name, SYS_##name, __VA_ARGS__)
#define NEW(name, ...) NAMED(name, NR_##name, __VA_ARGS__)
#define TEXT(at, text) { at, text, sizeof text }
#define DATA(at, type, ...) { at, &(const type)__VA_ARGS__, sizeof(type) }
#define HERE ((uint64_t)AT_FDCWD)
#define MINUS_1 (~0UL)

#define PARTS(at, first, second) DATA(at, struct iovec[3], { { (void *)(first), 30 }, { 0, 0 }, { (void *)(second), 40 } })
#define LIMITS(at, low, high) DATA(at, struct rlimit, { low, high })
#define MOMENT(at, s, ns) DATA(at, struct timespec, { s, ns })
#define MOMENTS(at) DATA(at, struct timespec[2], { { 1000, 5 }, { 2000, 6 } })
#define MESSAGE(at, name, name_len, parts, count, control, control_len) \
	DATA(at, struct msghdr, { (void *)(name), name_len, (void *)(parts), count, (void *)(control), control_len, 0 })
#define NAME_OF_SOCKET(at) DATA(at, struct sockaddr_un, { AF_UNIX, "socket" })
#define STRINGS(at, string) DATA(at, uint64_t[3], { string, string, 0 })
/* Each a page and more: beyond what the kernel takes, whatever the limit of the stack is. */
#define TOO_MANY_STRINGS(at, string) DATA(at, uint64_t[1024], { [0 ... 1022] = string }), DATA(END(string) - 1, char, { 0 })
#define LENGTH(at, n) DATA(at, uint32_t, { n })
#define OFFSET(at, n) DATA(at, uint64_t, { n })

/* One signal, and zeros behind it: whoever reads beside it finds no other. */
#define SIGNALS(at, number) DATA(at, uint64_t[3], { 1UL << ((number) - 1) })

struct capabilities {
	struct __user_cap_header_struct header;
};

struct signal_set {
	uint64_t bits;
};

struct mask_pair {
	uint64_t at, size;
};

static const struct call calls[] = {
	/* Bytes. */
	{ CALL(read, PIPE_R, A, 50), .flags = REFILL },
	{ CALL(read, FILE_RW, A, 0x2000), .flags = REFILL },
	{ CALL(read, STREAM_A, A, 500), .flags = REFILL },
	{ CALL(read, DATAGRAM_A, A, 10), .flags = REFILL },
	{ CALL(read, EVENT, A, 8), .flags = REFILL },
	{ CALL(write, PIPE_W, A, 50), .flags = REFILL },
	{ CALL(write, FILE_RW, A, 0x2000), .flags = REFILL },
	{ CALL(write, STREAM_A, A, 50), .flags = REFILL },
	{ CALL(write, EVENT, A, 8), .flags = REFILL, .fills = { DATA(A, uint64_t, { 5 }) } },
	{ CALL(pread64, FILE_RW, A, 100, 4950) },
	{ CALL(pwrite64, FILE_RW, A, 100, 4950) },
	{ CALL(readv, PIPE_R, C, 3), .flags = REFILL, .fills = { PARTS(C, A, B) } },
	{ CALL(readv, FILE_RW, C, 3), .flags = REFILL, .fills = { PARTS(C, A, END(B) - 8) } },
	{ CALL(readv, FILE_RW, C, 3), .flags = REFILL, .fills = { PARTS(C, A, UNMAPPED) } },
	{ CALL(readv, FILE_RW, C, 3), .flags = REFILL, .fills = { PARTS(C, UNMAPPED, A) } },
	{ CALL(readv, FILE_RW, C, 2), .flags = REFILL, .fills = { DATA(C, struct iovec[2], { { (void *)A, 5 }, { (void *)B, MINUS_1 } }) } },
	{ CALL(writev, PIPE_W, C, 3), .flags = REFILL, .fills = { PARTS(C, A, B) } },
	{ CALL(writev, FILE_RW, C, 3), .flags = REFILL, .fills = { PARTS(C, A, END(B) - 8) } },
	{ CALL(writev, FILE_RW, C, 3), .flags = REFILL, .fills = { PARTS(C, A, UNMAPPED) } },
	{ CALL(writev, STREAM_A, C, 3), .flags = REFILL, .fills = { PARTS(C, UNMAPPED, A) } },
	{ CALL(preadv, FILE_RW, C, 3, 4960, 0), .fills = { PARTS(C, A, B) } },
	{ CALL(pwritev, FILE_RW, C, 3, 4960, 0), .fills = { PARTS(C, A, B) } },
	{ CALL(preadv2, FILE_RW, C, 3, 4960, 0, 0), .fills = { PARTS(C, A, B) } },
	{ CALL(pwritev2, FILE_RW, C, 3, 4960, 0, 0), .fills = { PARTS(C, A, B) } },
	{ CALL(lseek, FILE_RW, 100, SEEK_SET) },
	{ CALL(lseek, FILE_RW, -10, SEEK_END) },
	{ CALL(sendfile, PIPE_W, FILE_RW, A, 60), .flags = REFILL, .fills = { OFFSET(A, 4900) } },
	{ CALL(sendfile, STREAM_A, FILE_RW, 0, 60), .flags = REFILL },
	{ CALL(splice, PIPE_R, 0, PIPE2_W, 0, 50, SPLICE_F_NONBLOCK), .flags = REFILL },
	{ CALL(splice, FILE_RW, A, PIPE2_W, 0, 50, SPLICE_F_NONBLOCK), .flags = REFILL, .fills = { OFFSET(A, 4900) } },
	{ CALL(splice, PIPE_R, 0, FILE_RW, A, 50, SPLICE_F_NONBLOCK), .flags = REFILL, .fills = { OFFSET(A, 10) } },
	{ CALL(tee, PIPE_R, PIPE2_W, 50, SPLICE_F_NONBLOCK), .flags = REFILL },
	{ CALL(copy_file_range, FILE_RO, A, MEMFD, B, 50, 0), .fills = { OFFSET(A, 100), OFFSET(B, 5) } },
	{ CALL(copy_file_range, FILE_RW, A, FILE_RW, B, 50, 0), .fills = { OFFSET(A, 100), OFFSET(B, 3000) } },
	{ CALL(readahead, FILE_RW, 0, 100) },
	{ CALL(fadvise64, FILE_RW, 0, 100, 0) },
	{ CALL(sync_file_range, FILE_RW, 0, 100, 0) },
	{ CALL(fsync, FILE_RW) },
	{ CALL(fdatasync, FILE_RW) },
	{ CALL(syncfs, QUEUE), .keep = KEEP(0) },
	{ CALL(syncfs, 99), .keep = KEEP(0) },
	{ CALL(fallocate, FILE_RW, 0, 0, 100), .keep = KEEP(3) },
	{ CALL(fallocate, FILE_RW, 0, 0, 0), .keep = KEEP(1) | KEEP(3) },
	{ CALL(truncate, A, 100), .fills = { TEXT(A, "file") } },
	{ CALL(ftruncate, FILE_RW, 100) },
	{ NEW(cachestat, FILE_RW, A, B, 0), .fills = { DATA(A, uint64_t[2], { 0, 4096 }) } },

	/* Descriptors. */
	{ CALL(close, PIPE_R) },
	{ CALL(close_range, 12, 15, 0), .keep = KEEP(1) },
	{ CALL(dup, FILE_RW) },
	{ CALL(dup2, FILE_RW, 50) },
	{ CALL(dup3, FILE_RW, 50, O_CLOEXEC) },
	{ CALL(pipe, A) },
	{ CALL(pipe2, A, O_NONBLOCK) },
	{ CALL(fcntl, FILE_RW, F_GETFL, 0) },
	{ CALL(fcntl, FILE_RW, F_DUPFD_CLOEXEC, 60) },
	{ CALL(fcntl, FILE_RW, F_GETLK, A), .fills = { DATA(A, struct flock, { .l_type = F_WRLCK }) } },
	{ CALL(fcntl, FILE_RW, F_SETLK, A), .fills = { DATA(A, struct flock, { .l_type = F_WRLCK, .l_start = 10, .l_len = 5 }) } },
	{ CALL(fcntl, FILE_RW, F_OFD_SETLK, A), .fills = { DATA(A, struct flock, { .l_type = F_RDLCK, .l_start = 90, .l_len = 5 }) } },
	{ CALL(fcntl, FILE_RW, F_OFD_GETLK, A), .fills = { DATA(A, struct flock, { .l_type = F_RDLCK, .l_start = 10, .l_len = 5 }) } },
	{ CALL(fcntl, PIPE_R, F_SETOWN_EX, A), .fills = { DATA(A, int[2], { 1, 0 }) } },
	{ CALL(fcntl, PIPE_R, F_GETOWN_EX, A) },
	{ CALL(fcntl, PIPE_R, F_GETPIPE_SZ, 0) },
	{ CALL(fcntl, MEMFD, F_ADD_SEALS, F_SEAL_GROW) },
	{ CALL(fcntl, MEMFD, F_GET_SEALS, 0) },
	{ CALL(fcntl, FILE_RW, 1035 /* F_GET_RW_HINT */, A) },
	{ CALL(fcntl, FILE_RW, 1036 /* F_SET_RW_HINT */, A), .fills = { DATA(A, uint64_t, { 2 }) } },
	{ CALL(fcntl, FILE_RW, 17 /* F_GETOWNER_UIDS */, A) },
	{ CALL(flock, FILE_RW, LOCK_EX | LOCK_NB) },
	{ CALL(ioctl, PIPE_R, FIONREAD, A), .flags = USER },
	{ CALL(ioctl, PIPE_R, FIONBIO, A), .flags = USER, .fills = { DATA(A, int, { 1 }) } },
	{ CALL(ioctl, TERMINAL, TCGETS, A), .flags = USER },
	{ CALL(ioctl, TERMINAL, TCSETS, A), .flags = USER },
	{ CALL(ioctl, TERMINAL, TIOCGWINSZ, A), .flags = USER },
	{ CALL(ioctl, TERMINAL, TIOCSWINSZ, A), .flags = USER, .fills = { DATA(A, struct winsize, { 10, 20, 0, 0 }) } },
	{ CALL(ioctl, TERMINAL, TIOCOUTQ, A), .flags = USER },
	{ CALL(ioctl, TERMINAL, TIOCGPGRP, A), .flags = USER },
	{ CALL(ioctl, PTY, TIOCGPTLCK, A), .flags = USER },
	{ CALL(ioctl, TERMINAL, 0x802c542a /* TCGETS2 */, A), .flags = USER },
	{ CALL(ioctl, FILE_RW, FIOQSIZE, A), .flags = USER },
	{ CALL(ioctl, FILE_RW, 0x80086601 /* FS_IOC_GETFLAGS */, A), .flags = USER },
	{ CALL(ioctl, UDP, SIOCGIFFLAGS, A), .flags = USER, .fills = { DATA(A, char[40], { "lo" }) } },
	{ CALL(ioctl, UDP, SIOCGIFINDEX, A), .flags = USER, .fills = { DATA(A, char[40], { "lo" }) } },
	{ CALL(ioctl, UDP, SIOCGIFCONF, A), .flags = USER, .fills = { DATA(A, uint64_t[2], { 40, B }) } },
	{ CALL(ioctl, STREAM_A, SIOCOUTQ, A), .flags = USER },

	/* Names. */
	{ CALL(open, A, O_RDWR | O_CREAT | O_NONBLOCK, 0640), .fills = { TEXT(A, "new") } },
	{ CALL(open, A, O_RDONLY | O_NONBLOCK, 0), .fills = { TEXT(A, "file") } },
	{ CALL(openat, HERE, A, O_RDONLY | O_NONBLOCK, 0), .fills = { TEXT(A, "link") } },
	{ CALL(openat, DIRECTORY, A, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600), .fills = { TEXT(A, "new") } },
	{ CALL(openat2, HERE, A, B, sizeof(struct open_how)), .fills = { TEXT(A, "file"), DATA(B, struct open_how, { O_RDONLY | O_NONBLOCK, 0, RESOLVE_BENEATH }) } },
	{ CALL(openat2, HERE, A, B, 100), .fills = { TEXT(A, "file"), DATA(B, char[100], { 0 }) } },
	{ CALL(creat, A, 0600), .fills = { TEXT(A, "created") } },
	{ CALL(stat, A, B), .fills = { TEXT(A, "file") } },
	{ CALL(fstat, FILE_RW, B) },
	{ CALL(fstat, STREAM_A, B) },
	{ CALL(lstat, A, B), .fills = { TEXT(A, "link") } },
	{ CALL(newfstatat, HERE, A, B, 0), .fills = { TEXT(A, "link") } },
	{ CALL(newfstatat, FILE_PATH, A, B, AT_EMPTY_PATH), .fills = { TEXT(A, "") } },
	{ CALL(statx, HERE, A, 0, 0x7ff, B), .fills = { TEXT(A, "file") } },
	{ CALL(access, A, R_OK), .fills = { TEXT(A, "file") } },
	{ CALL(faccessat, HERE, A, W_OK), .fills = { TEXT(A, "link") } },
	{ CALL(faccessat2, HERE, A, W_OK, AT_EACCESS), .fills = { TEXT(A, "link") } },
	{ CALL(getcwd, A, 4096) },
	{ CALL(getcwd, A, 3) },
	{ CALL(chdir, A), .fills = { TEXT(A, "dir") } },
	{ CALL(fchdir, DIRECTORY) },
	{ CALL(chroot, A), .flags = USER, .fills = { TEXT(A, "dir") } },
	{ CALL(rename, A, B), .fills = { TEXT(A, "link"), TEXT(B, "moved") } },
	{ CALL(renameat, HERE, A, DIRECTORY, B), .fills = { TEXT(A, "link"), TEXT(B, "moved") } },
	{ CALL(renameat2, HERE, A, HERE, B, 2), .fills = { TEXT(A, "link"), TEXT(B, "fifo") } },
	{ CALL(mkdir, A, 0750), .fills = { TEXT(A, "made") } },
	{ CALL(mkdirat, DIRECTORY, A, 0750), .fills = { TEXT(A, "made") } },
	{ CALL(rmdir, A), .fills = { TEXT(A, "empty") } },
	{ CALL(link, A, B), .fills = { TEXT(A, "file"), TEXT(B, "other") } },
	{ CALL(linkat, HERE, A, DIRECTORY, B, 0), .fills = { TEXT(A, "file"), TEXT(B, "other") } },
	{ CALL(unlink, A), .fills = { TEXT(A, "link") } },
	{ CALL(unlinkat, HERE, A, AT_REMOVEDIR), .fills = { TEXT(A, "empty") } },
	{ CALL(symlink, A, B), .fills = { TEXT(A, "target"), TEXT(B, "second") } },
	{ CALL(symlinkat, A, DIRECTORY, B), .fills = { TEXT(A, "target"), TEXT(B, "second") } },
	{ CALL(readlink, A, B, 100), .fills = { TEXT(A, "link") } },
	{ CALL(readlink, A, B, 2), .fills = { TEXT(A, "link") } },
	{ CALL(readlinkat, HERE, A, B, 100), .fills = { TEXT(A, "link") } },
	{ CALL(chmod, A, 0604), .fills = { TEXT(A, "file") } },
	{ CALL(fchmod, FILE_RW, 0604) },
	{ CALL(fchmodat, HERE, A, 0604), .fills = { TEXT(A, "file") } },
	{ NEW(fchmodat2, HERE, A, 0604, 0), .fills = { TEXT(A, "file") } },
	{ CALL(chown, A, MINUS_1, MINUS_1), .fills = { TEXT(A, "file") } },
	{ CALL(fchown, FILE_RW, MINUS_1, MINUS_1) },
	{ CALL(lchown, A, MINUS_1, MINUS_1), .fills = { TEXT(A, "link") } },
	{ CALL(fchownat, HERE, A, MINUS_1, MINUS_1, 0), .fills = { TEXT(A, "link") } },
	{ CALL(umask, 022) },
	{ CALL(utime, A, B), .fills = { TEXT(A, "file"), DATA(B, int64_t[2], { 1000, 2000 }) } },
	{ CALL(utimes, A, B), .fills = { TEXT(A, "file"), MOMENTS(B) } },
	{ CALL(futimesat, HERE, A, B), .fills = { TEXT(A, "file"), MOMENTS(B) } },
	{ CALL(utimensat, HERE, A, B, 0), .fills = { TEXT(A, "file"), MOMENTS(B) } },
	{ CALL(utimensat, FILE_RW, 0, B, 0), .fills = { MOMENTS(B) } },
	{ CALL(mknod, A, S_IFIFO | 0600, 0), .fills = { TEXT(A, "node") } },
	{ CALL(mknodat, DIRECTORY, A, S_IFREG | 0600, 0), .fills = { TEXT(A, "node") } },
	{ CALL(ustat, DEVICE, A) },
	{ CALL(statfs, A, B), .fills = { TEXT(A, "file") } },
	{ CALL(fstatfs, FILE_RW, B) },
	{ CALL(getdents, DIRECTORY, A, 0x1000) },
	{ CALL(getdents64, DIRECTORY, A, 0x1000) },
	{ CALL(getdents64, DIRECTORY, A, 10) },
	{ CALL(setxattr, A, B, C, 5, 0), .fills = { TEXT(A, "file"), TEXT(B, "user.one"), TEXT(C, "value") } },
	{ CALL(lsetxattr, A, B, C, 5, 0), .fills = { TEXT(A, "file"), TEXT(B, "user.two"), TEXT(C, "value") } },
	{ CALL(fsetxattr, FILE_RW, B, C, 5, 0), .fills = { TEXT(B, "user.three"), TEXT(C, "value") } },
	{ CALL(getxattr, A, B, C, 100), .fills = { TEXT(A, "file"), TEXT(B, "user.one") } },
	{ CALL(lgetxattr, A, B, C, 100), .fills = { TEXT(A, "file"), TEXT(B, "user.none") } },
	{ CALL(fgetxattr, FILE_RW, B, C, 0), .fills = { TEXT(B, "user.one") } },
	{ CALL(listxattr, A, B, 100), .fills = { TEXT(A, "file") } },
	{ CALL(llistxattr, A, B, 0), .fills = { TEXT(A, "file") } },
	{ CALL(flistxattr, FILE_RW, B, 100) },
	{ CALL(removexattr, A, B), .fills = { TEXT(A, "file"), TEXT(B, "user.one") } },
	{ CALL(lremovexattr, A, B), .fills = { TEXT(A, "file"), TEXT(B, "user.one") } },
	{ CALL(fremovexattr, FILE_RW, B), .fills = { TEXT(B, "user.one") } },
	{ NEW(file_getattr, HERE, A, B, 24, 0), .fills = { TEXT(A, "file") } },
	{ NEW(file_setattr, HERE, A, B, 24, 0), .flags = USER, .fills = { TEXT(A, "file"), DATA(B, char[24], { 0 }) } },
	{ CALL(memfd_create, A, 0), .fills = { TEXT(A, "name") } },

	/* Events. */
	{ CALL(poll, A, 2, 0), .keep = KEEP(2), .fills = { DATA(A, struct pollfd[2], { { PIPE_R, POLLIN, 0 }, { STREAM_A, POLLIN | POLLOUT, 0 } }) } },
	{ CALL(poll, A, 2, 5), .keep = KEEP(2), .fills = { DATA(A, struct pollfd[2], { { 99, POLLIN, 0 }, { PIPE_W, POLLOUT, 0 } }) } },
	{ CALL(ppoll, A, 2, B, 0, 8), .keep = KEEP(2), .fills = { DATA(A, struct pollfd[2], { { PIPE_R, POLLIN, 0 }, { EVENT, POLLIN, 0 } }), MOMENT(B, 0, 1000000) } },
	{ CALL(ppoll, A, 1, B, C, 8), .keep = KEEP(2), .fills = { DATA(A, struct pollfd[1], { { PIPE2_R, POLLIN, 0 } }), MOMENT(B, 0, 0), DATA(C, struct signal_set, { 1UL << 9 }) } },
	{ CALL(ppoll, A, 1, B, 0, 8), .keep = KEEP(2), .fills = { DATA(A, struct pollfd[1], { { PIPE2_R, POLLIN, 0 } }), MOMENT(B, 0, 2000000000) } },
	{ CALL(select, 20, A, B, C, D), .keep = KEEP(4), .fills = { DATA(A, uint64_t[2], { 1UL << PIPE_R | 1UL << STREAM_A }), DATA(B, uint64_t[2], { 1UL << PIPE_W }), DATA(C, uint64_t[2], { 0 }), DATA(D, int64_t[2], { 0, 0 }) } },
	{ CALL(select, 300, A, 0, 0, D), .keep = KEEP(4), .fills = { DATA(A, uint64_t[5], { 0, 0, 0, 0, 1UL << 43 }), DATA(D, int64_t[2], { 0, 0 }) } },
	{ CALL(pselect6, 20, A, B, 0, D, 0), .keep = KEEP(4), .fills = { DATA(A, uint64_t[2], { 1UL << PIPE_R }), DATA(B, uint64_t[2], { 1UL << PIPE_W }), MOMENT(D, 0, 0) } },
	{ CALL(pselect6, 20, A, 0, 0, D, E), .keep = KEEP(4), .fills = { DATA(A, uint64_t[2], { 1UL << PIPE2_R }), MOMENT(D, 0, 0), DATA(E, struct mask_pair, { A, 8 }) } },
	{ CALL(epoll_create, 5) },
	{ CALL(epoll_create1, 0) },
	{ CALL(epoll_ctl, EPOLL, EPOLL_CTL_ADD, STREAM_A, A), .fills = { DATA(A, struct epoll_event, { .events = EPOLLIN, .data.u64 = 77 }) } },
	{ CALL(epoll_ctl, EPOLL, EPOLL_CTL_DEL, STREAM_A, 0) },
	{ CALL(epoll_wait, EPOLL, A, 5, 0), .keep = KEEP(3) },
	{ CALL(epoll_pwait, EPOLL, A, 5, 0, 0, 8), .keep = KEEP(3) },
	{ CALL(epoll_pwait, EPOLL, A, 5, 0, B, 8), .keep = KEEP(3), .fills = { DATA(B, struct signal_set, { 1UL << 9 }) } },
	{ CALL(epoll_pwait2, EPOLL, A, 5, C, 0, 8), .keep = KEEP(3), .fills = { MOMENT(C, 0, 0) } },
	{ CALL(eventfd, 3) },
	{ CALL(eventfd2, 3, EFD_NONBLOCK) },
	{ CALL(timerfd_create, CLOCK_MONOTONIC, TFD_NONBLOCK) },
	{ CALL(timerfd_settime, TIMER, 0, A, B), .keep = KEEP(1), .fills = { DATA(A, struct itimerspec, { { 0, 0 }, { 0, 0 } }) } },
	{ CALL(timerfd_gettime, TIMER, A) },
	{ CALL(signalfd4, MINUS_1, A, 8, SFD_NONBLOCK), .fills = { SIGNALS(A, SIGUSR1) } },
	{ CALL(signalfd4, FILE_RW, A, 8, SFD_CLOEXEC), .keep = ALL, .fills = { SIGNALS(A, SIGUSR1) } },
	{ CALL(signalfd, MINUS_1, A, 8), .keep = KEEP(0), .fills = { SIGNALS(A, SIGUSR1) } },
	{ CALL(inotify_init) },
	{ CALL(inotify_init1, IN_NONBLOCK) },
	{ CALL(inotify_add_watch, INOTIFY, A, IN_CREATE), .fills = { TEXT(A, "empty") } },
	{ CALL(inotify_rm_watch, INOTIFY, 1) },
	{ CALL(fanotify_init, 0x200 /* FAN_REPORT_FID */, 0), .flags = USER },
	{ CALL(fanotify_mark, PIPE_R, 1, 0x100, HERE, A), .flags = USER, .fills = { TEXT(A, "dir") } },

	/* Sockets. */
	{ CALL(socket, AF_UNIX, SOCK_STREAM, 0) },
	{ CALL(socketpair, AF_UNIX, SOCK_STREAM, 0, A) },
	{ CALL(connect, UDP, A, 16), .fills = { DATA(A, uint8_t[16], { 2, 0, 0x27, 0x0f, 127, 0, 0, 1 }) } },
	{ CALL(connect, CLIENT, A, sizeof(struct sockaddr_un)), .fills = { NAME_OF_SOCKET(A) } },
	{ CALL(accept, LISTENER, A, B), .flags = REFILL, .fills = { LENGTH(B, 100) } },
	{ CALL(accept, LISTENER, 0, 0), .flags = REFILL },
	{ CALL(accept4, LISTENER, A, B, SOCK_CLOEXEC), .flags = REFILL, .fills = { LENGTH(B, 1) } },
	{ CALL(bind, UDP, A, 16), .fills = { DATA(A, uint8_t[16], { 2, 0, 0, 0, 127, 0, 0, 1 }) } },
	{ CALL(bind, DATAGRAM_A, A, 2 + 5), .fills = { DATA(A, struct sockaddr_un, { AF_UNIX, "bound" }) } },
	{ CALL(listen, CLIENT, 5) },
	{ CALL(shutdown, STREAM_B, SHUT_WR) },
	{ CALL(getsockname, LISTENER, A, B), .fills = { LENGTH(B, 110) } },
	{ CALL(getsockname, LISTENER, A, B), .fills = { LENGTH(B, 4) } },
	{ CALL(getsockname, LISTENER, A, B), .fills = { LENGTH(B, 0) } },
	{ CALL(getsockname, LISTENER, A, B), .fills = { LENGTH(B, ~0U) } },
	{ CALL(getsockname, UDP, A, B), .fills = { LENGTH(B, 0x7fffffff) } },
	{ CALL(getpeername, CLIENT, A, B), .fills = { LENGTH(B, 110) } },
	{ CALL(setsockopt, STREAM_A, SOL_SOCKET, SO_SNDBUF, A, 4), .fills = { DATA(A, int, { 5000 }) } },
	{ CALL(setsockopt, UDP, SOL_SOCKET, SO_LINGER, A, 8), .fills = { DATA(A, int[2], { 1, 5 }) } },
	{ CALL(getsockopt, STREAM_A, SOL_SOCKET, SO_TYPE, A, B), .fills = { LENGTH(B, 4) } },
	{ CALL(getsockopt, STREAM_A, SOL_SOCKET, SO_LINGER, A, B), .fills = { LENGTH(B, 3) } },
	{ CALL(getsockopt, UDP, SOL_SOCKET, SO_SNDBUF, A, B), .fills = { LENGTH(B, 100) } },
	{ CALL(getsockopt, UDP, SOL_SOCKET, SO_SNDBUF, A, B), .fills = { LENGTH(B, ~0U) } },
	{ CALL(sendto, STREAM_A, A, 50, MSG_NOSIGNAL, 0, 0), .flags = REFILL },
	{ CALL(sendto, DATAGRAM_A, A, 50, MSG_NOSIGNAL, 0, 0), .flags = REFILL },
	{ CALL(sendto, UDP, A, 50, 0, B, 16), .fills = { [1] = DATA(B, uint8_t[16], { 2, 0, 0x27, 0x0f, 127, 0, 0, 1 }) } },
	{ CALL(recvfrom, STREAM_A, A, 50, 0, 0, 0), .flags = REFILL },
	{ CALL(recvfrom, DATAGRAM_A, A, 20, MSG_TRUNC, B, C), .flags = REFILL, .fills = { LENGTH(C, 100) } },
	{ CALL(sendmsg, STREAM_A, D, MSG_NOSIGNAL), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, 0, 0) } },
	{ CALL(sendmsg, DATAGRAM_A, D, MSG_NOSIGNAL), .flags = REFILL, .fills = { PARTS(C, A, UNMAPPED), MESSAGE(D, 0, 0, C, 3, 0, 0) } },
	{ CALL(sendmsg, DATAGRAM_A, D, MSG_NOSIGNAL), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, E, 20), DATA(E, uint32_t[5], { 20, 0, SOL_SOCKET, SCM_RIGHTS, FILE_RO }) } },
	{ CALL(sendmsg, DATAGRAM_A, D, MSG_NOSIGNAL), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, E, 20), DATA(E, uint32_t[5], { 20, 0, SOL_SOCKET, SCM_RIGHTS, 99 }) } },
	{ CALL(sendmsg, DATAGRAM_A, D, MSG_NOSIGNAL), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, UNMAPPED, 20) } },
	{ CALL(sendmsg, STREAM_A, D, MSG_NOSIGNAL), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, ~0U, C, 1025, 0, 0) } },
	{ CALL(sendmsg, UDP, D, MSG_NOSIGNAL), .fills = { PARTS(C, A, B), MESSAGE(D, B, 16, C, 1, 0, 0), DATA(B, uint8_t[16], { 2, 0, 0x27, 0x0f, 127, 0, 0, 1 }) } },
	{ CALL(recvmsg, STREAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, 0, 0) } },
	{ CALL(recvmsg, DATAGRAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, E, 100) } },
	{ CALL(recvmsg, DATAGRAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, UNMAPPED), MESSAGE(D, 0, 0, C, 3, E, 100) } },
	{ CALL(recvmsg, DATAGRAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, UNMAPPED, 100) } },
	{ CALL(recvmsg, DATAGRAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, 0, 0, C, 3, E, 10) } },
	{ CALL(recvmsg, DATAGRAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, E, 50, C, 1, E, 100) } },
	{ CALL(recvmsg, DATAGRAM_A, D, 0), .flags = REFILL, .fills = { PARTS(C, A, B), MESSAGE(D, E, ~0U, C, 1, E, 100) } },
	{ CALL(recvmmsg, DATAGRAM_A, D, 1, 0, 0), .flags = REFILL, .keep = KEEP(2), .fills = { PARTS(C, A, B), DATA(D, struct mmsghdr, { { 0, 0, (void *)C, 3, (void *)E, 100, 0 }, 0 }) } },
	{ CALL(sendmmsg, DATAGRAM_A, D, 1, MSG_NOSIGNAL), .flags = REFILL, .keep = KEEP(2), .fills = { PARTS(C, A, B), DATA(D, struct mmsghdr, { { 0, 0, (void *)C, 3, 0, 0, 0 }, 0 }) } },
	{ CALL(recvmmsg, DATAGRAM_A, D, 0, 0, 0), .flags = REFILL, .keep = KEEP(2) },
	{ CALL(sendmmsg, DATAGRAM_A, D, 0, 0), .flags = REFILL, .keep = KEEP(2) },

	/* System V and POSIX queues. */
	{ CALL(semget, IPC_PRIVATE, 2, 0600), .flags = VARIES, .keep = KEEP(0) | KEEP(1) },
	{ CALL(semop, SEMAPHORES, A, 1), .fills = { DATA(A, struct sembuf, { 1, 1, IPC_NOWAIT }) } },
	{ CALL(semtimedop, SEMAPHORES, A, 1, B), .fills = { DATA(A, struct sembuf, { 1, 0, IPC_NOWAIT }), MOMENT(B, 0, 1000000) } },
	{ CALL(semctl, SEMAPHORES, 1, SETVAL, 5), .flags = USER },
	/* Beside IPC_STAT is IPC_INFO, which tells of others'. */
	{ CALL(semctl, SEMAPHORES, 0, IPC_STAT, A), .flags = USER, .keep = KEEP(0) | KEEP(2) },
	{ CALL(semctl, SEMAPHORES, 0, GETALL, A), .flags = USER, .keep = KEEP(0) },
	{ CALL(semctl, SEMAPHORES, 0, SETALL, A), .flags = USER, .keep = KEEP(0), .fills = { DATA(A, uint16_t[3], { 1, 2, 3 }) } },
	{ CALL(msgget, IPC_PRIVATE, 0600), .flags = VARIES, .keep = KEEP(0) },
	{ CALL(msgsnd, MESSAGES, A, 20, IPC_NOWAIT), .flags = REFILL, .fills = { DATA(A, int64_t, { 5 }) } },
	{ CALL(msgrcv, MESSAGES, A, 100, 0, IPC_NOWAIT), .flags = REFILL, .keep = KEEP(4) },
	{ CALL(msgrcv, MESSAGES, A, 10, 0, IPC_NOWAIT | MSG_NOERROR), .flags = REFILL, .keep = KEEP(4) },
	{ CALL(msgctl, MESSAGES, IPC_STAT, A), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmget, IPC_PRIVATE, 0x3000, 0600), .flags = VARIES, .keep = KEEP(0) },
	{ CALL(shmctl, SEGMENT, IPC_STAT, A), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmctl, SEGMENT, IPC_SET, A), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmctl, SEGMENT, SHM_LOCK, 0), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmctl, SEGMENT, 12345, A), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmctl, MINUS_1, IPC_STAT, A), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmctl, 0x7ffffff0, IPC_RMID, 0), .flags = USER, .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmat, SEGMENT, 0, 0), .flags = VARIES, .keep = KEEP(0) },
	{ CALL(shmat, SEGMENT, UNMAPPED, SHM_RDONLY), .keep = KEEP(0) | KEEP(1) },
	{ CALL(shmat, 0x7ffffff0, 0, 0), .keep = KEEP(0) },
	{ CALL(shmat, MINUS_1, 0, 0), .keep = KEEP(0) },
	{ CALL(shmdt, A) },
	{ CALL(mq_open, A, O_RDWR | O_NONBLOCK, 0600, 0), .fills = { TEXT(A, "tcmi-differ-none") } },
	{ CALL(mq_unlink, A), .fills = { TEXT(A, "tcmi-differ-none") } },
	{ CALL(mq_timedsend, QUEUE, A, 30, 2, 0), .flags = REFILL, .keep = KEEP(4) },
	{ CALL(mq_timedreceive, QUEUE, A, 64, B, 0), .flags = REFILL, .keep = KEEP(4) },
	{ CALL(mq_getsetattr, QUEUE, A, B), .fills = { DATA(A, int64_t[8], { O_NONBLOCK }) } },

	/* Who it is. */
	{ CALL(uname, A) },
	{ CALL(getuid) },
	{ CALL(getgid) },
	{ CALL(geteuid) },
	{ CALL(getegid) },
	{ CALL(getppid) },
	{ CALL(getpgrp) },
	{ CALL(getpgid, 0) },
	{ CALL(getsid, 0) },
	{ CALL(getresuid, A, B, C) },
	{ CALL(getresgid, A, B, C) },
	{ CALL(getgroups, 100, A) },
	{ CALL(getrlimit, RLIMIT_NOFILE, A) },
	{ CALL(prlimit64, 0, RLIMIT_NOFILE, 0, A), .flags = USER, .keep = KEEP(2) },
	{ CALL(prlimit64, 0, RLIMIT_CORE, A, B), .flags = USER, .keep = KEEP(1), .fills = { LIMITS(A, 0, RLIM_INFINITY) } },
	{ CALL(sysinfo, A) },
	{ CALL(syslog, 10, A, 100), .flags = USER },
	{ CALL(getpriority, PRIO_PROCESS, 0) },
	{ CALL(ioprio_get, 1, 0) },
	{ CALL(capget, A, B), .fills = { DATA(A, struct capabilities, { { _LINUX_CAPABILITY_VERSION_3, 0 } }) } },
	{ CALL(capget, A, 0), .fills = { DATA(A, struct capabilities, { { 0, 0 } }) } },
	{ CALL(capget, A, B), .fills = { DATA(A, struct capabilities, { { _LINUX_CAPABILITY_VERSION_1, 0 } }) } },
	{ CALL(capset, A, B), .flags = USER, .fills = { DATA(A, struct capabilities, { { _LINUX_CAPABILITY_VERSION_3, 0 } }), DATA(B, char[24], { 0 }) } },
	{ CALL(pidfd_open, SELF, 0), .flags = USER },
	{ CALL(pidfd_send_signal, PIDFD, 0, 0, 0), .flags = USER },
	{ CALL(pidfd_getfd, PIDFD, FILE_RW, 0), .flags = USER },
	{ CALL(kill, SELF, 0), .flags = USER },
	{ CALL(kill, 0x7ffffff0, 0), .flags = USER },
	{ CALL(tkill, 0x7ffffff0, 0), .flags = USER },
	{ CALL(tgkill, 0x7ffffff0, 0x7ffffff0, 0), .flags = USER },
	{ CALL(rt_sigqueueinfo, 0x7ffffff0, 10, A), .flags = USER, .fills = { DATA(A, int[4], { 10, 0, -1, 0 }) } },
	{ CALL(rt_tgsigqueueinfo, 0x7ffffff0, 0x7ffffff0, 10, A), .flags = USER, .fills = { DATA(A, int[4], { 10, 0, -1, 0 }) } },
	{ CALL(wait4, MINUS_1, A, WNOHANG, B) },
	{ CALL(waitid, P_ALL, 0, A, WEXITED | WNOHANG, B) },
	{ CALL(nanosleep, A, B), .keep = KEEP(0), .fills = { MOMENT(A, 0, 1000) } },
	{ CALL(nanosleep, A, B), .fills = { MOMENT(A, 0, 1000000000) } },
	{ CALL(clock_nanosleep, CLOCK_MONOTONIC, 0, A, B), .keep = KEEP(0) | KEEP(1) | KEEP(2), .fills = { MOMENT(A, 0, 1000) } },
	{ CALL(clock_nanosleep, CLOCK_MONOTONIC, 0, A, B), .keep = KEEP(1), .fills = { MOMENT(A, 0, -1) } },
	{ CALL(restart_syscall) },

	{ CALL(getrusage, RUSAGE_SELF, A) },
	{ CALL(times, A), .flags = VARIES },
	{ CALL(clock_gettime, CLOCK_PROCESS_CPUTIME_ID, A) },

	/* Processes: what is refused. */
	{ CALL(clone, CLONE_SIGHAND, 0, 0, 0, 0), .keep = ALL },
	{ CALL(clone, CLONE_THREAD | CLONE_VM, 0, 0, 0, 0), .keep = ALL },
	{ CALL(clone, CLONE_NEWNS | CLONE_FS, 0, 0, 0, 0), .keep = ALL },
	{ NEW(clone3, A, 88), .keep = KEEP(0) },
	{ NEW(clone3, A, 7), .keep = ALL },
	{ NEW(clone3, 0, 88), .keep = KEEP(0) },
	{ NEW(clone3, UNMAPPED, 88), .keep = KEEP(0) },
	{ NEW(clone3, END(EDGE) - 64, 88), .keep = KEEP(0), .fills = { DATA(END(EDGE) - 64, uint64_t[8], { 0 }) } },
	{ CALL(execve, A, B, C), .fills = { TEXT(A, "no-program"), STRINGS(B, D), STRINGS(C, D), TEXT(D, "string") } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "no-program"), STRINGS(B, UNMAPPED), STRINGS(C, D) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "no-program"), STRINGS(B, A), STRINGS(C, END(D) - 8) } },
	{ CALL(execve, A, D, 0), .keep = KEEP(0) | KEEP(1), .fills = { TEXT(A, "no-program"), TOO_MANY_STRINGS(D, B) } },
	{ CALL(execve, A, 0, D), .keep = KEEP(0) | KEEP(2), .fills = { TEXT(A, "no-program"), TOO_MANY_STRINGS(D, B) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, ""), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "none"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "file"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "file/below"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "dir"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { TEXT(A, "fifo"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execve, A, B, C), .keep = ALL, .fills = { STRINGS(B, B), STRINGS(C, B) } },
	{ CALL(execveat, HERE, A, B, C, 0), .fills = { TEXT(A, "no-program"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execveat, MEMFD, A, B, C, AT_EMPTY_PATH), .fills = { TEXT(A, ""), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execveat, FILE_PATH, A, B, C, AT_EMPTY_PATH), .keep = ALL, .fills = { TEXT(A, ""), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execveat, 99, A, B, C, AT_EMPTY_PATH), .keep = ALL, .fills = { TEXT(A, ""), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execveat, HERE, A, B, C, AT_SYMLINK_NOFOLLOW), .keep = ALL, .fills = { TEXT(A, "link"), STRINGS(B, A), STRINGS(C, A) } },
	{ CALL(execveat, HERE, A, B, C, 1), .keep = ALL, .fills = { TEXT(A, "none"), STRINGS(B, A), STRINGS(C, A) } },

	/* Memory: of another's, and what is refused of its own. */
	{ CALL(process_vm_readv, SELF, C, 3, D, 3, 0), .flags = USER, .keep = KEEP(0), .fills = { PARTS(C, A, B), PARTS(D, E, END(EDGE) - 20) } },
	{ CALL(process_vm_readv, 0x7ffffff0, C, 3, D, 3, 0), .keep = KEEP(0), .fills = { PARTS(C, A, B), PARTS(D, E, EDGE) } },
	{ CALL(process_vm_writev, SELF, C, 3, D, 3, 0), .flags = USER, .keep = KEEP(0), .fills = { PARTS(C, A, B), PARTS(D, E, END(EDGE) - 20) } },
	{ CALL(process_vm_writev, 0x7ffffff0, C, 3, D, 3, 0), .keep = KEEP(0), .fills = { PARTS(C, A, B), PARTS(D, E, EDGE) } },
	{ CALL(mremap, UNMAPPED, 4096, 8192, MREMAP_MAYMOVE, 0), .keep = KEEP(0) },
	{ CALL(mremap, READ_ONLY, 4096, 4096, MREMAP_FIXED, A), .keep = KEEP(0) | KEEP(3) },
	{ CALL(msync, A, 4096, MS_SYNC) },
	{ CALL(remap_file_pages, A, 4096, 0, 0, 0) },

	/* Privileged, or of this process for good: last. */
	{ CALL(adjtimex, A), .flags = USER, .fills = { DATA(A, struct timex, { 0 }) } },
	{ CALL(clock_adjtime, CLOCK_REALTIME, A), .flags = USER, .fills = { DATA(A, struct timex, { 0 }) } },
	{ CALL(clock_settime, CLOCK_REALTIME, A), .flags = USER, .fills = { MOMENT(A, 1, 1) } },
	{ CALL(settimeofday, A, 0), .flags = USER, .fills = { DATA(A, int64_t[2], { 1, 1 }) } },
	{ CALL(sethostname, A, 5), .flags = USER, .fills = { TEXT(A, "other") } },
	{ CALL(setdomainname, A, 5), .flags = USER, .fills = { TEXT(A, "other") } },
	{ CALL(acct, A), .flags = USER, .fills = { TEXT(A, "file") } },
	{ CALL(vhangup), .flags = USER },
	{ CALL(setfsuid, MINUS_1), .flags = USER },
	{ CALL(setfsgid, MINUS_1), .flags = USER },
	{ CALL(setuid, MINUS_1), .flags = USER },
	{ CALL(setgid, MINUS_1), .flags = USER },
	{ CALL(setreuid, MINUS_1, MINUS_1), .flags = USER },
	{ CALL(setregid, MINUS_1, MINUS_1), .flags = USER },
	{ CALL(setresuid, MINUS_1, MINUS_1, MINUS_1), .flags = USER },
	{ CALL(setresgid, MINUS_1, MINUS_1, MINUS_1), .flags = USER },
	{ CALL(setgroups, 2, A), .flags = USER, .fills = { DATA(A, int[2], { 5, 6 }) } },
	{ CALL(setpgid, 0, 0), .flags = USER },
	{ CALL(setsid), .flags = USER },
	{ CALL(setrlimit, RLIMIT_CORE, A), .flags = USER, .keep = KEEP(0), .fills = { LIMITS(A, 0, 4096) } },
	{ CALL(setrlimit, 16, A), .flags = USER, .keep = KEEP(0), .fills = { LIMITS(A, 0, 4096) } },
	{ CALL(setpriority, PRIO_PROCESS, 0, 5), .flags = USER },
	{ CALL(ioprio_set, 1, 0, 0x4005), .flags = USER },

	/* A part on each side. */
	{ CALL(prctl, PR_GET_PDEATHSIG, A, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_SET_PDEATHSIG, 10, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_DUMPABLE, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_SET_NAME, A, 0, 0, 0), .flags = USER, .keep = KEEP(0), .fills = { TEXT(A, "another name") } },
	{ CALL(prctl, PR_GET_NAME, A, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_KEEPCAPS, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_CAPBSET_READ, 5, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_CAPBSET_DROP, 5, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_SECUREBITS, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_SET_SECUREBITS, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_CHILD_SUBREAPER, A, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_CAP_AMBIENT, 1, 5, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_TIMERSLACK, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, PR_GET_SECCOMP, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(prctl, 12345, 0, 0, 0, 0), .flags = USER, .keep = KEEP(0) },
	{ CALL(rt_sigaction, SIGUSR2, 0, A, 8), .flags = USER },
	{ CALL(rt_sigaction, SIGUSR2, B, A, 8), .flags = USER, .fills = { DATA(B, uint64_t[4], { 1 }) } },
	{ CALL(mmap, 0, 4096, PROT_READ, MAP_PRIVATE, FILE_RO, 0), .flags = USER | VARIES },
	{ CALL(mmap, UNMAPPED + 0x10000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, FILE_RW, 0), .flags = USER, .keep = KEEP(0) | KEEP(1) | KEEP(3) },
	{ CALL(mmap, 0, 4096, PROT_READ, MAP_PRIVATE, PIPE_R, 0), .flags = USER | VARIES },
	{ CALL(mmap, 0, 4096, PROT_READ, MAP_PRIVATE, DIRECTORY, 0), .flags = USER | VARIES },
};

/* What differs from run to run: bytes of what an argument points to. */
static const struct {
	const char *name;
	int argument;
	size_t at, size;
} unsteady[] = {
	{ "stat", 1, 8, 8 }, { "stat", 1, 64, 56 },
	{ "lstat", 1, 8, 8 }, { "lstat", 1, 64, 56 },
	{ "fstat", 1, 8, 8 }, { "fstat", 1, 64, 56 },
	{ "newfstatat", 2, 8, 8 }, { "newfstatat", 2, 64, 56 },
	{ "statx", 4, 32, 8 }, { "statx", 4, 48, 8 }, { "statx", 4, 64, 64 },
	{ "statfs", 1, 24, 32 }, { "fstatfs", 1, 24, 32 }, { "ustat", 1, 0, 16 },
	{ "ppoll", 2, 8, 8 },
	/* The restorer's address. */
	{ "rt_sigaction", 2, 16, 8 },
	{ "getdents", 1, 0, 0x1000 }, { "getdents64", 1, 0, 0x1000 },
	{ "sysinfo", 0, 0, 112 },
	{ "adjtimex", 0, 0, 208 }, { "clock_adjtime", 1, 0, 208 },
	{ "cachestat", 2, 8, 32 },
	/* The sequence number of its id, times and processes. */
	{ "semctl", 3, 24, 2 }, { "semctl", 3, 48, 32 },
	{ "msgctl", 2, 24, 2 }, { "msgctl", 2, 48, 24 }, { "msgctl", 2, 96, 8 },
	{ "shmctl", 2, 24, 2 }, { "shmctl", 2, 56, 32 },
	{ "getrusage", 1, 0, 144 }, { "times", 0, 0, 32 }, { "clock_gettime", 1, 0, 16 },
};

#endif
