/*
 * Receives what the test sends: "report" prints how many of each signal came; "stop N" sends
 * itself the signal N and says "stopped" when it goes on.
 * Payloads of SIGRTMIN count up from 0; SIGRTMIN+1 goes to the second thread only. With the
 * argument from-root another user's program waits for root's signals.
 */
#define VICTIM_COMMAND
#include "victim.h"

static volatile long plain, queued, to_thread, continued;
static volatile pid_t second_tid;
static volatile pid_t sender;
static int from_root;

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (signal == SIGUSR1) {
		expect_equal("si_code of kill", SI_USER, info->si_code);
		plain++;
	} else if (signal == SIGRTMIN) {
		expect_equal("si_code of sigqueue", SI_QUEUE, info->si_code);
		expect_equal("payload in order", queued, info->si_value.sival_int);
		queued++;
	} else if (signal == SIGRTMIN + 1) {
		expect_equal("si_code of tgkill", from_root ? SI_QUEUE : SI_TKILL, info->si_code);
		expect_equal("thread", second_tid, syscall(SYS_gettid));
		to_thread++;
	} else if (signal == SIGCONT) {
		continued++;
		return;
	}
	if (!sender)
		sender = info->si_pid;
	expect_equal("si_pid", sender, info->si_pid);
	expect_equal("si_uid", from_root ? 0 : getuid(), info->si_uid);
}

static void *second(void *argument)
{
	(void)argument;
	/* Of what two threads may take, either may run its handler after the other's read. */
	sigset_t for_one;
	sigemptyset(&for_one);
	sigaddset(&for_one, SIGRTMIN);
	sigaddset(&for_one, SIGCONT);
	pthread_sigmask(SIG_BLOCK, &for_one, NULL);
	second_tid = syscall(SYS_gettid);
	for (;;)
		sched_yield();
	return NULL;
}

static void setup(int argc, char **argv)
{
	from_root = argc > 1 && !strcmp(argv[1], "from-root");
	static const int offsets[] = { 0, 1 };
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGCONT, &action, NULL);
	for (int i = 0; i < 2; i++)
		sigaction(SIGRTMIN + offsets[i], &action, NULL);
	pthread_t thread;
	must(pthread_create(&thread, NULL, second, NULL) == 0, "pthread_create");
	while (!second_tid)
		sched_yield();
	snprintf(ready_word, sizeof ready_word, "%d", second_tid);
}

static void step(void)
{
}

static void check(void)
{
}

static void command(const char *line)
{
	if (!strcmp(line, "report"))
		say("SEEN %ld %ld %ld %ld\n", plain, queued, to_thread, continued);
	int signal;
	if (sscanf(line, "stop %d", &signal) == 1) {
		must(raise(signal) == 0, "raise");
		say("stopped\n");
	}
}
