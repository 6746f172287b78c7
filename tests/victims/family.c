/*
 * Processes that it begins, waits for, signals and executes programs in. "again" executes this
 * program anew in place, "again-thread" does so from a thread that is not the first.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define STREAM_BYTES 200000
#define PROBE_PASSED 33

extern char **environ;
static int value = 41;
static volatile sig_atomic_t ended;

static void on_child(int signal)
{
	(void)signal;
	ended = ended + 1;
}

static int status_of(const char *what, pid_t child)
{
	int status = -1;
	pid_t seen;
	while ((seen = waitpid(child, &status, 0)) < 0 && errno == EINTR)
		;
	expect_equal(what, child, seen);
	return status;
}

static void expect_exit(const char *what, int code, pid_t child)
{
	int status = status_of(what, child);
	expect_equal(what, code, WIFEXITED(status) ? WEXITSTATUS(status) : -status);
}

static void expect_signal(const char *what, int signal, pid_t child)
{
	int status = status_of(what, child);
	expect_equal(what, signal, WIFSIGNALED(status) ? WTERMSIG(status) : -status);
}

static pid_t begin(const char *what)
{
	pid_t child = fork();
	expect_equal(what, 0, child < 0 ? errno : 0);
	return child;
}

/* No longer than a test waits. */
static _Noreturn void wait_for_ever(void)
{
	alarm(60);
	for (;;)
		pause();
}

static void memory_is_its_own(void)
{
	pid_t parent = getpid();
	int before = ended;
	pid_t child = begin("fork");
	if (child == 0) {
		value++;
		_exit(getppid() == parent && getpid() != parent ? value : 1);
	}
	expect_exit("memory of a child", 42, child);
	expect_equal("memory of its parent", 41, value);
	expect_equal("SIGCHLD", 1, ended > before);
}

static void two_in_a_pipe(void)
{
	int data[2], sum[2];
	must(pipe(data) == 0 && pipe(sum) == 0, "pipe");
	pid_t writer = begin("fork of a writer");
	if (writer == 0) {
		unsigned char byte = 0;
		for (int i = 0; i < STREAM_BYTES; i += 1000) {
			unsigned char block[1000];
			for (int k = 0; k < 1000; k++)
				block[k] = byte += 7;
			if (write(data[1], block, sizeof block) != sizeof block)
				_exit(1);
		}
		_exit(0);
	}
	pid_t reader = begin("fork of a reader");
	if (reader == 0) {
		close(data[1]);
		unsigned char block[4096];
		long total[2] = { 0, 0 };
		ssize_t n;
		while ((n = read(data[0], block, sizeof block)) > 0) {
			total[0] += n;
			for (ssize_t k = 0; k < n; k++)
				total[1] += block[k];
		}
		_exit(write(sum[1], total, sizeof total) == sizeof total ? 0 : 1);
	}
	close(data[0]);
	close(data[1]);
	close(sum[1]);
	long total[2] = { 0, 0 };
	expect_equal("read of a sum", sizeof total, read(sum[0], total, sizeof total));
	expect_exit("writer", 0, writer);
	expect_exit("reader", 0, reader);
	expect_equal("bytes through a pipe", STREAM_BYTES, total[0]);
	long expected = 0;
	unsigned char byte = 0;
	for (int i = 0; i < STREAM_BYTES; i++)
		expected += byte += 7;
	expect_equal("sum of a pipe", expected, total[1]);
	close(sum[0]);
}

static void a_group_is_signalled(void)
{
	pid_t child = begin("fork of a group");
	if (child == 0) {
		setpgid(0, 0);
		wait_for_ever();
	}
	setpgid(child, child);
	expect_equal("getpgid", child, getpgid(child));
	expect_equal("kill of a group", 0, kill(-child, SIGTERM));
	expect_signal("end of a group", SIGTERM, child);
}

static void a_child_stops_and_goes_on(void)
{
	int status;
	pid_t child = begin("fork");
	if (child == 0)
		wait_for_ever();
	expect_equal("SIGSTOP", 0, kill(child, SIGSTOP));
	expect_equal("wait for a stop", child, waitpid(child, &status, WUNTRACED));
	expect_equal("stopped by", SIGSTOP, WIFSTOPPED(status) ? WSTOPSIG(status) : -1);
	expect_equal("SIGCONT", 0, kill(child, SIGCONT));
	expect_equal("wait for its end", child, waitpid(child, &status, WCONTINUED));
	expect_equal("continued", 1, WIFCONTINUED(status));
	expect_equal("SIGKILL", 0, kill(child, SIGKILL));
	expect_signal("end of a stopped one", SIGKILL, child);
}

static void a_zombie_is_seen_twice(void)
{
	siginfo_t info = { 0 };
	struct rusage usage;
	int status;
	pid_t child = begin("fork");
	if (child == 0)
		_exit(17);
	expect_equal("waitid", 0, waitid(P_PID, child, &info, WEXITED | WNOWAIT));
	expect_equal("pid of a zombie", child, info.si_pid);
	expect_equal("status of a zombie", 17, info.si_status);
	expect_equal("wait4", child, wait4(child, &status, 0, &usage));
	expect_equal("status of wait4", 17, WEXITSTATUS(status));
	expect_equal("no child", ECHILD, waitpid(child, &status, 0) < 0 ? errno : 0);
}

/* The middle one of three ends: the last is ours then, and gets its signal of that. */
static void an_orphan_comes_to_us(int death_signal)
{
	int told[2];
	pid_t orphan = 0, us = getpid();
	must(pipe(told) == 0, "pipe");
	expect_equal("subreaper", 0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t middle = begin("fork of a middle");
	if (middle == 0) {
		pid_t me = getpid(), last = fork();
		if (last == 0) {
			if (death_signal)
				prctl(PR_SET_PDEATHSIG, death_signal);
			me = getpid();
			if (write(told[1], &me, sizeof me) != sizeof me)
				_exit(1);
			while (death_signal || getppid() != us)
				usleep(2000);
			_exit(5);
		}
		while (last > 0 && read(told[0], &me, sizeof me) != sizeof me)
			;
		if (write(told[1], &me, sizeof me) != sizeof me)
			_exit(1);
		_exit(last > 0 ? 0 : 1);
	}
	expect_exit("middle", 0, middle);
	expect_equal("read of an orphan's id", sizeof orphan, read(told[0], &orphan, sizeof orphan));
	if (death_signal)
		expect_signal("orphan by its parent's death", death_signal, orphan);
	else
		expect_exit("orphan", 5, orphan);
	expect_equal("subreaper", 0, prctl(PR_SET_CHILD_SUBREAPER, 0));
	close(told[0]);
	close(told[1]);
}

static void a_descriptor_of_a_child(void)
{
	siginfo_t info = { 0 };
	pid_t child = begin("fork");
	if (child == 0)
		wait_for_ever();
	int fd = syscall(SYS_pidfd_open, child, 0);
	expect_equal("pidfd_open", 1, fd >= 0);
	expect_equal("pidfd_send_signal", 0, syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0));
	expect_equal("waitid of a pidfd", 0, waitid(3, fd, &info, WEXITED));
	expect_equal("its end", SIGUSR1, info.si_status);
	close(fd);
}

static void a_session_of_its_own(void)
{
	pid_t child = begin("fork of a session");
	if (child == 0)
		_exit(setsid() == getpid() && getsid(0) == getpid() && getpgrp() == getpid() ? 0 : 1);
	expect_exit("session", 0, child);
}

static void *fork_in_thread(void *argument)
{
	pid_t child = begin("fork in a thread");
	if (child == 0)
		_exit(syscall(SYS_gettid) == getpid() ? 9 : 1);
	expect_exit("child of a thread", 9, child);
	return argument;
}

static void a_thread_begins_one(void)
{
	pthread_t thread;
	int failed = pthread_create(&thread, NULL, fork_in_thread, NULL);
	expect_equal("pthread_create", 0, failed);
	if (!failed)
		pthread_join(thread, NULL);
}

/* As another program: what an execve keeps and what it does not. */
static _Noreturn void probe(char **argv)
{
	int kept = atoi(argv[2]), closed = atoi(argv[3]);
	sigset_t mask;
	struct sigaction action;
	char name[32] = "";
	sigprocmask(SIG_BLOCK, NULL, &mask);
	prctl(PR_GET_NAME, name);
	if (fcntl(kept, F_GETFD) < 0)
		_exit(1);
	if (fcntl(closed, F_GETFD) >= 0 || errno != EBADF)
		_exit(2);
	if (sigismember(&mask, SIGUSR1) != 1)
		_exit(3);
	if (sigaction(SIGUSR2, NULL, &action) || action.sa_handler != SIG_IGN)
		_exit(4);
	if (sigaction(SIGCHLD, NULL, &action) || action.sa_handler != SIG_DFL)
		_exit(5);
	if (!getenv("PROBE") || strcmp(getenv("PROBE"), "a value"))
		_exit(6);
	if (strcmp(name, "exe"))
		_exit(7);
	if (getppid() != atoi(argv[4]))
		_exit(8);
	_exit(PROBE_PASSED);
}

static void another_program(int by_vfork)
{
	int kept = dup(0), closed = fcntl(0, F_DUPFD_CLOEXEC, 0);
	char a[16], b[16], us[16];
	snprintf(a, sizeof a, "%d", kept);
	snprintf(b, sizeof b, "%d", closed);
	snprintf(us, sizeof us, "%d", getpid());
	char *argv[] = { "probe-name", "probe", a, b, us, NULL };
	char *env[] = { "PROBE=a value", "LC_ALL=C", NULL };
	sigset_t mask, old;
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigprocmask(SIG_BLOCK, &mask, &old);
	void (*former)(int) = signal(SIGUSR2, SIG_IGN);
	pid_t child = by_vfork ? vfork() : fork();
	if (child == 0) {
		execve("/proc/self/exe", argv, env);
		_exit(99);
	}
	signal(SIGUSR2, former);
	sigprocmask(SIG_SETMASK, &old, NULL);
	expect_equal("fork before execve", 0, child < 0 ? errno : 0);
	expect_exit("another program", PROBE_PASSED, child);
	close(kept);
	close(closed);
}

static void programs_that_are_not_there(void)
{
	char *argv[] = { "x", NULL };
	pid_t child = -1;
	execv("/no/such/program", argv);
	expect_equal("execve of nothing", ENOENT, errno);
	execv("/etc/passwd", argv);
	expect_equal("execve of no program", EACCES, errno);
	execv("/", argv);
	expect_equal("execve of a directory", EACCES, errno);
	expect_equal("posix_spawn of nothing", ENOENT, posix_spawn(&child, "/no/such/program", NULL, NULL, argv, environ));
	expect_equal("nobody is left", -1, waitpid(-1, NULL, WNOHANG));
}

static void spawned(void)
{
	char us[16];
	snprintf(us, sizeof us, "%d", getpid());
	char *argv[] = { "spawned", "echo", NULL };
	char *env[] = { "LC_ALL=C", NULL };
	int out[2];
	char line[32] = "";
	posix_spawn_file_actions_t actions;
	must(pipe(out) == 0, "pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, out[1], 1);
	posix_spawn_file_actions_addclose(&actions, out[0]);
	pid_t child = -1;
	expect_equal("posix_spawn", 0, posix_spawn(&child, "/proc/self/exe", &actions, NULL, argv, env));
	close(out[1]);
	expect_equal("output of a spawned one", 6, read(out[0], line, sizeof line));
	expect_equal("its text", 0, strcmp(line, "echo!\n"));
	expect_exit("spawned", 0, child);
	close(out[0]);
	posix_spawn_file_actions_destroy(&actions);
}

static void setup(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "probe"))
		probe(argv);
	if (argc == 2 && !strcmp(argv[1], "echo"))
		_exit(write(1, "echo!\n", 6) == 6 ? 0 : 1);
	struct sigaction action = { .sa_handler = on_child, .sa_flags = SA_RESTART };
	must(sigaction(SIGCHLD, &action, NULL) == 0, "sigaction");
}

static void step(void)
{
}

static void check(void)
{
	memory_is_its_own();
	two_in_a_pipe();
	a_group_is_signalled();
	a_child_stops_and_goes_on();
	a_zombie_is_seen_twice();
	an_orphan_comes_to_us(0);
	an_orphan_comes_to_us(SIGUSR2);
	a_descriptor_of_a_child();
	a_session_of_its_own();
	a_thread_begins_one();
	another_program(0);
	another_program(1);
	programs_that_are_not_there();
	spawned();
}

static void *execute(void *argument)
{
	char *argv[] = { "again", NULL };
	execve("/proc/self/exe", argv, environ);
	expect_equal("execve of oneself", 0, errno);
	return argument;
}

static void command(const char *line)
{
	pthread_t thread;
	if (!strcmp(line, "again"))
		execute(NULL);
	if (!strcmp(line, "again-thread") && !pthread_create(&thread, NULL, execute, NULL))
		pthread_join(thread, NULL);
	if (!strcmp(line, "fork")) {
		pid_t child = fork();
		if (child == 0)
			_exit(3);
		say("FORKED %d\n", child < 0 ? errno : 0);
		if (child > 0)
			expect_exit("a child", 3, child);
	}
}
