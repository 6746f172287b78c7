/*
 * What a descriptor is besides its bytes: numbers and their flags, locks, owners, directories,
 * places without access, devices, terminals with their jobs. Those of the start go along.
 */
#define VICTIM_CLEAN_UP
#include "victim.h"
#include <dirent.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

#define NAMES 300
#define OWNED_SIGNAL (SIGRTMIN + 4)

static char directory[64];
static int file, place, listing, terminal, master;
static long listed_at;
static volatile sig_atomic_t told_fd, told_band;

static void on_ready(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	told_fd = info->si_fd;
	told_band = info->si_band;
}

static void open_terminal(int *master, int *terminal)
{
	*master = posix_openpt(O_RDWR | O_NOCTTY);
	must(*master >= 0 && grantpt(*master) == 0 && unlockpt(*master) == 0, "a terminal's master");
	*terminal = open(ptsname(*master), O_RDWR | O_NOCTTY);
	must(*terminal >= 0, "a terminal");
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_sigaction = on_ready, .sa_flags = SA_SIGINFO | SA_RESTART };
	char name[16];
	snprintf(directory, sizeof directory, "/tmp/victim-handles-%d", getpid());
	must(mkdir(directory, 0700) == 0 && chdir(directory) == 0, "a directory");
	file = open("file", O_RDWR | O_CREAT, 0600);
	place = open("file", O_PATH | O_CLOEXEC);
	must(mkdir("many", 0700) == 0, "mkdir");
	for (int i = 0; i < NAMES; i++) {
		snprintf(name, sizeof name, "many/%d", i);
		close(open(name, O_CREAT | O_WRONLY, 0600));
	}
	listing = open("many", O_RDONLY | O_DIRECTORY);
	must(file >= 0 && place >= 0 && listing >= 0, "open");
	must(sigaction(OWNED_SIGNAL, &action, NULL) == 0, "sigaction");
	signal(SIGTTOU, SIG_IGN);
	open_terminal(&master, &terminal);
}

static void numbers(void)
{
	int fd = dup(file), high = fcntl(fd, F_DUPFD_CLOEXEC, 200);
	expect_equal("F_DUPFD_CLOEXEC", 200, high);
	expect_equal("dup3", 201, dup3(fd, 201, O_CLOEXEC));
	expect_equal("dup3 onto itself", -1, dup3(fd, fd, 0));
	expect_equal("its errno", EINVAL, errno);
	expect_equal("dup2 onto itself", fd, dup2(fd, fd));
	expect_equal("dup2", 202, dup2(fd, 202));
	expect_equal("CLOSE_RANGE_CLOEXEC", 0, syscall(SYS_close_range, 202, 203, 4));
	expect_equal("close-on-exec", FD_CLOEXEC, fcntl(202, F_GETFD));
	expect_equal("open still", 0, lseek(202, 0, SEEK_SET));
	expect_equal("close_range", 0, syscall(SYS_close_range, 200, 202, 0));
	for (int i = 200; i < 203; i++) {
		expect_equal("closed", -1, fcntl(i, F_GETFD));
		expect_equal("its errno", EBADF, errno);
	}
	expect_equal("a range from its end", -1, syscall(SYS_close_range, 5, 4, 0));
	expect_equal("its errno", EINVAL, errno);
	close(fd);
}

static void locks(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5 }, seen = lock;
	int other = open("file", O_RDWR), status = -1;
	expect_equal("F_OFD_SETLK", 0, fcntl(file, F_OFD_SETLK, &lock));
	seen.l_pid = 0;
	expect_equal("F_OFD_GETLK", 0, fcntl(other, F_OFD_GETLK, &seen));
	expect_equal("is held", F_WRLCK, seen.l_type);
	expect_equal("from", 10, seen.l_start);
	expect_equal("F_OFD_SETLK of another", -1, fcntl(other, F_OFD_SETLK, &lock));
	expect_equal("its errno", EAGAIN, errno);
	lock.l_type = F_UNLCK;
	expect_equal("F_OFD_SETLK", 0, fcntl(file, F_OFD_SETLK, &lock));
	lock.l_type = F_RDLCK;
	expect_equal("F_SETLK", 0, fcntl(file, F_SETLK, &lock));
	expect_equal("flock", 0, flock(file, LOCK_EX));
	pid_t us = getpid(), child = fork();
	if (child == 0) {
		struct flock asked = lock;
		asked.l_type = F_WRLCK;
		int held = fcntl(file, F_GETLK, &asked) == 0 && asked.l_type == F_RDLCK && asked.l_pid == us;
		/* That one it shares. */
		_exit(held && flock(file, LOCK_EX | LOCK_NB) == 0 && flock(other, LOCK_EX | LOCK_NB) < 0 ? 0 : 1);
	}
	expect_equal("a child that looks", child, waitpid(child, &status, 0));
	expect_equal("locks as it sees them", 0, status);
	expect_equal("unlock", 0, flock(file, LOCK_UN));
	close(other);
	lock.l_type = F_UNLCK;
	fcntl(file, F_SETLK, &lock);
}

/* Its signal tells which descriptor is ready. */
static void owner(void)
{
	int ends[2];
	struct f_owner_ex mine = { F_OWNER_TID, syscall(SYS_gettid) }, seen = { 0, 0 };
	must(pipe(ends) == 0, "pipe");
	told_fd = -1;
	expect_equal("F_SETOWN_EX", 0, fcntl(ends[0], F_SETOWN_EX, &mine));
	expect_equal("F_GETOWN_EX", 0, fcntl(ends[0], F_GETOWN_EX, &seen));
	expect_equal("its owner", mine.pid, seen.pid);
	expect_equal("F_SETSIG", 0, fcntl(ends[0], F_SETSIG, OWNED_SIGNAL));
	expect_equal("O_ASYNC", 0, fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	expect_equal("write", 1, write(ends[1], "x", 1));
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 5000000000LL;
	while (told_fd < 0 && now_ns(CLOCK_MONOTONIC) < limit)
		sched_yield();
	expect_equal("it is told", ends[0], told_fd);
	expect_equal("to be readable", POLLIN, told_band & POLLIN);
	close(ends[0]), close(ends[1]);
}

static void places(void)
{
	struct stat status, other;
	char name[64], text[8] = "";
	expect_equal("a place's flags", O_PATH, fcntl(place, F_GETFL) & O_PATH);
	expect_equal("read of a place", -1, read(place, text, 1));
	expect_equal("its errno", EBADF, errno);
	expect_equal("fstat of a place", 0, fstat(place, &status));
	expect_equal("by the place itself", 0, fstatat(place, "", &other, AT_EMPTY_PATH));
	expect_equal("one file", status.st_ino, other.st_ino);
	snprintf(name, sizeof name, "/proc/self/fd/%d", place);
	int opened = open(name, O_RDWR);
	expect_equal("write of what is opened by it", 2, pwrite(opened, "by", 2, 0));
	expect_equal("read of the file", 2, pread(file, text, 2, 0));
	expect_equal("its bytes", 0, memcmp(text, "by", 2));
	close(opened);
	int root = open("/", O_PATH | O_DIRECTORY);
	expect_equal("below a place", 0, fstatat(root, directory + 1, &other, 0));
	expect_equal("a directory", S_IFDIR, other.st_mode & S_IFMT);
	close(root);
}

/* On from where it was, from its beginning, and from a position that was told. */
static void listings(void)
{
	char room[512];
	long n = syscall(SYS_getdents64, listing, room, sizeof room);
	expect_range("getdents64", 0, sizeof room, n);
	listed_at += n > 0;
	if (n <= 0) {
		expect_equal("to the beginning", 0, lseek(listing, 0, SEEK_SET));
		expect_range("read in parts", NAMES * 24 / sizeof room, NAMES, listed_at);
		listed_at = 0;
	}
	DIR *all = opendir("many");
	must(all != NULL, "opendir");
	long half = 0, count = 0, rest = 0;
	char name[256] = "";
	for (struct dirent *entry; (entry = readdir(all)); count++)
		if (count == NAMES / 2 - 1) {
			half = telldir(all);
			entry = readdir(all);
			snprintf(name, sizeof name, "%s", entry->d_name);
			count++;
		}
	expect_equal("names", NAMES + 2, count);
	seekdir(all, half);
	struct dirent *entry = readdir(all);
	expect_equal("the same name there", 0, !entry || strcmp(entry->d_name, name));
	for (rest = 1; readdir(all); rest++)
		;
	expect_equal("as many behind it", NAMES + 2 - NAMES / 2, rest);
	closedir(all);
}

static void devices(void)
{
	char bytes[64];
	int full = open("/dev/full", O_RDWR), zero = open("/dev/zero", O_RDONLY), queue = -1;
	expect_equal("write to a full device", -1, write(full, "x", 1));
	expect_equal("its errno", ENOSPC, errno);
	memset(bytes, 1, sizeof bytes);
	expect_equal("zeros", sizeof bytes, read(zero, bytes, sizeof bytes));
	expect_equal("are zeros", 0, bytes[0] | bytes[63]);
	expect_equal("an ioctl that it has not", -1, ioctl(zero, FIONREAD, &queue));
	expect_equal("its errno", ENOTTY, errno);
	/* Neither known, nor with a size in it. */
	expect_equal("an ioctl that nobody knows", -1, ioctl(file, 0x1234, bytes));
	expect_equal("its errno", ENOTTY, errno);
	close(full), close(zero);
}

static void modes(int master, int terminal)
{
	struct termios cooked, raw;
	struct winsize size = { 33, 77, 0, 0 }, seen = { 0, 0, 0, 0 };
	char text[16] = "";
	expect_equal("isatty", 1, isatty(terminal));
	expect_equal("tcgetattr", 0, tcgetattr(terminal, &cooked));
	expect_equal("it is cooked", ICANON | ECHO, cooked.c_lflag & (ICANON | ECHO));
	expect_equal("a line, edited", 5, write(master, "ab\x7f" "c\n", 5));
	expect_equal("as it is read", 3, read(terminal, text, sizeof text));
	expect_equal("its text", 0, memcmp(text, "ac\n", 3));
	expect_equal("its echo", 8, read(master, text, sizeof text));
	raw = cooked;
	cfmakeraw(&raw);
	expect_equal("tcsetattr", 0, tcsetattr(terminal, TCSADRAIN, &raw));
	expect_equal("a byte", 1, write(master, "\x04", 1));
	expect_equal("as it is read", 1, read(terminal, text, sizeof text));
	expect_equal("as it was", 4, text[0]);
	expect_equal("output", 1, write(terminal, "\n", 1));
	expect_equal("as it is", 1, read(master, text, sizeof text));
	expect_equal("tcsetattr", 0, tcsetattr(terminal, TCSANOW, &cooked));
	expect_equal("TIOCSWINSZ", 0, ioctl(master, TIOCSWINSZ, &size));
	expect_equal("TIOCGWINSZ", 0, ioctl(terminal, TIOCGWINSZ, &seen));
	expect_equal("its size", 0, memcmp(&size, &seen, sizeof size));
	expect_equal("tcflush", 0, tcflush(terminal, TCIOFLUSH));
}

/* The leader of a session with this terminal, which has one more job. */
static int jobs(int terminal)
{
	int status;
	if (setsid() != getpid() || ioctl(terminal, TIOCSCTTY, 0) || tcgetsid(terminal) != getpid())
		return 1;
	int controlling = open("/dev/tty", O_RDWR);
	if (controlling < 0 || tcgetpgrp(controlling) != getpgrp())
		return 2;
	pid_t job = fork();
	if (job == 0) {
		char byte;
		signal(SIGTTIN, SIG_DFL);
		setpgid(0, 0);
		/* From behind: it stops, and reads when it is in front. */
		_exit(read(terminal, &byte, 1) == 1 && byte == 'j' ? 9 : 8);
	}
	setpgid(job, job);
	if (waitpid(job, &status, WUNTRACED) != job || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTTIN)
		return 3;
	if (tcsetpgrp(controlling, job) || tcgetpgrp(terminal) != job || kill(-job, SIGCONT))
		return 4;
	if (waitpid(job, &status, 0) != job || !WIFEXITED(status) || WEXITSTATUS(status) != 9)
		return 5;
	if (tcsetpgrp(controlling, getpgrp()) || ioctl(controlling, TIOCNOTTY))
		return 6;
	return open("/dev/tty", O_RDWR) < 0 && errno == ENXIO ? 0 : 7;
}

static void session(void)
{
	int own_master, own_terminal, status = -1;
	open_terminal(&own_master, &own_terminal);
	modes(own_master, own_terminal);
	expect_equal("what the job reads", 2, write(own_master, "j\n", 2));
	pid_t child = fork();
	if (child == 0) {
		signal(SIGHUP, SIG_IGN), signal(SIGCONT, SIG_IGN);
		_exit(jobs(own_terminal));
	}
	expect_equal("a session", child, waitpid(child, &status, 0));
	expect_equal("its jobs", 0, status);
	close(own_terminal);
	char byte;
	while (read(own_master, &byte, 1) == 1)
		;
	expect_equal("nobody has it open", EIO, errno);
	close(own_master);
}

static void step(void)
{
	numbers();
	owner();
}

static void check(void)
{
	numbers();
	locks();
	owner();
	places();
	listings();
	devices();
	modes(master, terminal);
	session();
}

static void clean_up(void)
{
	char name[16];
	for (int i = 0; i < NAMES; i++) {
		snprintf(name, sizeof name, "many/%d", i);
		unlink(name);
	}
	rmdir("many"), unlink("file"), rmdir(directory);
}
