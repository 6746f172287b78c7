// SPDX-License-Identifier: GPL-2.0-only
/*
 * What happens to a process that its own code cannot see: stop, continue, SIGKILL,
 * exit. Tracepoints, on only while something is watched.
 *
 * A watch keeps what is to be told, not a queue of it, so nothing is lost and
 * nothing is allocated where a signal is sent.
 */

#include <linux/hashtable.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>

#include "tcmi.h"

struct watch {
	struct hlist_node by_pid;
	struct list_head in_session;
	/* In its session's list if there is something to tell. */
	struct list_head told;
	struct tcmi_session *session;
	struct pid *pid;
	/* As the watcher calls it. */
	pid_t nr;
	bool exited;
	u32 what;
	u32 stop_signal;
	u32 status;
};

/* Taken with a siglock held and interrupts off. */
static DEFINE_SPINLOCK(watches_lock);
static DEFINE_HASHTABLE(watches_by_pid, 6);

/* Orders the probes' registration. */
static DEFINE_MUTEX(watching_lock);
static unsigned int watching_count;

/* Under watches_lock. */
static void tell(struct watch *watch, u32 what)
{
	const u32 either = TCMI_EVENT_STOP | TCMI_EVENT_CONTINUE;

	if (what & either)
		watch->what &= ~either;
	watch->what |= what;
	if (list_empty(&watch->told))
		list_add_tail(&watch->told, &watch->session->told);
	wake_up_interruptible_poll(&watch->session->readable, EPOLLIN | EPOLLRDNORM);
}

static struct watch *find_watch(struct pid *pid)
{
	struct watch *watch;

	hash_for_each_possible(watches_by_pid, watch, by_pid, (unsigned long)pid) {
		if (watch->pid == pid)
			return watch;
	}
	return NULL;
}

static void signal_generated(void *data, int sig, struct kernel_siginfo *info,
			     struct task_struct *task, int group, int result)
{
	struct watch *watch;
	unsigned long flags;

	if (sig != SIGCONT && sig != SIGKILL)
		return;
	spin_lock_irqsave(&watches_lock, flags);
	watch = find_watch(task_tgid(task));
	if (watch)
		tell(watch, sig == SIGCONT ? TCMI_EVENT_CONTINUE : TCMI_EVENT_KILL);
	spin_unlock_irqrestore(&watches_lock, flags);
}

static void signal_delivered(void *data, int sig, struct kernel_siginfo *info,
			     struct k_sigaction *action)
{
	struct watch *watch;
	unsigned long flags;

	if (sig > SIGRTMAX || !sig_kernel_stop(sig) || action->sa.sa_handler != SIG_DFL)
		return;
	spin_lock_irqsave(&watches_lock, flags);
	watch = find_watch(task_tgid(current));
	if (watch) {
		watch->stop_signal = sig;
		tell(watch, TCMI_EVENT_STOP);
	}
	spin_unlock_irqrestore(&watches_lock, flags);
}

/* Under watches_lock. What wait() will say: one thread's code, or that of all. */
static void tell_exit(struct watch *watch, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct task_struct *leader = task->group_leader;

	/* The last two threads may both see that none is left. */
	if (watch->exited)
		return;
	watch->exited = true;
	watch->status = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code :
							     leader->exit_code;
	tell(watch, TCMI_EVENT_EXIT);
}

static void exited(void *data, struct task_struct *task)
{
	struct watch *watch;
	unsigned long flags;

	if (atomic_read(&task->signal->live))
		return;
	spin_lock_irqsave(&watches_lock, flags);
	watch = find_watch(task_tgid(task));
	if (watch)
		tell_exit(watch, task);
	spin_unlock_irqrestore(&watches_lock, flags);
}

static struct tcmi_probe probes[] = {
	{ .name = "signal_generate", .function = signal_generated },
	{ .name = "signal_deliver", .function = signal_delivered },
	{ .name = "sched_process_exit", .function = exited },
};

static int begin_watching(void)
{
	int err = 0;

	mutex_lock(&watching_lock);
	if (!watching_count)
		err = tcmi_probe(probes, ARRAY_SIZE(probes));
	if (!err)
		watching_count++;
	mutex_unlock(&watching_lock);
	return err;
}

static void end_watching(unsigned int count)
{
	mutex_lock(&watching_lock);
	watching_count -= count;
	if (count && !watching_count)
		tcmi_unprobe(probes, ARRAY_SIZE(probes));
	mutex_unlock(&watching_lock);
}

static int add_watch(struct watch *watch, struct task_struct *task)
{
	int err = 0;

	spin_lock_irq(&watches_lock);
	if (find_watch(watch->pid)) {
		err = -EBUSY;
	} else if (!atomic_read(&task->signal->live)) {
		/* It may have passed the probe. */
		err = -ESRCH;
	} else {
		hash_add(watches_by_pid, &watch->by_pid, (unsigned long)watch->pid);
		list_add(&watch->in_session, &watch->session->watches);
	}
	spin_unlock_irq(&watches_lock);
	return err;
}

static int watch_task(struct tcmi_session *session, struct task_struct *task, pid_t nr)
{
	struct watch *watch;
	int err;

	if (!tcmi_may_hold(task))
		return task->flags & PF_EXITING ? -ESRCH : -EPERM;
	watch = kzalloc(sizeof(*watch), GFP_KERNEL_ACCOUNT);
	if (!watch)
		return -ENOMEM;
	INIT_LIST_HEAD(&watch->told);
	watch->session = session;
	watch->nr = nr;
	watch->pid = get_pid(task_tgid(task));
	err = begin_watching();
	if (!err) {
		err = add_watch(watch, task);
		if (err)
			end_watching(1);
	}
	if (err) {
		put_pid(watch->pid);
		kfree(watch);
	}
	return err;
}

int tcmi_watch(struct tcmi_session *session, pid_t nr)
{
	struct pid *pid = find_get_pid(nr);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_TGID);
	int err = -ESRCH;

	if (task) {
		err = watch_task(session, task, nr);
		put_task_struct(task);
	}
	put_pid(pid);
	return err;
}

/* Under watches_lock. */
static void forget(struct watch *watch, struct list_head *forgotten)
{
	hash_del(&watch->by_pid);
	list_del(&watch->told);
	list_move(&watch->in_session, forgotten);
}

static void free_watches(struct list_head *forgotten)
{
	struct watch *watch, *next;
	unsigned int count = 0;

	list_for_each_entry_safe(watch, next, forgotten, in_session) {
		put_pid(watch->pid);
		kfree(watch);
		count++;
	}
	end_watching(count);
}

int tcmi_unwatch(struct tcmi_session *session, pid_t nr)
{
	struct watch *watch, *next;
	LIST_HEAD(forgotten);

	spin_lock_irq(&watches_lock);
	list_for_each_entry_safe(watch, next, &session->watches, in_session) {
		if (watch->nr == nr)
			forget(watch, &forgotten);
	}
	spin_unlock_irq(&watches_lock);
	if (list_empty(&forgotten))
		return -ESRCH;
	free_watches(&forgotten);
	return 0;
}

void tcmi_unwatch_all(struct tcmi_session *session)
{
	struct watch *watch, *next;
	LIST_HEAD(forgotten);

	spin_lock_irq(&watches_lock);
	list_for_each_entry_safe(watch, next, &session->watches, in_session)
		forget(watch, &forgotten);
	spin_unlock_irq(&watches_lock);
	free_watches(&forgotten);
}

bool tcmi_has_event(struct tcmi_session *session)
{
	return !list_empty_careful(&session->told);
}

/* An exit is the last that is told of a process. */
bool tcmi_take_event(struct tcmi_session *session, struct tcmi_event *event)
{
	struct watch *watch;
	LIST_HEAD(forgotten);

	spin_lock_irq(&watches_lock);
	watch = list_first_entry_or_null(&session->told, struct watch, told);
	if (watch) {
		*event = (struct tcmi_event) {
			.type = TCMI_MESSAGE_EVENT,
			.length = sizeof(*event),
			.pid = watch->nr,
			.what = watch->what,
			.stop_signal = watch->what & TCMI_EVENT_STOP ? watch->stop_signal : 0,
			.status = watch->status,
		};
		watch->what = 0;
		list_del_init(&watch->told);
		if (watch->exited)
			forget(watch, &forgotten);
	}
	spin_unlock_irq(&watches_lock);
	if (!list_empty(&forgotten))
		free_watches(&forgotten);
	return watch;
}

int tcmi_watch_init(void)
{
	return tcmi_find_tracepoints(probes, ARRAY_SIZE(probes));
}
