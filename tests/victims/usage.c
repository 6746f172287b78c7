/*
 * What it has used, by every call that tells. "burn MS" uses the processor; "tell" answers
 * nanoseconds: clock of the process, of the thread, both again by number, rusage of process and
 * thread, times; then the largest resident set in KiB. "errors" makes calls that fail. "children MS"
 * waits for two that use the processor; then, and at "theirs", nanoseconds of each by its wait, of
 * all by rusage, by times.
 */
#define VICTIM_COMMAND
#define VICTIM_INPUT_TIMEOUT_MS -1
#include "victim.h"
#include <sys/resource.h>
#include <sys/times.h>
#include <sys/wait.h>

#define TICK_NS 10000000LL

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
}

static void step(void)
{
}

static void check(void)
{
}

static void burn(int ms)
{
	int64_t until = now_ns(CLOCK_THREAD_CPUTIME_ID) + ms * 1000000LL;
	volatile uint64_t word = 1;
	while (now_ns(CLOCK_THREAD_CPUTIME_ID) < until)
		for (int i = 0; i < 1000000; i++)
			word = word * 3;
}

static long long of(int who, long *peak)
{
	struct rusage usage;
	must(getrusage(who, &usage) == 0, "getrusage");
	*peak = usage.ru_maxrss;
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000LL
		+ (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000LL;
}

static void tell(void)
{
	struct tms tms;
	long peak, none;
	clockid_t process, thread;
	must(clock_getcpuclockid(getpid(), &process) == 0, "clock_getcpuclockid");
	must(pthread_getcpuclockid(pthread_self(), &thread) == 0, "pthread_getcpuclockid");
	must(times(&tms) != -1, "times");
	long long in_process = now_ns(CLOCK_PROCESS_CPUTIME_ID), in_thread = now_ns(CLOCK_THREAD_CPUTIME_ID);
	long long by_number = now_ns(process), thread_by_number = now_ns(thread);
	long long self = of(RUSAGE_SELF, &peak);
	say("USED %lld %lld %lld %lld %lld %lld %lld %ld\n", in_process, in_thread, by_number, thread_by_number,
	    self, of(RUSAGE_THREAD, &none), (tms.tms_utime + tms.tms_stime) * TICK_NS, peak);
}

static void errors(void)
{
	struct rusage usage;
	struct timespec t;
	expect_equal("of nobody", -1, getrusage(7, &usage));
	expect_equal("of nobody", EINVAL, errno);
	expect_equal("rusage into nothing", -1, syscall(SYS_getrusage, RUSAGE_SELF, 8));
	expect_equal("rusage into nothing", EFAULT, errno);
	expect_equal("times into nothing", -1, syscall(SYS_times, 8));
	expect_equal("times into nothing", EFAULT, errno);
	expect_range("times without a place", 1, INT64_MAX, syscall(SYS_times, 0));
	expect_equal("clock into nothing", -1, syscall(SYS_clock_gettime, CLOCK_PROCESS_CPUTIME_ID, 8));
	expect_equal("clock into nothing", EFAULT, errno);
	expect_equal("clock of nobody", -1, syscall(SYS_clock_gettime, ~0x3fffff * 8 | 2, &t));
	expect_equal("clock of nobody", EINVAL, errno);
	expect_equal("no clock", -1, syscall(SYS_clock_gettime, 99, &t));
	expect_equal("no clock", EINVAL, errno);
	pid_t child = fork();
	if (child == 0) {
		/* A new process has used nothing. */
		_exit(now_ns(CLOCK_PROCESS_CPUTIME_ID) < 200000000LL ? 0 : 1);
	}
	int status = -1;
	expect_equal("wait", child, waitpid(child, &status, 0));
	expect_equal("a new process has used nothing", 0, status);
	say("TRIED\n");
}

static long long in_all(const struct rusage *usage)
{
	return (usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000000LL
		+ (usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1000LL;
}

static pid_t child_that_burns(int ms)
{
	pid_t child = fork();
	must(child >= 0, "fork");
	if (child == 0) {
		burn(ms);
		_exit(0);
	}
	return child;
}

static struct rusage one, other;

static void theirs(void)
{
	struct tms tms;
	long none;
	must(times(&tms) != -1, "times");
	say("CHILDREN %lld %lld %lld %lld\n", in_all(&one), in_all(&other), of(RUSAGE_CHILDREN, &none),
	    (tms.tms_cutime + tms.tms_cstime) * TICK_NS);
}

static void children(int ms)
{
	siginfo_t info;
	pid_t child = child_that_burns(ms);
	must(wait4(child, 0, 0, &one) == child, "wait4");
	child = child_that_burns(ms);
	must(syscall(SYS_waitid, P_PID, child, &info, WEXITED | WNOWAIT, &other) == 0, "look");
	must(syscall(SYS_waitid, P_PID, child, &info, WEXITED, &other) == 0, "waitid");
	must(wait4(-1, 0, 0, &one) == -1 && errno == ECHILD, "no more");
	theirs();
}

static void command(const char *line)
{
	int ms;
	if (sscanf(line, "burn %d", &ms) == 1) {
		burn(ms);
		say("BURNT\n");
	} else if (!strcmp(line, "tell")) {
		tell();
	} else if (sscanf(line, "children %d", &ms) == 1) {
		children(ms);
	} else if (!strcmp(line, "theirs")) {
		theirs();
	} else if (!strcmp(line, "errors")) {
		errors();
	}
}
