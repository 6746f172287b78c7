/* Files mapped, and memory moved and given back, after the move. */
#include "victim.h"

#define FILE_PAGES 4
#define PIECE (1 << 20)

static int file;
static uint64_t *piece;
static size_t length = PIECE;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	char path[64], page[4096];
	snprintf(path, sizeof path, "/tmp/victim-latemap-%d", getpid());
	file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(file >= 0, "open");
	unlink(path);
	for (int i = 0; i < FILE_PAGES; i++) {
		memset(page, 'A' + i, sizeof page);
		must(write(file, page, sizeof page) == sizeof page, "write");
	}
	piece = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(piece != MAP_FAILED, "mmap");
	for (size_t i = 0; i < length / 8; i++)
		piece[i] = i;
}

static void map_file(void)
{
	char *at = mmap(NULL, FILE_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	expect_equal("mmap of a file", 0, at == MAP_FAILED ? errno : 0);
	if (at == MAP_FAILED)
		return;
	for (int i = 0; i < FILE_PAGES; i++)
		expect_equal("mapped byte", 'A' + i, at[i * 4096 + 99]);
	at[0] = 'z';
	char first = 0;
	expect_equal("pread", 1, pread(file, &first, 1, 0));
	expect_equal("private to us", 'A', first);
	expect_equal("munmap", 0, munmap(at, FILE_PAGES * 4096));
}

static void move_memory(void)
{
	size_t next = length == PIECE ? 4 * PIECE : PIECE;
	uint64_t *at = mremap(piece, length, next, MREMAP_MAYMOVE);
	expect_equal("mremap", 0, at == MAP_FAILED ? errno : 0);
	if (at == MAP_FAILED)
		return;
	piece = at;
	length = next;
	for (size_t i = 0; i < PIECE / 8; i += 511)
		expect_equal("moved memory", i, piece[i]);
	if (length > PIECE) {
		uint64_t *extra = piece + PIECE / 8;
		expect_equal("fresh memory", 0, extra[0]);
		extra[0] = 7;
		expect_equal("madvise", 0, madvise(extra, PIECE, MADV_DONTNEED));
		expect_equal("given back", 0, extra[0]);
	}
}

static void step(void)
{
	map_file();
	move_memory();
}

static void check(void)
{
	step();
	for (size_t i = 0; i < PIECE / 8; i++)
		expect_equal("memory", i, piece[i]);
}
