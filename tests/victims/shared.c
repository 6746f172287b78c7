/* Shared anonymous memory made while away comes home. segment.c has that of home. */
#include "victim.h"

#define PAGES 8
#define WRITTEN 6
#define READ_ONLY 3

static volatile unsigned char *memory;
static int checks;

static void make(void)
{
	memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(memory != MAP_FAILED, "shared memory");
	for (int page = 0; page < WRITTEN; page++)
		memory[page * 4096 + page] = page + 1;
	/* Two mappings more of one object. */
	must(mprotect((void *)(memory + READ_ONLY * 4096), 4096, PROT_READ) == 0, "mprotect");
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
}

static void step(void)
{
	if (!memory)
		return;
	for (int page = 0; page < PAGES; page++)
		expect_equal("page", page < WRITTEN ? page + 1 : 0, memory[page * 4096 + page]);
}

/* The first check may be at home, the second is away. */
static void check(void)
{
	step();
	if (++checks == 2)
		make();
	else if (memory)
		memory[0] = 1;
	step();
}
