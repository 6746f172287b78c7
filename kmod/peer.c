// SPDX-License-Identifier: GPL-2.0-only
/*
 * A sign of life that needs no daemon: the modules of a link's two ends ask each other
 * by UDP, so that a dead daemon can be told from a dead machine.
 *
 * Each peer has a socket of its own, connected to the peer's address, and a thread that
 * reads it. They outlive the session, but not the module: its exit ends them.
 */

#include <crypto/algapi.h>
#include <crypto/blake2s.h>
#include <linux/capability.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/net.h>
#include <linux/nsproxy.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uio.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "tcmi.h"

/* The last byte is the version. */
#define MAGIC "tcmi\x01"
#define ASK_AGAIN_MS 200

enum kind {
	QUESTION = 1,
	ANSWER = 2,
};

/* An answer is no longer than its question. */
struct datagram {
	u8 magic[sizeof(MAGIC)];
	u8 kind;
	/* Of an answer: enum tcmi_peer_state. */
	u8 state;
	/* A question's, from 1 on: none is used twice with a key. An answer has its question's. */
	__le64 number;
	u8 mac[BLAKE2S_HASH_SIZE];
};

struct tcmi_peer {
	u8 sent_key[TCMI_PEER_KEY_BYTES];
	u8 received_key[TCMI_PEER_KEY_BYTES];
	struct socket *socket;
	struct task_struct *reader;
	u8 state;
	/* Our last question; our last that was answered, and how; the peer's last. */
	u64 asked;
	u64 answered;
	u8 answer;
	u64 heard;
	wait_queue_head_t answers;
	struct list_head abandoned;
};

static DEFINE_MUTEX(abandoned_lock);
/* Oldest first. */
static LIST_HEAD(abandoned);
static unsigned int abandoned_count;

static void authenticate(u8 *mac, const struct datagram *datagram, const u8 *key)
{
	blake2s(mac, (const u8 *)datagram, key, BLAKE2S_HASH_SIZE,
		offsetof(struct datagram, mac), TCMI_PEER_KEY_BYTES);
}

/* What cannot be sent is as good as lost: questions are repeated. */
static void say(struct tcmi_peer *peer, enum kind kind, u64 number)
{
	struct datagram datagram = {
		.magic = MAGIC,
		.kind = kind,
		.state = READ_ONCE(peer->state),
		.number = cpu_to_le64(number),
	};
	struct msghdr message = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
	struct kvec vector = { .iov_base = &datagram, .iov_len = sizeof(datagram) };

	authenticate(datagram.mac, &datagram, peer->sent_key);
	kernel_sendmsg(peer->socket, &message, &vector, 1, sizeof(datagram));
}

/* A number that is not above the last is a replay, or was overtaken. */
static void hear(struct tcmi_peer *peer, const struct datagram *datagram)
{
	u64 number = le64_to_cpu(datagram->number);
	u8 mac[BLAKE2S_HASH_SIZE];

	authenticate(mac, datagram, peer->received_key);
	if (crypto_memneq(mac, datagram->mac, sizeof(mac)) ||
	    memcmp(datagram->magic, MAGIC, sizeof(datagram->magic)))
		return;
	if (datagram->kind == QUESTION && number > peer->heard) {
		peer->heard = number;
		say(peer, ANSWER, number);
	} else if (datagram->kind == ANSWER && number > peer->answered &&
		   number <= READ_ONCE(peer->asked)) {
		WRITE_ONCE(peer->answer, datagram->state);
		/* Pairs with the acquire in has_answered(). */
		smp_store_release(&peer->answered, number);
		wake_up(&peer->answers);
	}
}

static int read_socket(void *arg)
{
	struct tcmi_peer *peer = arg;
	struct datagram datagram;

	while (!kthread_should_stop()) {
		struct msghdr message = {};
		struct kvec vector = { .iov_base = &datagram, .iov_len = sizeof(datagram) };
		/* With MSG_TRUNC the length of what came, which may be more. */
		int length = kernel_recvmsg(peer->socket, &message, &vector, 1,
					    sizeof(datagram), MSG_TRUNC);

		if (length == sizeof(datagram))
			hear(peer, &datagram);
	}
	return 0;
}

static int connect_socket(struct tcmi_peer *peer, const struct tcmi_peer_set_args *args)
{
	struct sockaddr *local = (struct sockaddr *)args->local;
	struct sockaddr *remote = (struct sockaddr *)args->remote;
	int err;

	if (local->sa_family != remote->sa_family ||
	    (local->sa_family != AF_INET && local->sa_family != AF_INET6))
		return -EAFNOSUPPORT;
	err = sock_create_kern(&init_net, local->sa_family, SOCK_DGRAM, IPPROTO_UDP,
			       &peer->socket);
	if (err)
		return err;
	/* Of one that listens, this end of all links is the same. */
	sock_set_reuseaddr(peer->socket->sk);
	return kernel_bind(peer->socket, local, sizeof(args->local)) ?:
	       kernel_connect(peer->socket, remote, sizeof(args->remote), 0);
}

static int start_reader(struct tcmi_peer *peer)
{
	struct task_struct *reader = kthread_run(read_socket, peer, "tcmi-peer");

	if (IS_ERR(reader))
		return PTR_ERR(reader);
	peer->reader = reader;
	return 0;
}

struct tcmi_peer *tcmi_set_peer(const struct tcmi_peer_set_args *args)
{
	struct tcmi_peer *peer;
	int err;

	if (!capable(CAP_NET_ADMIN))
		return ERR_PTR(-EPERM);
	if (!net_eq(current->nsproxy->net_ns, &init_net))
		return ERR_PTR(-EOPNOTSUPP);
	peer = kzalloc(sizeof(*peer), GFP_KERNEL_ACCOUNT);
	if (!peer)
		return ERR_PTR(-ENOMEM);
	memcpy(peer->sent_key, args->sent_key, sizeof(peer->sent_key));
	memcpy(peer->received_key, args->received_key, sizeof(peer->received_key));
	peer->state = TCMI_PEER_SERVED;
	init_waitqueue_head(&peer->answers);
	err = connect_socket(peer, args) ?: start_reader(peer);
	if (err) {
		tcmi_forget_peer(peer);
		return ERR_PTR(err);
	}
	return peer;
}

static bool has_answered(struct tcmi_peer *peer, u64 first)
{
	/* Pairs with the release in hear(). */
	return smp_load_acquire(&peer->answered) >= first;
}

int tcmi_ask_peer(struct tcmi_peer *peer, struct tcmi_peer_ask_args *args)
{
	unsigned long end = jiffies + msecs_to_jiffies(args->timeout_ms);
	u64 first = peer->asked + 1;
	long left;

	if (args->timeout_ms > TCMI_PEER_TIMEOUT_MS_MAX)
		return -EINVAL;
	do {
		WRITE_ONCE(peer->asked, peer->asked + 1);
		say(peer, QUESTION, peer->asked);
		/* Not counted as load, which nodes tell each other. */
		left = wait_event_interruptible_timeout(peer->answers,
							has_answered(peer, first),
							msecs_to_jiffies(ASK_AGAIN_MS));
	} while (!left && time_before(jiffies, end));
	args->state = READ_ONCE(peer->answer);
	if (left < 0)
		return -EINTR;
	return left ? 0 : -ETIMEDOUT;
}

void tcmi_forget_peer(struct tcmi_peer *peer)
{
	if (peer->reader) {
		/* Ends the reader's wait. */
		kernel_sock_shutdown(peer->socket, SHUT_RDWR);
		kthread_stop(peer->reader);
	}
	if (peer->socket)
		sock_release(peer->socket);
	kfree_sensitive(peer);
}

static void forget_oldest(void)
{
	struct tcmi_peer *peer = list_first_entry(&abandoned, struct tcmi_peer, abandoned);

	list_del(&peer->abandoned);
	abandoned_count--;
	tcmi_forget_peer(peer);
}

void tcmi_abandon_peer(struct tcmi_peer *peer)
{
	WRITE_ONCE(peer->state, TCMI_PEER_ABANDONED);
	mutex_lock(&abandoned_lock);
	list_add_tail(&peer->abandoned, &abandoned);
	if (++abandoned_count > TCMI_PEERS_ABANDONED_MAX)
		forget_oldest();
	mutex_unlock(&abandoned_lock);
}

/* No session is open any more, so there is nobody to lock out. */
void tcmi_peer_exit(void)
{
	while (abandoned_count)
		forget_oldest();
}
