/*
 * Private memory of huge pages (hugetlbfs), of which a part is given back, a part is protected and
 * a part was never touched.
 */
#define VICTIM_COMMAND
#include "victim.h"

#define HUGE (2UL << 20)
#define HUGE_PAGES 6
#define GONE 4
#define UNTOUCHED 5
#define WORDS (HUGE / sizeof(uint64_t))

static uint64_t *memory;
static uint64_t generation[HUGE_PAGES];

static uint64_t seed(int page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ULL ^ (generation[page] << 32 | 1);
}

static void fill(int page)
{
	generation[page]++;
	uint64_t state = seed(page);
	for (size_t i = 0; i < WORDS; i++)
		memory[page * WORDS + i] = next_random(&state);
}

static void verify(int page)
{
	uint64_t state = seed(page);
	for (size_t i = 0; i < WORDS; i++)
		expect_equal("memory", next_random(&state), memory[page * WORDS + i]);
}

static void *map_huge(int pages)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	return mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	memory = map_huge(HUGE_PAGES);
	must(memory != MAP_FAILED, "huge pages");
	for (int page = 0; page < GONE; page++)
		fill(page);
	must(mprotect(&memory[3 * WORDS], HUGE, PROT_READ) == 0, "mprotect");
	must(munmap(&memory[GONE * WORDS], HUGE) == 0, "munmap");
}

static void step(void)
{
	static int next;
	next = (next + 1) % 3;
	verify(next);
	fill(next);
}

static void check(void)
{
	for (int page = 0; page < GONE; page++)
		verify(page);
	expect_equal("never touched", 0, memory[UNTOUCHED * WORDS]);
	expect_equal("aligned", 0, (uintptr_t)memory % HUGE);
}

/* Maps a huge page more, and says what came of it. */
static void command(const char *line)
{
	(void)line;
	void *more = map_huge(1);
	int error = more == MAP_FAILED ? errno : 0;
	if (!error)
		munmap(more, HUGE);
	say("MORE %d\n", error);
}
