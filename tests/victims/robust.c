/* Robust mutexes whose owners die after the move: the waiter gets EOWNERDEAD. */
#include "victim.h"
#include <linux/futex.h>

/* One owner dies a check. They exist from the start: a guest starts no thread. */
#define OWNERS 6

static pthread_mutex_t held[OWNERS];
static volatile int locked, dying[OWNERS];
static int deaths;
static struct robust_list_head *list;
static size_t list_length;

static void *owner(void *argument)
{
	long self = (long)argument;
	pthread_mutex_lock(&held[self]);
	__atomic_add_fetch(&locked, 1, __ATOMIC_SEQ_CST);
	while (!dying[self])
		syscall(SYS_futex, &dying[self], FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	return NULL;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	pthread_mutexattr_t robust;
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	for (long i = 0; i < OWNERS; i++) {
		pthread_t thread;
		pthread_mutex_init(&held[i], &robust);
		must(pthread_create(&thread, NULL, owner, (void *)i) == 0, "pthread_create");
	}
	while (locked < OWNERS)
		sched_yield();
	must(syscall(SYS_get_robust_list, 0, &list, &list_length) == 0, "get_robust_list");
}

static void step(void)
{
	for (int i = deaths; i < OWNERS; i++)
		expect_equal("held by its owner", EBUSY, pthread_mutex_trylock(&held[i]));
}

static void check(void)
{
	struct robust_list_head *now = NULL;
	size_t length = 0;
	syscall(SYS_get_robust_list, 0, &now, &length);
	expect_equal("robust list head", (long)list, (long)now);
	expect_equal("robust list length", list_length, length);
	if (deaths == OWNERS)
		return;
	int victim = deaths++;
	dying[victim] = 1;
	syscall(SYS_futex, &dying[victim], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	struct timespec limit;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 10;
	expect_equal("lock of a dead owner", EOWNERDEAD, pthread_mutex_timedlock(&held[victim], &limit));
	expect_equal("made consistent", 0, pthread_mutex_consistent(&held[victim]));
	expect_equal("unlock", 0, pthread_mutex_unlock(&held[victim]));
}
