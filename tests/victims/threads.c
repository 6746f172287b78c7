/* N threads (argument, 50) hand a token round by mutex and condition variable. */
#include "victim.h"

#define THREADS_MAX 2000

static int threads = 50;
static long turn;
static long turns_of[THREADS_MAX];
static pid_t tids[THREADS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved[THREADS_MAX];

static void *worker(void *argument)
{
	long self = (long)argument;
	tids[self] = syscall(SYS_gettid);
	for (;;) {
		pthread_mutex_lock(&lock);
		while (turn % threads != self)
			pthread_cond_wait(&moved[self], &lock);
		expect_equal("turns of a thread", turn / threads, turns_of[self]);
		expect_equal("gettid", tids[self], syscall(SYS_gettid));
		turns_of[self]++;
		turn++;
		pthread_cond_signal(&moved[turn % threads]);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static void setup(int argc, char **argv)
{
	pthread_attr_t small;
	if (argc > 1)
		threads = atoi(argv[1]);
	must(threads > 1 && threads <= THREADS_MAX, "thread count");
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 * 1024);
	for (long i = 0; i < threads; i++)
		pthread_cond_init(&moved[i], NULL);
	for (long i = 0; i < threads; i++) {
		pthread_t thread;
		must(pthread_create(&thread, &small, worker, (void *)i) == 0, "pthread_create");
	}
}

static long turn_now(void)
{
	pthread_mutex_lock(&lock);
	long seen = turn;
	pthread_mutex_unlock(&lock);
	return seen;
}

static void step(void)
{
	sched_yield();
}

/* Every thread must have had a turn since we were asked. */
static void check(void)
{
	long before = turn_now();
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 20000000000LL;
	while (turn_now() < before + threads && now_ns(CLOCK_MONOTONIC) < limit)
		sched_yield();
	expect_equal("full turn of the token", 1, turn_now() >= before + threads);
}
