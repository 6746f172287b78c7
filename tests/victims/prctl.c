/* Names, dumpable, timer slack, parent-death signal and the rest that prctl tells. */
#include "victim.h"
#include <sys/prctl.h>

static const int flags[] = { PR_GET_DUMPABLE,	    PR_GET_KEEPCAPS, PR_GET_TIMERSLACK,
			     PR_GET_NO_NEW_PRIVS,   PR_GET_SECUREBITS, PR_GET_THP_DISABLE,
			     PR_GET_SECCOMP,	    PR_GET_TIMING };
static long values[sizeof flags / sizeof *flags];
static volatile int named;

static void expect_name(const char *expected)
{
	char name[16] = "";
	prctl(PR_GET_NAME, name);
	expect_equal(expected, 0, strcmp(expected, name));
}

static void *worker(void *argument)
{
	(void)argument;
	prctl(PR_SET_NAME, "second-name");
	prctl(PR_SET_TIMERSLACK, 777777);
	named = 1;
	for (;;) {
		expect_name("second-name");
		expect_equal("slack of the thread", 777777, prctl(PR_GET_TIMERSLACK));
		sched_yield();
	}
	return NULL;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	prctl(PR_SET_NAME, "first name)");
	prctl(PR_SET_TIMERSLACK, 123456);
	prctl(PR_SET_PDEATHSIG, SIGUSR1);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pthread_t thread;
	must(pthread_create(&thread, NULL, worker, NULL) == 0, "pthread_create");
	while (!named)
		sched_yield();
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
		values[i] = prctl(flags[i], 0, 0, 0, 0);
}

static void step(void)
{
	int seen = 0;
	expect_name("first name)");
	prctl(PR_GET_PDEATHSIG, &seen);
	expect_equal("parent-death signal", SIGUSR1, seen);
	prctl(PR_GET_CHILD_SUBREAPER, &seen);
	expect_equal("child subreaper", 1, seen);
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
		char what[32];
		snprintf(what, sizeof what, "prctl %d", flags[i]);
		expect_equal(what, values[i], prctl(flags[i], 0, 0, 0, 0));
	}
}

static void check(void)
{
	step();
}
