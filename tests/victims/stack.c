/* The main stack and a MAP_GROWSDOWN mapping grow after the move. */
#include "victim.h"

#define DEPTH_MAX 1500 /* of 4 KiB frames: under the usual 8 MiB */
#define GROWS_MAX 200

static int depth = 10;
static char *lowest;
static int grown;

static __attribute__((noinline)) unsigned long descend(int left)
{
	volatile unsigned long frame[512];
	frame[0] = left;
	frame[511] = left + 1;
	unsigned long below = left ? descend(left - 1) : 0;
	expect_equal("frame", left, frame[0]);
	return below + frame[511];
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	/* Room below, so that nothing else is mapped where it will grow. */
	char *room = mmap(NULL, 16 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(room != MAP_FAILED, "room");
	munmap(room, 16 << 20);
	lowest = mmap(room + (15 << 20), 4096, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	must(lowest != MAP_FAILED, "growing mapping");
	lowest[0] = 1;
}

static void step(void)
{
	long n = depth;
	expect_equal("sum of frames", n * (n + 1) / 2 + n + 1, descend(depth));
	if (depth < DEPTH_MAX)
		depth += 10;
	if (grown < GROWS_MAX) {
		lowest -= 4096;
		grown++;
		lowest[0] = grown;
	}
}

static void check(void)
{
	for (int i = 0; i < grown; i++)
		expect_equal("grown page", grown - i, (unsigned char)lowest[i * 4096]);
	for (int i = 0; i < 5; i++)
		step();
}
