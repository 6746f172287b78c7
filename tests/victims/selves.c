/*
 * What it reads of itself in /proc is true of where it runs: its memory, its signals, its
 * processors; and the descriptors of these files are like any other.
 */
#include "victim.h"
#include <ctype.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define MIB (1024L * 1024)
#define TOUCHED (8 * MIB)

static char *touched;
static int held = -1;
/* Its memory and its page map, opened before all moves, and in a check away or at home. */
static int memories[2] = { -1, -1 }, maps_of_pages[2] = { -1, -1 };
static char begun[64];
static pthread_t other;
static pid_t other_tid;

struct found {
	unsigned long start, end, offset, inode;
	char rights[5];
	char name[300];
};

/* The line of a file of mappings that has an address. */
static int find(const char *file, const void *at, struct found *found)
{
	char line[600];
	int seen = 0;
	FILE *maps = fopen(file, "r");
	expect_equal(file, 1, maps != NULL);
	while (maps && !seen && fgets(line, sizeof line, maps)) {
		found->name[0] = 0;
		int words = sscanf(line, "%lx-%lx %4s %lx %*s %lu %299[^\n]", &found->start, &found->end,
				   found->rights, &found->offset, &found->inode, found->name);
		seen = words >= 5 && (unsigned long)at >= found->start && (unsigned long)at < found->end;
	}
	if (maps)
		fclose(maps);
	return seen;
}

static void *wait_for_ever(void *argument)
{
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGWINCH);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	__atomic_store_n(&other_tid, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return argument;
}

static void on_signal(int number)
{
	(void)number;
}

/* Out of the way of those whose numbers follow each other. */
static int high(int fd)
{
	int copy = fcntl(fd, F_DUPFD, 40);
	close(fd);
	return copy;
}

static void open_memory(int which)
{
	memories[which] = high(open("/proc/self/mem", O_RDWR));
	maps_of_pages[which] = high(open("/proc/thread-self/pagemap", O_RDONLY));
	must(memories[which] >= 0 && maps_of_pages[which] >= 0, "mem, pagemap");
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	open_memory(0);
	signal(SIGUSR2, on_signal);
	must(pthread_create(&other, NULL, wait_for_ever, NULL) == 0, "pthread_create");
	while (!__atomic_load_n(&other_tid, __ATOMIC_SEQ_CST))
		sched_yield();
	held = open("/proc/self/maps", O_RDONLY);
	must(held >= 0 && read(held, begun, 12) == 12, "maps");
}

static void step(void)
{
}

/* The value of a field of a file like status. */
static int field(const char *file, const char *name, char *value, size_t room)
{
	char line[600];
	size_t length = strlen(name);
	int seen = 0;
	FILE *status = fopen(file, "r");
	expect_equal(file, 1, status != NULL);
	while (status && !seen && fgets(line, sizeof line, status)) {
		if (strncmp(line, name, length) || line[length] != ':')
			continue;
		char *at = line + length + 1;
		while (isspace((unsigned char)*at))
			at++;
		at[strcspn(at, "\n")] = 0;
		snprintf(value, room, "%s", at);
		seen = 1;
	}
	if (status)
		fclose(status);
	return seen;
}

static long number(const char *file, const char *name, int base)
{
	char value[300] = "-1";
	expect_equal(name, 1, field(file, name, value, sizeof value));
	return strtol(value, NULL, base);
}

static void mappings(const char *file)
{
	struct found found;
	char program[300];
	ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
	program[length < 0 ? 0 : length] = 0;
	expect_equal("code is mapped", 1, find(file, (void *)mappings, &found));
	expect_equal("code is executable", 0, strcmp(found.rights, "r-xp"));
	expect_equal("its program's name", 0, strcmp(found.name, program));
	struct stat status;
	expect_equal("stat of it", 0, stat(program, &status));
	expect_equal("its inode", status.st_ino, found.inode);
	expect_equal("the stack is mapped", 1, find(file, &found, &found));
	expect_equal("its name", 0, strcmp(found.name, "[stack]"));
	char *here = mmap(0, 3 * MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(here != MAP_FAILED, "mmap");
	expect_equal("a new mapping is there", 1, find(file, here + MIB, &found));
	expect_equal("and may be read", 'r', found.rights[0]);
	mprotect(here + MIB, MIB, PROT_READ | PROT_WRITE);
	expect_equal("part of it", 1, find(file, here + MIB, &found));
	expect_equal("begins there", (long)here + MIB, found.start);
	expect_equal("and may be written", 0, strcmp(found.rights, "rw-p"));
	munmap(here, 3 * MIB);
	expect_equal("and is gone", 0, find(file, here + MIB, &found));
	/* A file that it maps now. */
	int fd = open(program, O_RDONLY);
	char *mapped = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 4096);
	must(mapped != MAP_FAILED, "mmap of a file");
	expect_equal("a mapped file is there", 1, find(file, mapped, &found));
	expect_equal("with its name", 0, strcmp(found.name, program));
	expect_equal("its inode", status.st_ino, found.inode);
	expect_equal("its offset", 4096, found.offset);
	munmap(mapped, 4096);
	close(fd);
}

static void memory(void)
{
	long before = number("/proc/self/status", "VmRSS", 10), size = number("/proc/self/status", "VmSize", 10);
	touched = mmap(0, TOUCHED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	must(touched != MAP_FAILED, "mmap");
	long after = number("/proc/self/status", "VmRSS", 10);
	/* In KiB. Before 6.2 a thread's pages are added up after 64 faults, of up to 16 pages each. */
	expect_range("VmRSS grows", 7 * 1024, 12 * 1024, after - before);
	expect_range("VmSize grows", 8 * 1024, 8 * 1024, number("/proc/self/status", "VmSize", 10) - size);
	long pages[7] = { 0 }, vsize = 0, resident = 0;
	FILE *statm = fopen("/proc/self/statm", "r");
	must(statm && fscanf(statm, "%ld %ld", &pages[0], &pages[1]) == 2, "statm");
	fclose(statm);
	expect_range("statm resident", after / 4 - 512, after / 4 + 512, pages[1]);
	FILE *stat = fopen("/proc/self/stat", "r");
	int pid = 0, parent = 0;
	must(stat && fscanf(stat, "%d %*s %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %*u %ld %ld",
			    &pid, &parent, &vsize, &resident) == 4, "stat");
	fclose(stat);
	expect_equal("pid in stat", getpid(), pid);
	expect_equal("parent in stat", getppid(), parent);
	expect_equal("vsize in stat", pages[0] * 4096, vsize);
	expect_range("rss in stat", pages[1] - 512, pages[1] + 512, resident);
	munmap(touched, TOUCHED);
	char total[100];
	expect_equal("smaps_rollup", 1, field("/proc/self/smaps_rollup", "Rss", total, sizeof total));
}

static void identity_and_signals(void)
{
	char file[100], value[200];
	expect_equal("pid", getpid(), number("/proc/self/status", "Pid", 10));
	expect_equal("parent", getppid(), number("/proc/self/status", "PPid", 10));
	expect_equal("tracer", 0, number("/proc/self/status", "TracerPid", 10));
	expect_equal("name", 1, field("/proc/self/status", "Name", value, sizeof value) && !strcmp(value, "selves"));
	expect_equal("user", getuid(), number("/proc/self/status", "Uid", 10));
	expect_equal("SIGUSR2 is caught", 1, number("/proc/self/status", "SigCgt", 16) >> (SIGUSR2 - 1) & 1);
	snprintf(file, sizeof file, "/proc/%d/task/%d/status", getpid(), getpid());
	expect_equal("of the first thread", getpid(), number(file, "Pid", 10));
	snprintf(file, sizeof file, "/proc/self/task/%d/status", other_tid);
	expect_equal("of another thread", other_tid, number(file, "Pid", 10));
	expect_equal("its mask", 1L << (SIGWINCH - 1), number(file, "SigBlk", 16));
	expect_equal("ours", 0, number("/proc/thread-self/status", "SigBlk", 16));
	snprintf(file, sizeof file, "/proc/%d/status", other_tid);
	expect_equal("by the thread's id", other_tid, number(file, "Pid", 10));
	expect_range("its memory, in KiB", 500, INT64_MAX, number(file, "VmRSS", 10));
}

static void processors(void)
{
	cpu_set_t set;
	int first = -1, last = -1;
	FILE *possible = fopen("/sys/devices/system/cpu/possible", "r");
	must(possible && fscanf(possible, "%d-%d", &first, &last) >= 1, "possible");
	fclose(possible);
	last = last < 0 ? first : last;
	expect_equal("affinity", 0, sched_getaffinity(0, sizeof set, &set));
	expect_range("processors", CPU_COUNT(&set), CPU_SETSIZE, last + 1);
	expect_range("by the library", CPU_COUNT(&set), last + 1, sysconf(_SC_NPROCESSORS_ONLN));
	char model[300];
	expect_equal("cpuinfo", 1, field("/proc/cpuinfo", "flags\t\t", model, sizeof model));
}

static void descriptors(void)
{
	char a[64], b[64];
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), plain = open("/proc/self/status", O_RDONLY);
	int copy = dup(fd);
	expect_equal("numbers follow each other", fd + 1, plain);
	expect_equal("and a copy", fd + 2, copy);
	expect_equal("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
	expect_equal("not close-on-exec", 0, fcntl(plain, F_GETFD));
	expect_equal("for reading", O_RDONLY, fcntl(plain, F_GETFL) & O_ACCMODE);
	expect_equal("not for writing", -1, write(plain, "x", 1));
	expect_equal("not for writing", EBADF, errno);
	expect_equal("read", 64, read(fd, a, 64));
	expect_equal("the copy goes on", 64, read(copy, b, 64));
	expect_equal("from the start", 0, lseek(copy, 0, SEEK_SET));
	expect_equal("again", 64, read(fd, b, 64));
	expect_equal("the same", 0, memcmp(a, b, 64));
	close(fd), close(plain), close(copy);
	/* One from before a move, and of another thread's before that. */
	expect_equal("from its beginning", 12, pread(held, a, 12, 0));
	expect_equal("what it was", 0, memcmp(a, begun, 12));
	close(held);
	held = open("/proc/self/maps", O_RDONLY);
	expect_equal("held", 12, read(held, begun, 12));
	expect_equal("nothing", -1, open("/proc/self/task/1/maps", O_RDONLY));
	expect_equal("nothing", ENOENT, errno);
}

static void the_librarys_view(void)
{
	pthread_attr_t attributes;
	void *low;
	size_t size;
	expect_equal("pthread_getattr_np", 0, pthread_getattr_np(pthread_self(), &attributes));
	pthread_attr_getstack(&attributes, &low, &size);
	expect_range("the stack's bounds", (long)low, (long)low + size, (long)&attributes);
	pthread_attr_destroy(&attributes);
}

/* The value of a field of an open file like status; -1: there is none. */
static long number_in(int fd, const char *name)
{
	char text[4096];
	ssize_t length = read(fd, text, sizeof text - 1);
	text[length < 0 ? 0 : length] = 0;
	char *at = strstr(text, name);
	close(fd);
	return at ? atol(at + strlen(name)) : -1;
}

/* By whatever name it is opened, it is the same file. */
static void other_ways(void)
{
	struct open_how how = { .flags = O_RDONLY | O_CLOEXEC };
	char own[64], here[300], text[8];
	int directory = open("/proc/self", O_PATH | O_DIRECTORY), before = open(".", O_PATH | O_DIRECTORY);
	snprintf(own, sizeof own, "/proc/self/task/../../%d/./status", getpid());
	must(getcwd(here, sizeof here) && chdir("/proc") == 0, "chdir");
	int ways[] = {
		open(own, O_RDONLY),
		openat(directory, "status", O_RDONLY),
		openat(AT_FDCWD, "thread-self/status", O_RDONLY),
		syscall(SYS_openat2, directory, "status", &how, sizeof how),
		syscall(SYS_openat2, AT_FDCWD, "/proc/self/status", &how, sizeof how),
		open("self/status", O_RDONLY),
	};
	must(fchdir(before) == 0, "fchdir");
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		expect_equal("opened", 1, ways[i] >= 0);
		int again = dup(ways[i]);
		expect_equal("no tracer", 0, number_in(ways[i], "TracerPid:"));
		lseek(again, 0, SEEK_SET);
		expect_range("its memory, in KiB", 500, INT64_MAX, number_in(again, "VmRSS:"));
	}
	close(directory), close(before);
	/* What is only called so. */
	snprintf(own, sizeof own, "/tmp/victim-selves-%d", getpid());
	must(mkdir(own, 0700) == 0 && chdir(own) == 0, "a directory");
	int file = open("status", O_RDWR | O_CREAT | O_EXCL, 0600), reader = open("status", O_RDONLY);
	expect_equal("a file of that name", 3, write(file, "own", 3));
	expect_equal("is that file", 3, read(reader, text, sizeof text));
	close(file), close(reader);
	unlink("status"), rmdir(own);
	must(chdir(here) == 0, "chdir");
}

/* By a descriptor of its own memory, or a copy of one. */
static void through_memory(int memory)
{
	static char text[] = "it is its own memory";
	char seen[sizeof text], more[8];
	long at = (long)text, none = (long)mmap(0, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec parts[2] = { { seen, 5 }, { seen + 5, sizeof text - 5 } };
	expect_equal("pread", sizeof text, pread(memory, seen, sizeof text, at));
	expect_equal("of what is there", 0, memcmp(seen, text, sizeof text));
	memset(seen, 0, sizeof seen);
	expect_equal("preadv", sizeof text, preadv(memory, parts, 2, at));
	expect_equal("of what is there", 0, memcmp(seen, text, sizeof text));
	expect_equal("lseek", at, lseek(memory, at, SEEK_SET));
	expect_equal("read", 5, read(memory, seen, 5));
	expect_equal("read on", sizeof text - 5, readv(memory, parts + 1, 1));
	expect_equal("where it stands", at + sizeof text, lseek(memory, 0, SEEK_CUR));
	expect_equal("pwrite", 2, pwrite(memory, "IT", 2, at));
	expect_equal("it is there", 0, memcmp(text, "IT is", 5));
	lseek(memory, at, SEEK_SET);
	expect_equal("write", 2, write(memory, "it", 2));
	expect_equal("it is there", 0, memcmp(text, "it is", 5));
	/* The kernel writes to what the program may not. */
	expect_equal("to read-only memory", 2, pwrite(memory, "ro", 2, none));
	expect_equal("it is there", 0, memcmp((void *)none, "ro", 2));
	munmap((void *)(none + 4096), 4096);
	expect_equal("up to its end", 4, pread(memory, more, 8, none + 4092));
	munmap((void *)none, 4096);
	expect_equal("nothing", -1, pread(memory, more, 8, none));
	expect_equal("nothing", EIO, errno);
	expect_equal("to nowhere", -1, pread(memory, (void *)none, 8, at));
	expect_equal("to nowhere", EFAULT, errno);
	expect_equal("before it", -1, pread(memory, more, 8, -1));
	expect_equal("before it", EINVAL, errno);
	expect_equal("none", 0, pread(memory, more, 0, none));
}

static int is_present(int map, const volatile char *page)
{
	unsigned long entry = 0;
	expect_equal("an entry", sizeof entry, pread(map, &entry, sizeof entry, (long)page / 4096 * 8));
	return entry >> 63;
}

static void through_page_map(int map)
{
	char *pages = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), entry[9];
	must(pages != MAP_FAILED, "mmap");
	madvise(pages, 8192, MADV_NOHUGEPAGE);
	pages[0] = 1;
	expect_equal("a page", 1, is_present(map, pages));
	expect_equal("no page", 0, is_present(map, pages + 4096));
	pages[4096] = 1;
	expect_equal("a page now", 1, is_present(map, pages + 4096));
	munmap(pages, 8192);
	expect_equal("a part of an entry", -1, pread(map, entry, 9, 0));
	expect_equal("a part of an entry", EINVAL, errno);
	expect_equal("not to write", -1, pwrite(map, entry, 8, 0));
	expect_equal("not to write", EBADF, errno);
}

static void own_memory(void)
{
	int copy, reader;
	if (memories[1] < 0)
		open_memory(1);
	copy = dup(memories[1]);
	for (int i = 0; i < 2; i++) {
		through_memory(memories[i]);
		through_page_map(maps_of_pages[i]);
	}
	through_memory(copy);
	close(copy);
	reader = open("/proc/self/mem", O_RDONLY);
	expect_equal("a reader", -1, pwrite(reader, "x", 1, (long)&copy));
	expect_equal("does not write", EBADF, errno);
	close(reader);
}

static void check(void)
{
	char own[64];
	snprintf(own, sizeof own, "/proc/%d/maps", getpid());
	mappings("/proc/self/maps");
	mappings(own);
	mappings("/proc/thread-self/smaps");
	memory();
	identity_and_signals();
	processors();
	descriptors();
	the_librarys_view();
	other_ways();
	own_memory();
}
