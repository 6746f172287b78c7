/* Threads and processes by clone3 itself, with what it leaves in registers and memory. */
#include "victim.h"
#include <linux/sched.h>
#include <sys/time.h>
#include <sys/wait.h>

#define THREAD (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM)
#define STACK_BYTES (64 * 1024)

/* What a new thread or process finds, and what it does. */
struct newborn {
	uint64_t seen[4];
	uint64_t tls;
	long parent;
	volatile int has_run;
};

static struct newborn newborn;
static char stack[STACK_BYTES] __attribute__((aligned(16)));
static uint64_t block[64];
static volatile pid_t cleared;
static volatile sig_atomic_t fired;

static long raw(long nr, long a, long b)
{
	long ret;
	asm volatile("syscall" : "=a"(ret) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
	return ret;
}

/* On a stack of its own, with nothing that the C library knows of. */
static void run(struct newborn *me)
{
	asm volatile("mov %%fs:0, %0" : "=r"(me->tls));
	me->parent = raw(SYS_getppid, 0, 0);
	me->has_run = 1;
}

/* The call keeps all registers but what a call returns by, on both sides. */
static long clone3(struct clone_args *args)
{
	uint64_t first = (uint64_t)args, size = sizeof *args, third = 0x3333333333333333;
	register uint64_t fourth asm("r10") = 0x4444444444444444;
	register uint64_t body asm("r8") = (uint64_t)run, fate asm("r9") = (uint64_t)&newborn;
	long ret;
	memset(&newborn, 0, sizeof newborn);
	asm volatile(
		"syscall\n\t"
		"test %%rax, %%rax\n\t"
		"jnz 1f\n\t"
		"mov %%rdi, (%%r9)\n\t"
		"mov %%rsi, 8(%%r9)\n\t"
		"mov %%rdx, 16(%%r9)\n\t"
		"mov %%r10, 24(%%r9)\n\t"
		"mov %%r9, %%rdi\n\t"
		"call *%%r8\n\t"
		"xor %%edi, %%edi\n\t"
		"mov $60, %%eax\n\t"
		"syscall\n"
		"1:"
		: "=a"(ret), "+D"(first), "+S"(size), "+d"(third), "+r"(fourth), "+r"(body), "+r"(fate)
		: "0"(SYS_clone3)
		: "rcx", "r11", "memory");
	expect_equal("first register", (long long)args, first);
	expect_equal("second register", sizeof *args, size);
	expect_equal("third register", 0x3333333333333333, third);
	expect_equal("fourth register", 0x4444444444444444, fourth);
	expect_equal("fifth register", (long long)run, body);
	expect_equal("sixth register", (long long)&newborn, fate);
	return ret;
}

static void expect_newborn(const char *what, struct clone_args *args, long parent)
{
	expect_equal(what, 1, newborn.has_run);
	expect_equal("its parent", parent, newborn.parent);
	expect_equal("its first register", (long long)args, newborn.seen[0]);
	expect_equal("its second register", sizeof *args, newborn.seen[1]);
	expect_equal("its third register", 0x3333333333333333, newborn.seen[2]);
	expect_equal("its fourth register", 0x4444444444444444, newborn.seen[3]);
}

static void a_thread(void)
{
	pid_t told = 0;
	block[0] = (uint64_t)block;
	struct clone_args args = {
		.flags = THREAD | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
		.child_tid = (uint64_t)&cleared, .parent_tid = (uint64_t)&told,
		.stack = (uint64_t)stack, .stack_size = STACK_BYTES, .tls = (uint64_t)block,
	};
	cleared = -1;
	long tid = clone3(&args);
	expect_range("a thread", 1, 0x7fffffff, tid);
	expect_equal("the id that was told", tid, told);
	while (tid > 0 && cleared)
		sched_yield();
	expect_newborn("the thread", &args, getppid());
	expect_equal("its thread-local storage", (long long)block, newborn.tls);
}

/* As posix_spawn begins one. */
static void a_process_with_lent_memory(void)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD,
		.stack = (uint64_t)stack, .stack_size = STACK_BYTES,
	};
	int status = -1;
	long pid = clone3(&args);
	expect_newborn("the process", &args, getpid());
	expect_equal("wait", pid, waitpid(pid, &status, 0));
	expect_equal("status", 0, status);
}

static void a_process(void)
{
	int fd = -1, status = -1;
	struct clone_args args = { .flags = CLONE_PIDFD, .pidfd = (uint64_t)&fd, .exit_signal = SIGCHLD };
	long parent = getpid();
	long pid = syscall(SYS_clone3, &args, sizeof args);
	if (pid == 0)
		_exit(getppid() == parent ? 5 : 6);
	expect_equal("pidfd", 1, fd >= 0);
	struct pollfd ended = { .fd = fd, .events = POLLIN };
	expect_equal("poll of a pidfd", 1, poll(&ended, 1, 20000));
	expect_equal("wait", pid, waitpid(pid, &status, 0));
	expect_equal("status", 5, WEXITSTATUS(status));
	close(fd);
}

static void refused(const char *what, int expected, void *args, size_t size)
{
	expect_equal(what, -1, syscall(SYS_clone3, args, size));
	expect_equal(what, expected, errno);
}

static void arguments(void)
{
	struct { struct clone_args known; uint64_t unknown; } args = { .known.flags = THREAD };
	refused("a short one", EINVAL, &args, 63);
	refused("a long one", E2BIG, &args, 4097);
	refused("nowhere", EFAULT, (void *)16, sizeof args.known);
	args.known.stack = (uint64_t)stack;
	refused("a stack without a size", EINVAL, &args, sizeof args.known);
	args.known.stack_size = STACK_BYTES;
	args.known.exit_signal = SIGCHLD;
	refused("a thread's signal", EINVAL, &args, sizeof args.known);
	args.known.exit_signal = 0;
	args.unknown = 1;
	refused("an argument of tomorrow", E2BIG, &args, sizeof args);
}

/* While signals come faster than a thread can be begun from afar. */
static void a_thread_under_fire(void)
{
	struct itimerval often = { { 0, 50 }, { 0, 50 } }, never = { 0 };
	int before = fired;
	setitimer(ITIMER_REAL, &often, NULL);
	while (fired < before + 3)
		sched_yield();
	a_thread();
	setitimer(ITIMER_REAL, &never, NULL);
}

static void on_alarm(int signal)
{
	(void)signal;
	fired = fired + 1;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	must(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
}

static void step(void)
{
	a_thread();
}

static void check(void)
{
	a_thread();
	a_thread_under_fire();
	a_process_with_lent_memory();
	a_process();
	arguments();
}
