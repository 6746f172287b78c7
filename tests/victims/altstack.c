/* Handlers run on the alternate stack, and sigaltstack tells the same one. */
#include "victim.h"

#define STACK_BYTES (64 * 1024)

static char *stack;
static volatile unsigned long handled;
static unsigned long sent;

static void on_signal(int signal, siginfo_t *info, void *context)
{
	char here;
	(void)context;
	expect_equal("signal", SIGUSR1, signal);
	expect_equal("si_pid", getpid(), info->si_pid);
	expect_equal("on the alternate stack", 1, &here >= stack && &here < stack + STACK_BYTES);
	stack_t now;
	sigaltstack(NULL, &now);
	expect_equal("SS_ONSTACK", SS_ONSTACK, now.ss_flags & SS_ONSTACK);
	handled++;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(stack != MAP_FAILED, "mmap");
	stack_t alternate = { .ss_sp = stack, .ss_size = STACK_BYTES };
	must(sigaltstack(&alternate, NULL) == 0, "sigaltstack");
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	must(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
}

static void step(void)
{
	sent++;
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
	expect_equal("handled", sent, handled);
}

static void check(void)
{
	stack_t now;
	sigaltstack(NULL, &now);
	expect_equal("ss_sp", (long)stack, (long)now.ss_sp);
	expect_equal("ss_size", STACK_BYTES, now.ss_size);
	expect_equal("ss_flags", 0, now.ss_flags);
	step();
}
