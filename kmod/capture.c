// SPDX-License-Identifier: GPL-2.0-only
/* What frozen threads were doing, as records in a buffer. */

#include <linux/elf.h>
#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/regset.h>
#include <linux/sched/signal.h>
#include <linux/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "tcmi.h"

static_assert(sizeof(((struct tcmi_captured_thread *)0)->regs) ==
	      sizeof(struct user_regs_struct));
static_assert(sizeof(kernel_siginfo_t) <= TCMI_SIGINFO_BYTES);

/* Room for one record. */
struct bounce {
	void *data;
	size_t room;
	/* What the record takes, which may be more. */
	size_t length;
	/* As which its reader knows process ids. */
	struct pid_namespace *ns;
};

static unsigned int count_queued(const struct sigpending *pending)
{
	struct sigqueue *queued;
	unsigned int count = 0;

	list_for_each_entry(queued, &pending->list, list)
		count++;
	return count;
}

static void *put_queued(void *to, const struct sigpending *pending)
{
	struct sigqueue *queued;

	list_for_each_entry(queued, &pending->list, list) {
		memset(to, 0, TCMI_SIGINFO_BYTES);
		memcpy(to, &queued->info, sizeof(queued->info));
		to += TCMI_SIGINFO_BYTES;
	}
	return to;
}

static u64 bits(const sigset_t *set)
{
	return set->sig[0];
}

static bool fits(struct bounce *bounce, size_t length)
{
	bounce->length = length;
	return length <= bounce->room;
}

static void put_actions(struct tcmi_sigaction *to, const struct sighand_struct *sighand)
{
	const struct k_sigaction *from = sighand->action;
	int i;

	for (i = 0; i < _NSIG; i++) {
		to[i].handler = (unsigned long)from[i].sa.sa_handler;
		to[i].flags = from[i].sa.sa_flags;
		to[i].restorer = (unsigned long)from[i].sa.sa_restorer;
		to[i].mask = bits(&from[i].sa.sa_mask);
	}
}

static int look_at_process(struct task_struct *task, struct sighand_struct *sighand, void *arg)
{
	struct signal_struct *signal = task->signal;
	unsigned int queued = count_queued(&signal->shared_pending);
	struct bounce *bounce = arg;
	struct tcmi_captured_process *record = bounce->data;

	if (!fits(bounce, sizeof(*record) + queued * TCMI_SIGINFO_BYTES))
		return -EMSGSIZE;
	memset(record, 0, sizeof(*record));
	record->type = TCMI_RECORD_PROCESS;
	record->length = bounce->length;
	record->pid = task_tgid_nr_ns(task, bounce->ns);
	if (signal->flags & SIGNAL_STOP_STOPPED || signal->group_stop_count)
		record->stopped_by = task->jobctl & JOBCTL_STOP_SIGMASK;
	record->pending = bits(&signal->shared_pending.signal);
	record->pending_count = queued;
	put_actions(record->actions, sighand);
	put_queued(record + 1, &signal->shared_pending);
	return 0;
}

static const struct user_regset *find_regset(const struct user_regset_view *view,
					     unsigned int type)
{
	unsigned int i;

	for (i = 0; i < view->n; i++) {
		if (view->regsets[i].core_note_type == type)
			return &view->regsets[i];
	}
	return NULL;
}

static void put_signals(struct tcmi_captured_thread *record, struct task_struct *task)
{
	record->blocked = bits(test_tsk_restore_sigmask(task) ? &task->saved_sigmask :
								&task->blocked);
	record->pending = bits(&task->pending.signal);
	record->altstack_sp = task->sas_ss_sp;
	record->altstack_size = task->sas_ss_size;
	record->altstack_flags = task->sas_ss_flags;
}

static void put_registrations(struct tcmi_captured_thread *record, struct task_struct *task)
{
	record->rseq = (unsigned long)task->rseq;
	record->rseq_length = tcmi_rseq_length(task);
	record->rseq_signature = task->rseq_sig;
	record->robust_list = (unsigned long)task->robust_list;
	record->clear_child_tid = (unsigned long)task->clear_child_tid;
}

static int look_at_thread(struct task_struct *task, struct sighand_struct *sighand, void *arg)
{
	const struct user_regset_view *view = task_user_regset_view(task);
	const struct user_regset *general = find_regset(view, NT_PRSTATUS);
	const struct user_regset *xstate = find_regset(view, NT_X86_XSTATE);
	unsigned int queued = count_queued(&task->pending);
	size_t xstate_length;
	struct bounce *bounce = arg;
	struct tcmi_captured_thread *record = bounce->data;
	void *next;
	int err;

	if (view->e_machine != EM_X86_64 || !general || !xstate)
		return -EOPNOTSUPP;
	xstate_length = xstate->n * xstate->size;
	if (!fits(bounce, sizeof(*record) + queued * TCMI_SIGINFO_BYTES + xstate_length))
		return -EMSGSIZE;
	memset(record, 0, sizeof(*record));
	record->type = TCMI_RECORD_THREAD;
	record->length = bounce->length;
	record->pid = task_tgid_nr_ns(task, bounce->ns);
	record->tid = task_pid_nr_ns(task, bounce->ns);
	if (READ_ONCE(task->__state) & __TASK_STOPPED)
		record->flags = TCMI_THREAD_STOPPED;
	put_signals(record, task);
	put_registrations(record, task);
	record->pending_count = queued;
	next = put_queued(record + 1, &task->pending);
	record->xstate_length = xstate_length;
	err = regset_get(task, general, sizeof(record->regs), record->regs);
	if (err < 0)
		return err;
	err = regset_get(task, xstate, xstate_length, next);
	return err < 0 ? err : 0;
}

/* Makes room until the record fits: signals may arrive meanwhile. */
static int fill(struct bounce *bounce, struct tcmi_hold *hold, tcmi_look_t look)
{
	int err;

	for (;;) {
		err = tcmi_look_at(hold, look, bounce);
		if (err != -EMSGSIZE)
			return err;
		kvfree(bounce->data);
		bounce->room = bounce->length + 16 * TCMI_SIGINFO_BYTES;
		bounce->data = kvmalloc(bounce->room, GFP_KERNEL_ACCOUNT);
		if (!bounce->data) {
			bounce->room = 0;
			return -ENOMEM;
		}
	}
}

/* Where a user's buffer is filled up to, and further where it is too small. */
struct output {
	void __user *buffer;
	u64 room;
	u64 length;
};

static int put_record(struct output *output, struct bounce *bounce, struct tcmi_hold *hold,
		      tcmi_look_t look)
{
	int err = fill(bounce, hold, look);

	if (err)
		return err == -ESRCH ? 0 : err;
	if (output->length + bounce->length <= output->room &&
	    copy_to_user(output->buffer + output->length, bounce->data, bounce->length))
		return -EFAULT;
	output->length += bounce->length;
	return 0;
}

int tcmi_capture(struct tcmi_freeze *freeze, struct tcmi_capture_args *args)
{
	struct output output = { .buffer = u64_to_user_ptr(args->buffer), .room = args->length };
	struct bounce bounce = { .ns = task_active_pid_ns(current) };
	struct tcmi_hold *hold = NULL;
	int err = 0;

	if (args->reserved)
		return -EINVAL;
	while (!err && (hold = tcmi_next_hold(freeze, hold))) {
		if (fatal_signal_pending(current))
			err = -EINTR;
		if (!err && thread_group_leader(tcmi_held_task(hold)))
			err = put_record(&output, &bounce, hold, look_at_process);
		if (!err)
			err = put_record(&output, &bounce, hold, look_at_thread);
	}
	kvfree(bounce.data);
	if (err)
		return err;
	args->length = output.length;
	if (!output.length)
		return -ESRCH;
	return output.length > output.room ? -EMSGSIZE : 0;
}
