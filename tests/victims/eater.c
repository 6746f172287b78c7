/*
 * What takes more than its share:
 *
 *   eat MIB   touches so much memory
 *   crowd     begins threads until there are no more, then ends them
 *   bomb      begins processes that begin processes, until there are no more; they end with the
 *             next line of input
 */
#define VICTIM_COMMAND
#define VICTIM_INPUT_TIMEOUT_MS -1
#include "victim.h"
#include <sys/resource.h>
#include <sys/wait.h>

#define CROWD_MAX 4096
#define STACK_BYTES (64 * 1024)
#define PAGE 4096UL

static int gate[2];

static void setup(int argc, char **argv)
{
	/* Processes of its user. */
	if (argc > 1) {
		struct rlimit limit = { atoi(argv[1]), atoi(argv[1]) };
		must(setrlimit(RLIMIT_NPROC, &limit) == 0, "setrlimit");
	}
}

static void step(void)
{
}

static void check(void)
{
}

static void eat(size_t mib)
{
	size_t bytes = mib << 20;
	char *food = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(food != MAP_FAILED, "mmap");
	for (size_t at = 0; at < bytes; at += PAGE)
		food[at] = at / PAGE;
	say("ATE %zu\n", mib);
}

static void *until_told(void *argument)
{
	char byte;
	while (read(gate[0], &byte, 1) < 0 && errno == EINTR)
		;
	return argument;
}

static void crowd(void)
{
	static pthread_t threads[CROWD_MAX];
	pthread_attr_t small;
	int count = 0, failed = 0;
	must(pipe(gate) == 0, "pipe");
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_BYTES);
	while (count < CROWD_MAX && !(failed = pthread_create(&threads[count], &small, until_told, NULL)))
		count++;
	close(gate[1]);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	close(gate[0]);
	/* There is room again. */
	expect_equal("a thread afterwards", 0, pthread_create(&threads[0], &small, until_told, NULL));
	pthread_join(threads[0], NULL);
	say("CROWD %d %d\n", count, failed);
}

static void bomb(void)
{
	int full[2];
	char byte, line[sizeof input + 1];
	int begun = 0;
	pid_t us = getpid();
	must(pipe(gate) == 0 && pipe(full) == 0, "pipe");
	for (pid_t child; (child = fork()) >= 0;)
		if (child > 0)
			begun++;
		else
			begun = 0;
	if (getpid() != us) {
		/* Whoever finds no more room says so, and waits. */
		close(gate[1]);
		until_told(NULL);
		_exit(write(full[1], "x", 1) == 1 ? 0 : 1);
	}
	say("FULL %d %d\n", errno, begun);
	next_line(line, -1);
	close(gate[1]);
	close(full[1]);
	int processes = 1;
	while (read(full[0], &byte, 1) == 1)
		processes++;
	while (wait(NULL) > 0)
		;
	close(gate[0]);
	close(full[0]);
	say("BOMB %d\n", processes);
}

static void command(const char *line)
{
	int mib;
	if (sscanf(line, "eat %d", &mib) == 1)
		eat(mib);
	else if (!strcmp(line, "crowd"))
		crowd();
	else if (!strcmp(line, "bomb"))
		bomb();
}
