// SPDX-License-Identifier: GPL-2.0-only
/* Who may hold whom. */

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/mm_types.h>
#include <linux/sched/coredump.h>
#include <linux/sched/task.h>
#include <linux/user_namespace.h>

#include "tcmi.h"

static bool has_ptrace(struct user_namespace *ns)
{
	return ns_capable(ns, CAP_SYS_PTRACE);
}

/* ptrace's rule for PTRACE_ATTACH, which is not exported; security modules are not asked. */
bool tcmi_may_hold(struct task_struct *task)
{
	const struct cred *mine = current_cred();
	const struct cred *theirs;
	bool may;

	rcu_read_lock();
	theirs = __task_cred(task);
	may = uid_eq(mine->uid, theirs->uid) && uid_eq(mine->uid, theirs->euid) &&
	      uid_eq(mine->uid, theirs->suid) && gid_eq(mine->gid, theirs->gid) &&
	      gid_eq(mine->gid, theirs->egid) && gid_eq(mine->gid, theirs->sgid) &&
	      mine->user_ns == theirs->user_ns &&
	      cap_issubset(theirs->cap_permitted, mine->cap_permitted);
	may = may || has_ptrace(theirs->user_ns);
	rcu_read_unlock();
	task_lock(task);
	may = may && task->mm &&
	      (__get_dumpable(task->mm->flags) == SUID_DUMP_USER || has_ptrace(task->mm->user_ns));
	task_unlock(task);
	return may;
}
