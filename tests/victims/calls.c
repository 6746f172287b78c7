/* Latency of forwarded calls: "measure NAME ROUNDS" prints "TIME NAME <ns a call>". */
#define VICTIM_COMMAND
#define VICTIM_INPUT_TIMEOUT_MS -1
#include "victim.h"

static int file;
static char block[4096];
static volatile uint64_t work;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	char path[64];
	snprintf(path, sizeof path, "/tmp/victim-calls-%d", getpid());
	file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(file >= 0 && write(file, block, sizeof block) == sizeof block, "file");
	unlink(path);
}

static void step(void)
{
}

static void check(void)
{
	expect_equal("pread", sizeof block, pread(file, block, sizeof block, 0));
}

static void once(const char *name)
{
	if (!strcmp(name, "getppid"))
		syscall(SYS_getppid);
	else if (!strcmp(name, "pread"))
		expect_equal("pread", sizeof block, pread(file, block, sizeof block, 0));
	else if (!strcmp(name, "write"))
		expect_equal("write", sizeof block, pwrite(file, block, sizeof block, 0));
	else if (!strcmp(name, "gettid"))
		syscall(SYS_gettid);
	else
		for (int i = 0; i < 1000; i++)
			work = work * 6364136223846793005ULL + 1442695040888963407ULL;
}

static void command(const char *line)
{
	char name[32];
	long rounds;
	if (sscanf(line, "measure %31s %ld", name, &rounds) != 2)
		return;
	int64_t start = now_ns(CLOCK_MONOTONIC);
	for (long i = 0; i < rounds; i++)
		once(name);
	say("TIME %s %lld\n", name, (long long)((now_ns(CLOCK_MONOTONIC) - start) / (rounds ? rounds : 1)));
}
