/* "try" prepares asynchronous I/O: prints "TRIED <errno>", 0 where there is such a thing. */
#define VICTIM_COMMAND
#include "victim.h"

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
}

static void step(void)
{
}

static void check(void)
{
}

static void command(const char *line)
{
	if (strcmp(line, "try"))
		return;
	unsigned long context = 0;
	long made = syscall(SYS_io_setup, 1, &context);
	say("TRIED %d\n", made < 0 ? errno : 0);
	if (made >= 0)
		syscall(SYS_io_destroy, context);
}
