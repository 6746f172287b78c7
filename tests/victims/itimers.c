/* ITIMER_REAL, VIRTUAL and PROF go on ticking; none ticks faster than its clock. */
#include "victim.h"
#include <sys/time.h>

#define INTERVAL_US 50000

static volatile unsigned long ticks[3];
static int64_t armed_ns;
static volatile uint64_t work;

static void on_tick(int signal)
{
	ticks[signal == SIGALRM ? 0 : signal == SIGVTALRM ? 1 : 2]++;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	struct itimerval interval = { { 0, INTERVAL_US }, { 0, INTERVAL_US } };
	static const int signals[] = { SIGALRM, SIGVTALRM, SIGPROF };
	armed_ns = now_ns(CLOCK_MONOTONIC);
	for (int i = 0; i < 3; i++) {
		must(sigaction(signals[i], &action, NULL) == 0, "sigaction");
		must(setitimer(i, &interval, NULL) == 0, "setitimer");
	}
}

static void step(void)
{
	for (int i = 0; i < 100000; i++)
		work += i;
}

static void check(void)
{
	unsigned long before[3] = { ticks[0], ticks[1], ticks[2] };
	int64_t elapsed_ticks = (now_ns(CLOCK_MONOTONIC) - armed_ns) / 1000 / INTERVAL_US;
	expect_range("real ticks", 0, elapsed_ticks + 1, before[0]);
	for (int i = 0; i < 3; i++) {
		struct itimerval now;
		getitimer(i, &now);
		expect_equal("interval", INTERVAL_US, now.it_interval.tv_sec * 1000000 + now.it_interval.tv_usec);
		/* CPU timers are rounded up to a scheduler tick. */
		expect_range("value", 0, INTERVAL_US + 20000, now.it_value.tv_sec * 1000000 + now.it_value.tv_usec);
	}
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 10000000000LL;
	for (int i = 0; i < 3; i++) {
		while (ticks[i] < before[i] + 3 && now_ns(CLOCK_MONOTONIC) < limit)
			step();
		expect_range("ticks go on", before[i] + 3, 1L << 40, ticks[i]);
	}
}
