/* 100 threads wait in read of one pipe; the 101st has its calls answered, and wakes them. */
#include "victim.h"

#define SLEEPERS 100
#define CALLS 50

static int ends[2];
static long woken[SLEEPERS];
static pid_t parent;

static void *sleeper(void *argument)
{
	long *mine = argument;
	char byte;
	for (;;) {
		expect_equal("read", 1, read(ends[0], &byte, 1));
		__atomic_add_fetch(mine, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static long all_woken(void)
{
	long sum = 0;
	for (int i = 0; i < SLEEPERS; i++)
		sum += __atomic_load_n(&woken[i], __ATOMIC_SEQ_CST);
	return sum;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	pthread_attr_t small;
	must(pipe(ends) == 0, "pipe");
	parent = getppid();
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 * 1024);
	for (long i = 0; i < SLEEPERS; i++) {
		pthread_t thread;
		must(pthread_create(&thread, &small, sleeper, &woken[i]) == 0, "pthread_create");
	}
}

static void step(void)
{
	expect_equal("getppid", parent, getppid());
}

/* As many wake as bytes are written, and all of them sleep again. */
static void check(void)
{
	static const char bytes[SLEEPERS];
	long before = all_woken();
	for (int i = 0; i < CALLS; i++)
		step();
	expect_equal("woken by nobody", before, all_woken());
	expect_equal("write", SLEEPERS, write(ends[1], bytes, SLEEPERS));
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 20000000000LL;
	while (all_woken() < before + SLEEPERS && now_ns(CLOCK_MONOTONIC) < limit)
		sched_yield();
	expect_equal("woken", before + SLEEPERS, all_woken());
}
