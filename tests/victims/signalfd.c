/*
 * Reads signals from descriptors: sent by itself, by others, by a timer, to a thread; and takes some
 * by a handler, by sigsuspend and by sigtimedwait in between.
 *
 *   read    what waits: "READ <number> <sender>" for each, then "END"
 *   wait    waits for one by epoll: "WAITING", then "READ <number> <sender>"
 *   unblock lets signals in, one by one, while another thread makes calls: "HANDLED <count>"
 *   ready   whether poll says that there is one: "READY <0 or 1>"
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/time.h>

#define QUEUED (SIGRTMIN + 1)
#define SOON_MS 20000

static int fd, fd_of_thread, epoll, late = -1;
static volatile sig_atomic_t handled;
static pid_t reader;
static int seen_by_reader;

static void on_signal(int number)
{
	(void)number;
	handled++;
}

static sigset_t only(int number)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	return set;
}

static void *reads(void *arg)
{
	(void)arg;
	__atomic_store_n(&reader, gettid(), __ATOMIC_RELEASE);
	for (;;) {
		struct signalfd_siginfo info;
		if (read(fd_of_thread, &info, sizeof info) == sizeof info)
			__atomic_store_n(&seen_by_reader, info.ssi_int, __ATOMIC_RELEASE);
	}
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	sigset_t set, of_thread = only(SIGUSR2);
	sigemptyset(&set);
	int numbers[] = { SIGUSR1, SIGURG, SIGALRM, SIGCHLD, QUEUED };
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		sigaddset(&set, numbers[i]);
	struct sigaction action = { .sa_handler = on_signal };
	sigaction(SIGUSR1, &action, NULL);
	sigset_t all = set;
	sigaddset(&all, SIGUSR2);
	sigaddset(&all, SIGTERM);
	sigprocmask(SIG_BLOCK, &all, NULL);
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	fd_of_thread = signalfd(-1, &of_thread, 0);
	epoll = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN };
	must(fd >= 0 && fd_of_thread >= 0 && epoll >= 0, "descriptors");
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll");
	pthread_t thread;
	must(pthread_create(&thread, NULL, reads, NULL) == 0, "thread");
	while (!__atomic_load_n(&reader, __ATOMIC_ACQUIRE))
		sched_yield();
}

static void step(void)
{
	struct pollfd in = { .fd = 0, .events = POLLIN };
	poll(&in, 1, -1);
}

static struct signalfd_siginfo next(const char *what, int from)
{
	struct signalfd_siginfo info = { .ssi_signo = 0 };
	struct pollfd in = { .fd = from, .events = POLLIN };
	expect_equal(what, 1, poll(&in, 1, SOON_MS));
	expect_equal(what, sizeof info, read(from, &info, sizeof info));
	return info;
}

static void expect_none(const char *what)
{
	struct signalfd_siginfo info;
	expect_equal(what, -1, read(fd, &info, sizeof info));
	expect_equal(what, EAGAIN, errno);
}

static void sent_by_itself(void)
{
	kill(getpid(), SIGURG);
	struct signalfd_siginfo info = next("kill", fd);
	expect_equal("number of kill", SIGURG, info.ssi_signo);
	expect_equal("sender of kill", getpid(), info.ssi_pid);
	raise(SIGUSR1);
	expect_equal("raise", SIGUSR1, next("raise", fd).ssi_signo);
	for (int i = 0; i < 3; i++)
		sigqueue(getpid(), QUEUED, (union sigval){ .sival_int = 100 + i });
	for (int i = 0; i < 3; i++)
		expect_equal("queued", 100 + i, next("queued", fd).ssi_int);
	static int count;
	union sigval value = { .sival_int = ++count };
	siginfo_t info_of_thread = { .si_signo = SIGUSR2, .si_code = SI_QUEUE, .si_value = value };
	info_of_thread.si_pid = getpid();
	expect_equal("to a thread", 0, syscall(SYS_rt_tgsigqueueinfo, getpid(), reader, SIGUSR2, &info_of_thread));
	int64_t until = now_ns(CLOCK_MONOTONIC) + SOON_MS * 1000000LL;
	while (__atomic_load_n(&seen_by_reader, __ATOMIC_ACQUIRE) != count && now_ns(CLOCK_MONOTONIC) < until)
		sched_yield();
	expect_equal("read by the thread", count, seen_by_reader);
	expect_none("all were read");
}

static void by_timer(void)
{
	struct itimerval soon = { .it_value.tv_usec = 1000 };
	setitimer(ITIMER_REAL, &soon, NULL);
	expect_equal("alarm", SIGALRM, next("alarm", fd).ssi_signo);
}

static void taken_otherwise(void)
{
	sigset_t usr1 = only(SIGUSR1), waiting, mask;
	int before = handled;
	kill(getpid(), SIGUSR1);
	sigpending(&waiting);
	expect_equal("waits", 1, sigismember(&waiting, SIGUSR1));
	sigprocmask(SIG_UNBLOCK, &usr1, NULL);
	expect_equal("handled when unblocked", before + 1, handled);
	kill(getpid(), SIGUSR1);
	expect_equal("handled while unblocked", before + 2, handled);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	expect_none("handled, so not to be read");
	kill(getpid(), SIGUSR1);
	siginfo_t info;
	expect_equal("sigtimedwait", SIGUSR1, sigtimedwait(&usr1, &info, &(struct timespec){ 0, 0 }));
	expect_equal("its sender", getpid(), info.si_pid);
	expect_none("waited for, so not to be read");
	kill(getpid(), SIGUSR1);
	sigprocmask(SIG_BLOCK, NULL, &mask);
	sigdelset(&mask, SIGUSR1);
	sigsuspend(&mask);
	expect_equal("handled in sigsuspend", before + 3, handled);
	kill(getpid(), SIGUSR1);
	expect_equal("ppoll", -1, ppoll(NULL, 0, &(struct timespec){ 5, 0 }, &mask));
	expect_equal("handled in ppoll", before + 4, handled);
	kill(getpid(), SIGUSR1);
	expect_equal("blocked again", SIGUSR1, next("blocked again", fd).ssi_signo);
	expect_equal("not handled", before + 4, handled);
}

static void check(void)
{
	sent_by_itself();
	by_timer();
	taken_otherwise();
	if (late < 0)
		return;
	kill(getpid(), SIGTERM);
	expect_equal("a later descriptor", SIGTERM, next("a later descriptor", late).ssi_signo);
}

#define LET_IN 300
static int is_over;

static void *calls(void *arg)
{
	struct signalfd_siginfo info;
	int none = *(int *)arg;
	while (!__atomic_load_n(&is_over, __ATOMIC_ACQUIRE))
		expect_equal("nothing there", -1, read(none, &info, sizeof info));
	return NULL;
}

/* Each is handled before the call that lets it in returns. */
static void unblock(void)
{
	sigset_t usr1 = only(SIGUSR1), usr2 = only(SIGUSR2);
	int none = signalfd(-1, &usr2, SFD_NONBLOCK), count = 0;
	pthread_t thread;
	must(none >= 0 && pthread_create(&thread, NULL, calls, &none) == 0, "thread");
	for (int i = 0; i < LET_IN; i++) {
		int before = handled;
		kill(getpid(), SIGUSR1);
		sigprocmask(SIG_UNBLOCK, &usr1, NULL);
		count += handled - before;
		sigprocmask(SIG_BLOCK, &usr1, NULL);
	}
	__atomic_store_n(&is_over, 1, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	close(none);
	say("HANDLED %d\n", count);
}

static void command(const char *line)
{
	if (!strcmp(line, "unblock"))
		return unblock();
	struct signalfd_siginfo info;
	if (!strcmp(line, "late")) {
		sigset_t term = only(SIGTERM);
		late = signalfd(-1, &term, SFD_NONBLOCK);
		say("LATE %d\n", late < 0 ? errno : 0);
		return;
	}
	if (!strcmp(line, "ready")) {
		struct pollfd in = { .fd = fd, .events = POLLIN };
		say("READY %d\n", poll(&in, 1, 0));
		return;
	}
	if (!strcmp(line, "wait")) {
		struct epoll_event event;
		say("WAITING\n");
		expect_equal("epoll_wait", 1, epoll_wait(epoll, &event, 1, SOON_MS));
		info = next("wait", fd);
		say("READ %d %d\n", info.ssi_signo, info.ssi_pid);
		return;
	}
	while (read(fd, &info, sizeof info) == sizeof info)
		say("READ %d %d\n", info.ssi_signo, info.ssi_pid);
	say("END\n");
}
