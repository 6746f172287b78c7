// SPDX-License-Identifier: GPL-2.0-only
/* /dev/tcmi: sessions and their commands. */

#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>

#include "tcmi.h"

static int session_open(struct inode *inode, struct file *file)
{
	struct tcmi_session *session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);

	if (!session)
		return -ENOMEM;
	mutex_init(&session->lock);
	INIT_LIST_HEAD(&session->watches);
	INIT_LIST_HEAD(&session->told);
	init_waitqueue_head(&session->readable);
	file->private_data = session;
	return stream_open(inode, file);
}

static int session_release(struct inode *inode, struct file *file)
{
	struct tcmi_session *session = file->private_data;

	if (session->freeze)
		tcmi_thaw(session->freeze);
	if (session->serves)
		tcmi_stop_serving(session);
	tcmi_unwatch_all(session);
	if (session->peer)
		tcmi_abandon_peer(session->peer);
	kfree(session);
	return 0;
}

union tcmi_args {
	struct tcmi_version version;
	struct tcmi_freeze_args freeze;
	struct tcmi_capture_args capture;
	struct tcmi_send_args send;
	struct tcmi_watch_args watch;
	struct tcmi_charge_args charge;
	struct tcmi_ctl_serve_args serve;
	struct tcmi_ctl_add_args add;
	struct tcmi_ctl_remove_args remove;
	struct tcmi_peer_set_args peer_set;
	struct tcmi_peer_ask_args peer_ask;
};

static long freeze(struct tcmi_session *session, struct tcmi_freeze_args *args)
{
	struct tcmi_freeze *freeze;

	if (session->freeze)
		return -EBUSY;
	freeze = tcmi_freeze(args);
	if (IS_ERR(freeze))
		return PTR_ERR(freeze);
	session->freeze = freeze;
	return 0;
}

static long thaw(struct tcmi_session *session)
{
	if (!session->freeze)
		return -EINVAL;
	tcmi_thaw(session->freeze);
	session->freeze = NULL;
	return 0;
}

static long watch(struct tcmi_session *session, const struct tcmi_watch_args *args,
		  int (*act)(struct tcmi_session *session, pid_t pid))
{
	if (args->reserved || args->pid <= 0)
		return -EINVAL;
	return act(session, args->pid);
}

static long serve(struct tcmi_session *session, const struct tcmi_ctl_serve_args *args)
{
	if (args->reserved)
		return -EINVAL;
	return session->serves ? -EBUSY : tcmi_serve(session);
}

static long set_peer(struct tcmi_session *session, const struct tcmi_peer_set_args *args)
{
	struct tcmi_peer *peer;

	if (session->peer)
		return -EBUSY;
	peer = tcmi_set_peer(args);
	if (IS_ERR(peer))
		return PTR_ERR(peer);
	session->peer = peer;
	return 0;
}

static long forget_peer(struct tcmi_session *session)
{
	if (!session->peer)
		return -EINVAL;
	tcmi_forget_peer(session->peer);
	session->peer = NULL;
	return 0;
}

static long run(struct tcmi_session *session, unsigned int command, union tcmi_args *args)
{
	switch (command) {
	case TCMI_VERSION:
		args->version.abi = TCMI_ABI;
		tcmi_ctl_version(&args->version);
		return 0;
	case TCMI_FREEZE:
		return freeze(session, &args->freeze);
	case TCMI_CAPTURE:
		return session->freeze ? tcmi_capture(session->freeze, &args->capture) : -EINVAL;
	case TCMI_SEND:
		return session->freeze ? tcmi_send(session->freeze, &args->send) : -EINVAL;
	case TCMI_THAW:
		return thaw(session);
	case TCMI_WATCH:
		return watch(session, &args->watch, tcmi_watch);
	case TCMI_UNWATCH:
		return watch(session, &args->watch, tcmi_unwatch);
	case TCMI_CTL_SERVE:
		return serve(session, &args->serve);
	case TCMI_CTL_ADD:
		return session->serves ? tcmi_ctl_add(&args->add) : -EINVAL;
	case TCMI_CTL_REMOVE:
		return session->serves ? tcmi_ctl_remove(&args->remove) : -EINVAL;
	case TCMI_PEER_SET:
		return set_peer(session, &args->peer_set);
	case TCMI_PEER_ASK:
		return session->peer ? tcmi_ask_peer(session->peer, &args->peer_ask) : -EINVAL;
	case TCMI_PEER_FORGET:
		return forget_peer(session);
	case TCMI_CHARGE:
		return tcmi_charge(&args->charge);
	default:
		return -ENOTTY;
	}
}

static long run_locked(struct tcmi_session *session, unsigned int command, union tcmi_args *args,
		       void __user *user)
{
	long ret;

	if (mutex_lock_killable(&session->lock))
		return -EINTR;
	ret = run(session, command, args);
	if ((!ret || ret == -EMSGSIZE) && (_IOC_DIR(command) & _IOC_READ) &&
	    copy_to_user(user, args, _IOC_SIZE(command))) {
		ret = -EFAULT;
		if (command == TCMI_FREEZE)
			thaw(session);
	}
	mutex_unlock(&session->lock);
	return ret;
}

static long session_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	struct tcmi_session *session = file->private_data;
	void __user *user = (void __user *)arg;
	size_t size = _IOC_SIZE(command);
	union tcmi_args args = {};
	long ret;

	if (size > sizeof(args))
		return -ENOTTY;
	if ((_IOC_DIR(command) & _IOC_WRITE) && copy_from_user(&args, user, size))
		return -EFAULT;
	ret = run_locked(session, command, &args, user);
	/* Keys are among them. */
	memzero_explicit(&args, sizeof(args));
	return ret;
}

static bool is_readable(struct tcmi_session *session)
{
	return tcmi_has_event(session) || (READ_ONCE(session->serves) && tcmi_has_request());
}

/* 0: there is nothing. */
static ssize_t take_message(struct tcmi_session *session, char __user *buffer, size_t room)
{
	struct tcmi_event event;

	if (tcmi_has_event(session)) {
		if (room < sizeof(event))
			return -EMSGSIZE;
		if (tcmi_take_event(session, &event))
			return copy_to_user(buffer, &event, sizeof(event)) ? -EFAULT :
									     sizeof(event);
	}
	return READ_ONCE(session->serves) ? tcmi_take_request(buffer, room) : 0;
}

static ssize_t session_read(struct file *file, char __user *buffer, size_t room, loff_t *at)
{
	struct tcmi_session *session = file->private_data;
	ssize_t ret;

	for (;;) {
		ret = take_message(session, buffer, room);
		if (ret)
			return ret;
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(session->readable, is_readable(session)))
			return -ERESTARTSYS;
	}
}

static ssize_t session_write(struct file *file, const char __user *buffer, size_t length,
			     loff_t *at)
{
	struct tcmi_session *session = file->private_data;

	return READ_ONCE(session->serves) ? tcmi_answer(buffer, length) : -EINVAL;
}

static __poll_t session_poll(struct file *file, poll_table *table)
{
	struct tcmi_session *session = file->private_data;

	poll_wait(file, &session->readable, table);
	return is_readable(session) ? EPOLLIN | EPOLLRDNORM : 0;
}

static const struct file_operations session_operations = {
	.owner = THIS_MODULE,
	.open = session_open,
	.release = session_release,
	.unlocked_ioctl = session_ioctl,
	.read = session_read,
	.write = session_write,
	.poll = session_poll,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tcmi",
	.mode = 0600,
	.fops = &session_operations,
};

static int __init tcmi_init(void)
{
	int err;

	err = tcmi_freeze_init();
	if (!err)
		err = tcmi_watch_init();
	if (!err)
		err = tcmi_ctlfs_init();
	if (err)
		return err;
	err = misc_register(&device);
	if (err)
		tcmi_ctlfs_exit();
	return err;
}

/* No session is open, no work queued: each has a reference to the module. */
static void __exit tcmi_exit(void)
{
	misc_deregister(&device);
	tcmi_peer_exit();
	tcmi_ctlfs_exit();
	/* Probes that are unregistered may still run. */
	tracepoint_synchronize_unregister();
	/* A thread that was thawed may not have returned from hold_thread() yet. */
	synchronize_rcu_tasks();
	/* Inodes of the tree are freed by RCU. */
	rcu_barrier();
}

module_init(tcmi_init);
module_exit(tcmi_exit);

MODULE_AUTHOR("The tcmi contributors");
MODULE_DESCRIPTION("Freezes processes for migration, and serves the control filesystem");
MODULE_LICENSE("GPL");
