/*
 * A parent and its children (first argument: how many) pass a number round; each adds one, and
 * knows what comes to it next: a process that is missing, or there twice, stops the ring or
 * spoils it.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/wait.h>

#define CHILDREN_MAX 64
#define END_OF_RING 96
#define SPOILT 95

static int children;
static int out, in;
static uint64_t number;
static unsigned long rounds;

static _Noreturn void pass_on(int from, int to)
{
	uint64_t expected = 0, seen;
	signal(SIGPIPE, SIG_IGN);
	while (read(from, &seen, sizeof seen) == sizeof seen) {
		if (expected && seen != expected)
			_exit(SPOILT);
		expected = seen + children + 1;
		seen++;
		if (write(to, &seen, sizeof seen) != sizeof seen)
			break;
	}
	_exit(END_OF_RING);
}

static void setup(int argc, char **argv)
{
	children = argc > 1 ? atoi(argv[1]) : 4;
	must(children > 0 && children <= CHILDREN_MAX, "so many children");
	int first[2], last[2], next[2];
	must(pipe(first) == 0, "pipe");
	memcpy(last, first, sizeof last);
	for (int i = 0; i < children; i++) {
		must(pipe(next) == 0, "pipe");
		pid_t pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0) {
			/* It ends with the ring, so it holds no end that it does not use. */
			close(0);
			close(1);
			close(first[1]);
			close(next[0]);
			pass_on(last[0], next[1]);
		}
		close(last[0]);
		close(next[1]);
		memcpy(last, next, sizeof last);
		in = next[0];
	}
	out = first[1];
}

static void step(void)
{
	uint64_t seen = 0;
	number++;
	expect_equal("sent on", sizeof number, write(out, &number, sizeof number));
	expect_equal("came round", sizeof seen, read(in, &seen, sizeof seen));
	expect_equal("the number", number + children, seen);
	number = seen;
	rounds++;
}

static void check(void)
{
	step();
	expect_equal("children that ended", 0, waitpid(-1, NULL, WNOHANG));
}

static void command(const char *line)
{
	if (!strcmp(line, "rounds"))
		say("ROUNDS %lu\n", rounds);
}
