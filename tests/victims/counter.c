/*
 * Appends numbered lines to a file (first argument) and keeps its own count: a
 * step that was lost or done twice shows in the file. No other call is retried.
 */
#define VICTIM_COMMAND
#include "victim.h"

static int file;
static unsigned long count;

static void setup(int argc, char **argv)
{
	must(argc > 1, "a file name");
	file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
	must(file >= 0, "open");
}

static void step(void)
{
	char line[32];
	int length = snprintf(line, sizeof line, "%lu\n", ++count);
	expect_equal("write", length, write(file, line, length));
}

static void check(void)
{
	step();
}

static void command(const char *line)
{
	if (!strcmp(line, "count"))
		say("COUNT %lu\n", count);
}
