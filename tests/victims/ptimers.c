/* POSIX timers: ids, SIGEV_SIGNAL, SIGEV_THREAD_ID, SIGEV_NONE, payload, overrun. */
#include "victim.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define FAST_NS 5000000
#define SLOW_NS 50000000

static int by_signal, by_thread, quiet, gap, fast;
static volatile unsigned long signal_ticks, thread_ticks;
static volatile pid_t worker_tid;

/* The raw calls: the kernel's ids are the state that must survive. */
static int create(clockid_t clock, struct sigevent *event)
{
	int id = -1;
	must(syscall(SYS_timer_create, clock, event, &id) == 0, "timer_create");
	return id;
}

static void arm(int id, long first_ns, long interval_ns)
{
	struct itimerspec when = { { 0, interval_ns }, { 0, first_ns } };
	must(syscall(SYS_timer_settime, id, 0, &when, NULL) == 0, "timer_settime");
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	expect_equal("si_code", SI_TIMER, info->si_code);
	expect_equal("timer payload", 4242, info->si_value.sival_int);
	signal_ticks++;
}

static void on_thread(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	expect_equal("thread it was sent to", worker_tid, syscall(SYS_gettid));
	expect_equal("thread timer payload", 77, info->si_value.sival_int);
	thread_ticks++;
}

static void *worker(void *argument)
{
	(void)argument;
	worker_tid = syscall(SYS_gettid);
	for (;;) {
		struct timespec long_time = { 1000, 0 };
		nanosleep(&long_time, NULL);
	}
	return NULL;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 2);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGRTMIN, &action, NULL);
	action.sa_sigaction = on_thread;
	sigaction(SIGRTMIN + 1, &action, NULL);
	pthread_t thread;
	must(pthread_create(&thread, NULL, worker, NULL) == 0, "pthread_create");
	while (!worker_tid)
		sched_yield();

	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	event.sigev_value.sival_int = 4242;
	by_signal = create(CLOCK_MONOTONIC, &event);
	struct sigevent none = { .sigev_notify = SIGEV_NONE };
	gap = create(CLOCK_MONOTONIC, &none);
	quiet = create(CLOCK_REALTIME, &none);
	/* A hole in the ids: they must come back as they are, not counted anew. */
	must(syscall(SYS_timer_delete, gap) == 0, "timer_delete");
	struct sigevent to_thread = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 1 };
	to_thread.sigev_value.sival_int = 77;
	to_thread.sigev_notify_thread_id = worker_tid;
	by_thread = create(CLOCK_MONOTONIC, &to_thread);
	struct sigevent blocked_event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2 };
	fast = create(CLOCK_MONOTONIC, &blocked_event);
	arm(by_signal, SLOW_NS, SLOW_NS);
	arm(by_thread, SLOW_NS, SLOW_NS);
	arm(fast, FAST_NS, FAST_NS);
	struct itimerspec far = { { 0, 0 }, { 1000, 0 } };
	must(syscall(SYS_timer_settime, quiet, 0, &far, NULL) == 0, "timer_settime");
}

static void step(void)
{
	struct itimerspec now;
	expect_equal("timer_gettime", 0, syscall(SYS_timer_gettime, by_signal, &now));
	expect_equal("interval", SLOW_NS, now.it_interval.tv_nsec);
	expect_range("value", 0, SLOW_NS, now.it_value.tv_nsec);
}

static void check_overrun(void)
{
	sigset_t one;
	siginfo_t info;
	struct timespec second = { 1, 0 }, at_once = { 0, 0 };
	sigemptyset(&one);
	sigaddset(&one, SIGRTMIN + 2);
	while (sigtimedwait(&one, &info, &at_once) > 0)
		;
	int64_t until = now_ns(CLOCK_MONOTONIC) + 30 * FAST_NS;
	while (now_ns(CLOCK_MONOTONIC) < until)
		step();
	expect_equal("overrun signal", SIGRTMIN + 2, sigtimedwait(&one, &info, &second));
	expect_range("si_overrun", 5, 100000, info.si_overrun);
	expect_range("timer_getoverrun", 5, 100000, syscall(SYS_timer_getoverrun, fast));
}

static void check(void)
{
	unsigned long signals = signal_ticks, threads = thread_ticks;
	struct itimerspec now;
	expect_equal("quiet timer", 0, syscall(SYS_timer_gettime, quiet, &now));
	expect_range("quiet timer's rest", 1, 1000, now.it_value.tv_sec);
	expect_equal("deleted timer", -1, syscall(SYS_timer_gettime, gap, &now));
	check_overrun();
	int64_t limit = now_ns(CLOCK_MONOTONIC) + 10000000000LL;
	while ((signal_ticks < signals + 2 || thread_ticks < threads + 2) && now_ns(CLOCK_MONOTONIC) < limit)
		step();
	expect_range("signal ticks go on", signals + 2, 1L << 40, signal_ticks);
	expect_range("thread ticks go on", threads + 2, 1L << 40, thread_ticks);
}
