/*
 * 100 threads wait in read of one pipe; the 101st has its calls answered meanwhile, and wakes them.
 * All of them end, or are another program, by a thread that is not the first:
 *
 *   thread-ends STATUS         exit_group
 *   last-thread-ends STATUS    the same, when the first thread has ended by itself
 *   thread-executes            execve of this program
 */
#define VICTIM_COMMAND
#include "victim.h"

#define SLEEPERS 100
#define CALLS 50

extern char **environ;
static int ends[2];
static pid_t tids[SLEEPERS];
static long woken[SLEEPERS];
static pid_t parent;

static void *sleeper(void *argument)
{
	long self = (long)argument;
	char byte;
	__atomic_store_n(&tids[self], syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;) {
		expect_equal("read", 1, read(ends[0], &byte, 1));
		__atomic_add_fetch(&woken[self], 1, __ATOMIC_SEQ_CST);
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
		must(pthread_create(&thread, &small, sleeper, (void *)i) == 0, "pthread_create");
	}
}

static void step(void)
{
	expect_equal("getppid", parent, getppid());
}

/* By the kernel that has the pipe: home's. */
static int waits_in_read(pid_t tid)
{
	char path[64], line[64] = "", expected[32];
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
	snprintf(expected, sizeof expected, "%d 0x%x ", SYS_read, ends[0]);
	int fd = open(path, O_RDONLY);
	ssize_t length = read(fd, line, sizeof line - 1);
	close(fd);
	return length > 0 && !strncmp(line, expected, strlen(expected));
}

static int all_wait(void)
{
	int waiting = 0;
	for (int i = 0; i < SLEEPERS; i++)
		waiting += waits_in_read(__atomic_load_n(&tids[i], __ATOMIC_SEQ_CST));
	return waiting;
}

/* As many wake as bytes are written, and all of them sleep again. */
static void check(void)
{
	static const char bytes[SLEEPERS];
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 20000000000LL;
	while (all_wait() < SLEEPERS && now_ns(CLOCK_MONOTONIC) < limit)
		sched_yield();
	long before = all_woken();
	for (int i = 0; i < CALLS; i++)
		step();
	expect_equal("waiting all the time", SLEEPERS, all_wait());
	expect_equal("woken by nobody", before, all_woken());
	expect_equal("write", SLEEPERS, write(ends[1], bytes, SLEEPERS));
	while (all_woken() < before + SLEEPERS && now_ns(CLOCK_MONOTONIC) < limit)
		sched_yield();
	expect_equal("woken", before + SLEEPERS, all_woken());
}

static void *end_all(void *status)
{
	syscall(SYS_exit_group, (long)status);
	return NULL;
}

/* A zombie is what the first thread is until the others have ended. */
static void *end_all_behind_first(void *status)
{
	char line[512] = "", path[64];
	snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
	while (!strstr(line, ") Z ")) {
		int fd = open(path, O_RDONLY);
		read(fd, line, sizeof line - 1);
		close(fd);
	}
	return end_all(status);
}

static void *execute(void *argument)
{
	char *argv[] = { "sleepers", NULL };
	execve("/proc/self/exe", argv, environ);
	expect_equal("execve of oneself", 0, errno);
	return argument;
}

static void command(const char *line)
{
	pthread_t thread;
	long status = 0;
	if (sscanf(line, "thread-ends %ld", &status) == 1)
		must(pthread_create(&thread, NULL, end_all, (void *)status) == 0, "pthread_create");
	if (!strcmp(line, "thread-executes"))
		must(pthread_create(&thread, NULL, execute, NULL) == 0, "pthread_create");
	if (sscanf(line, "last-thread-ends %ld", &status) != 1)
		return;
	must(pthread_create(&thread, NULL, end_all_behind_first, (void *)status) == 0, "pthread_create");
	syscall(SYS_exit, 0);
}
