/*
 * A parent reads and writes the memory of its child, which lies at the same addresses in both, and
 * reads in /proc of it what the child reads of itself.
 * "back": the child reads its parent's, "peek PID": the parent a stranger's, "look PID": in /proc,
 * "know": all that the child knows of itself, while neither moves, "stare": both look at each other.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/prctl.h>
#include <sys/uio.h>

#define PAGE 4096
#define PAGES 80
#define BYTES (PAGES * PAGE)

#define GROWN (16 << 20)
#define STRIPES 1000
#define LOOKS 20

/* One after the other; what is sealed cannot be written, what is gone has no memory. */
static unsigned char *area, *sealed, *gone;
static unsigned char *copy;
static pid_t parent, child;
/* The child's memory as a file, open since both were at home. */
static int held;
static int to_child[2], to_parent[2];
static unsigned seed;
static char its[1 << 20], own[1 << 20];

static void fill(unsigned char *at, unsigned of)
{
	for (unsigned i = 0; i < BYTES; i++)
		at[i] = (of + i) * 2654435761u >> 13;
}

static int is_filled(unsigned char *at, unsigned of)
{
	for (unsigned i = 0; i < BYTES; i++)
		if (at[i] != (unsigned char)((of + i) * 2654435761u >> 13))
			return 0;
	return 1;
}

static long read_of(pid_t pid)
{
	/* In parts that fit to nothing. */
	struct iovec here[3] = { { copy, 5 }, { copy + 5, 100001 }, { copy + 100006, BYTES - 100006 } };
	struct iovec there[2] = { { area, 70003 }, { area + 70003, BYTES - 70003 } };
	return process_vm_readv(pid, here, 3, there, 2, 0);
}

static long write_to(pid_t pid)
{
	struct iovec here[2] = { { copy, 66000 }, { copy + 66000, BYTES - 66000 } };
	struct iovec there[3] = { { area, 1 }, { area + 1, 0 }, { area + 1, BYTES - 1 } };
	return process_vm_writev(pid, here, 2, there, 3, 0);
}

/* The whole of a file of /proc about a process; its length, or what is wrong. */
static long read_about(pid_t pid, const char *file, char *text)
{
	char path[64];
	long length = 0, n;
	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	while ((n = read(fd, text + length, sizeof its - 1 - length)) > 0)
		length += n;
	text[length] = 0;
	close(fd);
	return n < 0 ? -errno : length;
}

static const char *const FILES[] = { "maps", "stat", "statm", "status" };
enum { MAPS, STAT, STATM, STATUS };

/* Time and again, while the other one does so. Returns how often that worked. */
static long look_at(pid_t pid)
{
	long seen = 0;
	for (int i = 0; i < 2 * LOOKS; i++)
		seen += read_about(pid, FILES[i % 2], its) > 0;
	return seen;
}

static void send_about_itself(unsigned file)
{
	long length = read_about(getpid(), FILES[file], own);
	must(write(to_parent[1], &length, sizeof length) == sizeof length, "a length");
	for (long done = 0, n; done < length; done += n)
		must((n = write(to_parent[1], own + done, length - done)) > 0, "a text");
}

/* Memory of many mappings, so that its list is long. */
static char *grow(void)
{
	char *at = mmap(NULL, GROWN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(at != MAP_FAILED, "mmap");
	memset(at, 7, GROWN);
	for (int i = 0; i < STRIPES; i++)
		must(mprotect(at + 2 * i * PAGE, PAGE, PROT_READ) == 0, "mprotect");
	return at;
}

/*
 * What it is told to: fill its memory, say whether it is as it should be, look at its parent's, grow
 * and shrink, tell what it reads of itself.
 */
static _Noreturn void obey(void)
{
	struct { char what; unsigned seed; } order;
	char *grown = NULL;
	while (read(to_child[0], &order, sizeof order) == sizeof order) {
		long answer = 1;
		if (order.what == 'f')
			fill(area, order.seed);
		if (order.what == 'v')
			answer = is_filled(area, order.seed);
		if (order.what == 'p')
			answer = read_of(parent) == BYTES && is_filled(copy, order.seed);
		if (order.what == 'g')
			answer = (long)(grown = grow());
		if (order.what == 's')
			answer = munmap(grown, GROWN);
		if (order.what == 'l')
			answer = look_at(parent);
		if (order.what == 't')
			send_about_itself(order.seed);
		else if (write(to_parent[1], &answer, sizeof answer) != sizeof answer)
			break;
	}
	_exit(0);
}

static void say_to_child(char what, unsigned of)
{
	struct { char what; unsigned seed; } order = { what, of };
	expect_equal("an order", sizeof order, write(to_child[1], &order, sizeof order));
}

static long answer_of_child(void)
{
	long answer = -1;
	expect_equal("an answer", sizeof answer, read(to_parent[0], &answer, sizeof answer));
	return answer;
}

static long order(char what, unsigned of)
{
	say_to_child(what, of);
	return answer_of_child();
}

/* What the child reads of itself is in `own` then, what its parent reads of it in `its`. */
static void read_both(int file)
{
	long length = order('t', file);
	must(length > 0 && length < (long)sizeof own, "a length");
	for (long done = 0, n; done < length; done += n)
		must((n = read(to_parent[0], own + done, length - done)) > 0, "a text");
	own[length] = 0;
	expect_range(FILES[file], 1, sizeof its, read_about(child, FILES[file], its));
}

static int open_memory(int flags)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", child);
	int fd = open(path, flags);
	must(fd >= 0, "the child's memory");
	return fd;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	area = mmap(NULL, BYTES + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	copy = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(area != MAP_FAILED && copy != MAP_FAILED, "mmap");
	sealed = area + BYTES;
	gone = sealed + PAGE;
	must(mprotect(sealed, PAGE, PROT_READ) == 0 && munmap(gone, PAGE) == 0, "edges");
	must(pipe(to_child) == 0 && pipe(to_parent) == 0, "pipe");
	parent = getpid();
	child = fork();
	must(child >= 0, "fork");
	if (child == 0) {
		sigset_t mask;
		sigemptyset(&mask);
		sigaddset(&mask, SIGWINCH);
		sigprocmask(SIG_BLOCK, &mask, NULL);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to_child[1]);
		close(0);
		close(1);
		obey();
	}
	held = open_memory(O_RDWR);
	snprintf(ready_word, sizeof ready_word, "%d", child);
}

static void step(void)
{
}

static void contents(void)
{
	seed += 7;
	expect_equal("the child fills", 1, order('f', seed));
	expect_equal("read", BYTES, read_of(child));
	expect_equal("what was read", 1, is_filled(copy, seed));
	fill(copy, ++seed);
	expect_equal("written", BYTES, write_to(child));
	expect_equal("what was written", 1, order('v', seed));
}

static void through_file(int fd)
{
	long at = (long)area;
	fill(copy, ++seed);
	expect_equal("pwrite", BYTES, pwrite(fd, copy, BYTES, at));
	expect_equal("what was written by a file", 1, order('v', seed));
	memset(copy, 0, BYTES);
	expect_equal("lseek", at, lseek(fd, at, SEEK_SET));
	expect_equal("read", 70003, read(fd, copy, 70003));
	expect_equal("read on", BYTES - 70003, read(fd, copy + 70003, BYTES - 70003));
	expect_equal("what was read by a file", 1, is_filled(copy, seed));
	expect_equal("to the end", 100, pread(fd, copy, PAGE, (long)gone - 100));
	expect_equal("behind it", -1, pread(fd, copy, 10, (long)gone));
	expect_equal("errno behind it", EIO, errno);
}

static int is_present(int map, long at)
{
	uint64_t entry = 0;
	expect_equal("an entry", sizeof entry, pread(map, &entry, sizeof entry, at / PAGE * 8));
	return entry >> 63;
}

/* What it maps, wherever it goes meanwhile. */
static void by_page_map(void)
{
	char path[64];
	uint64_t part;
	snprintf(path, sizeof path, "/proc/%d/pagemap", child);
	int map = open(path, O_RDONLY);
	must(map >= 0, "the child's page map");
	long grown = order('g', 0);
	expect_equal("a page of the child's", 1, is_present(map, (long)grown));
	expect_equal("the last one", 1, is_present(map, (long)grown + GROWN - PAGE));
	order('s', 0);
	expect_equal("none any more", 0, is_present(map, (long)grown));
	expect_equal("a part of an entry", -1, pread(map, &part, 7, 0));
	expect_equal("errno of a part", EINVAL, errno);
	close(map);
}

static void by_files(void)
{
	int reader = open_memory(O_RDONLY), again = dup(held);
	through_file(held);
	through_file(again);
	expect_equal("read", 10, pread(reader, copy, 10, (long)area));
	expect_equal("a reader", -1, pwrite(reader, copy, 10, (long)area));
	expect_equal("errno of a reader", EBADF, errno);
	close(reader), close(again);
}

static void edges(void)
{
	struct iovec here = { copy, 2 * PAGE }, end = { gone - 100, PAGE }, none = { gone, 10 };
	struct iovec wall = { sealed - 10, 20 }, shut = { sealed, 1 }, some = { copy, 20 };
	expect_equal("to the end", 100, process_vm_readv(child, &here, 1, &end, 1, 0));
	expect_equal("behind it", -1, process_vm_readv(child, &here, 1, &none, 1, 0));
	expect_equal("errno behind it", EFAULT, errno);
	struct iovec both[2] = { { area, 30 }, none };
	expect_equal("a good part, a bad one", 30, process_vm_readv(child, &here, 1, both, 2, 0));
	expect_equal("to the wall", 10, process_vm_writev(child, &some, 1, &wall, 1, 0));
	expect_equal("sealed", -1, process_vm_writev(child, &some, 1, &shut, 1, 0));
	expect_equal("errno of sealed", EFAULT, errno);
	expect_equal("to nowhere", -1, process_vm_readv(child, &none, 1, &some, 1, 0));
	expect_equal("errno of nowhere", EFAULT, errno);
	expect_equal("from the end", 100, process_vm_writev(child, &end, 1, &(struct iovec){ area, PAGE }, 1, 0));
}

static void arguments(void)
{
	struct iovec part = { copy, 1 }, empty = { copy, 0 };
	expect_equal("flags", -1, process_vm_readv(child, &part, 1, &part, 1, 1));
	expect_equal("errno of flags", EINVAL, errno);
	expect_equal("too many", -1, process_vm_readv(child, &part, 1025, &part, 1, 0));
	expect_equal("errno of too many", EINVAL, errno);
	expect_equal("nothing here", 0, process_vm_readv(child, &empty, 1, &part, 1, 0));
	expect_equal("nothing there", 0, process_vm_readv(child, &part, 1, &empty, 1, 0));
	expect_equal("ranges nowhere", -1, process_vm_readv(child, (void *)gone, 1, &part, 1, 0));
	expect_equal("errno of ranges nowhere", EFAULT, errno);
	expect_equal("nobody", -1, process_vm_readv(0x3fffffff, &part, 1, &part, 1, 0));
	expect_equal("errno of nobody", ESRCH, errno);
}

/* A field of proc(5). */
static long in_stat(const char *text, int n)
{
	const char *at = strrchr(text, ')');
	for (int field = 2; at && field < n; field++)
		at = strchr(at + 1, ' ');
	return at ? strtol(at, NULL, 10) : -1;
}

static long in_status(const char *text, const char *name, int base)
{
	const char *at = strstr(text, name);
	return at ? strtol(at + strlen(name), NULL, base) : -1;
}

/* Wherever it goes meanwhile. */
static void what_it_maps(void)
{
	char grown[32];
	snprintf(grown, sizeof grown, "\n%08lx-", order('g', 0));
	expect_range("its mappings", 1, sizeof its, read_about(child, "maps", its));
	expect_equal("what it has just mapped", 1, strstr(its, grown) != NULL);
	expect_equal("it shrinks", 0, order('s', 0));
}

static void same_mappings(void)
{
	read_both(MAPS);
	expect_equal("its mappings", 0, strcmp(own, its));
	expect_range("more than a piece", 64 << 10, sizeof its, strlen(its));
	expect_range("smaps_rollup", 1, sizeof its, read_about(child, "smaps_rollup", its));
	expect_range("Rss", GROWN / 1024, 2 * GROWN / 1024, in_status(its, "Rss:", 10));
}

static void same_stat(void)
{
	static const int SAME[] = { 4, 5, 6, 20, 23, 26, 27, 28, 32, 33, 34, 45, 46, 47, 48, 49, 50, 51 };
	read_both(STAT);
	for (size_t i = 0; i < sizeof SAME / sizeof *SAME; i++) {
		char what[32];
		snprintf(what, sizeof what, "field %d of stat", SAME[i]);
		expect_equal(what, in_stat(own, SAME[i]), in_stat(its, SAME[i]));
	}
	expect_range("its time", in_stat(own, 14), INT64_MAX, in_stat(its, 14));
	expect_range("rss in stat", GROWN / PAGE, 2 * GROWN / PAGE, in_stat(its, 24));
	read_both(STATM);
	expect_equal("size in statm", atol(own), atol(its));
}

static void same_status(void)
{
	char file[32];
	read_both(STATUS);
	expect_equal("VmSize", in_status(own, "VmSize:", 10), in_status(its, "VmSize:", 10));
	expect_range("VmRSS", GROWN / 1024, 2 * GROWN / 1024, in_status(its, "VmRSS:", 10));
	expect_equal("pid in status", child, in_status(its, "\nPid:", 10));
	expect_equal("tracer", 0, in_status(its, "TracerPid:", 10));
	snprintf(file, sizeof file, "task/%d/status", child);
	expect_range("of its thread", 1, sizeof its, read_about(child, file, its));
	expect_equal("its mask", 1L << (SIGWINCH - 1), in_status(its, "SigBlk:", 16));
	snprintf(file, sizeof file, "task/%d/status", parent);
	expect_equal("of no thread of it", -ENOENT, read_about(child, file, its));
}

static void check(void)
{
	contents();
	by_files();
	by_page_map();
	what_it_maps();
	edges();
	arguments();
}

static void command(const char *line)
{
	if (!strcmp(line, "back")) {
		fill(area, ++seed);
		say("BACK %ld\n", order('p', seed));
		return;
	}
	if (!strcmp(line, "know")) {
		order('g', 0);
		same_mappings();
		same_stat();
		same_status();
		order('s', 0);
		say("KNOWN\n");
		return;
	}
	if (!strcmp(line, "stare")) {
		char *grown = grow();
		order('g', 0);
		say_to_child('l', 0);
		long seen = look_at(child);
		say("STARED %ld\n", seen + answer_of_child());
		order('s', 0);
		munmap(grown, GROWN);
		return;
	}
	pid_t pid = atoi(line + strlen("peek "));
	if (!strncmp(line, "look ", 5)) {
		long maps = read_about(pid, "maps", its), stat = read_about(pid, "stat", its);
		say("LOOKED %ld %ld %ld\n", maps < 0 ? -maps : 0, stat < 0 ? stat : in_stat(its, 24),
		    in_stat(its, 26));
		return;
	}
	struct iovec part = { copy, 1 };
	long done = process_vm_readv(pid, &part, 1, &part, 1, 0);
	say("PEEKED %d\n", done < 0 ? errno : 0);
}
