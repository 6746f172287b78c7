// SPDX-License-Identifier: GPL-2.0-only
/* A frozen process's memory into a socket of its migration. */

#include <linux/bvec.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/net.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uio.h>

#include "tcmi.h"

#define BATCH_PAGES 32

/* A part of what is to be sent, at most a batch, and room for it. */
struct batch {
	struct socket *socket;
	struct task_struct *task;
	struct mm_struct *mm;
	u64 address;
	size_t length;
	void *copy;
};

#ifdef TCMI_SPLICES
#define COPY_BYTES 0

static void fill_vectors(struct bio_vec *vectors, struct page **pages, long count,
			 const struct batch *batch)
{
	size_t offset = offset_in_page(batch->address);
	size_t left = batch->length;
	long i;

	for (i = 0; i < count; i++) {
		bvec_set_page(&vectors[i], pages[i], min(left, PAGE_SIZE - offset), offset);
		left -= vectors[i].bv_len;
		offset = 0;
	}
}

static ssize_t send_pages(struct batch *batch, struct page **pages, long count)
{
	struct msghdr message = { .msg_flags = MSG_SPLICE_PAGES | MSG_NOSIGNAL };
	struct bio_vec vectors[BATCH_PAGES + 1];
	size_t room = count * PAGE_SIZE - offset_in_page(batch->address);

	batch->length = min(batch->length, room);
	fill_vectors(vectors, pages, count, batch);
	iov_iter_bvec(&message.msg_iter, ITER_SOURCE, vectors, count, batch->length);
	return sock_sendmsg(batch->socket, &message);
}

/*
 * Without a copy. What is on its way is the process's own pages: thawed before the
 * peer has them, it may change them, so only a migration that failed thaws early.
 */
static ssize_t send_batch(struct batch *batch)
{
	struct page *pages[BATCH_PAGES + 1];
	long wanted = DIV_ROUND_UP(offset_in_page(batch->address) + batch->length, PAGE_SIZE);
	ssize_t ret;
	long count;
	long i;

	if (mmap_read_lock_killable(batch->mm))
		return -EINTR;
	count = get_user_pages_remote(batch->mm, batch->address & PAGE_MASK, wanted, FOLL_FORCE,
				      pages, NULL);
	mmap_read_unlock(batch->mm);
	if (count <= 0)
		return count ?: -EFAULT;
	ret = send_pages(batch, pages, count);
	for (i = 0; i < count; i++)
		put_page(pages[i]);
	return ret;
}
#else
#define COPY_BYTES (BATCH_PAGES * PAGE_SIZE)

static ssize_t send_batch(struct batch *batch)
{
	struct msghdr message = { .msg_flags = MSG_NOSIGNAL };
	struct kvec vector = { .iov_base = batch->copy };
	int got = access_process_vm(batch->task, batch->address, batch->copy, batch->length,
				    FOLL_FORCE);

	if (got <= 0)
		return -EFAULT;
	vector.iov_len = got;
	return kernel_sendmsg(batch->socket, &message, &vector, 1, got);
}
#endif

/* What was sent, if anything was; the rest can be asked for again. */
static ssize_t send_range(struct batch *batch, u64 length)
{
	u64 sent = 0;
	ssize_t ret = 0;

	while (sent < length) {
		batch->length = min_t(u64, length - sent, BATCH_PAGES * PAGE_SIZE);
		ret = send_batch(batch);
		if (ret <= 0)
			break;
		sent += ret;
		batch->address += ret;
		cond_resched();
	}
	return sent ?: ret;
}

static ssize_t send_from(struct task_struct *task, struct socket *socket,
			 const struct tcmi_send_args *args)
{
	struct batch batch = { .socket = socket, .task = task, .address = args->address };
	ssize_t ret = -ENOMEM;

	batch.mm = get_task_mm(task);
	if (!batch.mm)
		return -ESRCH;
	if (COPY_BYTES)
		batch.copy = kvmalloc(COPY_BYTES, GFP_KERNEL_ACCOUNT);
	if (!COPY_BYTES || batch.copy)
		ret = send_range(&batch, args->length);
	kvfree(batch.copy);
	mmput(batch.mm);
	return ret;
}

static struct task_struct *find_frozen(struct tcmi_freeze *freeze, pid_t nr)
{
	struct tcmi_hold *hold = NULL;

	while ((hold = tcmi_next_hold(freeze, hold))) {
		if (task_tgid_vnr(tcmi_held_task(hold)) == nr)
			return tcmi_held_task(hold);
	}
	return NULL;
}

int tcmi_send(struct tcmi_freeze *freeze, struct tcmi_send_args *args)
{
	struct task_struct *task = find_frozen(freeze, args->pid);
	struct socket *socket;
	ssize_t ret;
	int err;

	if (args->sent || !args->length || args->address + args->length < args->address ||
	    args->address + args->length > TASK_SIZE_MAX)
		return -EINVAL;
	if (!task)
		return -ESRCH;
	socket = sockfd_lookup(args->socket, &err);
	if (!socket)
		return err;
	if (socket->type == SOCK_STREAM)
		ret = send_from(task, socket, args);
	else
		ret = -EPROTOTYPE;
	sockfd_put(socket);
	if (ret < 0)
		return ret;
	args->sent = ret;
	return 0;
}
