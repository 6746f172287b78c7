/*
 * Children as each flag of each wait shows them, those that others have begun, the groups and sessions
 * that they are in, and descriptors of them.
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define PIDFD_OF_THREAD O_EXCL
#define BY_PIDFD 3

static volatile sig_atomic_t seen_code, seen_status, seen_pid;

static void on_child(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	seen_code = info->si_code, seen_status = info->si_status, seen_pid = info->si_pid;
}

static pid_t begin(void)
{
	pid_t child = fork();
	expect_equal("fork", 0, child < 0 ? errno : 0);
	if (child == 0)
		alarm(60);
	return child;
}

static pid_t begin_sleeper(void)
{
	pid_t child = begin();
	while (child == 0)
		pause();
	return child;
}

static pid_t begin_ended(int status)
{
	siginfo_t info;
	pid_t child = begin();
	if (child == 0)
		_exit(status);
	expect_equal("its end", 0, waitid(P_PID, child, &info, WEXITED | WNOWAIT));
	return child;
}

static void expect_info(const char *what, const siginfo_t *info, pid_t child, int code, int status)
{
	expect_equal(what, child, info->si_pid);
	expect_equal(what, code, info->si_code);
	expect_equal(what, status, info->si_status);
	expect_equal(what, SIGCHLD, info->si_signo);
	expect_equal(what, getuid(), info->si_uid);
}

/* The whole process, by either call. */
static void expect_ends_by(pid_t child, int signal)
{
	int status = 0;
	kill(child, signal);
	expect_equal("its end", child, waitpid(child, &status, 0));
	expect_equal("by a signal", signal, WIFSIGNALED(status) ? WTERMSIG(status) : -status);
}

static void nothing_to_tell(void)
{
	siginfo_t info;
	int status = 77;
	pid_t child = begin_sleeper();
	memset(&info, 1, sizeof info);
	expect_equal("WNOHANG", 0, waitpid(child, &status, WNOHANG));
	expect_equal("nothing stored", 77, status);
	expect_equal("waitid, WNOHANG", 0, waitid(P_ALL, 0, &info, WEXITED | WNOHANG));
	expect_equal("no pid", 0, info.si_pid);
	expect_equal("no signal", 0, info.si_signo);
	expect_equal("without any event", -1, waitid(P_ALL, 0, &info, WNOHANG));
	expect_equal("its errno", EINVAL, errno);
	expect_equal("a flag that is none", -1, waitpid(child, &status, 0x4000));
	expect_equal("its errno", EINVAL, errno);
	expect_equal("of another's group", -1, waitid(P_PGID, 1, &info, WEXITED));
	expect_equal("its errno", ECHILD, errno);
	expect_ends_by(child, SIGKILL);
	expect_equal("of nobody", -1, waitpid(-1, &status, 0));
	expect_equal("its errno", ECHILD, errno);
}

static void stops_and_continues(void)
{
	siginfo_t info = { 0 };
	pid_t child = begin_sleeper();
	kill(child, SIGSTOP);
	expect_equal("WSTOPPED", 0, waitid(P_PID, child, &info, WSTOPPED | WNOWAIT));
	expect_info("a stop, left there", &info, child, CLD_STOPPED, SIGSTOP);
	expect_equal("WSTOPPED", 0, waitid(P_ALL, 0, &info, WSTOPPED | WEXITED | WCONTINUED));
	expect_info("a stop, taken", &info, child, CLD_STOPPED, SIGSTOP);
	expect_equal("once", 0, waitpid(child, NULL, WUNTRACED | WNOHANG));
	kill(child, SIGCONT);
	expect_equal("WCONTINUED", 0, waitid(P_PID, child, &info, WCONTINUED | WNOWAIT));
	expect_info("it goes on", &info, child, CLD_CONTINUED, SIGCONT);
	expect_equal("WCONTINUED", 0, waitid(P_PID, child, &info, WCONTINUED));
	expect_equal("once", 0, waitpid(child, NULL, WCONTINUED | WNOHANG));
	expect_ends_by(child, SIGTERM);
}

static void ends_and_dumps(void)
{
	siginfo_t info = { 0 };
	struct rusage usage;
	pid_t child = begin_ended(300);
	memset(&usage, 0xff, sizeof usage);
	expect_equal("waitid with usage", 0, syscall(SYS_waitid, P_ALL, 0, &info, WEXITED, &usage));
	expect_info("an exit", &info, child, CLD_EXITED, 300 & 0xff);
	expect_range("its usage", 0, 100, usage.ru_utime.tv_sec);
	child = begin_sleeper();
	kill(child, SIGQUIT);
	expect_equal("errno of waitid", 0, waitid(P_PID, child, &info, WEXITED) ? errno : 0);
	expect_equal("by a signal", SIGQUIT, info.si_status);
	expect_equal("dumped or not", 1, info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED);
	expect_equal("SIGCHLD's pid", child, seen_pid);
	expect_equal("SIGCHLD's status", SIGQUIT, seen_status);
	expect_equal("SIGCHLD's code", info.si_code, seen_code);
}

/* Waits that take some and leave others. */
static void by_group_and_kind(void)
{
	siginfo_t info = { 0 };
	int status;
	pid_t first = begin_sleeper(), second = begin_sleeper();
	expect_equal("setpgid", 0, setpgid(first, first));
	expect_equal("setpgid of another", 0, setpgid(second, first));
	expect_equal("getpgid", first, getpgid(second));
	expect_equal("killpg", 0, killpg(first, SIGUSR1));
	for (int i = 0; i < 2; i++) {
		expect_equal("of our own group", -1, waitpid(0, &status, WNOHANG));
		expect_equal("its errno", ECHILD, errno);
		pid_t child = i ? waitpid(-first, &status, 0) : 0;
		if (!i) {
			expect_equal("P_PGID", 0, waitid(P_PGID, first, &info, WEXITED));
			child = info.si_pid, status = info.si_status;
		}
		expect_equal("one of them", 1, child == first || child == second);
		expect_equal("ended by", SIGUSR1, status);
	}
	/* A child whose end is told by no SIGCHLD. */
	pid_t quiet = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
	if (quiet == 0)
		_exit(4);
	expect_equal("no usual child", -1, waitpid(-1, &status, 0));
	expect_equal("its errno", ECHILD, errno);
	expect_equal("__WCLONE", quiet, waitpid(-1, &status, __WCLONE));
	quiet = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
	if (quiet == 0)
		_exit(4);
	expect_equal("__WALL", quiet, waitpid(-1, &status, __WALL | __WNOTHREAD));
	expect_equal("its status", 4, WEXITSTATUS(status));
}

static void *waits_for_its_own(void *argument)
{
	pid_t others = *(pid_t *)argument, own = begin_ended(6);
	int status;
	expect_equal("__WNOTHREAD of another's", -1, waitpid(others, &status, __WNOTHREAD));
	expect_equal("its errno", ECHILD, errno);
	expect_equal("__WNOTHREAD", own, waitpid(-1, &status, __WNOTHREAD));
	expect_equal("any thread's", others, waitpid(others, &status, 0));
	return NULL;
}

static void by_thread(void)
{
	pthread_t thread;
	pid_t child = begin_ended(5);
	int failed = pthread_create(&thread, NULL, waits_for_its_own, &child);
	expect_equal("pthread_create", 0, failed);
	if (!failed)
		pthread_join(thread, NULL);
}

static void nobody_waits(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN }, old;
	sigaction(SIGCHLD, &ignore, &old);
	pid_t child = begin();
	if (child == 0)
		_exit(1);
	expect_equal("no zombie", -1, waitpid(child, NULL, 0));
	expect_equal("its errno", ECHILD, errno);
	sigaction(SIGCHLD, &old, NULL);
}

/* To whoever takes orphans: somebody above us. */
static void an_orphan_without_a_home(void)
{
	int told[2];
	pid_t pair[2] = { 0, 0 };
	must(pipe(told) == 0, "pipe");
	pid_t middle = begin();
	if (middle == 0) {
		pid_t us = getpid();
		if (begin() == 0) {
			while (getppid() == us)
				usleep(2000);
			pair[0] = us, pair[1] = getppid();
			_exit(write(told[1], pair, sizeof pair) == sizeof pair ? 0 : 1);
		}
		_exit(0);
	}
	expect_equal("the middle one", middle, waitpid(middle, NULL, 0));
	expect_equal("an orphan's word", sizeof pair, read(told[0], pair, sizeof pair));
	expect_equal("is not ours", 1, pair[1] != getpid() && pair[1] != middle && pair[1] > 0);
	expect_equal("no child", -1, waitpid(-1, NULL, WNOHANG));
	close(told[0]), close(told[1]);
}

static void sessions(void)
{
	pid_t child = begin();
	int status = -1;
	if (child == 0) {
		if (setsid() != getpid() || setsid() != -1 || errno != EPERM)
			_exit(1);
		if (setpgid(0, 0) != -1 || errno != EPERM)
			_exit(2);
		pid_t member = fork();
		if (member == 0)
			_exit(getsid(0) == getppid() && setpgid(0, 0) == 0 && getpgrp() == getpid() ? 0 : 1);
		if (waitpid(member, &status, 0) != member || status)
			_exit(3);
		_exit(getsid(0) == getpid() && getsid(getppid()) != getpid() ? 0 : 4);
	}
	expect_equal("a session", child, waitpid(child, &status, 0));
	expect_equal("its leader", 0, status);
	child = begin_sleeper();
	expect_equal("into a session that is another's", -1, setpgid(child, 1));
	expect_equal("its errno", EPERM, errno);
	expect_ends_by(child, SIGKILL);
	/* One more that leaves a stopped job: it is continued and hung up. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	child = begin();
	if (child == 0) {
		setsid();
		pid_t job = fork();
		if (job == 0) {
			setpgid(0, 0);
			signal(SIGHUP, SIG_DFL);
			raise(SIGSTOP);
			pause();
		}
		_exit(waitpid(job, &status, WUNTRACED) == job && WIFSTOPPED(status) ? 0 : 1);
	}
	expect_equal("a leader", child, waitpid(child, &status, 0));
	expect_equal("that has stopped its job", 0, status);
	expect_range("an orphaned job", 1, INT32_MAX, waitpid(-1, &status, 0));
	expect_equal("is hung up", SIGHUP, WIFSIGNALED(status) ? WTERMSIG(status) : -status);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static void descriptors(void)
{
	siginfo_t info = { 0 };
	struct epoll_event event = { .events = EPOLLIN }, seen;
	int epoll = epoll_create1(0), of_child[2];
	must(pipe(of_child) == 0, "pipe");
	pid_t child = begin();
	if (child == 0) {
		dup2(of_child[1], 100);
		char byte = 'd';
		if (write(100, &byte, 1) == 1)
			for (;;)
				pause();
		_exit(1);
	}
	int fd = syscall(SYS_pidfd_open, child, O_NONBLOCK);
	expect_equal("pidfd_open", FD_CLOEXEC, fcntl(fd, F_GETFD));
	expect_equal("not to be waited for yet", -1, waitid(BY_PIDFD, fd, &info, WEXITED));
	expect_equal("its errno", EAGAIN, errno);
	epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
	expect_equal("no end yet", 0, epoll_wait(epoll, &seen, 1, 0));
	char byte = 0;
	expect_equal("its word", 1, read(of_child[0], &byte, 1));
	int taken = syscall(SYS_pidfd_getfd, fd, 100, 0);
	expect_range("pidfd_getfd", 0, 1000, taken);
	expect_equal("write by it", 1, write(taken, "t", 1));
	expect_equal("read of it", 1, read(of_child[0], &byte, 1));
	info = (siginfo_t){ .si_signo = SIGTERM, .si_code = SI_QUEUE, .si_pid = getpid(), .si_uid = getuid() };
	expect_equal("pidfd_send_signal", 0, syscall(SYS_pidfd_send_signal, fd, SIGTERM, &info, 0));
	expect_equal("its end", 1, epoll_wait(epoll, &seen, 1, 10000));
	/* A tracer takes its end first, of which the descriptor does not know. */
	int waited;
	while ((waited = waitid(BY_PIDFD, fd, &info, WEXITED)) < 0 && errno == EAGAIN)
		sched_yield();
	expect_equal("errno of waitid", 0, waited ? errno : 0);
	expect_info("an end", &info, child, CLD_KILLED, SIGTERM);
	expect_equal("of one that is gone", -1, syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0));
	expect_equal("its errno", ESRCH, errno);
	close(fd), close(epoll), close(taken), close(of_child[0]), close(of_child[1]);
	fd = syscall(SYS_pidfd_open, getpid(), 0);
	expect_equal("of itself", 0, syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
	expect_equal("which is no child", -1, waitid(BY_PIDFD, fd, &info, WEXITED));
	expect_equal("its errno", ECHILD, errno);
	close(fd);
	/* Told by clone itself. */
	fd = -1;
	child = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &fd, NULL, NULL);
	if (child == 0)
		_exit(8);
	expect_range("CLONE_PIDFD", 0, 1000, fd);
	expect_equal("waitid", 0, waitid(BY_PIDFD, fd, &info, WEXITED));
	expect_info("an end", &info, child, CLD_EXITED, 8);
	close(fd);
}

/* A parent's signal to its child, when it ends, and when only the thread that begot it ends. */
static void *begets(void *argument)
{
	pid_t *child = argument, us = getpid();
	*child = begin();
	if (*child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGUSR2);
		if (getppid() != us)
			_exit(1);
		char byte = 'r';
		if (write(100, &byte, 1) != 1)
			_exit(2);
		for (;;)
			pause();
	}
	char byte;
	expect_equal("it is ready", 1, read(101, &byte, 1));
	return NULL;
}

static void death_of_a_thread(void)
{
	int ready[2], status = -1;
	pthread_t thread;
	pid_t child = -1;
	must(pipe(ready) == 0 && dup2(ready[1], 100) == 100 && dup2(ready[0], 101) == 101, "pipe");
	int failed = pthread_create(&thread, NULL, begets, &child);
	expect_equal("pthread_create", 0, failed);
	if (!failed) {
		pthread_join(thread, NULL);
		expect_equal("its child", child, waitpid(child, &status, 0));
		expect_equal("by its begetter's end", SIGUSR2, WIFSIGNALED(status) ? WTERMSIG(status) : -status);
	}
	close(100), close(101), close(ready[0]), close(ready[1]);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct sigaction action = { .sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART };
	must(sigaction(SIGCHLD, &action, NULL) == 0, "sigaction");
}

static void step(void)
{
}

static void check(void)
{
	nothing_to_tell();
	stops_and_continues();
	ends_and_dumps();
	by_group_and_kind();
	by_thread();
	nobody_waits();
	an_orphan_without_a_home();
	sessions();
	descriptors();
	death_of_a_thread();
}
