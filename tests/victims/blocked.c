/*
 * Sits in one blocking call (named by the argument) nearly all the time, and is
 * moved while it sits there. "patient" calls end only when the test wakes them.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <arpa/inet.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>

#define NAP_MS 1500
/* What a move, and a busy machine, may add. */
#define LATE_MS 4000

static void (*sit)(void);
static int listener, epoll;
static sigset_t awaited;
static long wakes;
static uint32_t word;

static void expect_nap(const char *what, int64_t start_ns)
{
	expect_range(what, NAP_MS, NAP_MS + LATE_MS, (now_ns(CLOCK_MONOTONIC) - start_ns) / 1000000);
}

static const struct timespec nap = { NAP_MS / 1000, NAP_MS % 1000 * 1000000 };

static void in_nanosleep(void)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	expect_equal("nanosleep", 0, nanosleep(&nap, NULL));
	expect_nap("nanosleep took ms", start);
}

static void in_absolute_sleep(void)
{
	int64_t start = now_ns(CLOCK_MONOTONIC), until = start + NAP_MS * 1000000LL;
	struct timespec end = { until / 1000000000, until % 1000000000 };
	expect_equal("clock_nanosleep", 0, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL));
	expect_nap("clock_nanosleep took ms", start);
}

static void in_poll(void)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	expect_equal("poll", 0, poll(NULL, 0, NAP_MS));
	expect_nap("poll took ms", start);
}

static void in_select(void)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	struct timespec timeout = nap;
	expect_equal("pselect", 0, pselect(0, NULL, NULL, NULL, &timeout, NULL));
	expect_nap("pselect took ms", start);
}

static void in_futex(void)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	expect_equal("futex", -1, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &nap, NULL, 0));
	expect_equal("futex errno", ETIMEDOUT, errno);
	expect_nap("futex took ms", start);
}

static void in_read(void)
{
	ssize_t n = read(0, input + input_length, sizeof input - input_length);
	if (n == 0)
		_exit(END_OF_INPUT_STATUS);
	expect_range("read", 1, sizeof input, n);
	if (n > 0)
		input_length += n;
}

static void in_epoll(void)
{
	struct epoll_event event;
	expect_equal("epoll_wait", 1, epoll_wait(epoll, &event, 1, -1));
	expect_equal("its data", 4711, event.data.u64);
}

static void in_sigwait(void)
{
	siginfo_t info;
	expect_equal("sigwaitinfo", SIGUSR1, sigwaitinfo(&awaited, &info));
	expect_equal("si_code", SI_USER, info.si_code);
	wakes++;
}

static void in_accept(void)
{
	int peer = accept(listener, NULL, NULL);
	expect_range("accept", 0, 1000, peer);
	close(peer);
}

static const struct {
	const char *name;
	void (*sit)(void);
} calls[] = {
	{ "nanosleep", in_nanosleep }, { "absolute-sleep", in_absolute_sleep },
	{ "poll", in_poll },	       { "select", in_select },
	{ "futex", in_futex },	       { "read", in_read },
	{ "epoll", in_epoll },	       { "sigwait", in_sigwait },
	{ "accept", in_accept },
};

static void setup(int argc, char **argv)
{
	must(argc > 1, "a call's name");
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		if (!strcmp(argv[1], calls[i].name))
			sit = calls[i].sit;
	must(sit != NULL, "a known call's name");
	sigemptyset(&awaited);
	sigaddset(&awaited, SIGUSR1);
	sigprocmask(SIG_BLOCK, &awaited, NULL);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event on_stdin = { .events = EPOLLIN, .data.u64 = 4711 };
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &on_stdin) == 0, "epoll_ctl");
	if (sit != in_accept)
		return;
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	must(bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 5) == 0, "listen");
	must(getsockname(listener, (void *)&address, &length) == 0, "getsockname");
	snprintf(ready_word, sizeof ready_word, "%d", ntohs(address.sin_port));
}

static void step(void)
{
	sit();
}

static void check(void)
{
}

static void command(const char *line)
{
	if (!strcmp(line, "wakes"))
		say("WAKES %ld\n", wakes);
}
