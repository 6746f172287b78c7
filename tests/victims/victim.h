/*
 * What every victim shares: the conversation with the test, and the first
 * failure, kept until somebody asks.
 *
 *   victim -> test   READY <pid> [<word>]      the state is set up
 *                    SKIP <reason>             this machine cannot run it
 *                    OK | FAIL <what>: <expected> <seen>
 *   test -> victim   check | end <status> | a line for command()
 *
 * End of file on stdin ends the victim, so none outlives its test.
 */
#ifndef VICTIM_H
#define VICTIM_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define END_OF_INPUT_STATUS 98
#define SETUP_FAILED_STATUS 97

static void setup(int argc, char **argv);
/* One round of work; verifies what can be verified cheaply. */
static void step(void);
/* Verifies everything. */
static void check(void);

static char ready_word[64];
static char first_failure[256];
static pthread_mutex_t failure_lock = PTHREAD_MUTEX_INITIALIZER;

static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	for (int done = 0; done < length;) {
		ssize_t n = write(1, line + done, length - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			_exit(SETUP_FAILED_STATUS);
		done += n;
	}
}

__attribute__((unused)) static void expect_equal(const char *what, long long expected, long long seen)
{
	if (expected == seen)
		return;
	pthread_mutex_lock(&failure_lock);
	if (!first_failure[0])
		snprintf(first_failure, sizeof first_failure, "%s: %lld %lld", what, expected, seen);
	pthread_mutex_unlock(&failure_lock);
}

__attribute__((unused)) static void expect_range(const char *what, long long low, long long high, long long seen)
{
	if (seen >= low && seen <= high)
		return;
	pthread_mutex_lock(&failure_lock);
	if (!first_failure[0])
		snprintf(first_failure, sizeof first_failure, "%s: %lld..%lld %lld", what, low, high, seen);
	pthread_mutex_unlock(&failure_lock);
}

__attribute__((unused)) static void must(int ok, const char *what)
{
	if (ok)
		return;
	say("FAIL setup %s: 0 %d\n", what, errno);
	_exit(SETUP_FAILED_STATUS);
}

__attribute__((unused)) static _Noreturn void skip(const char *reason)
{
	say("SKIP %s\n", reason);
	_exit(0);
}

__attribute__((unused)) static int64_t now_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

__attribute__((unused)) static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static char input[256];
static size_t input_length;

#ifdef VICTIM_CLEAN_UP
/* Before an end that was asked for, or the end of input. */
static void clean_up(void);
#else
static void clean_up(void)
{
}
#endif

static _Noreturn void end(int status)
{
	clean_up();
	_exit(status);
}

/* Next whole line of stdin, without its newline. A timeout as poll(2) has it. */
static int next_line(char *line, int timeout_ms)
{
	char *newline = memchr(input, '\n', input_length);
	if (!newline) {
		struct pollfd in = { .fd = 0, .events = POLLIN };
		int ready = poll(&in, 1, timeout_ms);
		if (ready <= 0)
			return 0;
		ssize_t n = read(0, input + input_length, sizeof input - input_length);
		if (n == 0)
			end(END_OF_INPUT_STATUS);
		if (n < 0)
			return 0;
		input_length += n;
		newline = memchr(input, '\n', input_length);
		if (!newline)
			return 0;
	}
	size_t length = newline - input;
	memcpy(line, input, length);
	line[length] = 0;
	input_length -= length + 1;
	memmove(input, newline + 1, input_length);
	return 1;
}

#ifdef VICTIM_COMMAND
/* Lines other than check and end. */
static void command(const char *line);
#endif

static void answer(const char *line)
{
	if (!strcmp(line, "check")) {
		check();
		pthread_mutex_lock(&failure_lock);
		if (first_failure[0])
			say("FAIL %s\n", first_failure);
		else
			say("OK\n");
		pthread_mutex_unlock(&failure_lock);
		return;
	}
	if (!strncmp(line, "end ", 4))
		end(atoi(line + 4));
#ifdef VICTIM_COMMAND
	command(line);
#else
	say("FAIL command: 0 1\n");
#endif
}

#ifndef VICTIM_INPUT_TIMEOUT_MS
#define VICTIM_INPUT_TIMEOUT_MS 0
#endif

int main(int argc, char **argv)
{
	char line[sizeof input + 1];
	setup(argc, argv);
	say(ready_word[0] ? "READY %d %s\n" : "READY %d\n", getpid(), ready_word);
	for (;;) {
		step();
		if (next_line(line, VICTIM_INPUT_TIMEOUT_MS))
			answer(line);
	}
}

#endif
