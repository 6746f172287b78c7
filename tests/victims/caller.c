/*
 * Calls and does nothing else, alone or ("threads") with two threads that do so, too, while
 * signals come whose handler restarts no call: from outside, from a timer of its own ("timer"), or
 * from a thread of its own ("tgkill"). A call that does not wait is ended by none of them. "report"
 * prints how many came.
 */
#define VICTIM_COMMAND
#include "victim.h"

#include <sys/time.h>

#define THREADS 2

static volatile long seen;
static volatile pid_t second_tid;

static void on_signal(int signal)
{
	(void)signal;
	__atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED);
}

static void call(void)
{
	errno = 0;
	expect_equal("getppid", 0, syscall(SYS_getppid) > 0 ? 0 : errno);
	int fd = dup(1);
	expect_equal("dup", 0, fd >= 0 ? 0 : errno);
	expect_equal("close", 0, close(fd) == 0 ? 0 : errno);
}

static void *call_for_ever(void *argument)
{
	second_tid = syscall(SYS_gettid);
	for (;;)
		call();
	return argument;
}

static void *signal_for_ever(void *argument)
{
	for (;;) {
		long before = seen;
		syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN);
		while (seen == before)
			sched_yield();
	}
	return argument;
}

static void begin(void *(*body)(void *))
{
	pthread_t thread;
	must(pthread_create(&thread, NULL, body, NULL) == 0, "pthread_create");
}

static void setup(int argc, char **argv)
{
	/* Without SA_RESTART. */
	struct sigaction action = { .sa_handler = on_signal };
	const struct itimerval often = { .it_interval.tv_usec = 500, .it_value.tv_usec = 500 };
	const char *how = argc > 1 ? argv[1] : "";
	for (int i = 0; i < 2; i++)
		sigaction(SIGRTMIN + i, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	for (int i = 0; !strcmp(how, "threads") && i < THREADS; i++)
		begin(call_for_ever);
	while (!strcmp(how, "threads") && !second_tid)
		sched_yield();
	if (!strcmp(how, "tgkill"))
		begin(signal_for_ever);
	if (!strcmp(how, "timer"))
		must(setitimer(ITIMER_REAL, &often, NULL) == 0, "setitimer");
	snprintf(ready_word, sizeof ready_word, "%d", second_tid ? second_tid : getpid());
}

static void step(void)
{
	for (int i = 0; i < 20; i++)
		call();
}

static void check(void)
{
}

static void command(const char *line)
{
	if (!strcmp(line, "report"))
		say("SEEN %ld\n", seen);
}
