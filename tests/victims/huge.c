/*
 * Private memory of huge pages (hugetlbfs), of which a part is given back, a part is protected and
 * a part was never touched; and a shared page, one of a memfd, one of System V and one of none.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/shm.h>

#define HUGE (2UL << 20)
#define HUGE_PAGES 6
#define GONE 4
#define UNTOUCHED 5
#define SHARED 6
#define FILED 7
#define ATTACHED 8
#define ALL_PAGES 9
#define WORDS (HUGE / sizeof(uint64_t))

static uint64_t *memory, *shared, *filed, *attached;
static uint64_t generation[ALL_PAGES];

static uint64_t *words(int page)
{
	uint64_t *apart[] = { shared, filed, attached };
	return page >= SHARED ? apart[page - SHARED] : memory + page * WORDS;
}

static uint64_t seed(int page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ULL ^ (generation[page] << 32 | 1);
}

static void fill(int page)
{
	generation[page]++;
	uint64_t state = seed(page);
	for (size_t i = 0; i < WORDS; i++)
		words(page)[i] = next_random(&state);
}

static void verify(int page)
{
	uint64_t state = seed(page);
	for (size_t i = 0; i < WORDS; i++)
		expect_equal("memory", next_random(&state), words(page)[i]);
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
	int rw = PROT_READ | PROT_WRITE;
	shared = mmap(NULL, HUGE, rw, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	int fd = memfd_create("huge", MFD_HUGETLB);
	must(fd >= 0 && ftruncate(fd, HUGE) == 0, "memfd");
	filed = mmap(NULL, HUGE, rw, MAP_SHARED, fd, 0);
	must(shared != MAP_FAILED && filed != MAP_FAILED, "shared huge pages");
	int segment = shmget(IPC_PRIVATE, HUGE, SHM_HUGETLB | 0600);
	must(segment >= 0, "shmget");
	attached = shmat(segment, NULL, 0);
	shmctl(segment, IPC_RMID, NULL);
	must(attached != (void *)-1, "shmat");
	fill(SHARED);
	fill(FILED);
	fill(ATTACHED);
	must(mprotect(&memory[3 * WORDS], HUGE, PROT_READ) == 0, "mprotect");
	must(munmap(&memory[GONE * WORDS], HUGE) == 0, "munmap");
}

static void step(void)
{
	static int next;
	static const int pages[] = { 0, 1, 2, SHARED, FILED, ATTACHED };
	next = (next + 1) % 6;
	verify(pages[next]);
	fill(pages[next]);
}

static void check(void)
{
	for (int page = 0; page < GONE; page++)
		verify(page);
	verify(SHARED);
	verify(FILED);
	verify(ATTACHED);
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
