/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _TCMI_H
#define _TCMI_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "compat.h"
#include "uapi/tcmi.h"

struct tcmi_freeze;
struct tcmi_peer;

/* An open file of /dev/tcmi. */
struct tcmi_session {
	/* Serializes ioctls, so at most one of them changes what follows. */
	struct mutex lock;
	struct tcmi_freeze *freeze;
	struct tcmi_peer *peer;
	bool serves;
	/* Under the watches' lock. */
	struct list_head watches;
	struct list_head told;
	/* Readers and pollers. */
	wait_queue_head_t readable;
};

/* freeze.c */
struct tcmi_hold;

/* Ok: every thread is held. Error: all run on. */
struct tcmi_freeze *tcmi_freeze(struct tcmi_freeze_args *args);
void tcmi_thaw(struct tcmi_freeze *freeze);
int tcmi_freeze_init(void);

/*
 * The frozen threads, one after the other; NULL is before the first and after the
 * last. Valid while the caller keeps others from thawing.
 */
struct tcmi_hold *tcmi_next_hold(struct tcmi_freeze *freeze, struct tcmi_hold *hold);
struct task_struct *tcmi_held_task(const struct tcmi_hold *hold);

typedef int (*tcmi_look_t)(struct task_struct *task, struct sighand_struct *sighand,
			   void *arg);

/* ESRCH: it is reaped. EAGAIN: it may be about to end, or to execve. */
int tcmi_under_siglock(struct task_struct *task, tcmi_look_t look, void *arg);

/*
 * Calls @look with the thread off its CPU, its stack in place and its siglock held.
 * ESRCH: it has ended.
 */
int tcmi_look_at(struct tcmi_hold *hold, tcmi_look_t look, void *arg);

/* restart.c: in the thread, before it has gone on. */
void tcmi_restart_what_we_ended(struct pt_regs *regs);

/* policy.c */
bool tcmi_may_hold(struct task_struct *task);

/* charge.c */
int tcmi_charge(struct tcmi_charge_args *args);

/* capture.c */
int tcmi_capture(struct tcmi_freeze *freeze, struct tcmi_capture_args *args);

/* pages.c */
int tcmi_send(struct tcmi_freeze *freeze, struct tcmi_send_args *args);

/* peer.c */
struct tcmi_peer *tcmi_set_peer(const struct tcmi_peer_set_args *args);
int tcmi_ask_peer(struct tcmi_peer *peer, struct tcmi_peer_ask_args *args);
void tcmi_forget_peer(struct tcmi_peer *peer);
/* It goes on to answer. */
void tcmi_abandon_peer(struct tcmi_peer *peer);
void tcmi_peer_exit(void);

/* trace.c: tracepoints that are not exported, by name. */
struct tcmi_probe {
	const char *name;
	void *function;
	struct tracepoint *tracepoint;
};

int tcmi_find_tracepoints(struct tcmi_probe *probes, size_t count);
int tcmi_probe(struct tcmi_probe *probes, size_t count);
void tcmi_unprobe(struct tcmi_probe *probes, size_t count);

/* watch.c */
int tcmi_watch(struct tcmi_session *session, pid_t pid);
int tcmi_unwatch(struct tcmi_session *session, pid_t pid);
void tcmi_unwatch_all(struct tcmi_session *session);
bool tcmi_has_event(struct tcmi_session *session);
bool tcmi_take_event(struct tcmi_session *session, struct tcmi_event *event);
int tcmi_watch_init(void);

/* serve.c */
struct tcmi_question {
	u32 entry;
	u32 op;
	u32 flags;
	u64 key;
	/* For the opener's ids. */
	const struct cred *cred;
	/* The process that it names where the asker stands: 0 for none, NULL if it is not there. */
	pid_t target_nr;
	struct pid *target;
	const void *data;
	size_t data_length;
};

/* The answer's text ends in a NUL after *length bytes; the caller frees it. */
int tcmi_ask(const struct tcmi_question *question, char **text, size_t *length);
int tcmi_serve(struct tcmi_session *session);
void tcmi_stop_serving(struct tcmi_session *session);
bool tcmi_has_request(void);
ssize_t tcmi_take_request(char __user *buffer, size_t room);
ssize_t tcmi_answer(const char __user *buffer, size_t length);

/* ctlfs.c */
int tcmi_ctl_add(const struct tcmi_ctl_add_args *args);
int tcmi_ctl_remove(const struct tcmi_ctl_remove_args *args);
int tcmi_ctl_pin(void);
void tcmi_ctl_unpin(void);
void tcmi_ctl_version(struct tcmi_version *version);
int tcmi_ctlfs_init(void);
void tcmi_ctlfs_exit(void);

#endif /* _TCMI_H */
