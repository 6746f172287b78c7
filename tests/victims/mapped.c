/*
 * Files mapped shared and written to, by subject: what is stored is in the file for the next call,
 * and what the own calls write is in the mapping.
 *
 *   mapped SUBJECT [FILE]     FILE is kept; a file of its own is removed
 *
 * The subjects "still" and "full" wait for commands.
 */
#define VICTIM_COMMAND
#define VICTIM_CLEAN_UP
#define VICTIM_INPUT_TIMEOUT_MS 2
#include "victim.h"
#include <linux/openat2.h>
#include <setjmp.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define PAGE 4096
#define PAGES 6
#define ODD 100
/* A word that no subject touches. */
#define LAST ((5 * PAGE + 512) / 8)
#define BIG (64 << 20)
#define DENSE (2 << 20)

static const char *subject, *path;
static char own_path[64];
static int file;
static volatile uint64_t *map;
static volatile char *bytes, *other;
static uint64_t rounds;
static size_t dense_length = DENSE;
static sigjmp_buf back;
static volatile int code;

static size_t length(void);

static int is(const char *name)
{
	return !strcmp(subject, name);
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	code = info->si_code;
	siglongjmp(back, 1);
}

/* The code of the SIGBUS that a read there gives, or 0. */
static int fault_at(volatile char *at)
{
	code = 0;
	if (!sigsetjmp(back, 1)) {
		char byte = *at;
		(void)byte;
	}
	return code;
}

static void *map_shared(int protection, size_t length, off_t offset)
{
	void *at = mmap(NULL, length, protection, MAP_SHARED, file, offset);
	must(at != MAP_FAILED, "mmap");
	return at;
}

static uint64_t in_file(off_t offset)
{
	uint64_t word = 0;
	expect_equal("pread", 8, pread(file, &word, 8, offset));
	return word;
}

static void fill(void)
{
	for (int page = 0; page < PAGES; page++) {
		char block[PAGE];
		memset(block, 'a' + page, sizeof block);
		must(write(file, block, sizeof block) == PAGE, "write");
	}
	must(write(file, "odd", 3) == 3, "write");
	must(!ftruncate(file, PAGES * PAGE + ODD), "ftruncate");
}

static size_t length(void)
{
	return is("sparse") || is("full") ? BIG : is("dense") ? DENSE : (PAGES + 2) * PAGE;
}

static void setup(int argc, char **argv)
{
	int rw = PROT_READ | PROT_WRITE;
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	must(argc > 1, "subject");
	subject = argv[1];
	snprintf(own_path, sizeof own_path, "/var/tmp/victim-mapped-%d", getpid());
	path = argc > 2 ? argv[2] : own_path;
	if (is("memfd")) {
		file = memfd_create("mapped", MFD_CLOEXEC);
	} else {
		if (is("shm"))
			snprintf(own_path, sizeof own_path, "/dev/shm/victim-mapped-%d", getpid());
		file = open(path, O_RDWR | O_CREAT, 0600);
	}
	must(file >= 0, "open");
	if (length() == (PAGES + 2) * PAGE)
		fill();
	else
		must(!ftruncate(file, length()), "ftruncate");
	sigaction(SIGBUS, &action, NULL);
	if (is("deleted"))
		unlink(path);
	if (is("late"))
		return;
	if (is("read-only"))
		rw = PROT_READ;
	map = map_shared(rw, length(), 0);
	bytes = (volatile char *)map;
	if (is("two"))
		other = map_shared(PROT_READ | PROT_WRITE, 2 * PAGE, PAGE);
	if (is("beside")) {
		other = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
		must(other != MAP_FAILED, "mmap");
	}
	for (size_t at = 0; is("dense") && at < DENSE / 8; at++)
		map[at] = at;
	if (length() == (PAGES + 2) * PAGE && !is("read-only"))
		map[0] = map[PAGE / 8] = 0;
}

/* Stores into the mapping are in the file. */
static void store(void)
{
	map[0]++;
	map[PAGE / 8] = ~map[0];
	bytes[3 * PAGE + 5] = 'A' + map[0] % 26;
	expect_equal("in the file", map[0], in_file(0));
	expect_equal("in the second page", ~map[0], in_file(PAGE));
	char byte;
	expect_equal("pread", 1, pread(file, &byte, 1, 3 * PAGE + 5));
	expect_equal("one byte", bytes[3 * PAGE + 5], byte);
	expect_equal("beside it", 'd', bytes[3 * PAGE + 6]);
}

/* What is written to the file is in the mapping. */
static void written(void)
{
	uint64_t words[4] = { rounds, rounds * 3, rounds * 5, rounds * 7 };
	struct iovec parts[2] = { { words, 16 }, { words + 2, 16 } };
	expect_equal("pwrite", 8, pwrite(file, words, 8, 2 * PAGE - 4));
	expect_equal("low half", (uint32_t)rounds, *(volatile uint32_t *)(bytes + 2 * PAGE - 4));
	expect_equal("high half", rounds >> 32, *(volatile uint32_t *)(bytes + 2 * PAGE));
	expect_equal("lseek", 4 * PAGE + 16, lseek(file, 4 * PAGE + 16, SEEK_SET));
	expect_equal("write", 32, write(file, words, 32));
	expect_equal("writev", 32, writev(file, parts, 2));
	for (int i = 0; i < 4; i++) {
		expect_equal("written", words[i], map[(4 * PAGE + 16) / 8 + i]);
		expect_equal("by parts", words[i], map[(4 * PAGE + 48) / 8 + i]);
	}
	expect_equal("pwritev", 32, pwritev(file, parts, 2, 5 * PAGE));
	expect_equal("pwritten", words[3], map[5 * PAGE / 8 + 3]);
}

static void grow(void)
{
	off_t end = PAGES * PAGE + ODD;
	expect_equal("last bytes", 0, bytes[end]);
	expect_equal("page behind the end", BUS_ADRERR, fault_at(bytes + (PAGES + 1) * PAGE));
	expect_equal("ftruncate", 0, ftruncate(file, (PAGES + 2) * PAGE));
	expect_equal("grown", 0, fault_at(bytes + (PAGES + 1) * PAGE));
	expect_equal("grown byte", 0, bytes[(PAGES + 1) * PAGE + 9]);
	map[(PAGES + 1) * PAGE / 8] = rounds;
	expect_equal("in what grew", rounds, in_file((PAGES + 1) * PAGE));
	expect_equal("ftruncate", 0, ftruncate(file, end));
	expect_equal("shrunk", BUS_ADRERR, fault_at(bytes + (PAGES + 1) * PAGE));
	struct open_how how = { .flags = O_RDWR | O_TRUNC };
	int again = rounds % 2 ? open(path, O_RDWR | O_TRUNC)
			       : (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
	expect_equal("open", 1, again >= 0);
	expect_equal("emptied", BUS_ADRERR, fault_at(bytes));
	expect_equal("ftruncate", 0, ftruncate(again, end));
	close(again);
	expect_equal("zeros", 0, map[PAGE / 8]);
	map[PAGE / 8] = rounds;
	expect_equal("in the new file", rounds, in_file(PAGE));
	expect_equal("truncate", 0, truncate(path, PAGE));
	expect_equal("cut", BUS_ADRERR, fault_at(bytes + PAGE));
	expect_equal("truncate", 0, truncate(path, end));
	expect_equal("cut off", 0, map[PAGE / 8]);
}

static void sparse(void)
{
	uint64_t at = rounds * 1234567 % (BIG / 8);
	uint64_t was = map[at];
	map[at]++;
	expect_equal("far in the file", was + 1, in_file(at * 8));
	expect_equal("the end", 0, fault_at(bytes + BIG - 1));
}

/* Stores here and there in many pages, of which the kernel is to keep no less count than we. */
static void dense(void)
{
	uint64_t seed = rounds * 77 + 1, at[3];
	for (int i = 0; i < 3; i++) {
		at[i] = next_random(&seed) % (dense_length / 8);
		map[at[i]] += rounds;
	}
	if (rounds % 5 == 0)
		expect_equal("madvise", 0, madvise((void *)map, dense_length, MADV_DONTNEED));
	for (int i = 0; i < 3; i++)
		expect_equal("here and there", map[at[i]], in_file(at[i] * 8));
}

/* Stores into what goes or moves then. */
static void dense_moves(void)
{
	size_t left = dense_length - 32 * PAGE;
	for (size_t page = 0; page < dense_length / PAGE; page += 7)
		map[page * PAGE / 8]++;
	uint64_t tail = map[left / 8] = ~rounds;
	expect_equal("munmap", 0, munmap((char *)map + left, 32 * PAGE));
	expect_equal("of what is unmapped", tail, in_file(left));
	dense_length = left;
	map[5]++;
	void *room = mmap(NULL, left, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *at = mremap((void *)map, left, left, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	expect_equal("mremap", (uintptr_t)room, (uintptr_t)at);
	map = at;
	bytes = at;
	expect_equal("of what has moved", map[5], in_file(40));
	for (size_t page = 0; page < left / PAGE; page++)
		expect_equal("every page", map[page * PAGE / 8], in_file(page * PAGE));
	dense();
}

/* Mapped, written and unmapped where it is. */
static void late(void)
{
	uint64_t before = in_file(PAGE);
	uint64_t *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, PAGE);
	expect_equal("mmap", 0, at == MAP_FAILED ? errno : 0);
	if (at == MAP_FAILED)
		return;
	expect_equal("mapped", before, at[0]);
	at[0] = before + 1;
	at[PAGE / 8] = before + 2;
	expect_equal("msync", 0, msync(at, 2 * PAGE, MS_SYNC));
	expect_equal("in the file", before + 1, in_file(PAGE));
	at[1] = before + 3;
	expect_equal("munmap", 0, munmap(at, 2 * PAGE));
	expect_equal("unmapped", before + 3, in_file(PAGE + 8));
	expect_equal("the second page", before + 2, in_file(2 * PAGE));
	int reading = open(path, O_RDONLY);
	errno = 0;
	void *none = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, reading, 0);
	expect_equal("not writable", EACCES, none == MAP_FAILED ? errno : 0);
	close(reading);
}

/* The mapping moves, is protected and grows. */
static void remap(void)
{
	size_t length = (PAGES + 2) * PAGE;
	store();
	char *room = mmap(NULL, 2 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *at = mremap((void *)map, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	expect_equal("mremap", (uintptr_t)room, (uintptr_t)at);
	map = at;
	bytes = at;
	store();
	expect_equal("mprotect", 0, mprotect(at, length, PROT_READ));
	expect_equal("still there", map[0], in_file(0));
	expect_equal("mprotect", 0, mprotect(at, length, PROT_READ | PROT_WRITE));
	store();
	at = mremap(at, 2 * PAGE, 2 * PAGE, 0);
	expect_equal("mremap in place", (uintptr_t)map, (uintptr_t)at);
	at = mremap((void *)map, length, length + PAGE, MREMAP_MAYMOVE);
	expect_equal("mremap to more", 0, at == MAP_FAILED ? errno : 0);
	if (at == MAP_FAILED)
		return;
	map = at;
	bytes = at;
	store();
	at = mremap((void *)map, length + PAGE, length, 0);
	expect_equal("mremap to less", (uintptr_t)map, (uintptr_t)at);
	store();
}

static void beside(void)
{
	store();
	expect_equal("seen beside", bytes[1], other[1]);
	other[PAGE + 9] = 'p';
	expect_equal("private", 1, bytes[PAGE + 9] != 'p');
}

static void two(void)
{
	store();
	expect_equal("one memory", bytes[PAGE], other[0]);
	*(volatile uint64_t *)(other + PAGE) = rounds;
	expect_equal("the other way", rounds, map[2 * PAGE / 8]);
	expect_equal("in the file", rounds, in_file(2 * PAGE));
}

static void step(void)
{
	rounds++;
	if (is("plain") || is("memfd") || is("shm") || is("deleted")) {
		store();
		written();
	} else if (is("read-only")) {
		written();
	} else if (is("two")) {
		two();
	} else if (is("sparse")) {
		sparse();
	} else if (is("dense")) {
		dense();
	} else if (is("beside")) {
		beside();
	} else if (is("grow")) {
		grow();
	}
}

static void check(void)
{
	step();
	if (is("late"))
		late();
	if (is("dense"))
		dense_moves();
	if (is("remap"))
		remap();
	if (is("plain")) {
		map[7] = rounds;
		expect_equal("msync", 0, msync((void *)map, PAGE, MS_SYNC));
		expect_equal("msync of nothing", -1, msync((void *)(map + 1), PAGE, MS_SYNC));
		expect_equal("synced", rounds, in_file(56));
	}
}

/* The last words of a test, after which no call is made that asks for them. */
static void command(const char *line)
{
	long long value = 0;
	if (sscanf(line, "put %lld", &value) == 1) {
		map[LAST] = value;
		say("PUT\n");
	} else if (sscanf(line, "put-and-die %lld", &value) == 1) {
		map[LAST] = value;
		raise(SIGABRT);
	} else if (sscanf(line, "put-and-compute %lld", &value) == 1) {
		say("PUT\n");
		map[LAST] = value;
		for (;;)
			rounds++;
	} else if (sscanf(line, "put-and-exit %lld", &value) == 1) {
		map[LAST] = value;
		munmap((void *)map, (PAGES + 2) * PAGE);
		_exit(5);
	} else if (!strcmp(line, "overfill")) {
		/* A file system that has less room than the file has pages. */
		for (volatile int page = 0; page < BIG / PAGE; page++) {
			code = 0;
			if (!sigsetjmp(back, 1)) {
				map[page * PAGE / 8] = page + 1;
				in_file(page * PAGE);
			}
			if (code) {
				say("FULL %d %d\n", page, code);
				break;
			}
		}
	} else if (!strcmp(line, "fork")) {
		/* The child changes what the parent sees. */
		map[9] = 0;
		pid_t child = fork();
		if (child == 0) {
			map[9] = 77;
			for (;;)
				pause();
		}
		while (map[9] != 77)
			sched_yield();
		say("FORKED %d\n", child);
	}
}

static void clean_up(void)
{
	if (path == own_path)
		unlink(own_path);
}
