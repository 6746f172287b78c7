/* Thread-local storage of several threads, the fs base behind it, and a gs base. */
#include "victim.h"
#include <asm/prctl.h>

#define THREADS 8

static __thread uint64_t initialised = 0x1122334455667788;
static __thread uint64_t zeroed[64];
static unsigned long gs_target[4];
static uint64_t rounds[THREADS];

static unsigned long base_of(int which)
{
	unsigned long base = 0;
	syscall(SYS_arch_prctl, which, &base);
	return base;
}

static void *worker(void *argument)
{
	long self = (long)argument;
	unsigned long fs = base_of(ARCH_GET_FS);
	initialised += self;
	for (;;) {
		for (int i = 0; i < 64; i++)
			zeroed[i]++;
		uint64_t round = ++*(volatile uint64_t *)&rounds[self];
		expect_equal("initialised thread-local", 0x1122334455667788 + self, *(volatile uint64_t *)&initialised);
		expect_equal("zeroed thread-local", round, *(volatile uint64_t *)&zeroed[63]);
		unsigned long head;
		__asm__ volatile("mov %%fs:0,%0" : "=r"(head));
		expect_equal("fs:0", fs, head);
		sched_yield();
	}
	return NULL;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	gs_target[0] = 0xfeedbeef;
	must(syscall(SYS_arch_prctl, ARCH_SET_GS, gs_target) == 0, "ARCH_SET_GS");
	for (long i = 0; i < THREADS; i++) {
		pthread_t thread;
		must(pthread_create(&thread, NULL, worker, (void *)i) == 0, "pthread_create");
	}
}

static void step(void)
{
	unsigned long through_gs;
	__asm__ volatile("mov %%gs:0,%0" : "=r"(through_gs));
	expect_equal("gs:0", 0xfeedbeef, through_gs);
}

static void check(void)
{
	uint64_t before[THREADS];
	expect_equal("gs base", (long)gs_target, base_of(ARCH_GET_GS));
	for (int i = 0; i < THREADS; i++)
		before[i] = *(volatile uint64_t *)&rounds[i];
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 10000000000LL;
	for (int i = 0; i < THREADS; i++) {
		while (*(volatile uint64_t *)&rounds[i] == before[i] && now_ns(CLOCK_MONOTONIC) < limit)
			sched_yield();
		expect_equal("thread goes on", 1, *(volatile uint64_t *)&rounds[i] > before[i]);
	}
}
