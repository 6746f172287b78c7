/* Guard pages and holes fault as before, with the right si_addr and si_code. */
#include "victim.h"
#include <setjmp.h>

static char *pages, *hole;
static sigjmp_buf back;
static volatile int code;
static char *volatile address;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	code = info->si_code;
	address = info->si_addr;
	siglongjmp(back, 1);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	hole = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(pages != MAP_FAILED && hole != MAP_FAILED, "mmap");
	pages[0] = 1;
	mprotect(pages + 4096, 4096, PROT_NONE);
	mprotect(pages + 8192, 4096, PROT_READ);
	munmap(hole + 4096, 4096);
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &action, NULL);
}

static void expect_fault(const char *what, char *at, int expected_code)
{
	code = 0;
	if (!sigsetjmp(back, 1)) {
		*(volatile char *)at = 9;
		expect_equal(what, expected_code, 0);
		return;
	}
	expect_equal(what, expected_code, code);
	expect_equal("si_addr", (long)at, (long)address);
}

static void step(void)
{
	expect_fault("guard page", pages + 4096 + 123, SEGV_ACCERR);
	expect_fault("read-only page", pages + 8192, SEGV_ACCERR);
	expect_fault("hole", hole + 4096 + 8, SEGV_MAPERR);
	expect_equal("beside the guard", 1, pages[0]);
}

static void check(void)
{
	step();
}
