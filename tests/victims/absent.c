/* "try" makes System V shared memory: prints "TRIED <errno>", 0 where there is such a thing. */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/ipc.h>
#include <sys/shm.h>

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
	int id = shmget(IPC_PRIVATE, 4096, 0600);
	say("TRIED %d\n", id < 0 ? errno : 0);
	if (id >= 0)
		shmctl(id, IPC_RMID, NULL);
}
