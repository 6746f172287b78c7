/*
 * A second thread in a blocking read that SIGUSR2 ends with EINTR. "block" has the main
 * thread block SIGUSR2, so that only the second one takes it; prints "interrupted".
 */
#define VICTIM_COMMAND
#include "victim.h"

static int pipe_ends[2];

static void on_signal(int signal)
{
	(void)signal;
}

static void *reader(void *argument)
{
	(void)argument;
	char byte;
	for (;;) {
		expect_equal("read of an empty pipe", -1, read(pipe_ends[0], &byte, 1));
		expect_equal("errno", EINTR, errno);
		say("interrupted\n");
	}
	return NULL;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_handler = on_signal };
	sigaction(SIGUSR2, &action, NULL);
	must(pipe(pipe_ends) == 0, "pipe");
	pthread_t thread;
	must(pthread_create(&thread, NULL, reader, NULL) == 0, "pthread_create");
	snprintf(ready_word, sizeof ready_word, "%d", pipe_ends[0]);
}

static void step(void)
{
}

static void check(void)
{
}

static void command(const char *line)
{
	if (strcmp(line, "block"))
		return;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	say("blocked\n");
}
