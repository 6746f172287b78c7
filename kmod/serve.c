// SPDX-License-Identifier: GPL-2.0-only
/* Questions of the control filesystem, and the session that answers them. */

#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "tcmi.h"

/* On the stack of who asks. */
struct waiting {
	/* In unread or unanswered; taken out by who answers, or by a killed asker. */
	struct list_head list;
	const struct tcmi_question *question;
	struct completion answered;
	u64 id;
	pid_t asker;
	pid_t target;
	/* The answer. */
	int error;
	char *text;
	size_t length;
};

/* Guards what follows. */
static DEFINE_SPINLOCK(waiting_lock);
static LIST_HEAD(unread);
static LIST_HEAD(unanswered);
static u64 last_id;
static struct tcmi_session *server;
static struct pid_namespace *server_ns;

/* Under waiting_lock. Between namespaces that are one, whether it is there is not our question. */
static pid_t target_of(const struct tcmi_question *question)
{
	if (task_active_pid_ns(current) == server_ns)
		return question->target_nr;
	return pid_nr_ns(question->target, server_ns);
}

/* Under waiting_lock. */
static int enqueue(struct waiting *waiting)
{
	const struct tcmi_question *question = waiting->question;

	if (!server)
		return -ENOTCONN;
	waiting->id = ++last_id;
	waiting->asker = pid_nr_ns(task_pid(current), server_ns);
	waiting->target = target_of(question);
	list_add_tail(&waiting->list, &unread);
	wake_up_interruptible_poll(&server->readable, EPOLLIN | EPOLLRDNORM);
	return 0;
}

/* Under waiting_lock. The asker's stack is gone once it is complete. */
static void answer(struct waiting *waiting, int error, char *text, size_t length)
{
	list_del_init(&waiting->list);
	waiting->error = error;
	waiting->text = text;
	waiting->length = length;
	complete(&waiting->answered);
}

int tcmi_ask(const struct tcmi_question *question, char **text, size_t *length)
{
	struct waiting waiting = { .question = question };
	int err;

	init_completion(&waiting.answered);
	spin_lock(&waiting_lock);
	err = enqueue(&waiting);
	spin_unlock(&waiting_lock);
	if (err)
		return err;
	/* A command may take minutes: whoever waits can be killed, not interrupted. */
	if (wait_for_completion_killable(&waiting.answered)) {
		spin_lock(&waiting_lock);
		if (!list_empty(&waiting.list)) {
			list_del_init(&waiting.list);
			waiting.error = EINTR;
		}
		spin_unlock(&waiting_lock);
	}
	if (waiting.error) {
		kvfree(waiting.text);
		return -waiting.error;
	}
	*text = waiting.text;
	*length = waiting.length;
	return 0;
}

int tcmi_serve(struct tcmi_session *session)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	int err;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	err = tcmi_ctl_pin();
	if (err)
		return err;
	spin_lock(&waiting_lock);
	server = session;
	server_ns = get_pid_ns(ns);
	spin_unlock(&waiting_lock);
	session->serves = true;
	return 0;
}

void tcmi_stop_serving(struct tcmi_session *session)
{
	struct waiting *waiting, *next;
	struct pid_namespace *ns;

	spin_lock(&waiting_lock);
	ns = server_ns;
	server = NULL;
	server_ns = NULL;
	list_splice_tail_init(&unread, &unanswered);
	list_for_each_entry_safe(waiting, next, &unanswered, list)
		answer(waiting, ENOTCONN, NULL, 0);
	spin_unlock(&waiting_lock);
	put_pid_ns(ns);
	session->serves = false;
	tcmi_ctl_unpin();
}

bool tcmi_has_request(void)
{
	return !list_empty_careful(&unread);
}

static void describe(struct tcmi_request *request, const struct waiting *waiting)
{
	const struct tcmi_question *question = waiting->question;

	*request = (struct tcmi_request) {
		.type = TCMI_MESSAGE_REQUEST,
		.length = sizeof(*request) + question->data_length,
		.id = waiting->id,
		.key = question->key,
		.entry = question->entry,
		.op = question->op,
		.flags = question->flags,
		.uid = from_kuid(&init_user_ns, question->cred->fsuid),
		.gid = from_kgid(&init_user_ns, question->cred->fsgid),
		.tid = waiting->asker,
		.target = waiting->target,
		.data_length = question->data_length,
	};
	memcpy(request + 1, question->data, question->data_length);
}

/* 0: there is none. */
ssize_t tcmi_take_request(char __user *buffer, size_t room)
{
	struct tcmi_request *request;
	struct waiting *waiting;
	ssize_t length = 0;

	/* Copied twice, because the asker may be killed while a page of @buffer is missing. */
	request = kmalloc(sizeof(*request) + TCMI_CTL_COMMAND_BYTES_MAX, GFP_KERNEL);
	if (!request)
		return -ENOMEM;
	spin_lock(&waiting_lock);
	waiting = list_first_entry_or_null(&unread, struct waiting, list);
	if (waiting && sizeof(*request) + waiting->question->data_length > room) {
		length = -EMSGSIZE;
	} else if (waiting) {
		describe(request, waiting);
		length = request->length;
		list_move_tail(&waiting->list, &unanswered);
	}
	spin_unlock(&waiting_lock);
	if (length > 0 && copy_to_user(buffer, request, length))
		length = -EFAULT;
	kfree(request);
	return length;
}

/* Under waiting_lock. */
static struct waiting *find(u64 id)
{
	struct waiting *waiting;

	list_for_each_entry(waiting, &unanswered, list) {
		if (waiting->id == id)
			return waiting;
	}
	return NULL;
}

static char *take_text(const char __user *from, size_t length)
{
	char *text = kvmalloc(length + 1, GFP_KERNEL_ACCOUNT);

	if (!text)
		return ERR_PTR(-ENOMEM);
	if (copy_from_user(text, from, length)) {
		kvfree(text);
		return ERR_PTR(-EFAULT);
	}
	text[length] = '\0';
	return text;
}

ssize_t tcmi_answer(const char __user *buffer, size_t length)
{
	struct tcmi_answer header;
	struct waiting *waiting;
	char *text;

	if (length < sizeof(header))
		return -EINVAL;
	if (copy_from_user(&header, buffer, sizeof(header)))
		return -EFAULT;
	if (header.data_length > TCMI_CTL_VALUE_BYTES_MAX || header.error > MAX_ERRNO ||
	    length != sizeof(header) + header.data_length)
		return -EINVAL;
	text = take_text(buffer + sizeof(header), header.data_length);
	if (IS_ERR(text))
		return PTR_ERR(text);
	spin_lock(&waiting_lock);
	waiting = find(header.id);
	if (waiting)
		answer(waiting, header.error, text, header.data_length);
	spin_unlock(&waiting_lock);
	if (!waiting) {
		kvfree(text);
		return -ENOENT;
	}
	return length;
}
