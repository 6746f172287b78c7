// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads held on their way to user mode.
 *
 * Each thread gets a task_work that waits in the thread itself, in get_signal():
 * no signal, no tracer, nothing that a parent could see, and SIGKILL still works.
 * A queued work cannot be taken back from outside, so it owns a reference to its
 * hold and to the module until it has run, or is disarmed().
 */

#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/task_work.h>

#include "tcmi.h"

enum hold_state {
	/* Its work has not run: on its way, or stopped by job control. */
	HOLD_QUEUED,
	HOLD_HELD,
	HOLD_ENDED,
};

struct tcmi_freeze {
	/* The session's, and one for each hold. */
	refcount_t refs;
	/* The process, or the root of the tree; its leader may change by execve. */
	struct pid *root;
	bool tree;
	/* Its processes' children are held from their birth; under holds_lock. */
	bool growing;
	/* May hold whatever its processes execute meanwhile. */
	bool trusted;
	struct list_head holds;
	/* Holds that are HOLD_QUEUED; under holds_lock. */
	unsigned int queued;
	/* What a thread that was found in passing met with. */
	int error;
	bool thawed;
	wait_queue_head_t settling;
	wait_queue_head_t thawing;
};

struct tcmi_hold {
	/* First: disarmed() has it freed as the hold. */
	struct callback_head work;
	/* The list's, and the work's until it has run. */
	refcount_t refs;
	struct tcmi_freeze *freeze;
	struct task_struct *task;
	/* The program that the policy has seen. */
	u64 exec_id;
	enum hold_state state;
	bool requeued;
	struct hlist_node by_task;
	struct list_head list;
	/* While it is taken, a killed thread does not leave. */
	struct mutex looked_at;
};

/* Guards the holds of all freezes, their states and the table. */
static DEFINE_SPINLOCK(holds_lock);
static DEFINE_HASHTABLE(holds_by_task, 10);

/* Orders the probe's registration. */
static DEFINE_MUTEX(growing_lock);
static unsigned int growing_count;

static void put_freeze(struct tcmi_freeze *freeze)
{
	if (refcount_dec_and_test(&freeze->refs)) {
		put_pid(freeze->root);
		kfree(freeze);
	}
}

static void put_hold(struct tcmi_hold *hold)
{
	if (refcount_dec_and_test(&hold->refs)) {
		put_freeze(hold->freeze);
		put_task_struct(hold->task);
		kfree(hold);
	}
}

/* Under holds_lock. */
static void set_state(struct tcmi_hold *hold, enum hold_state state)
{
	struct tcmi_freeze *freeze = hold->freeze;

	if (hold->state == HOLD_QUEUED && !--freeze->queued)
		wake_up(&freeze->settling);
	WRITE_ONCE(hold->state, state);
}

/* In the thread; what no other can see of it in time. */
static int check_current(const struct tcmi_hold *hold)
{
	if (!user_64bit_mode(current_pt_regs()))
		return -EOPNOTSUPP;
	/* A set-user-id program, perhaps. */
	if (current->self_exec_id != hold->exec_id && !hold->freeze->trusted)
		return -EPERM;
	return 0;
}

static bool enter(struct tcmi_hold *hold)
{
	struct tcmi_freeze *freeze = hold->freeze;
	int err = check_current(hold);
	bool enters;

	spin_lock(&holds_lock);
	if (err)
		WRITE_ONCE(freeze->error, err);
	enters = !err && !freeze->thawed;
	if (enters)
		set_state(hold, HOLD_HELD);
	spin_unlock(&holds_lock);
	return enters;
}

static void leave(struct tcmi_hold *hold)
{
	mutex_lock(&hold->looked_at);
	spin_lock(&holds_lock);
	set_state(hold, HOLD_ENDED);
	/* The task_struct may be another thread's soon. */
	if (hash_hashed(&hold->by_task))
		hash_del(&hold->by_task);
	spin_unlock(&holds_lock);
	mutex_unlock(&hold->looked_at);
}

/* In the thread. */
static void hold_thread(struct callback_head *work)
{
	struct tcmi_hold *hold = container_of(work, struct tcmi_hold, work);
	struct tcmi_freeze *freeze = hold->freeze;

	if (!(current->flags & PF_EXITING)) {
		/* Works run newest first; files that were closed before are closed first. */
		if (!hold->requeued) {
			hold->requeued = true;
			if (!task_work_add(current, work, TWA_NONE))
				return;
		}
		tcmi_restart_what_we_ended(current_pt_regs());
		if (enter(hold))
			wait_event_state(freeze->thawing, READ_ONCE(freeze->thawed),
					 (TASK_KILLABLE | TASK_FREEZABLE));
	}
	leave(hold);
	put_hold(hold);
	/* The rest of this function is what module_exit waits for. */
	module_put(THIS_MODULE);
}

static struct tcmi_hold *find_hold(struct task_struct *task)
{
	struct tcmi_hold *hold;

	hash_for_each_possible(holds_by_task, hold, by_task, (unsigned long)task) {
		if (hold->task == task)
			return hold;
	}
	return NULL;
}

/* 1: asked it to stop. 0: nothing to do. Under holds_lock and RCU. */
static int ask_thread(struct tcmi_freeze *freeze, struct task_struct *task)
{
	struct tcmi_hold *hold = find_hold(task);

	if (hold)
		return hold->freeze == freeze ? 0 : -EBUSY;
	if (task->flags & PF_EXITING)
		return 0;
	/* A ring runs task_works in the middle of a call, and has threads in the kernel. */
	if (task->flags & TCMI_PF_WORKER || task->io_uring)
		return -EOPNOTSUPP;
	/* A stopped thread keeps them all, however often it is frozen. */
	hold = kzalloc(sizeof(*hold), GFP_ATOMIC | __GFP_NOWARN | __GFP_ACCOUNT);
	if (!hold)
		return -ENOMEM;
	init_task_work(&hold->work, hold_thread);
	refcount_set(&hold->refs, 2);
	refcount_inc(&freeze->refs);
	hold->freeze = freeze;
	hold->task = get_task_struct(task);
	hold->exec_id = READ_ONCE(task->self_exec_id);
	mutex_init(&hold->looked_at);
	hash_add(holds_by_task, &hold->by_task, (unsigned long)task);
	list_add_tail(&hold->list, &freeze->holds);
	freeze->queued++;
	__module_get(THIS_MODULE);
	if (!task_work_add(task, &hold->work, TWA_SIGNAL))
		return 1;
	/* It has run its last work. */
	module_put(THIS_MODULE);
	freeze->queued--;
	hash_del(&hold->by_task);
	list_del(&hold->list);
	put_hold(hold);
	put_hold(hold);
	return 0;
}

static int ask_process(struct tcmi_freeze *freeze, struct task_struct *leader)
{
	struct task_struct *task;
	int asked = 0;
	int err = 0;

	if (is_global_init(leader) || leader->flags & PF_KTHREAD)
		return -EPERM;
	if (same_thread_group(leader, current))
		return -EDEADLK;
	if (leader->flags & PF_EXITING)
		return thread_group_empty(leader) ? 0 : -EOPNOTSUPP;
	/* Before it is disturbed: the rest may take its time. */
	if (!tcmi_may_hold(leader) && !(leader->flags & PF_EXITING))
		return -EPERM;
	spin_lock(&holds_lock);
	for_each_thread(leader, task) {
		err = ask_thread(freeze, task);
		if (err < 0)
			break;
		asked += err;
	}
	spin_unlock(&holds_lock);
	return err < 0 ? err : asked;
}

/* Under RCU. */
static bool descends_from(struct task_struct *task, struct pid *root)
{
	while (task && !is_global_init(task) && task->pid) {
		if (task_tgid(task) == root)
			return true;
		task = rcu_dereference(task->real_parent);
	}
	return false;
}

static int ask_tree(struct tcmi_freeze *freeze)
{
	struct task_struct *leader;
	int asked = 0;
	int err;

	for_each_process(leader) {
		if (!descends_from(leader, freeze->root))
			continue;
		err = ask_process(freeze, leader);
		if (err < 0)
			return err;
		asked += err;
	}
	return asked;
}

/* How many threads were asked to stop that were not known before. */
static int ask_new(struct tcmi_freeze *freeze)
{
	struct task_struct *leader;
	int asked;

	rcu_read_lock();
	leader = pid_task(freeze->root, PIDTYPE_TGID);
	if (!leader)
		asked = -ESRCH;
	else if (!freeze->tree)
		asked = ask_process(freeze, leader);
	else
		asked = ask_tree(freeze);
	rcu_read_unlock();
	return asked;
}

/* In the parent. A child of one that is not known yet is found with it. */
static void forked(void *data, struct task_struct *parent, struct task_struct *child)
{
	struct tcmi_hold *hold;
	int err = 0;

	rcu_read_lock();
	spin_lock(&holds_lock);
	hold = find_hold(parent);
	/* The child has not run: it stops before its first instruction. */
	if (hold && hold->freeze->growing)
		err = ask_thread(hold->freeze, child);
	if (err < 0)
		WRITE_ONCE(hold->freeze->error, err);
	spin_unlock(&holds_lock);
	rcu_read_unlock();
}

static struct tcmi_probe fork_probe[] = {
	{ .name = "sched_process_fork", .function = forked },
};

static int grow(struct tcmi_freeze *freeze)
{
	int err = 0;

	mutex_lock(&growing_lock);
	if (!growing_count)
		err = tcmi_probe(fork_probe, ARRAY_SIZE(fork_probe));
	if (!err) {
		growing_count++;
		spin_lock(&holds_lock);
		freeze->growing = true;
		spin_unlock(&holds_lock);
	}
	mutex_unlock(&growing_lock);
	return err;
}

static void stop_growing(struct tcmi_freeze *freeze)
{
	mutex_lock(&growing_lock);
	spin_lock(&holds_lock);
	freeze->growing = false;
	spin_unlock(&holds_lock);
	if (!--growing_count)
		tcmi_unprobe(fork_probe, ARRAY_SIZE(fork_probe));
	mutex_unlock(&growing_lock);
}

/*
 * Stopped by job control, or by the caller as its tracer, it waits in the kernel
 * already, and our work is before it on the way to user mode. Another tracer could
 * let it go on in the middle of a call.
 */
static bool is_stopped(struct task_struct *task)
{
	unsigned int state = READ_ONCE(task->__state);
	bool stopped;

	rcu_read_lock();
	stopped = state & __TASK_STOPPED ||
		  (state & __TASK_TRACED &&
		   same_thread_group(rcu_dereference(task->parent), current));
	rcu_read_unlock();
	return stopped;
}

static bool is_settled(struct tcmi_freeze *freeze)
{
	struct tcmi_hold *hold;
	bool settled = true;

	spin_lock(&holds_lock);
	list_for_each_entry(hold, &freeze->holds, list) {
		if (hold->state == HOLD_QUEUED && !is_stopped(hold->task)) {
			settled = false;
			break;
		}
	}
	spin_unlock(&holds_lock);
	return settled;
}

/* Until no thread is new and none runs. */
static int settle(struct tcmi_freeze *freeze, unsigned long deadline)
{
	long left;
	int err;

	for (;;) {
		err = ask_new(freeze);
		if (err < 0)
			return err;
		if (READ_ONCE(freeze->error))
			return freeze->error;
		if (!err && is_settled(freeze))
			return 0;
		if (time_after(jiffies, deadline))
			return -EBUSY;
		/* Nothing tells of a stop by job control, so look again soon. */
		left = wait_event_interruptible_timeout(freeze->settling,
							!READ_ONCE(freeze->queued), 1);
		if (left < 0)
			return -EINTR;
	}
}

/*
 * Once more at the end: until then any of them could execve a set-user-id program.
 * Also counts.
 */
static int check_frozen(struct tcmi_freeze *freeze, struct tcmi_freeze_args *args)
{
	struct tcmi_hold *hold = NULL;
	bool may;

	args->threads = 0;
	args->processes = 0;
	while ((hold = tcmi_next_hold(freeze, hold))) {
		may = tcmi_may_hold(hold->task);
		if (hold->task->flags & PF_EXITING)
			continue;
		if (!may)
			return -EPERM;
		args->threads++;
		args->processes += thread_group_leader(hold->task);
	}
	return args->threads ? 0 : -ESRCH;
}

static int freeze_all(struct tcmi_freeze *freeze, struct tcmi_freeze_args *args)
{
	unsigned int timeout = args->timeout_ms ?: TCMI_FREEZE_TIMEOUT_MS_DEFAULT;
	int err = 0;

	if (freeze->tree)
		err = grow(freeze);
	if (err)
		return err;
	err = settle(freeze, jiffies + msecs_to_jiffies(timeout));
	if (freeze->tree)
		stop_growing(freeze);
	return err ?: check_frozen(freeze, args);
}

/* Refuses early what check_frozen() would refuse when it has been disturbed already. */
static int may_begin(struct pid *pid)
{
	struct task_struct *task = get_pid_task(pid, PIDTYPE_TGID);
	int err = 0;

	if (!task)
		return -ESRCH;
	if (task->flags & PF_EXITING)
		err = thread_group_empty(task) ? -ESRCH : -EOPNOTSUPP;
	else if (!tcmi_may_hold(task))
		err = -EPERM;
	put_task_struct(task);
	return err;
}

struct tcmi_freeze *tcmi_freeze(struct tcmi_freeze_args *args)
{
	struct tcmi_freeze *freeze;
	int err;

	if (args->flags & ~TCMI_FREEZE_TREE || args->timeout_ms > TCMI_FREEZE_TIMEOUT_MS_MAX ||
	    args->pid <= 0 || args->processes || args->threads ||
	    memchr_inv(args->reserved, 0, sizeof(args->reserved)))
		return ERR_PTR(-EINVAL);
	freeze = kzalloc(sizeof(*freeze), GFP_KERNEL);
	if (!freeze)
		return ERR_PTR(-ENOMEM);
	refcount_set(&freeze->refs, 1);
	INIT_LIST_HEAD(&freeze->holds);
	init_waitqueue_head(&freeze->settling);
	init_waitqueue_head(&freeze->thawing);
	freeze->tree = args->flags & TCMI_FREEZE_TREE;
	freeze->trusted = capable(CAP_SYS_PTRACE);
	freeze->root = find_get_pid(args->pid);
	err = freeze->root ? may_begin(freeze->root) : -ESRCH;
	if (!err)
		err = freeze_all(freeze, args);
	if (err) {
		tcmi_thaw(freeze);
		return ERR_PTR(err);
	}
	return freeze;
}

int tcmi_under_siglock(struct task_struct *task, tcmi_look_t look, void *arg)
{
	struct sighand_struct *sighand;
	unsigned long flags;
	int err = -EAGAIN;

	rcu_read_lock();
	sighand = rcu_dereference(task->sighand);
	if (sighand) {
		spin_lock_irqsave(&sighand->siglock, flags);
		/* It may end, or get another by execve, before the lock is ours. */
		if (sighand == rcu_access_pointer(task->sighand))
			err = look(task, sighand, arg);
		spin_unlock_irqrestore(&sighand->siglock, flags);
	} else {
		err = -ESRCH;
	}
	rcu_read_unlock();
	return err;
}

static int disarm_stopped(struct task_struct *task, struct sighand_struct *sighand, void *arg)
{
	struct tcmi_hold *hold = arg;

	if (READ_ONCE(hold->state) != HOLD_QUEUED ||
	    !(READ_ONCE(task->__state) & (__TASK_STOPPED | __TASK_TRACED)))
		return -EBUSY;
	hold->work.func = (void *)kfree;
	return 0;
}

/*
 * A work that waits in a stopped thread could keep the module for ever. What has
 * stopped a thread ends under its siglock, so while that is ours nobody runs the
 * work, and it can become one that needs no module.
 */
static bool disarmed(struct tcmi_hold *hold)
{
	BUILD_BUG_ON(offsetof(struct tcmi_hold, work));
	/* There the kernel checks what type of function it calls. */
	if (IS_ENABLED(CONFIG_CFI_CLANG))
		return false;
	return !tcmi_under_siglock(hold->task, disarm_stopped, hold);
}

/* Lets go of a hold that the list had. */
static void let_go(struct tcmi_hold *hold)
{
	struct tcmi_freeze *freeze = hold->freeze;
	struct task_struct *task = hold->task;

	if (disarmed(hold)) {
		put_freeze(freeze);
		put_task_struct(task);
		module_put(THIS_MODULE);
	} else {
		put_hold(hold);
	}
}

void tcmi_thaw(struct tcmi_freeze *freeze)
{
	struct tcmi_hold *hold, *next;
	LIST_HEAD(holds);

	spin_lock(&holds_lock);
	WRITE_ONCE(freeze->thawed, true);
	list_splice_init(&freeze->holds, &holds);
	/* Those whose work still waits are no longer anyone's. */
	list_for_each_entry(hold, &holds, list) {
		if (hash_hashed(&hold->by_task))
			hash_del(&hold->by_task);
	}
	spin_unlock(&holds_lock);
	wake_up_all(&freeze->thawing);
	list_for_each_entry_safe(hold, next, &holds, list)
		let_go(hold);
	put_freeze(freeze);
}

struct tcmi_hold *tcmi_next_hold(struct tcmi_freeze *freeze, struct tcmi_hold *hold)
{
	/* Complete: nobody adds to the list, and only a thaw takes from it. */
	if (!hold)
		return list_first_entry_or_null(&freeze->holds, struct tcmi_hold, list);
	if (list_is_last(&hold->list, &freeze->holds))
		return NULL;
	return list_next_entry(hold, list);
}

struct task_struct *tcmi_held_task(const struct tcmi_hold *hold)
{
	return hold->task;
}

/*
 * Once off its CPU, a thread's registers are in memory until it enters user mode
 * again. A held one waits for us in leave(), one stopped by job control needs the
 * siglock to go on.
 */
static bool is_at_rest(struct tcmi_hold *hold)
{
	if (READ_ONCE(hold->state) != HOLD_HELD && !is_stopped(hold->task))
		return false;
	/* Pairs with the release in finish_task(): what it left in memory is seen. */
	return !smp_load_acquire(&hold->task->on_cpu);
}

struct look {
	struct tcmi_hold *hold;
	tcmi_look_t at;
	void *arg;
};

/* EAGAIN: it is on its way to rest. */
static int look_at_rest(struct task_struct *task, struct sighand_struct *sighand, void *arg)
{
	struct look *look = arg;

	return is_at_rest(look->hold) ? look->at(task, sighand, look->arg) : -EAGAIN;
}

static int try_to_look(struct look *look)
{
	struct task_struct *task = look->hold->task;

	if (READ_ONCE(look->hold->state) == HOLD_ENDED || task->flags & PF_EXITING)
		return -ESRCH;
	return tcmi_under_siglock(task, look_at_rest, look);
}

int tcmi_look_at(struct tcmi_hold *hold, tcmi_look_t look, void *arg)
{
	struct look how = { .hold = hold, .at = look, .arg = arg };
	int err;

	do {
		mutex_lock(&hold->looked_at);
		err = try_to_look(&how);
		mutex_unlock(&hold->looked_at);
		if (err == -EAGAIN && signal_pending(current))
			return -EINTR;
		cond_resched();
	} while (err == -EAGAIN);
	return err;
}

int tcmi_freeze_init(void)
{
	return tcmi_find_tracepoints(fork_probe, ARRAY_SIZE(fork_probe));
}
