/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where kernels differ. Kbuild looks at what this kernel exports and declares,
 * never at its version: distributions backport.
 */
#ifndef _TCMI_COMPAT_H
#define _TCMI_COMPAT_H

#include <linux/fs.h>
#include <linux/sched.h>

#ifdef TCMI_HAS_nop_mnt_idmap
#define tcmi_idmap mnt_idmap
#else
#define tcmi_idmap user_namespace
#endif

static inline void tcmi_set_times(struct inode *inode)
{
#ifdef TCMI_HAS_simple_inode_init_ts
	simple_inode_init_ts(inode);
#else
	inode->i_atime = current_time(inode);
	inode->i_mtime = inode->i_atime;
	inode->i_ctime = inode->i_atime;
#endif
}

#ifdef TCMI_HAS_kill_litter_super
#define tcmi_kill_super kill_litter_super
#else
#define tcmi_kill_super kill_anon_super
#endif

/* Threads of a process that never return to its code. */
#ifdef PF_USER_WORKER
#define TCMI_PF_WORKER (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER)
#else
#define TCMI_PF_WORKER (PF_KTHREAD | PF_IO_WORKER)
#endif

/* MSG_SPLICE_PAGES is declared before TCP knows it: that is when sendpage is gone. */
#ifndef TCMI_HAS_sock_no_sendpage
#define TCMI_SPLICES
#endif

static inline u32 tcmi_rseq_length(const struct task_struct *task)
{
	if (!task->rseq)
		return 0;
#ifdef TCMI_HAS_rseq_len
	return task->rseq_len;
#else
	return sizeof(*task->rseq);
#endif
}

#endif /* _TCMI_COMPAT_H */
