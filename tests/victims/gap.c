/* The longest time between two looks at CLOCK_REALTIME; "gap" prints and clears it. First argument: MiB held. */
#define VICTIM_COMMAND
#include "victim.h"

#define LOOKS_A_STEP 100000

static int64_t last, longest;
static char *ballast;

static void setup(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? atol(argv[1]) : 1) << 20;
	uint64_t state = 88172645463325252ULL;
	ballast = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(ballast != MAP_FAILED, "ballast");
	for (size_t i = 0; i < bytes; i += 8)
		*(uint64_t *)(ballast + i) = next_random(&state);
	last = now_ns(CLOCK_REALTIME);
}

static void step(void)
{
	for (int i = 0; i < LOOKS_A_STEP; i++) {
		int64_t now = now_ns(CLOCK_REALTIME);
		if (now - last > longest)
			longest = now - last;
		last = now;
	}
}

static void check(void)
{
	step();
}

static void command(const char *line)
{
	if (strcmp(line, "gap"))
		return;
	say("GAP %lld\n", (long long)longest);
	longest = 0;
	last = now_ns(CLOCK_REALTIME);
}
