/* The heap grows and shrinks by brk after the move, and keeps what is in it. */
#include "victim.h"

#define PIECE_BYTES (64 * 1024)
#define PIECES_MAX 256

static uint64_t *base;
static int pieces;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	base = sbrk(0);
	base = (uint64_t *)(((uintptr_t)base + 4095) & ~4095UL);
	must(brk(base) == 0, "brk");
}

static uint64_t *piece(int i)
{
	return base + (size_t)i * PIECE_BYTES / 8;
}

static void step(void)
{
	expect_equal("break", (long)piece(pieces), (long)sbrk(0));
	if (pieces == PIECES_MAX) {
		must(brk(piece(PIECES_MAX / 2)) == 0, "brk down");
		pieces = PIECES_MAX / 2;
	}
	must(brk(piece(pieces + 1)) == 0, "brk up");
	for (size_t i = 0; i < PIECE_BYTES / 8; i++) {
		expect_equal("fresh heap", 0, piece(pieces)[i]);
		piece(pieces)[i] = pieces * 1000003UL + i;
	}
	pieces++;
}

static void check(void)
{
	for (int p = 0; p < pieces; p++)
		for (size_t i = 0; i < PIECE_BYTES / 8; i++)
			expect_equal("heap", p * 1000003UL + i, piece(p)[i]);
}
