/*
 * Threads that begin and end all the time: a chain of which each begins the next, a crowd that
 * waits in reads of a pipe, and, at each check, some that are signalled by name. Arguments: the
 * crowd's size (20); "full": it may not all find room; "few": it may have few files open, all of
 * whose numbers are its own.
 */
#include "victim.h"
#include <sys/resource.h>

#define CROWD_MAX 1000
#define CHAINS 3
#define FEW 1024

static __thread long own;
static int crowd = 20;
static int may_be_full, has_few;
static volatile sig_atomic_t signalled_tid;
static long links[CHAINS];

static void *link_of_chain(void *argument)
{
	long chain = (long)argument;
	pthread_t next;
	pthread_attr_t detached;
	expect_equal("fresh thread-local", 0, own);
	own = chain + 1;
	pid_t tid = syscall(SYS_gettid);
	expect_equal("id of a thread", 1, tid != getpid());
	expect_equal("getppid of a thread", getppid(), syscall(SYS_getppid));
	__atomic_fetch_add(&links[chain], 1, __ATOMIC_SEQ_CST);
	struct timespec pause = { 0, 2000000 };
	nanosleep(&pause, NULL);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&detached, 64 * 1024);
	int failed;
	while ((failed = pthread_create(&next, &detached, link_of_chain, argument)) == EAGAIN && may_be_full)
		nanosleep(&pause, NULL);
	expect_equal("pthread_create in a chain", 0, failed);
	expect_equal("own thread-local", chain + 1, own);
	expect_equal("gettid", tid, syscall(SYS_gettid));
	return NULL;
}

static void *wait_in_read(void *argument)
{
	char byte;
	long fd = (long)argument;
	own = syscall(SYS_gettid);
	expect_equal("read in a thread", 1, read(fd, &byte, 1));
	return (void *)own;
}

static void handler(int signal)
{
	(void)signal;
	signalled_tid = syscall(SYS_gettid);
}

static void *wait_for_signal(void *argument)
{
	pid_t *tid = argument;
	struct timespec pause = { 0, 1000000 };
	__atomic_store_n(tid, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	while (signalled_tid == 0)
		nanosleep(&pause, NULL);
	return NULL;
}

static void setup(int argc, char **argv)
{
	may_be_full = argc > 2 && !strcmp(argv[2], "full");
	has_few = argc > 2 && !strcmp(argv[2], "few");
	if (has_few) {
		struct rlimit files;
		must(getrlimit(RLIMIT_NOFILE, &files) == 0, "getrlimit");
		files.rlim_cur = FEW;
		must(setrlimit(RLIMIT_NOFILE, &files) == 0, "setrlimit");
	}
	if (argc > 1)
		crowd = atoi(argv[1]);
	must(crowd > 0 && crowd <= CROWD_MAX, "crowd");
	signal(SIGUSR2, handler);
	/* A thread that begins takes some numbers for a moment. */
	for (long i = 0; i < CHAINS && !has_few; i++) {
		pthread_t thread;
		must(pthread_create(&thread, NULL, link_of_chain, (void *)i) == 0, "pthread_create");
	}
}

static void *nothing(void *argument)
{
	own++;
	return argument;
}

static void step(void)
{
	pthread_t thread;
	void *result;
	int failed = pthread_create(&thread, NULL, nothing, &own);
	expect_equal("pthread_create", may_be_full && failed ? EAGAIN : 0, failed);
	if (failed)
		return;
	expect_equal("pthread_join", 0, pthread_join(thread, &result));
	expect_equal("result of a thread", 1, result == &own);
	expect_equal("thread-local of the main thread", 0, own);
}

static void check_crowd(void)
{
	static pthread_t threads[CROWD_MAX];
	static long tids[CROWD_MAX];
	pthread_attr_t small;
	int pipes[2];
	int made = 0;
	expect_equal("pipe", 0, pipe(pipes));
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 * 1024);
	while (made < crowd) {
		int failed = pthread_create(&threads[made], &small, wait_in_read, (void *)(long)pipes[0]);
		expect_equal("pthread_create in a crowd", may_be_full && failed ? EAGAIN : 0, failed);
		if (failed)
			break;
		made++;
	}
	expect_equal("a crowd", 1, made > 10);
	for (int i = 0; i < made; i++)
		expect_equal("write to the crowd", 1, write(pipes[1], "x", 1));
	for (int i = 0; i < made; i++) {
		void *tid = NULL;
		expect_equal("pthread_join of the crowd", 0, pthread_join(threads[i], &tid));
		tids[i] = (long)tid;
		for (int j = 0; j < i; j++)
			expect_equal("two threads of one id", 0, tids[i] == tids[j]);
	}
	close(pipes[0]);
	close(pipes[1]);
}

static void check_signal(void)
{
	pthread_t thread;
	pid_t tid = 0;
	signalled_tid = 0;
	expect_equal("pthread_create", 0, pthread_create(&thread, NULL, wait_for_signal, &tid));
	while (__atomic_load_n(&tid, __ATOMIC_SEQ_CST) == 0)
		sched_yield();
	expect_equal("pthread_kill", 0, pthread_kill(thread, SIGUSR2));
	expect_equal("pthread_join", 0, pthread_join(thread, NULL));
	expect_equal("who was signalled", tid, signalled_tid);
}

static void check_chains(void)
{
	for (int i = 0; i < CHAINS; i++) {
		long before = __atomic_load_n(&links[i], __ATOMIC_SEQ_CST);
		int64_t limit = now_ns(CLOCK_MONOTONIC) + 20000000000LL;
		while (__atomic_load_n(&links[i], __ATOMIC_SEQ_CST) < before + 3 &&
		       now_ns(CLOCK_MONOTONIC) < limit)
			sched_yield();
		expect_equal("a chain goes on", 1, __atomic_load_n(&links[i], __ATOMIC_SEQ_CST) >= before + 3);
	}
}

static void check_numbers(void)
{
	struct rlimit files;
	int first = -1, last = -1, fd;
	expect_equal("getrlimit", 0, getrlimit(RLIMIT_NOFILE, &files));
	expect_equal("limit of open files", FEW, files.rlim_cur);
	while ((fd = dup(0)) >= 0) {
		if (first < 0)
			first = fd;
		last = fd;
	}
	expect_equal("errno beyond the limit", EMFILE, errno);
	expect_equal("highest number", FEW - 1, last);
	expect_equal("dup2 beyond the limit", -1, dup2(0, FEW));
	expect_equal("close_range", 0, syscall(SYS_close_range, first, ~0u, 0));
}

static void check(void)
{
	if (has_few)
		check_numbers();
	check_crowd();
	check_signal();
	if (!has_few)
		check_chains();
}
