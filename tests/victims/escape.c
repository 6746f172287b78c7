/*
 * A hostile guest. Each attempt that leads anywhere is a failure:
 *
 *   try NODE_PID   what a program may call
 *   gate NODE_PID  the same through the steward's own instruction, which the filter trusts
 *   smash          overwrites the steward and the page that it shares with the monitor
 *   hush           has the steward never answer again
 *   int80          a call of the 32-bit kind, which ends the guest
 */
#define VICTIM_COMMAND
#define VICTIM_INPUT_TIMEOUT_MS -1
#include "victim.h"
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define X32 0x40000000
#define DESCRIPTORS_TRIED 4096
#define PAGE 4096UL

struct region {
	uint64_t start, end;
};

static struct region old[512];
static int old_count;

/* By the kernel that has our descriptors: home's. */
static int mapped(struct region *regions, int most)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int count = 0;
	must(maps != NULL, "maps");
	while (count < most && fgets(line, sizeof line, maps))
		count += sscanf(line, "%lx-%lx", &regions[count].start, &regions[count].end) == 2;
	fclose(maps);
	return count;
}

static void on_signal(int number)
{
	(void)number;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	signal(SIGUSR1, on_signal);
	/* Whatever the library maps for it is mapped when it is noted. */
	mapped(old, 512);
	old_count = mapped(old, 512);
}

static void step(void)
{
}

static void check(void)
{
}

/* Where the reserved region begins, which the agent has at home and the steward here. */
static unsigned char *steward(void)
{
	struct region now[512];
	int count = mapped(now, 512);
	for (int i = 0; i < count; i++) {
		int known = 0;
		for (int k = 0; k < old_count; k++)
			known |= now[i].start < old[k].end && old[k].start < now[i].end;
		if (!known)
			return (unsigned char *)now[i].start;
	}
	return NULL;
}

static unsigned char *gate_instruction(void)
{
	/* syscall; jmp r12 */
	static const unsigned char wanted[] = { 0x0f, 0x05, 0x41, 0xff, 0xe4 };
	unsigned char *at = steward();
	return at ? memmem(at, PAGE, wanted, sizeof wanted) : NULL;
}

static unsigned char *gate_at;

static long gate(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("lea 1f(%%rip), %%r12\n\tjmp *%[gate]\n1:"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9), [gate] "r"(gate_at)
			 : "rcx", "r11", "r12", "memory");
	return result;
}

static void refused(const char *what, int error, long result)
{
	expect_equal(what, -1, result);
	expect_equal(what, error, errno);
}

#define REFUSED(error, name, ...) refused(#name, error, syscall(SYS_##name, __VA_ARGS__))

static void absent_calls(void)
{
	long room[64] = { 0 };
	REFUSED(EPERM, mount, "none", "/tmp", "tmpfs", 0, 0);
	REFUSED(EPERM, umount2, "/", 0);
	REFUSED(EPERM, pivot_root, ".", ".");
	REFUSED(EPERM, unshare, CLONE_NEWUSER);
	REFUSED(EPERM, setns, 0, 0);
	REFUSED(ENOSYS, add_key, "user", "name", "x", 1, -3);
	REFUSED(ENOSYS, keyctl, 0, -3, 1, 0, 0);
	REFUSED(ENOSYS, request_key, "user", "name", 0, 0);
	REFUSED(ENOSYS, bpf, 0, room, sizeof room);
	REFUSED(ENOSYS, userfaultfd, 1);
	REFUSED(ENOSYS, io_uring_setup, 4, room);
	REFUSED(ENOSYS, io_uring_enter, 0, 1, 0, 0, 0);
	REFUSED(ENOSYS, io_setup, 1, room);
	REFUSED(ENOSYS, perf_event_open, room, 0, -1, -1, 0);
	REFUSED(ENOSYS, modify_ldt, 1, room, 16);
	REFUSED(ENOSYS, seccomp, 1, 0, room);
	REFUSED(ENOSYS, open_by_handle_at, AT_FDCWD, room, 0);
	REFUSED(ENOSYS, memfd_secret, 0);
	REFUSED(EPERM, fsopen, "tmpfs", 0);
	REFUSED(EPERM, open_tree, AT_FDCWD, "/", 1);
	REFUSED(EPERM, move_mount, 0, "", 0, "", 0);
	REFUSED(EPERM, init_module, room, 8, "");
	REFUSED(EPERM, finit_module, 0, "", 0);
	REFUSED(EPERM, kexec_load, 0, 0, 0, 0);
	REFUSED(EPERM, reboot, 0, 0, 0, 0);
	REFUSED(EPERM, swapon, "/file", 0);
	REFUSED(EPERM, iopl, 3);
	REFUSED(EPERM, ioperm, 0, 1, 1);
	REFUSED(EINVAL, prctl, 22, 1, 0, 0, 0);
	REFUSED(EPERM, prctl, 35, 1, 0, 0, 0);
	REFUSED(EINVAL, clone3, room, 1);
}

/* Numbers that are none: the filter decides by what the kernel will execute. */
static void odd_numbers(void)
{
	refused("x32 getpid", ENOSYS, syscall(X32 | SYS_getpid));
	refused("x32 mmap", ENOSYS, syscall(X32 | SYS_mmap, 0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	refused("x32 execve", ENOSYS, syscall(X32 | 520, "/bin/sh", NULL, NULL));
	refused("x32 ptrace", ENOSYS, syscall(X32 | 521, PTRACE_TRACEME, 0, 0, 0));
	refused("-1", ENOSYS, syscall(-1L));
	refused("beyond the table", ENOSYS, syscall(1000));
	refused("the sign", ENOSYS, syscall(0x80000000L | SYS_getpid));
	/* Kernels take an int of it. */
	refused("mount with high bits", EPERM, syscall(1L << 32 | SYS_mount, "none", "/tmp", "tmpfs", 0, 0));
	expect_equal("getpid with high bits", getpid(), syscall(1L << 32 | SYS_getpid));
}

static void others(int node)
{
	char byte;
	struct { void *at; size_t length; } part = { &byte, 1 };
	REFUSED(EPERM, ptrace, PTRACE_SEIZE, node, 0, 0);
	REFUSED(EPERM, ptrace, PTRACE_TRACEME, 0, 0, 0);
	/* By any number it means a process at home, where root reaches all. */
	if (geteuid() != 0) {
		REFUSED(EPERM, process_vm_readv, 1, &part, 1, &part, 1, 0);
		REFUSED(EPERM, process_vm_writev, node, &part, 1, &part, 1, 0);
	}
	REFUSED(ENOSYS, kcmp, getpid(), node, 0, 0, 0);
	REFUSED(ENOSYS, process_madvise, 0, &part, 1, 4, 0);
	REFUSED(ENOSYS, migrate_pages, 1, 1, 0, 0);
	/* Its own namespace of processes: the node's have no number there. */
	REFUSED(ESRCH, get_robust_list, node, &part.at, &part.length);
	REFUSED(ESRCH, sched_setaffinity, node, sizeof(long), &(long){ 1 });
	REFUSED(ESRCH, sched_getparam, node, &(int){ 0 });
	/* Time of the node's processors above all others. */
	REFUSED(EPERM, sched_setscheduler, 0, SCHED_FIFO, &(int){ 50 });
	REFUSED(EPERM, sched_setscheduler, 0, SCHED_RR, &(int){ 1 });
	long deadline[6] = { 48 | 6L << 32, 0, 0, 1000000, 2000000, 2000000 };
	REFUSED(EPERM, sched_setattr, 0, deadline, 0);
}

/* What the node has and home has not; by any way that a path may take. */
static void files(void)
{
	static const char *const paths[] = {
		"/tcmid", "/state", "/pen", "/ctl/node/id", "/proc/self/root/tcmid",
		"/proc/1/root/tcmid", "../../../../../../tcmid",
	};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
		int fd = open(paths[i], O_RDONLY);
		expect_equal(paths[i], -1, fd);
		expect_range(paths[i], 1, 200, errno);
	}
	/* A file is mapped by its descriptor at home: no number means one of the node's. */
	for (int fd = 3; fd < DESCRIPTORS_TRIED; fd++)
		if (mmap(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED)
			expect_equal("a descriptor maps", -1, fd);
}

/* Its own table at home is full, then free again; what serves it there is spared. */
static void descriptors(void)
{
	struct rlimit limit, few;
	int made = 0;
	getrlimit(RLIMIT_NOFILE, &limit);
	few = limit;
	few.rlim_cur = 512;
	expect_equal("fewer descriptors", 0, setrlimit(RLIMIT_NOFILE, &few));
	while (dup(0) >= 0 && made < 1000)
		made++;
	expect_equal("no more descriptors", EMFILE, errno);
	expect_range("how many there were", 400, 510, made);
	expect_equal("close all", 0, syscall(SYS_close_range, 3, ~0U, 0));
	expect_equal("their limit again", 0, setrlimit(RLIMIT_NOFILE, &limit));
	expect_equal("the next one", 3, dup(0));
	close(3);
}

static void through_the_gate(int node)
{
	gate_at = gate_instruction();
	expect_equal("the steward's instruction is found", 1, gate_at != NULL);
	if (!gate_at)
		return;
	/* What only the steward may do is done on the node: there none of its numbers is open. */
	for (int fd = 0; fd < DESCRIPTORS_TRIED; fd++) {
		expect_equal("a node's descriptor", -EBADF, gate(SYS_mmap, 0, PAGE, PROT_READ, MAP_SHARED, fd, 0));
		expect_equal("a node's descriptor to close", -EBADF, gate(SYS_close, fd, 0, 0, 0, 0, 0));
	}
	expect_equal("kill the node", -ESRCH, gate(SYS_kill, node, SIGKILL, 0, 0, 0, 0));
	expect_equal("tgkill the node", -ESRCH, gate(SYS_tgkill, node, node, SIGKILL, 0, 0, 0));
	expect_equal("its parent is none", -ESRCH, gate(SYS_kill, getppid(), SIGKILL, 0, 0, 0, 0));
	/* Its namespace's pid 1: nobody inside can kill it. */
	expect_range("kill pid 1", -ESRCH, 0, gate(SYS_kill, 1, SIGKILL, 0, 0, 0, 0));
	expect_range("kill all", -ESRCH, 0, gate(SYS_kill, -1, SIGKILL, 0, 0, 0, 0));
	/* All others find nothing open there. */
	expect_equal("gate mount", -EPERM, gate(SYS_mount, (long)"none", (long)"/", (long)"tmpfs", 0, 0, 0));
	expect_equal("gate ptrace", -EPERM, gate(SYS_ptrace, PTRACE_SEIZE, node, 0, 0, 0, 0));
	expect_equal("gate open", -ENOENT, gate(SYS_open, (long)"/tcmid", O_RDONLY, 0, 0, 0, 0));
	expect_equal("gate x32", -ENOSYS, gate(X32 | SYS_mmap, 0, PAGE, 1, MAP_PRIVATE, 3, 0));
}

static unsigned char *writable_steward(void)
{
	unsigned char *at = steward();
	must(at && mprotect(at, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "the steward");
	return at;
}

static void hush(void)
{
	unsigned char *at = writable_steward();
	/* Wherever it wakes: nop, and at the end a jump to itself. */
	memset(at, 0x90, PAGE);
	memcpy(at + PAGE - 2, "\xeb\xfe", 2);
	say("HUSHED\n");
}

static _Noreturn void smash(void)
{
	unsigned char *at = writable_steward();
	say("SMASHED\n");
	memset(at, 0xff, PAGE);
	for (unsigned char *page = at + PAGE; mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0; page += PAGE)
		memset(page, 0xff, PAGE);
	for (;;)
		pause();
}

static void command(const char *line)
{
	int node;
	if (sscanf(line, "try %d", &node) == 1) {
		absent_calls();
		odd_numbers();
		others(node);
		files();
		descriptors();
		say("TRIED\n");
	} else if (sscanf(line, "gate %d", &node) == 1) {
		through_the_gate(node);
		say("TRIED\n");
	} else if (!strcmp(line, "hush")) {
		hush();
	} else if (!strcmp(line, "smash")) {
		smash();
	} else if (!strcmp(line, "int80")) {
		/* getpid there. */
		long result = 20;
		__asm__ volatile("int $0x80" : "+a"(result) : : "memory");
		say("RETURNED %ld\n", result);
	}
}
