/* glibc's rseq area is registered where it was and tells the cpu we run on. */
#include "victim.h"
#include <sys/rseq.h>

static struct rseq *area(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	if (__rseq_size == 0)
		skip("rseq is not registered");
}

static void step(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	for (int attempt = 0; attempt < 1000; attempt++) {
		unsigned before = *(volatile unsigned *)&area()->cpu_id;
		unsigned called = 0;
		syscall(SYS_getcpu, &called, NULL, NULL);
		unsigned after = *(volatile unsigned *)&area()->cpu_id;
		expect_range("cpu_id", 0, cpus - 1, after);
		if (before == called && called == after)
			return;
	}
	expect_equal("cpu_id agrees with getcpu", 1, 0);
}

/* A second registration elsewhere is refused while the first one stands. */
static void check(void)
{
	static struct rseq other __attribute__((aligned(32)));
	long r = syscall(SYS_rseq, &other, sizeof other, 0, RSEQ_SIG);
	expect_equal("second registration", -1, r);
	expect_equal("errno of it", EINVAL, errno);
	expect_range("sched_getcpu", 0, sysconf(_SC_NPROCESSORS_CONF) - 1, sched_getcpu());
	step();
}
