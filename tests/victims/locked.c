/*
 * All that it maps is locked, by mlockall; of its second child, only as it is used. Its first locks
 * nothing, as mlockall is not handed on. Away it changes that twice in each check.
 */
#include "victim.h"
#include <sys/wait.h>

#define BYTES (1L << 20)
#define KIB (BYTES >> 10)

static int mode = MCL_FUTURE;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	must(mlockall(MCL_CURRENT | MCL_FUTURE) == 0, "mlockall");
}

static void step(void)
{
}

static long locked_kib(void)
{
	char line[200];
	long kib = -1;
	FILE *status = fopen("/proc/self/status", "r");
	while (status && fgets(line, sizeof line, status))
		sscanf(line, "VmLck: %ld", &kib);
	if (status)
		fclose(status);
	return kib;
}

/* What becomes of a new mapping. */
static void map_one(const char *when, int flags)
{
	unsigned char there[BYTES / 4096];
	long before = locked_kib();
	char *new = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(new != MAP_FAILED, "mmap");
	expect_equal(when, flags ? KIB : 0, locked_kib() - before);
	mincore(new, BYTES, there);
	expect_equal("its pages are there", flags == MCL_FUTURE, there[BYTES / 4096 - 1]);
	munmap(new, BYTES);
	expect_equal("unmapped", 0, locked_kib() - before);
}

static void check(void)
{
	int status;
	pid_t child;
	map_one("as before", mode);
	child = fork();
	if (!child) {
		map_one("a child's", 0);
		_exit(first_failure[0] != 0);
	}
	must(child > 0 && waitpid(child, &status, 0) == child, "fork");
	expect_equal("a child's", 0, status);
	map_one("behind a fork", mode);
	/* Another way for the next move. */
	mode = mode == MCL_FUTURE ? MCL_FUTURE | MCL_ONFAULT : mode ? 0 : MCL_FUTURE;
	if (mode)
		expect_equal("mlockall", 0, mlockall(mode));
	else
		expect_equal("munlockall", 0, munlockall());
	map_one("from now on", mode);
	if (!mode)
		expect_equal("nothing is locked", 0, locked_kib());
}
