/* Blocked signals stay pending across a move, with their siginfo, payload and order. */
#include "victim.h"

#define QUEUED 5
#define FIRST_VALUE 1000

static sigset_t blocked;

static void queue(void)
{
	kill(getpid(), SIGUSR1);
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
	for (int i = 0; i < QUEUED; i++) {
		union sigval value = { .sival_ptr = (void *)(long)(FIRST_VALUE + i) };
		must(sigqueue(getpid(), SIGRTMIN + 1, value) == 0, "sigqueue");
		must(sigqueue(getpid(), SIGRTMIN + 3, value) == 0, "sigqueue");
	}
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGUSR2);
	sigaddset(&blocked, SIGRTMIN + 1);
	sigaddset(&blocked, SIGRTMIN + 3);
	must(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0, "sigprocmask");
	queue();
}

static void step(void)
{
	sigset_t pending;
	sigpending(&pending);
	for (int signal = 1; signal < 65; signal++)
		if (signal != 32 && signal != 33)
			expect_equal("pending", sigismember(&blocked, signal), sigismember(&pending, signal));
}

static void take(int signal, int code, long value)
{
	sigset_t one;
	siginfo_t info = { 0 };
	struct timespec at_once = { 0, 0 };
	sigemptyset(&one);
	sigaddset(&one, signal);
	/* The raw call: the C library shows SI_TKILL as SI_USER. */
	expect_equal("pending signal", signal, syscall(SYS_rt_sigtimedwait, &one, &info, &at_once, 8));
	expect_equal("si_code", code, info.si_code);
	expect_equal("si_pid", getpid(), info.si_pid);
	expect_equal("si_uid", getuid(), info.si_uid);
	if (code == SI_QUEUE)
		expect_equal("si_value", value, (long)info.si_value.sival_ptr);
}

static void check(void)
{
	step();
	take(SIGUSR1, SI_USER, 0);
	take(SIGUSR2, SI_TKILL, 0);
	for (int i = 0; i < QUEUED; i++) {
		take(SIGRTMIN + 1, SI_QUEUE, FIRST_VALUE + i);
		take(SIGRTMIN + 3, SI_QUEUE, FIRST_VALUE + i);
	}
	sigset_t pending;
	sigpending(&pending);
	expect_equal("nothing left pending", 1, sigisemptyset(&pending));
	queue();
}
