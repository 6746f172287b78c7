/* N MiB (argument, 16) of incompressible memory; one page a step changes. */
#include "victim.h"

#define PAGE_WORDS 512

static uint64_t *memory;
static uint32_t *generation;
static size_t pages, next;

static void fill(size_t page)
{
	uint64_t state = (page + 1) * 0x9e3779b97f4a7c15ULL ^ ((uint64_t)generation[page] << 32 | 1);
	for (int i = 0; i < PAGE_WORDS; i++)
		memory[page * PAGE_WORDS + i] = next_random(&state);
}

static void verify(size_t page)
{
	uint64_t state = (page + 1) * 0x9e3779b97f4a7c15ULL ^ ((uint64_t)generation[page] << 32 | 1);
	for (int i = 0; i < PAGE_WORDS; i++)
		expect_equal("memory", next_random(&state), memory[page * PAGE_WORDS + i]);
}

static void setup(int argc, char **argv)
{
	pages = (argc > 1 ? atol(argv[1]) : 16) * 256;
	memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	generation = calloc(pages, sizeof *generation);
	must(memory != MAP_FAILED && generation, "memory");
	for (size_t page = 0; page < pages; page++)
		fill(page);
}

static void step(void)
{
	next = (next + 7919) % pages;
	verify(next);
	generation[next]++;
	fill(next);
}

static void check(void)
{
	for (size_t page = 0; page < pages; page++)
		verify(page);
}
