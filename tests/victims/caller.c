/*
 * Calls and does nothing else, alone or ("threads") with two threads that do so, too, while
 * signals come whose handler restarts no call. A call that does not wait is ended by none of
 * them. "report" prints how many came.
 */
#define VICTIM_COMMAND
#include "victim.h"

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

static void setup(int argc, char **argv)
{
	/* Without SA_RESTART. */
	struct sigaction action = { .sa_handler = on_signal };
	pthread_t thread;
	for (int i = 0; i < 2; i++)
		sigaction(SIGRTMIN + i, &action, NULL);
	for (int i = 0; argc > 1 && !strcmp(argv[1], "threads") && i < THREADS; i++)
		must(pthread_create(&thread, NULL, call_for_ever, NULL) == 0, "pthread_create");
	while (argc > 1 && !second_tid)
		sched_yield();
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
