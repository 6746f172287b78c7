/*
 * A blocking read of a pipe: SIGUSR1 (SA_RESTART) is not noticed by it, SIGUSR2
 * ends it with EINTR. Prints "handled <signal>" from the handler and "interrupted".
 */
#define VICTIM_COMMAND
#include "victim.h"

static long interrupted, handled_without_restart;

static void on_signal(int signal)
{
	int saved = errno;
	if (signal == SIGUSR1) {
		write(1, "handled 10\n", 11);
	} else {
		handled_without_restart++;
		write(1, "handled 12\n", 11);
	}
	errno = saved;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	sigaction(SIGUSR1, &action, NULL);
	action.sa_flags = 0;
	sigaction(SIGUSR2, &action, NULL);
}

static void step(void)
{
	ssize_t n = read(0, input + input_length, sizeof input - input_length);
	if (n == 0)
		_exit(END_OF_INPUT_STATUS);
	if (n < 0) {
		expect_equal("errno", EINTR, errno);
		interrupted++;
		say("interrupted\n");
		return;
	}
	input_length += n;
}

static void check(void)
{
	expect_equal("interrupted reads", handled_without_restart, interrupted);
}

static void command(const char *line)
{
	(void)line;
}
