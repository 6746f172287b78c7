/*
 * A file that is read and files that are written, in the directory that it is told, in every way
 * that moves a position or shows one. "mix SEED TRACE" makes a row of such calls and notes in a
 * file what each gave; so two runs can be compared. "show" and "linger" write, and tell of it, or
 * compute on until SIGUSR1; "count N" reads and seeks so often, "scribble N" writes; "next" reads on
 * by the descriptor that was open before, which a child of "share" has as well, and reads by at
 * "theirs"; "together" reads in threads; "fill 0" and "fill 1" write more than there is room for, and
 * the second syncs it. getppid is called behind what is counted.
 */
#define VICTIM_COMMAND
#define VICTIM_INPUT_TIMEOUT_MS -1
#include "victim.h"
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define PAGE 4096
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif
#define ROUNDS 250
#define ROOM 200000
#define SLOTS 4

static const char *dir;
static char data[200];
static unsigned char room[ROOM];
static int early, trace = -1;
static uint64_t state;

static void setup(int argc, char **argv)
{
	must(argc > 1, "a directory");
	dir = argv[1];
	snprintf(data, sizeof data, "%s/data", dir);
	early = open(data, O_RDONLY);
	must(early >= 0 && read(early, room, 1000) == 1000, "open");
}

static void step(void)
{
}

static void check(void)
{
}

static unsigned below(unsigned n)
{
	return next_random(&state) % n;
}

static uint64_t digest(const unsigned char *bytes, long n)
{
	uint64_t hash = 14695981039346656037u;
	for (long i = 0; i < n; i++)
		hash = (hash ^ bytes[i]) * 1099511628211u;
	return hash;
}

static void note(const char *what, long result, uint64_t more)
{
	int error = result < 0 ? errno : 0;
	dprintf(trace, "%s %ld %d %llx\n", what, result, error, (unsigned long long)more);
}

static void note_bytes(const char *what, long n)
{
	note(what, n, digest(room, n > 0 ? n : 0));
}

static void receive(int from, int fd)
{
	char control[CMSG_SPACE(sizeof(int))], byte = 0;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof control };
	struct cmsghdr *header = (struct cmsghdr *)control;
	*header = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	int pair[2], other;
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0, "socketpair");
	must(sendmsg(pair[0], &message, 0) == 1 && recvmsg(pair[1], &message, 0) == 1, "pass");
	memcpy(&other, CMSG_DATA(header), sizeof other);
	note_bytes("passed", read(other, room, from));
	close(other), close(pair[0]), close(pair[1]);
}

static void by_a_child(int fd, int writes)
{
	fflush(0);
	pid_t child = fork();
	must(child >= 0, "fork");
	if (child == 0)
		_exit(writes ? write(fd, "child", 5) != 5 : read(fd, room, 77) < 0);
	int status;
	must(waitpid(child, &status, 0) == child, "waitpid");
	note("child", status, 0);
}

static void shown_position(int fd)
{
	char name[64], text[256] = "";
	snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
	int info = open(name, O_RDONLY);
	must(info >= 0 && read(info, text, sizeof text - 1) > 0, "fdinfo");
	close(info);
	note("fdinfo", atol(strstr(text, "pos:") + 4), 0);
}

static void look(int fd)
{
	struct stat s = { 0 };
	long result = fstat(fd, &s);
	note("fstat", result, s.st_size ^ (uint64_t)s.st_mode << 40);
	note("ioctl", ioctl(fd, TCGETS, room), 0);
	note("flags", fcntl(fd, F_GETFL), 0);
	int bytes = 0;
	result = ioctl(fd, FIONREAD, &bytes);
	note("left", result, bytes);
}

static void seek(int fd)
{
	static const int ways[] = { SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE, 9 };
	int way = ways[below(below(4) ? 3 : 6)];
	long by = way == SEEK_SET ? (long)below(320000) - 100 : (long)below(40000) - 30000;
	note("lseek", lseek(fd, by, way), 0);
}

static void in_parts(int fd)
{
	struct iovec parts[3] = { { room, below(3000) }, { room + 3000, 0 }, { room + 3000, below(90000) } };
	memset(room, 0, ROOM);
	long n = readv(fd, parts, 3);
	note("readv", n, digest(room, ROOM));
	note("no parts", readv(fd, parts, 0), 0);
	note("a bad part", readv(fd, (struct iovec[]){ { room, 10 }, { (void *)8, 10 } }, 2), 0);
	note("bad parts", readv(fd, (void *)8, 2), 0);
}

static void into_nothing(int fd)
{
	char *end = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(end != MAP_FAILED && munmap(end + PAGE, PAGE) == 0, "mmap");
	note("bad", read(fd, (void *)8, 10), 0);
	note("beyond", read(fd, (void *)-4096L, 10), 0);
	note("none", read(fd, room, 0), 0);
	note("bad offset", pread(fd, room, 10, -1), 0);
	note("long", read(fd, room, 0), 0);
	long at = lseek(fd, 0, SEEK_CUR);
	lseek(fd, 70000, SEEK_SET);
	/* How much of it is read, is the file system's to say. */
	long n = read(fd, end + PAGE - 100, 100);
	note("to the end", n, digest((void *)(end + PAGE - 100), n > 0 ? n : 0));
	lseek(fd, at, SEEK_SET);
	munmap(end, PAGE);
}

static void one(int *fd)
{
	int other, pipe_ends[2];
	off_t at = below(300000);
	long n;
	switch (below(20)) {
	case 0 ... 4:
		note_bytes("read", read(*fd, room, below(below(3) ? 500 : ROOM)));
		break;
	case 5:
		note_bytes("pread", pread(*fd, room, below(ROOM), below(320000)));
		break;
	case 6 ... 8:
		seek(*fd);
		break;
	case 9:
		in_parts(*fd);
		break;
	case 10:
		look(*fd);
		break;
	case 11:
		into_nothing(*fd);
		break;
	case 12:
		close(*fd);
		*fd = open(data, O_RDONLY | (below(2) ? O_CLOEXEC : 0));
		break;
	case 13:
		other = dup(*fd);
		note_bytes("dup", read(other, room, 300));
		close(below(2) ? *fd : other);
		note_bytes("undup", read(other, room, 300));
		*fd = fcntl(*fd, F_GETFD) < 0 ? other : *fd;
		break;
	case 14:
		other = open(data, O_RDONLY);
		note_bytes("other", read(other, room, 123));
		note("dup2", dup2(*fd, other) - other, 0);
		note_bytes("dupped", read(other, room, 123));
		close(other);
		break;
	case 15:
		must(pipe(pipe_ends) == 0, "pipe");
		n = sendfile(pipe_ends[1], *fd, below(2) ? &at : 0, 2000);
		note("sendfile", n, at);
		note_bytes("sent", fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK) ? -1 : read(pipe_ends[0], room, 4000));
		close(pipe_ends[0]), close(pipe_ends[1]);
		break;
	case 16:
		receive(100, *fd);
		break;
	case 17:
		shown_position(*fd);
		break;
	case 18:
		if (!below(4))
			by_a_child(*fd, 0);
		break;
	default:
		note("write", write(*fd, room, 1), 0);
		note("truncate", ftruncate(*fd, 1), 0);
		note("cloexec", syscall(SYS_close_range, *fd, *fd, CLOSE_RANGE_CLOEXEC), 0);
	}
	note("position", lseek(*fd, 0, SEEK_CUR), 0);
}

static void name_of(char *name, int slot)
{
	sprintf(name, "%s/scratch-%d", dir, slot);
}

static int made(int slot)
{
	char name[200];
	name_of(name, slot);
	if (below(2) && unlink(name) == 0)
		return open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
	return open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

static void written(int *fds)
{
	char name[200], other[200];
	int slot = below(SLOTS), fd = fds[slot], again;
	struct stat s = { 0 };
	long result;
	name_of(name, slot);
	switch (below(18)) {
	case 0 ... 6:
		for (int i = below(20); i >= 0; i--)
			note("write", write(fd, room + below(1000), below(3000)), 0);
		break;
	case 7:
		note("much", write(fd, room, ROOM), 0);
		note("much", write(fd, room, ROOM), 0);
		break;
	case 8:
		note("seek", lseek(fd, below(3000), below(2) ? SEEK_SET : SEEK_CUR), 0);
		break;
	case 9:
		note("at", pwrite(fd, room, below(3000), below(9000)), 0);
		break;
	case 10:
		note_bytes("back", pread(fd, room, 5000, below(5000)));
		note_bytes("on", read(fd, room, 500));
		break;
	case 11:
		result = below(2) ? fstat(fd, &s) : stat(name, &s);
		note("stat", result, s.st_size);
		break;
	case 12:
		note("cut", ftruncate(fd, below(9000)), 0);
		note("sync", fsync(fd), 0);
		break;
	case 13:
		note("end", lseek(fd, 0, SEEK_END), 0);
		note("bad", write(fd, (void *)8, 10), 0);
		note("none", write(fd, room, 0), 0);
		break;
	case 14:
		note("close", close(fd), 0);
		again = open(name, O_RDONLY);
		note_bytes("read", read(again, room, ROOM));
		close(again);
		fds[slot] = made(slot);
		break;
	case 15:
		again = dup(fd);
		note("dup", write(again, room, 10), 0);
		note("both", write(fd, room, 10), 0);
		close(again);
		break;
	case 16:
		sprintf(other, "%s/renamed-%d", dir, slot);
		note("rename", rename(name, other), 0);
		note("write", write(fd, room, 100), 0);
		note("back", rename(other, name), 0);
		break;
	default:
		if (!below(4))
			by_a_child(fd, 1);
	}
}

static void mix(uint64_t seed, const char *name)
{
	int fds[SLOTS], fd = open(data, O_RDONLY);
	state = seed * 2654435761u + 1;
	trace = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	must(trace >= 0 && fd >= 0, "open");
	for (int i = 0; i < SLOTS; i++)
		fds[i] = made(i);
	for (int i = 0; i < ROUNDS; i++) {
		one(below(2) ? &fd : &early);
		written(fds);
	}
	for (int i = 0; i < SLOTS; i++)
		note("close", close(fds[i]), 0);
	close(fd), close(trace);
	getppid();
	say("MIXED\n");
}

static void count(int n)
{
	int fd = open(data, O_RDONLY);
	long sum = 0;
	for (int i = 0; i < n; i++) {
		must(lseek(fd, i * 100, SEEK_SET) == i * 100, "lseek");
		must(read(fd, room, 100) == 100, "read");
		sum += room[5];
	}
	close(fd);
	getppid();
	say("COUNTED %ld\n", sum);
}

static void scribble(int n)
{
	char name[200];
	snprintf(name, sizeof name, "%s/scribbled", dir);
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (int i = 0; i < n; i++)
		must(write(fd, "0123456789", 10) == 10, "write");
	must(close(fd) == 0, "close");
	getppid();
	say("SCRIBBLED\n");
}

static void *reads_on(void *of)
{
	int fd = *(int *)of;
	char bytes[50];
	long n, sum = 0;
	while ((n = read(fd, bytes, sizeof bytes)) > 0)
		sum += n;
	return (void *)sum;
}

/* Each byte is read once, by one thread or another, whatever becomes of the descriptor meanwhile. */
static void together(void)
{
	int fd = open(data, O_RDONLY);
	pthread_t threads[3];
	void *sum;
	long all = 0;
	must(fd >= 0, "open");
	for (int i = 0; i < 3; i++)
		must(pthread_create(&threads[i], 0, reads_on, &fd) == 0, "a thread");
	while (lseek(fd, 0, SEEK_CUR) < 100000)
		;
	int other = dup(fd);
	for (int i = 0; i < 3; i++) {
		must(pthread_join(threads[i], &sum) == 0, "join");
		all += (long)sum;
	}
	close(fd), close(other);
	say("TOGETHER %ld\n", all);
}

static int helper[2];

/* A child reads by the same open, when it is told. */
static void share(void)
{
	must(pipe(helper) == 0, "pipe");
	pid_t child = fork();
	must(child >= 0, "fork");
	if (child == 0) {
		char byte;
		close(helper[1]);
		_exit(read(helper[0], &byte, 1) != 1 || read(early, room, 10) != 10);
	}
	close(helper[0]);
	say("SHARED\n");
}

static void theirs(void)
{
	int status;
	must(write(helper[1], "x", 1) == 1 && wait(&status) > 0, "a child");
	expect_equal("their read", 0, status);
	say("THEIRS\n");
}

/* Writes more than there is room for, until it is told so. */
static void fill(int syncs)
{
	char name[200];
	snprintf(name, sizeof name, "%s/full", dir);
	int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600), error = 0;
	must(fd >= 0, "open");
	for (int i = 0; i < 600 && !error; i++)
		error = write(fd, room, 1000) == 1000 ? 0 : errno;
	if (!error && syncs)
		error = fsync(fd) ? errno : 0;
	int last = close(fd) ? errno : 0;
	say("FULL %d\n", error ? error : last);
}

static volatile sig_atomic_t told;

static void heard(int signal)
{
	(void)signal;
	told = 1;
}

static void show(int lingers)
{
	char name[200];
	snprintf(name, sizeof name, "%s/shown", dir);
	unlink(name);
	int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	must(fd >= 0, "open");
	if (lingers)
		signal(SIGUSR1, heard);
	must(write(fd, "shown", 5) == 5, "write");
	while (lingers && !told)
		;
	say("SHOWN\n");
	close(fd);
}

static void command(const char *line)
{
	unsigned long seed;
	char name[200];
	int n;
	if (sscanf(line, "mix %lu %199s", &seed, name) == 2)
		mix(seed, name);
	else if (sscanf(line, "count %d", &n) == 1)
		count(n);
	else if (sscanf(line, "scribble %d", &n) == 1)
		scribble(n);
	else if (!strcmp(line, "share"))
		share();
	else if (sscanf(line, "fill %d", &n) == 1)
		fill(n);
	else if (!strcmp(line, "together"))
		together();
	else if (!strcmp(line, "theirs"))
		theirs();
	else if (!strcmp(line, "next"))
		say("NEXT %ld\n", (long)(read(early, room, 10) == 10 ? lseek(early, 0, SEEK_CUR) : -1));
	else
		show(!strcmp(line, "linger"));
}
