/* alarm(2): the rest counts down with the clock, and it fires once, in time. */
#include "victim.h"
#include <sys/time.h>

#define FIRST_SECONDS 3

static volatile sig_atomic_t fired;
static volatile int64_t fired_ns;
static int64_t armed_ns;

static void on_alarm(int signal)
{
	(void)signal;
	fired++;
	fired_ns = now_ns(CLOCK_MONOTONIC);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	sigaction(SIGALRM, &action, NULL);
	armed_ns = now_ns(CLOCK_MONOTONIC);
	alarm(FIRST_SECONDS);
}

static void step(void)
{
	if (fired)
		return;
	struct itimerval rest;
	/* Others may run between any two calls, for long. */
	int64_t before_ms = (now_ns(CLOCK_MONOTONIC) - armed_ns) / 1000000;
	getitimer(ITIMER_REAL, &rest);
	int64_t after_ms = (now_ns(CLOCK_MONOTONIC) - armed_ns) / 1000000;
	if (fired)
		return;
	int64_t rest_ms = rest.it_value.tv_sec * 1000 + rest.it_value.tv_usec / 1000;
	expect_range("rest of the alarm", FIRST_SECONDS * 1000 - after_ms - 500,
		     FIRST_SECONDS * 1000 - before_ms + 500, rest_ms);
}

static void check(void)
{
	int64_t limit = armed_ns + (FIRST_SECONDS + 5) * 1000000000LL;
	while (!fired && now_ns(CLOCK_MONOTONIC) < limit)
		step();
	expect_equal("fired", 1, fired);
	expect_range("fired after, in ms", FIRST_SECONDS * 1000 - 20, FIRST_SECONDS * 1000 + 3000,
		     (fired_ns - armed_ns) / 1000000);
}
