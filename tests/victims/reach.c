/*
 * A parent reads and writes the memory of its child, which lies at the same addresses in both.
 * "back": the child reads its parent's, "peek PID": the parent a stranger's.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <sys/prctl.h>
#include <sys/uio.h>

#define PAGE 4096
#define PAGES 80
#define BYTES (PAGES * PAGE)

/* One after the other; what is sealed cannot be written, what is gone has no memory. */
static unsigned char *area, *sealed, *gone;
static unsigned char *copy;
static pid_t parent, child;
static int to_child[2], to_parent[2];
static unsigned seed;

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

/* What it is told to: fill its memory, say whether it is as it should be, look at its parent's. */
static _Noreturn void obey(void)
{
	struct { char what; unsigned seed; } order;
	while (read(to_child[0], &order, sizeof order) == sizeof order) {
		long answer = 1;
		if (order.what == 'f')
			fill(area, order.seed);
		if (order.what == 'v')
			answer = is_filled(area, order.seed);
		if (order.what == 'p')
			answer = read_of(parent) == BYTES && is_filled(copy, order.seed);
		if (write(to_parent[1], &answer, sizeof answer) != sizeof answer)
			break;
	}
	_exit(0);
}

static long order(char what, unsigned of)
{
	struct { char what; unsigned seed; } order = { what, of };
	long answer = -1;
	expect_equal("an order", sizeof order, write(to_child[1], &order, sizeof order));
	expect_equal("an answer", sizeof answer, read(to_parent[0], &answer, sizeof answer));
	return answer;
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
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to_child[1]);
		close(0);
		close(1);
		obey();
	}
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

static void check(void)
{
	contents();
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
	pid_t pid = atoi(line + strlen("peek "));
	struct iovec part = { copy, 1 };
	long done = process_vm_readv(pid, &part, 1, &part, 1, 0);
	say("PEEKED %d\n", done < 0 ? errno : 0);
}
