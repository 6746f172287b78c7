/*
 * Descriptors that carry something between two ends, in the ways that programs use them: each is
 * used when it is new, and those of the start, which go along with each move, are used again.
 */
#define VICTIM_CLEAN_UP
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#define MESSAGES 3

static char directory[64];

static struct ends {
	int fifo[2], local[2], datagram[2], stream[2], outer, inner, bell, ticks, watch, sealed;
	struct sockaddr_in addresses[2];
} old, new;

static struct sockaddr_in any_port(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static int bound(int type, struct sockaddr_in *address)
{
	socklen_t length = sizeof *address;
	int fd = socket(AF_INET, type, 0);
	*address = any_port();
	must(fd >= 0 && bind(fd, (void *)address, length) == 0, "bind");
	must(getsockname(fd, (void *)address, &length) == 0, "getsockname");
	return fd;
}

static void open_fifo(struct ends *e)
{
	must(mkfifo("fifo", 0600) == 0, "mkfifo");
	expect_equal("a FIFO that nobody reads", -1, open("fifo", O_WRONLY | O_NONBLOCK));
	expect_equal("its errno", ENXIO, errno);
	e->fifo[0] = open("fifo", O_RDONLY | O_NONBLOCK);
	e->fifo[1] = open("fifo", O_WRONLY);
	must(e->fifo[0] >= 0 && e->fifo[1] >= 0, "open of a FIFO");
	fcntl(e->fifo[0], F_SETFL, 0);
	unlink("fifo");
}

static void open_stream(struct ends *e)
{
	struct sockaddr_in address;
	int listener = bound(SOCK_STREAM, &address), on = 1;
	must(listen(listener, 1) == 0, "listen");
	e->stream[0] = socket(AF_INET, SOCK_STREAM, 0);
	must(connect(e->stream[0], (void *)&address, sizeof address) == 0, "connect");
	e->stream[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	must(e->stream[1] >= 0, "accept4");
	must(setsockopt(e->stream[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "setsockopt");
	close(listener);
}

/* An inner epoll has the bell, an outer one has the inner one. */
static void open_epoll(struct ends *e)
{
	struct epoll_event bell = { .events = EPOLLIN | EPOLLET, .data.u64 = 1 };
	struct epoll_event inner = { .events = EPOLLIN, .data.u64 = 2 };
	struct epoll_event local = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 3 };
	e->bell = eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE);
	e->inner = epoll_create1(EPOLL_CLOEXEC);
	e->outer = epoll_create1(0);
	must(epoll_ctl(e->inner, EPOLL_CTL_ADD, e->bell, &bell) == 0, "epoll_ctl");
	must(epoll_ctl(e->outer, EPOLL_CTL_ADD, e->inner, &inner) == 0, "epoll_ctl of an epoll");
	must(epoll_ctl(e->outer, EPOLL_CTL_ADD, e->local[1], &local) == 0, "epoll_ctl");
}

static void open_all(struct ends *e)
{
	struct itimerspec ticking = { { 0, 3000000 }, { 0, 1 } };
	int on = 1;
	open_fifo(e);
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, e->local) == 0, "socketpair");
	must(setsockopt(e->local[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0, "SO_PASSCRED");
	for (int i = 0; i < 2; i++)
		e->datagram[i] = bound(SOCK_DGRAM, &e->addresses[i]);
	open_stream(e);
	open_epoll(e);
	e->ticks = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	must(timerfd_settime(e->ticks, 0, &ticking, NULL) == 0, "timerfd_settime");
	e->watch = inotify_init1(IN_NONBLOCK);
	must(inotify_add_watch(e->watch, ".", IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE) == 1, "inotify");
	e->sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
	must(write(e->sealed, "content", 7) == 7, "write to a memfd");
	must(fcntl(e->sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK) == 0, "F_ADD_SEALS");
}

static void close_all(const struct ends *e)
{
	for (int i = 0; i < 2; i++)
		close(e->fifo[i]), close(e->local[i]), close(e->datagram[i]), close(e->stream[i]);
	close(e->outer), close(e->inner), close(e->bell);
	close(e->ticks), close(e->watch), close(e->sealed);
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	snprintf(directory, sizeof directory, "/tmp/victim-channels-%d", getpid());
	must(mkdir(directory, 0700) == 0 && chdir(directory) == 0, "a directory");
	open_all(&old);
}

static void through_a_fifo(const struct ends *e)
{
	char text[8] = "";
	int waiting = -1;
	expect_equal("write to a FIFO", 5, write(e->fifo[1], "12345", 5));
	expect_equal("FIONREAD", 0, ioctl(e->fifo[0], FIONREAD, &waiting));
	expect_equal("bytes in a FIFO", 5, waiting);
	expect_equal("read of a FIFO", 5, read(e->fifo[0], text, sizeof text));
	expect_equal("its bytes", 0, strcmp(text, "12345"));
}

/* A message with two descriptors, and with who sent it. */
static void rights_and_credentials(const struct ends *e)
{
	char control[256] = { 0 }, byte = 'x';
	int passed[2], received[2] = { -1, -1 };
	struct ucred peer, mine = { getpid(), getuid(), getgid() }, sender = { 0 };
	socklen_t length = sizeof peer;
	must(pipe(passed) == 0, "pipe");
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control };
	message.msg_controllen = CMSG_SPACE(sizeof passed) + CMSG_SPACE(sizeof mine);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){ CMSG_LEN(sizeof passed), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(header), passed, sizeof passed);
	header = CMSG_NXTHDR(&message, header);
	*header = (struct cmsghdr){ CMSG_LEN(sizeof mine), SOL_SOCKET, SCM_CREDENTIALS };
	memcpy(CMSG_DATA(header), &mine, sizeof mine);
	expect_equal("sendmsg", 1, sendmsg(e->local[0], &message, 0));
	memset(control, 0, sizeof control);
	message.msg_controllen = sizeof control;
	expect_equal("recvmsg", 1, recvmsg(e->local[1], &message, MSG_CMSG_CLOEXEC));
	for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_type == SCM_RIGHTS)
			memcpy(received, CMSG_DATA(header), sizeof received);
		if (header->cmsg_type == SCM_CREDENTIALS)
			memcpy(&sender, CMSG_DATA(header), sizeof sender);
	}
	expect_equal("pid of a sender", getpid(), sender.pid);
	expect_equal("user of a sender", getuid(), sender.uid);
	expect_equal("a received one closes on exec", FD_CLOEXEC, fcntl(received[0], F_GETFD));
	expect_equal("write to a received one", 1, write(received[1], "y", 1));
	expect_equal("read from another", 1, read(received[0], &byte, 1));
	expect_equal("SO_PEERCRED", 0, getsockopt(e->local[1], SOL_SOCKET, SO_PEERCRED, &peer, &length));
	expect_equal("pid of a peer", getpid(), peer.pid);
	/* Of another process nobody may say that he is it, but root. */
	mine.pid = 1;
	header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){ CMSG_LEN(sizeof mine), SOL_SOCKET, SCM_CREDENTIALS };
	memcpy(CMSG_DATA(header), &mine, sizeof mine);
	message.msg_controllen = CMSG_SPACE(sizeof mine);
	expect_equal("as pid 1", geteuid() ? -1 : 1, sendmsg(e->local[0], &message, 0));
	if (!geteuid())
		expect_equal("as pid 1", 1, recv(e->local[1], &byte, 1, 0));
	for (int i = 0; i < 2; i++)
		close(passed[i]), close(received[i]);
}

static void many_datagrams(const struct ends *e)
{
	char texts[MESSAGES][8] = { "one", "two", "three" }, rooms[MESSAGES][8] = { "" };
	struct sockaddr_in senders[MESSAGES];
	struct iovec parts[MESSAGES], into[MESSAGES];
	struct mmsghdr out[MESSAGES] = { 0 }, in[MESSAGES] = { 0 };
	struct sockaddr_in to = e->addresses[1];
	for (int i = 0; i < MESSAGES; i++) {
		parts[i] = (struct iovec){ texts[i], strlen(texts[i]) };
		out[i].msg_hdr = (struct msghdr){ .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1 };
		into[i] = (struct iovec){ rooms[i], sizeof rooms[i] };
		in[i].msg_hdr = (struct msghdr){ .msg_name = &senders[i], .msg_namelen = sizeof *senders, .msg_iov = &into[i], .msg_iovlen = 1 };
	}
	/* As often as it takes: it may send and receive fewer than it was asked to. */
	for (int done = 0; done < MESSAGES;) {
		int n = sendmmsg(e->datagram[0], out + done, MESSAGES - done, 0);
		expect_range("sendmmsg", 1, MESSAGES - done, n);
		done += n > 0 ? n : MESSAGES;
	}
	for (int done = 0; done < MESSAGES;) {
		int n = recvmmsg(e->datagram[1], in + done, MESSAGES - done, MSG_WAITFORONE, NULL);
		expect_range("recvmmsg", 1, MESSAGES - done, n);
		done += n > 0 ? n : MESSAGES;
	}
	for (int i = 0; i < MESSAGES; i++) {
		expect_equal("a datagram's length", strlen(texts[i]), in[i].msg_len);
		expect_equal("a datagram", 0, memcmp(texts[i], rooms[i], in[i].msg_len));
		expect_equal("its sender's port", e->addresses[0].sin_port, senders[i].sin_port);
	}
	expect_equal("a back answer", 4, sendto(e->datagram[1], "back", 4, 0, (void *)&senders[0], sizeof *senders));
	expect_equal("its beginning, seen", 4, recv(e->datagram[0], rooms[0], 2, MSG_PEEK | MSG_TRUNC));
	expect_equal("and taken", 4, recv(e->datagram[0], rooms[0], 8, 0));
}

static void both_ways_by_tcp(const struct ends *e)
{
	struct pollfd readable = { .fd = e->stream[1], .events = POLLIN | POLLRDHUP };
	char text[8] = "";
	for (int i = 0; i < 2; i++) {
		expect_equal("send", 4, send(e->stream[i], "tcp!", 4, MSG_NOSIGNAL));
		expect_equal("recv of all", 4, recv(e->stream[!i], text, 4, MSG_WAITALL));
		expect_equal("its bytes", 0, memcmp(text, "tcp!", 4));
	}
	expect_equal("nothing is left", 0, poll(&readable, 1, 0));
	expect_equal("an urgent byte", 1, send(e->stream[0], "u", 1, MSG_OOB));
	readable.events = POLLPRI;
	expect_equal("is told", 1, poll(&readable, 1, 5000));
	expect_equal("and read", 1, recv(e->stream[1], text, 1, MSG_OOB));
	expect_equal("as it was sent", 'u', text[0]);
	/* The mark is behind what follows. */
	expect_equal("send", 1, send(e->stream[0], "n", 1, 0));
	expect_equal("recv", 1, recv(e->stream[1], text, 1, 0));
}

static void events(const struct ends *e)
{
	struct epoll_event seen[4], again = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 4 };
	uint64_t three = 3, one = 0;
	expect_equal("quiet", 0, epoll_wait(e->outer, seen, 4, 0));
	expect_equal("a bell", 8, write(e->bell, &three, 8));
	expect_equal("the outer epoll", 1, epoll_wait(e->outer, seen, 4, 5000));
	expect_equal("tells of the inner one", 2, seen[0].data.u64);
	expect_equal("the inner epoll", 1, epoll_wait(e->inner, seen, 4, 0));
	expect_equal("tells of the bell", 1, seen[0].data.u64);
	expect_equal("once", 0, epoll_wait(e->inner, seen, 4, 0));
	for (int i = 0; i < 3; i++)
		expect_equal("one at a time", 8, read(e->bell, &one, 8));
	expect_equal("one", 1, one);
	expect_equal("and no fourth", -1, read(e->bell, &one, 8));
	for (int i = 0; i < 2; i++)
		expect_equal("a packet", 1, write(e->local[0], "p", 1));
	expect_equal("is told", 1, epoll_wait(e->outer, seen, 4, 5000));
	expect_equal("as before", 1, seen[0].data.u64 == 3 || seen[0].data.u64 == 4);
	expect_equal("once only", 0, epoll_wait(e->outer, seen, 4, 0));
	expect_equal("asked anew", 0, epoll_ctl(e->outer, EPOLL_CTL_MOD, e->local[1], &again));
	expect_equal("it is told", 1, epoll_pwait(e->outer, seen, 4, 5000, NULL));
	expect_equal("otherwise", 4, seen[0].data.u64);
	for (int i = 0; i < 2; i++)
		expect_equal("read", 1, read(e->local[1], &one, 8));
	expect_equal("asked anew", 0, epoll_ctl(e->outer, EPOLL_CTL_MOD, e->local[1], &again));
	expect_equal("a loop of epolls", -1, epoll_ctl(e->inner, EPOLL_CTL_ADD, e->outer, &again));
	expect_equal("is refused", ELOOP, errno);
}

static void time_passes(const struct ends *e)
{
	struct itimerspec left;
	uint64_t ticks = 0;
	for (int i = 0; i < 3; i++) {
		expect_equal("read of a timer", 8, read(e->ticks, &ticks, 8));
		expect_range("ticks", 1, INT64_MAX, ticks);
	}
	expect_equal("timerfd_gettime", 0, timerfd_gettime(e->ticks, &left));
	expect_equal("its interval", 3000000, left.it_interval.tv_nsec);
}

static void expect_event(const char **at, uint32_t mask, const char *name, uint32_t *cookie)
{
	const struct inotify_event *event = (const void *)*at;
	expect_equal("an event", mask, event->mask);
	expect_equal("its name", 0, strcmp(event->name, name));
	if (cookie && *cookie)
		expect_equal("its cookie", *cookie, event->cookie);
	if (cookie)
		*cookie = event->cookie;
	*at += sizeof *event + event->len;
}

static void names_are_watched(const struct ends *e)
{
	char text[1024] __attribute__((aligned(8)));
	const char *at = text;
	uint32_t cookie = 0;
	while (read(e->watch, text, sizeof text) > 0)
		;
	close(open("made", O_CREAT | O_WRONLY, 0600));
	rename("made", "moved");
	unlink("moved");
	ssize_t length = read(e->watch, text, sizeof text);
	expect_range("events", 4 * 16, sizeof text, length);
	if (length < 4 * 16)
		return;
	expect_event(&at, IN_CREATE, "made", NULL);
	expect_event(&at, IN_MOVED_FROM, "made", &cookie);
	expect_event(&at, IN_MOVED_TO, "moved", &cookie);
	expect_event(&at, IN_DELETE, "moved", NULL);
	expect_equal("no more", text + length - at, 0);
}

static void a_sealed_file(const struct ends *e)
{
	char text[8] = "";
	expect_equal("seals", F_SEAL_WRITE | F_SEAL_SHRINK, fcntl(e->sealed, F_GET_SEALS));
	expect_equal("a write", -1, pwrite(e->sealed, "x", 1, 0));
	expect_equal("is refused", EPERM, errno);
	expect_equal("as is a cut", -1, ftruncate(e->sealed, 1));
	expect_equal("but not growth", 0, ftruncate(e->sealed, 8));
	expect_equal("nor a read", 7, pread(e->sealed, text, 7, 0));
	expect_equal("of what it has", 0, strcmp(text, "content"));
}

/* What moves bytes between descriptors and not through memory. */
static void without_memory(void)
{
	int a[2], b[2], from = open("from", O_RDWR | O_CREAT, 0600), to = open("to", O_RDWR | O_CREAT, 0600);
	loff_t at = 2, behind = 3;
	char text[32] = "";
	must(pipe(a) == 0 && pipe(b) == 0, "pipe");
	expect_equal("write", 10, write(from, "0123456789", 10));
	expect_equal("splice from a file", 8, splice(from, &at, a[1], NULL, 100, 0));
	expect_equal("its offset", 10, at);
	expect_equal("tee", 8, tee(a[0], b[1], 100, 0));
	expect_equal("splice to a file", 8, splice(a[0], NULL, to, &behind, 100, SPLICE_F_MOVE));
	expect_equal("its offset", 11, behind);
	expect_equal("splice of nothing", -1, splice(a[0], NULL, to, NULL, 1, SPLICE_F_NONBLOCK));
	expect_equal("its errno", EAGAIN, errno);
	expect_equal("the copy", 8, read(b[0], text, sizeof text));
	expect_equal("its bytes", 0, memcmp(text, "23456789", 8));
	at = 0, behind = 11;
	expect_equal("copy_file_range", 10, copy_file_range(from, &at, to, &behind, 100, 0));
	lseek(from, 4, SEEK_SET);
	expect_equal("sendfile", 6, sendfile(b[1], from, NULL, 100));
	expect_equal("moves the position", 10, lseek(from, 0, SEEK_CUR));
	expect_equal("read", 6, read(b[0], text, sizeof text));
	expect_equal("its bytes", 0, memcmp(text, "456789", 6));
	expect_equal("all of it", 21, pread(to, text, sizeof text, 0));
	expect_equal("its bytes", 0, memcmp(text, "\0\0\0" "23456789" "0123456789", 21));
	for (int i = 0; i < 2; i++)
		close(a[i]), close(b[i]);
	close(from), close(to);
	unlink("from"), unlink("to");
}

static void use(const struct ends *e)
{
	through_a_fifo(e);
	rights_and_credentials(e);
	many_datagrams(e);
	both_ways_by_tcp(e);
	events(e);
	time_passes(e);
	names_are_watched(e);
	a_sealed_file(e);
}

static void step(void)
{
	through_a_fifo(&old);
	names_are_watched(&old);
}

static void check(void)
{
	use(&old);
	open_all(&new);
	use(&new);
	close_all(&new);
	without_memory();
}

static void clean_up(void)
{
	rmdir(directory);
}
