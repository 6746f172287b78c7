/*
 * Has something of each kind that an image holds, in the directory of its first argument. A second
 * one names something that an image does not hold, which it has, too.
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#define CONTENT "0123456789"
#define IN_PIPE "abcde"
#define COUNT 3
#define MARK 77
#define NICE 5
#define UMASK 027
#define SECONDS 1000
#define HIGH 200

static char directory[200], exe[200];
static int reads, same, appends, place, out, event, timer, signals, epoll;
static int ends[2];
static pid_t pid;

static void have(const char *what)
{
	if (!strcmp(what, "socket"))
		must(!socketpair(AF_UNIX, SOCK_STREAM, 0, (int[2]){ 0 }), "socketpair");
	else if (!strcmp(what, "lock"))
		must(!flock(appends, LOCK_EX), "flock");
	else if (!strcmp(what, "deleted"))
		must(open("gone", O_RDWR | O_CREAT, 0600) >= 0 && !unlink("gone"), "unlink");
	else if (!strcmp(what, "mapped"))
		must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0) != MAP_FAILED, "mmap");
	else if (!strcmp(what, "child") && fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
}

static void setup(int argc, char **argv)
{
	sigset_t mask;
	must(argc > 1, "a directory");
	must(!chdir(argv[1]) && getcwd(directory, sizeof directory), "chdir");
	must(readlink("/proc/self/exe", exe, sizeof exe - 1) > 0, "exe");
	pid = getpid();
	umask(UMASK);
	must(!setpriority(PRIO_PROCESS, 0, NICE), "nice");

	out = open("reads", O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(out >= 0 && write(out, CONTENT, 10) == 10, "a file");
	/* Whoever reads it finds it as it is now. */
	reads = open("reads", O_RDONLY | O_CLOEXEC);
	must(reads >= 0 && lseek(reads, 4, SEEK_SET) == 4, "to read");
	same = dup2(reads, HIGH);
	must(same == HIGH, "dup2");
	appends = open("appends", O_WRONLY | O_CREAT | O_APPEND, 0600);
	must(appends >= 0 && write(appends, "abc", 3) == 3, "to append");
	place = open(".", O_RDONLY | O_DIRECTORY);
	must(place >= 0, "a directory");

	must(!pipe(ends) && write(ends[1], IN_PIPE, 5) == 5, "pipe");
	must(!fcntl(ends[1], F_SETFL, O_NONBLOCK), "fcntl");
	event = eventfd(COUNT, EFD_SEMAPHORE | EFD_NONBLOCK);
	must(event >= 0, "eventfd");
	timer = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec far = { .it_value.tv_sec = SECONDS };
	must(timer >= 0 && !timerfd_settime(timer, 0, &far, NULL), "timerfd");
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signals = signalfd(-1, &mask, 0);
	must(signals >= 0, "signalfd");
	epoll = epoll_create1(0);
	struct epoll_event in = { .events = EPOLLIN, .data.u64 = MARK };
	must(epoll >= 0 && !epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &in), "epoll");
	if (argc > 2)
		have(argv[2]);
}

static void step(void)
{
}

static void check_files(void)
{
	char now[200] = "";
	struct stat status;
	expect_equal("cwd", 0, strcmp(directory, getcwd(now, sizeof now)));
	expect_equal("position", 4, lseek(reads, 0, SEEK_CUR));
	expect_equal("close on exec", FD_CLOEXEC, fcntl(reads, F_GETFD));
	expect_equal("close its like on exec", 0, fcntl(same, F_GETFD));
	lseek(same, 6, SEEK_SET);
	expect_equal("one open file", 6, lseek(reads, 0, SEEK_CUR));
	lseek(same, 4, SEEK_SET);
	expect_equal("writer's position", 10, lseek(out, 0, SEEK_CUR));
	expect_equal("append", O_APPEND, fcntl(appends, F_GETFL) & O_APPEND);
	expect_equal("directory", 0, fstatat(place, "appends", &status, 0));
	memset(now, 0, sizeof now);
	expect_equal("exe", 0, readlink("/proc/self/exe", now, sizeof now - 1) < 0 || strcmp(now, exe));
}

static void check(void)
{
	char bytes[16] = "";
	uint64_t count = 0;
	struct itimerspec left;
	struct signalfd_siginfo info = { 0 };
	struct epoll_event in = { 0 };
	check_files();
	expect_equal("pid", pid, getpid());
	expect_equal("umask", UMASK, umask(UMASK));
	expect_equal("nice", NICE, getpriority(PRIO_PROCESS, 0));
	expect_equal("epoll", 1, epoll_wait(epoll, &in, 1, 0));
	expect_equal("mark", MARK, in.data.u64);
	expect_equal("pipe", 5, read(ends[0], bytes, sizeof bytes));
	expect_equal("in the pipe", 0, strcmp(bytes, IN_PIPE));
	expect_equal("into the pipe", 5, write(ends[1], IN_PIPE, 5));
	expect_equal("its flags", O_NONBLOCK, fcntl(ends[1], F_GETFL) & O_NONBLOCK);
	expect_equal("its other end's", 0, fcntl(ends[0], F_GETFL) & O_NONBLOCK);
	for (int i = 0; i < COUNT; i++) {
		expect_equal("eventfd", 8, read(event, &count, 8));
		expect_equal("semaphore", 1, count);
	}
	expect_equal("empty eventfd", -1, read(event, &count, 8));
	count = COUNT;
	expect_equal("into the eventfd", 8, write(event, &count, 8));
	expect_equal("timerfd", 0, timerfd_gettime(timer, &left));
	expect_range("time left", SECONDS - 300, SECONDS, left.it_value.tv_sec);
	expect_equal("kill", 0, kill(getpid(), SIGUSR2));
	expect_equal("signalfd", sizeof info, read(signals, &info, sizeof info));
	expect_equal("its signal", SIGUSR2, info.ssi_signo);
}
