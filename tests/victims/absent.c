/* "try" forks: prints "TRIED <errno>", 0 where there is a fork. */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/wait.h>

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
	pid_t child = syscall(SYS_fork);
	if (child == 0)
		_exit(0);
	say("TRIED %d\n", child < 0 ? errno : 0);
	if (child > 0)
		waitpid(child, NULL, 0);
}
