/* CLOCK_MONOTONIC never goes back and never leaps, by vDSO and by system call. */
#include "victim.h"

/* Longer than any pause a small process may suffer; far less than two hosts' uptimes differ. */
#define LEAP_NS 5000000000LL

static const clockid_t steady[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE };
static int64_t last[3], last_raw_call[3];
static int64_t start_steady, start_real;

static int64_t by_call_ns(clockid_t clock)
{
	struct timespec t;
	syscall(SYS_clock_gettime, clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	for (int i = 0; i < 3; i++) {
		last[i] = now_ns(steady[i]);
		last_raw_call[i] = by_call_ns(steady[i]);
	}
	start_steady = now_ns(CLOCK_MONOTONIC);
	start_real = now_ns(CLOCK_REALTIME);
}

static void step(void)
{
	for (int i = 0; i < 3; i++) {
		int64_t fast = now_ns(steady[i]);
		int64_t slow = by_call_ns(steady[i]);
		expect_range("vDSO clock", last[i], last[i] + LEAP_NS, fast);
		expect_range("called clock", last_raw_call[i], last_raw_call[i] + LEAP_NS, slow);
		expect_range("vDSO before call", fast, fast + LEAP_NS, slow);
		last[i] = fast;
		last_raw_call[i] = slow;
	}
}

static void check(void)
{
	step();
	int64_t steady_passed = now_ns(CLOCK_MONOTONIC) - start_steady;
	int64_t real_passed = now_ns(CLOCK_REALTIME) - start_real;
	expect_range("both clocks passed the same", real_passed - LEAP_NS, real_passed + LEAP_NS, steady_passed);
}
