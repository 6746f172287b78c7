// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a process used on other nodes, added to its kernel counters: so it is in its
 * files in /proc and in what the wait tells that reaps it.
 */

#include <linux/capability.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "tcmi.h"

/* More is no time that anything has run. */
#define TIME_MAX (1ULL << 60)

static int charge(struct task_struct *task, struct sighand_struct *sighand, void *arg)
{
	const struct tcmi_charge_args *args = arg;
	struct signal_struct *sig = task->signal;

	/* As the kernel adds a thread that has ended. */
	write_seqlock(&sig->stats_lock);
	sig->utime += args->utime;
	sig->stime += args->stime;
	sig->sum_sched_runtime += args->utime + args->stime;
	sig->min_flt += args->min_flt;
	sig->maj_flt += args->maj_flt;
	if (sig->maxrss < args->maxrss)
		sig->maxrss = args->maxrss;
	write_sequnlock(&sig->stats_lock);
	return 0;
}

int tcmi_charge(struct tcmi_charge_args *args)
{
	struct task_struct *task;
	struct pid *pid;
	int err = -ESRCH;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (args->reserved || args->pid <= 0 || args->utime > TIME_MAX || args->stime > TIME_MAX ||
	    args->maxrss > LONG_MAX)
		return -EINVAL;
	pid = find_get_pid(args->pid);
	task = get_pid_task(pid, PIDTYPE_TGID);
	if (task) {
		do {
			err = tcmi_under_siglock(task, charge, args);
		} while (err == -EAGAIN);
		put_task_struct(task);
	}
	put_pid(pid);
	return err;
}
