/* A personality set before exec (addresses not randomised) is still seen. */
#include "victim.h"
#include <sys/personality.h>

static void setup(int argc, char **argv)
{
	(void)argc;
	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
		must(personality(ADDR_NO_RANDOMIZE) != -1, "personality");
		execv("/proc/self/exe", argv);
		must(0, "execv");
	}
}

static void step(void)
{
	expect_equal("personality", ADDR_NO_RANDOMIZE, personality(0xffffffff));
}

static void check(void)
{
	step();
}
