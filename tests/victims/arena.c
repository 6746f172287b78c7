/*
 * Hundreds of gigabytes of addresses that are only reserved, of which a little is used; places that
 * are asked for; memory that is held in place. Those of the start go along.
 */
#include "victim.h"
#include <sys/resource.h>

#define GIB (1UL << 30)
#define ARENA (700 * GIB)
#define PAGE 4096UL
#define USED 64
#define LOCKED (16 * PAGE)

static char *arena, *locked;
static unsigned long rounds;

static char *reserve(size_t bytes)
{
	char *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(at != MAP_FAILED, "mmap");
	return at;
}

/* One page in each eleven gigabytes. */
static unsigned long *used(int i)
{
	return (unsigned long *)(arena + i * (ARENA / USED));
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	arena = reserve(ARENA);
	for (int i = 0; i < USED; i++) {
		must(mprotect(used(i), PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
		*used(i) = i;
	}
	locked = mmap(NULL, LOCKED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(locked != MAP_FAILED && mlock(locked, LOCKED / 2) == 0, "mlock");
}

static void step(void)
{
	rounds++;
	for (int i = 0; i < USED; i++) {
		expect_equal("a page of the arena", rounds - 1 + i, *used(i));
		++*used(i);
	}
}

/* In KiB, of all mappings or of one. */
static long told(const char *file, const char *name, const void *of)
{
	char line[300];
	long value = -1;
	unsigned long start, end;
	int within = !of;
	FILE *lines = fopen(file, "r");
	while (lines && fgets(line, sizeof line, lines)) {
		if (of && sscanf(line, "%lx-%lx ", &start, &end) == 2)
			within = start <= (unsigned long)of && (unsigned long)of < end;
		if (within && !strncmp(line, name, strlen(name)))
			value = atol(line + strlen(name));
	}
	if (lines)
		fclose(lines);
	return value;
}

static void another_arena(void)
{
	char *more = reserve(400 * GIB);
	expect_equal("a part of it", 0, mprotect(more + 200 * GIB, PAGE, PROT_READ | PROT_WRITE));
	more[200 * GIB] = 1;
	expect_range("its size is told", 1100 * (GIB >> 10), 1L << 40, told("/proc/self/status", "VmSize:", NULL));
	expect_equal("given back", 0, munmap(more, 400 * GIB));
}

static void places(void)
{
	char *three = reserve(3 * PAGE), *hole = three + PAGE;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	munmap(hole, PAGE);
	expect_equal("a place that is taken", 1, mmap(three, PAGE, PROT_READ, flags, -1, 0) == MAP_FAILED);
	expect_equal("its errno", EEXIST, errno);
	expect_equal("one that runs into another", 1, mmap(hole, 2 * PAGE, PROT_READ, flags, -1, 0) == MAP_FAILED);
	expect_equal("its errno", EEXIST, errno);
	expect_equal("a free place", (long)hole, (long)mmap(hole, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0));
	hole[0] = 1;
	int file = open("/proc/self/exe", O_RDONLY);
	expect_equal("of a file, taken", 1, mmap(hole, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, 0) == MAP_FAILED);
	expect_equal("its errno", EEXIST, errno);
	munmap(hole, PAGE);
	expect_equal("of a file, free", (long)hole, (long)mmap(hole, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, 0));
	expect_equal("what it shows", 0, memcmp(hole, "\177ELF", 4));
	close(file);
	char *moved = mremap(hole, PAGE, 4 * PAGE, 0);
	expect_equal("no room to grow", 1, moved == MAP_FAILED);
	expect_equal("its errno", ENOMEM, errno);
	munmap(three, 3 * PAGE);
}

static void held_in_place(void)
{
	unsigned char there[LOCKED / PAGE];
	expect_equal("locked in smaps", LOCKED / 2 >> 10, told("/proc/self/smaps", "Locked:", locked));
	expect_range("locked in status", LOCKED / 2 >> 10, LOCKED >> 9, told("/proc/self/status", "VmLck:", NULL));
	char *more = mmap(NULL, LOCKED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect_equal("mlock", 0, mlock(more, LOCKED));
	expect_equal("mincore", 0, mincore(more, LOCKED, there));
	for (size_t i = 0; i < LOCKED / PAGE; i++)
		expect_equal("is there at once", 1, there[i] & 1);
	expect_equal("munlock", 0, munlock(more, LOCKED));
	expect_equal("mlock2 of what is used", 0, syscall(SYS_mlock2, more, LOCKED, 1));
	expect_equal("given back", -1, madvise(more, LOCKED, MADV_DONTNEED));
	expect_equal("not while it is locked", EINVAL, errno);
	munmap(more, LOCKED);
	expect_equal("mlock of nothing", -1, mlock(more, PAGE));
	expect_equal("its errno", ENOMEM, errno);
}

/* The size of what it has is limited by itself from here on, until it lifts that. */
static void limits(void)
{
	struct rlimit old, little;
	char *more;
	expect_equal("getrlimit", 0, getrlimit(RLIMIT_AS, &old));
	little = (struct rlimit){ told("/proc/self/status", "VmSize:", NULL) * 1024 + GIB, old.rlim_max };
	expect_equal("setrlimit", 0, setrlimit(RLIMIT_AS, &little));
	expect_equal("beyond it", 1, mmap(NULL, 2 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
	expect_equal("its errno", ENOMEM, errno);
	expect_equal("prlimit", 0, prlimit(getpid(), RLIMIT_AS, &old, &little));
	expect_equal("its former one", old.rlim_max, little.rlim_max);
	more = mmap(NULL, 2 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect_equal("behind it", 0, more == MAP_FAILED);
	munmap(more, 2 * GIB);
	expect_equal("getrlimit", 0, getrlimit(RLIMIT_DATA, &old));
	little = (struct rlimit){ PAGE, old.rlim_max };
	expect_equal("setrlimit", 0, setrlimit(RLIMIT_DATA, &little));
	expect_equal("no more of a heap", 1, sbrk(GIB) == (void *)-1);
	expect_equal("setrlimit", 0, setrlimit(RLIMIT_DATA, &old));
	expect_equal("more of a heap", 0, sbrk(PAGE) == (void *)-1);
	sbrk(-PAGE);
}

static void check(void)
{
	another_arena();
	places();
	held_in_place();
	limits();
}
