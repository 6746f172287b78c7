/* Handlers, flags and masks of all signals, as asked by rt_sigaction and rt_sigprocmask. */
#include "victim.h"

struct kernel_action {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
};

static struct kernel_action at_start[65];
static uint64_t mask_at_start;

static void handler(int signal)
{
	(void)signal;
}

static void query(int signal, struct kernel_action *action)
{
	memset(action, 0, sizeof *action);
	syscall(SYS_rt_sigaction, signal, NULL, action, 8);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	sigaddset(&action.sa_mask, SIGTERM);
	must(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
	action.sa_flags = SA_NODEFER | SA_ONSTACK;
	must(sigaction(SIGRTMIN + 7, &action, NULL) == 0, "sigaction");
	action.sa_flags = SA_NOCLDSTOP;
	must(sigaction(SIGCHLD, &action, NULL) == 0, "sigaction");
	/* Of what is ignored by default, SIGCONT alone is left. */
	must(sigaction(SIGURG, &action, NULL) == 0, "sigaction");
	must(sigaction(SIGWINCH, &action, NULL) == 0, "sigaction");
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGRTMAX);
	sigprocmask(SIG_SETMASK, &set, NULL);
	for (int signal = 1; signal < 65; signal++)
		query(signal, &at_start[signal]);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask_at_start, 8);
}

static void step(void)
{
	for (int signal = 1; signal < 65; signal++) {
		struct kernel_action now;
		query(signal, &now);
		expect_equal("handler", (long)at_start[signal].handler, (long)now.handler);
		expect_equal("sa_flags", at_start[signal].flags, now.flags);
		expect_equal("sa_mask", at_start[signal].mask, now.mask);
		expect_equal("restorer", (long)at_start[signal].restorer, (long)now.restorer);
	}
	uint64_t mask = 0;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
	expect_equal("blocked mask", mask_at_start, mask);
}

static void check(void)
{
	step();
}
