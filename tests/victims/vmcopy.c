/* Reads and writes its own memory by its own number, and by a thread's. */
#include "victim.h"
#include <sys/uio.h>

#define PAGES 8
#define PAGE 4096

static unsigned char *from, *to, *sealed;
static pid_t thread_id;
static uint64_t rounds;

static void *waits(void *arg)
{
	(void)arg;
	__atomic_store_n(&thread_id, gettid(), __ATOMIC_RELEASE);
	for (;;)
		pause();
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	from = mmap(NULL, 3 * PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(from != MAP_FAILED, "mmap");
	to = from + PAGES * PAGE;
	sealed = to + PAGES * PAGE;
	must(mprotect(sealed, PAGES * PAGE, PROT_READ) == 0, "mprotect");
	pthread_t thread;
	must(pthread_create(&thread, NULL, waits, NULL) == 0, "thread");
	while (!__atomic_load_n(&thread_id, __ATOMIC_ACQUIRE))
		sched_yield();
}

static void copies(pid_t pid)
{
	memset(from, ++rounds, PAGES * PAGE);
	struct iovec here[2] = { { to, PAGE }, { to + PAGE, (PAGES - 1) * PAGE } };
	struct iovec there = { from, PAGES * PAGE };
	expect_equal("read", PAGES * PAGE, process_vm_readv(pid, here, 2, &there, 1, 0));
	expect_equal("what was read", 0, memcmp(from, to, PAGES * PAGE));
	memset(to, ++rounds, PAGES * PAGE);
	expect_equal("written", PAGES * PAGE, process_vm_writev(pid, here, 2, &there, 1, 0));
	expect_equal("what was written", 0, memcmp(from, to, PAGES * PAGE));
	/* Up to what cannot be written, and nothing of that alone. */
	struct iovec edge = { sealed - 10, 20 }, none = { sealed, 1 }, some = { from, 20 };
	expect_equal("to the edge", 10, process_vm_writev(pid, &some, 1, &edge, 1, 0));
	expect_equal("sealed", -1, process_vm_writev(pid, &some, 1, &none, 1, 0));
	expect_equal("errno of sealed", EFAULT, errno);
}

static void step(void)
{
	copies(getpid());
}

static void check(void)
{
	copies(getpid());
	copies(thread_id);
	struct iovec part = { from, 1 };
	expect_equal("nobody", -1, process_vm_readv(0x3fffffff, &part, 1, &part, 1, 0));
	expect_equal("errno of nobody", ESRCH, errno);
	expect_equal("flags", -1, process_vm_readv(getpid(), &part, 1, &part, 1, 1));
	expect_equal("errno of flags", EINVAL, errno);
}
