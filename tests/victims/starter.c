/* Begins a thread at every step, and bears that it may not. */
#include "victim.h"

static __thread long own;

static void setup(int argc, char **argv)
{
	(void)argc;
	(void)argv;
}

static void *add_one(void *number)
{
	expect_equal("fresh thread-local", 0, own++);
	return (char *)number + 1;
}

static void step(void)
{
	static long number;
	pthread_t thread;
	void *result;
	int failed = pthread_create(&thread, NULL, add_one, (void *)number);
	if (failed) {
		expect_equal("pthread_create", EAGAIN, failed);
		return;
	}
	expect_equal("pthread_join", 0, pthread_join(thread, &result));
	expect_equal("result of a thread", ++number, (long)result);
}

static void check(void)
{
	step();
}
