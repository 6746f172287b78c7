/* Ids, process group, session, limits, priority, affinity: as home gives them. */
#include "victim.h"
#include <sys/resource.h>
#include <sys/time.h>

enum { PID, TID, PARENT, GROUP, SESSION, USER, EUSER, GID, PRIORITY, POLICY, FILES_LIMIT, CORE_LIMIT, STACK_LIMIT, FACTS };

static const char *const names[FACTS] = { "getpid",  "gettid", "getppid",     "getpgrp",	 "getsid",
					  "getuid",  "geteuid", "getgid",     "getpriority", "scheduler",
					  "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_STACK" };
static long at_start[FACTS];

static long limit_of(int which)
{
	struct rlimit limit = { 0, 0 };
	getrlimit(which, &limit);
	return limit.rlim_cur ^ (limit.rlim_max << 1);
}

static void take(long facts[FACTS])
{
	facts[PID] = syscall(SYS_getpid);
	facts[TID] = syscall(SYS_gettid);
	facts[PARENT] = getppid();
	facts[GROUP] = getpgrp();
	facts[SESSION] = getsid(0);
	facts[USER] = getuid();
	facts[EUSER] = geteuid();
	facts[GID] = getgid();
	facts[PRIORITY] = getpriority(PRIO_PROCESS, 0);
	facts[POLICY] = sched_getscheduler(0);
	facts[FILES_LIMIT] = limit_of(RLIMIT_NOFILE);
	facts[CORE_LIMIT] = limit_of(RLIMIT_CORE);
	facts[STACK_LIMIT] = limit_of(RLIMIT_STACK);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	struct rlimit files = { 777, 888 };
	setrlimit(RLIMIT_NOFILE, &files);
	setpriority(PRIO_PROCESS, 0, 3);
	take(at_start);
}

static void step(void)
{
	long now[FACTS];
	take(now);
	for (int i = 0; i < FACTS; i++)
		expect_equal(names[i], at_start[i], now[i]);
}

static void check(void)
{
	step();
	expect_equal("kill(self, 0)", 0, kill(getpid(), 0));
	expect_equal("getpgid(parent)", 1, getpgid(getppid()) > 0);
}
