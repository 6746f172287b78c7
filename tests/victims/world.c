/* A tour of the calls that go home: names, directories, vectors, sockets, events, locks, limits. */
#define VICTIM_CLEAN_UP
#include "victim.h"
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

static char home[64];
static int directory;
static struct utsname system_at_start;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	snprintf(home, sizeof home, "/tmp/victim-world-%d", getpid());
	must(mkdir(home, 0750) == 0 && chdir(home) == 0, "a directory");
	directory = open(".", O_RDONLY | O_DIRECTORY);
	must(directory >= 0, "open");
	uname(&system_at_start);
}

static void names(void)
{
	struct stat status, other;
	char target[64] = "";
	int fd = open("a", O_RDWR | O_CREAT | O_TRUNC, 0640);
	expect_range("open", 0, 1000, fd);
	expect_equal("ftruncate", 0, ftruncate(fd, 12345));
	expect_equal("fstat", 0, fstat(fd, &status));
	expect_equal("size", 12345, status.st_size);
	expect_equal("fchmod", 0, fchmod(fd, 0604));
	expect_equal("link", 0, link("a", "b"));
	expect_equal("rename", 0, rename("b", "c"));
	expect_equal("stat", 0, stat("c", &other));
	expect_equal("same inode", status.st_ino, other.st_ino);
	expect_equal("mode", S_IFREG | 0604, other.st_mode);
	expect_equal("symlink", 0, symlink("c", "s"));
	expect_equal("readlink", 1, readlink("s", target, sizeof target));
	expect_equal("its target", 'c', target[0]);
	expect_equal("lstat", 0, lstat("s", &other));
	expect_equal("is a link", S_IFLNK, other.st_mode & S_IFMT);
	expect_equal("access", 0, access("s", R_OK));
	expect_equal("no such file", -1, access("nothing", F_OK));
	expect_equal("ENOENT", ENOENT, errno);
	struct timespec times[2] = { { 1000, 0 }, { 2000, 5 } };
	expect_equal("futimens", 0, futimens(fd, times));
	expect_equal("fstatat", 0, fstatat(directory, "a", &other, 0));
	expect_equal("mtime", 2000, other.st_mtim.tv_sec);
	expect_equal("mtime, ns", 5, other.st_mtim.tv_nsec);
	DIR *listing = opendir(".");
	int entries = 0;
	while (listing && readdir(listing))
		entries++;
	if (listing)
		closedir(listing);
	expect_equal("entries", 5, entries);
	expect_equal("unlink", 0, unlink("a") | unlink("c") | unlink("s"));
	close(fd);
}

static void vectors(void)
{
	char one[5] = "", two[6] = "", copy[16] = "";
	struct iovec out[2] = { { "hello", 5 }, { " world", 6 } };
	struct iovec in[2] = { { one, 5 }, { two, 6 } };
	int from = open("v", O_RDWR | O_CREAT | O_TRUNC, 0600);
	int to = open("w", O_RDWR | O_CREAT | O_TRUNC, 0600);
	expect_equal("writev", 11, writev(from, out, 2));
	expect_equal("preadv", 11, preadv(from, in, 2, 0));
	expect_equal("first part", 0, memcmp(one, "hello", 5));
	expect_equal("second part", 0, memcmp(two, " world", 6));
	off_t at = 0;
	expect_equal("sendfile", 11, sendfile(to, from, &at, 100));
	expect_equal("offset after it", 11, at);
	expect_equal("pread", 11, pread(to, copy, sizeof copy, 0));
	expect_equal("copied", 0, memcmp(copy, "hello world", 11));
	expect_equal("EFAULT", -1, write(from, (void *)8, 10));
	expect_equal("its errno", EFAULT, errno);
	close(from), close(to);
	unlink("v"), unlink("w");
}

static void sockets(void)
{
	int pair[2], option = 0, received = -1, passed[2];
	socklen_t length = sizeof option;
	char data[8] = "", control[CMSG_SPACE(sizeof(int))] = { 0 };
	expect_equal("socketpair", 0, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	expect_equal("getsockopt", 0, getsockopt(pair[0], SOL_SOCKET, SO_TYPE, &option, &length));
	expect_equal("its type", SOCK_SEQPACKET, option);
	expect_equal("pipe", 0, pipe(passed));
	struct iovec part = { "packet", 6 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &passed[1], sizeof(int));
	expect_equal("sendmsg", 6, sendmsg(pair[0], &message, 0));
	memset(control, 0, sizeof control);
	part = (struct iovec){ data, sizeof data };
	message = (struct msghdr){ .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	expect_equal("recvmsg", 6, recvmsg(pair[1], &message, 0));
	expect_equal("packet", 0, memcmp(data, "packet", 6));
	header = CMSG_FIRSTHDR(&message);
	expect_equal("a descriptor came", 1, header && header->cmsg_type == SCM_RIGHTS);
	if (header)
		memcpy(&received, CMSG_DATA(header), sizeof received);
	expect_equal("write through it", 1, write(received, "x", 1));
	expect_equal("read behind it", 1, read(passed[0], data, 1));
	expect_equal("nothing more", -1, recv(pair[1], data, sizeof data, MSG_DONTWAIT));
	expect_equal("EAGAIN", EAGAIN, errno);
	close(pair[0]), close(pair[1]), close(passed[0]), close(passed[1]), close(received);
}

static void events(void)
{
	uint64_t count = 3;
	int event = eventfd(2, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0);
	int epoll = epoll_create1(0);
	struct epoll_event wanted = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 }, seen[4];
	expect_equal("epoll_ctl", 0, epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted));
	expect_equal("eventfd write", 8, write(event, &count, 8));
	expect_equal("epoll_wait", 1, epoll_wait(epoll, seen, 4, 1000));
	expect_equal("epoll data", 0x1122334455667788, seen[0].data.u64);
	expect_equal("eventfd read", 8, read(event, &count, 8));
	expect_equal("its count", 5, count);
	struct itimerspec soon = { { 0, 0 }, { 0, 1000000 } };
	expect_equal("timerfd_settime", 0, timerfd_settime(timer, 0, &soon, NULL));
	expect_equal("timerfd read", 8, read(timer, &count, 8));
	expect_equal("expirations", 1, count);
	fd_set readable;
	FD_ZERO(&readable);
	FD_SET(event, &readable);
	struct timeval at_once = { 0, 0 };
	expect_equal("select", 0, select(event + 1, &readable, NULL, NULL, &at_once));
	expect_equal("not readable", 0, FD_ISSET(event, &readable));
	close(event), close(timer), close(epoll);
}

static void locks_and_limits(void)
{
	int fd = open("l", O_RDWR | O_CREAT, 0600), again = open("l", O_RDWR);
	expect_equal("flock", 0, flock(fd, LOCK_EX));
	expect_equal("second flock", -1, flock(again, LOCK_EX | LOCK_NB));
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5 };
	expect_equal("F_SETLK", 0, fcntl(fd, F_SETLK, &range));
	expect_equal("F_DUPFD", 0, close(fcntl(fd, F_DUPFD_CLOEXEC, 300)));
	close(fd), close(again), unlink("l");
	struct statfs filesystem;
	expect_equal("statfs", 0, statfs("/", &filesystem));
	struct sysinfo information;
	expect_equal("sysinfo", 0, sysinfo(&information));
	struct utsname now;
	expect_equal("uname", 0, uname(&now));
	expect_equal("the same system", 0, memcmp(&now, &system_at_start, sizeof now));
	struct rusage usage;
	expect_equal("getrusage", 0, getrusage(RUSAGE_SELF, &usage));
	gid_t groups[64];
	expect_range("getgroups", 0, 64, getgroups(64, groups));
	uid_t real, effective, saved;
	expect_equal("getresuid", 0, getresuid(&real, &effective, &saved));
	expect_equal("effective", geteuid(), effective);
	struct tms ticks;
	expect_range("times", 1, INT64_MAX, times(&ticks));
}

static void step(void)
{
	names();
	vectors();
	sockets();
	events();
	locks_and_limits();
}

static void check(void)
{
	step();
}

/* Its directory is empty between two steps. */
static void clean_up(void)
{
	rmdir(home);
}
