/* A huge arena without access, a few pages opened in it; zero pages read but never written. */
#include "victim.h"

#define ARENA_BYTES (1UL << 36)
#define ISLANDS 64
#define ISLAND_STRIDE (ARENA_BYTES / ISLANDS)
#define READ_ONLY_ZEROES (64UL << 20)

static char *arena, *zeroes;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	arena = mmap(NULL, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(arena != MAP_FAILED, "arena");
	for (long i = 0; i < ISLANDS; i++) {
		must(mprotect(arena + i * ISLAND_STRIDE, 8192, PROT_READ | PROT_WRITE) == 0, "mprotect");
		*(long *)(arena + i * ISLAND_STRIDE) = i + 1;
	}
	/* Content behind PROT_NONE must travel too. */
	must(mprotect(arena, 4096, PROT_NONE) == 0, "mprotect");
	zeroes = mmap(NULL, READ_ONLY_ZEROES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(zeroes != MAP_FAILED, "zeroes");
}

static void step(void)
{
	for (long i = 1; i < ISLANDS; i++) {
		expect_equal("island", i + 1, *(long *)(arena + i * ISLAND_STRIDE));
		expect_equal("untouched page", 0, *(long *)(arena + i * ISLAND_STRIDE + 4096));
	}
	for (size_t at = 0; at < READ_ONLY_ZEROES; at += 1 << 20)
		expect_equal("zero page", 0, zeroes[at]);
}

static void check(void)
{
	expect_equal("open the first island", 0, mprotect(arena, 4096, PROT_READ));
	expect_equal("content behind PROT_NONE", 1, *(long *)arena);
	expect_equal("close it", 0, mprotect(arena, 4096, PROT_NONE));
	step();
}
