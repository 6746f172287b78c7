/*
 * What the cases of differ.c work on: descriptors with fixed numbers, files in an empty
 * directory, buffers at fixed addresses. Made anew for each call, so that natively and as a
 * guest each begins with the same.
 */
#ifndef STAGE_H
#define STAGE_H

#include <dirent.h>
#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>

enum {
	FILE_RW = 10, FILE_RO, DIRECTORY, PIPE_R, PIPE_W, STREAM_A, STREAM_B, LISTENER, CLIENT,
	EVENT, EPOLL, TIMER, INOTIFY, PTY, TERMINAL, FILE_PATH, QUEUE, PIDFD, MEMFD, DATAGRAM_A,
	DATAGRAM_B, PIPE2_R, PIPE2_W, UDP, FIRST_FREE,
	/* Out of every case's reach. */
	KEPT_IN = 200, KEPT_OUT, KEPT_DIRECTORY,
};

/* Buffers with nothing around them. */
#define BUFFER_BYTES 0x2000UL
#define BUFFER(i) (0x10000000UL + (i) * 0x10000UL)
#define A BUFFER(0)
#define B BUFFER(1)
#define C BUFFER(2)
#define D BUFFER(3)
#define E BUFFER(4)
#define EDGE BUFFER(5)
#define BUFFERS 6
#define READ_ONLY BUFFER(8)
#define UNMAPPED BUFFER(9)
#define END(buffer) ((buffer) + BUFFER_BYTES)

/* In a case: known when the world is made. */
#define SELF 0x7e570000UL
#define SEMAPHORES 0x7e570001UL
#define MESSAGES 0x7e570002UL
#define DEVICE 0x7e570003UL
#define SEGMENT 0x7e570004UL

static char queue_name[32];
static int semaphores, messages, segment;
static uint64_t device;

/* Descriptor 1 is the world's. */
static void need(int ok, const char *what)
{
	if (!ok)
		dup2(KEPT_OUT, 1);
	must(ok, what);
}

static void put(int fd, int number)
{
	need(fd >= 0, "a descriptor of the world");
	if (fd == number)
		return;
	need(dup2(fd, number) == number, "dup2");
	close(fd);
}

static void put_both(int pair[2], int first, int second)
{
	put(pair[0], first);
	put(pair[1], second);
}

static void remove_all(int directory)
{
	int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY);
	DIR *list = fdopendir(fd);
	need(list != NULL, "list");
	for (struct dirent *entry; (entry = readdir(list));) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (unlinkat(fd, entry->d_name, 0) == 0)
			continue;
		fchmodat(fd, entry->d_name, 0700, 0);
		int below = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY);
		if (below >= 0) {
			remove_all(below);
			close(below);
		}
		unlinkat(fd, entry->d_name, AT_REMOVEDIR);
	}
	closedir(list);
}

static void make_files(void)
{
	static char content[5000];
	memset(content, 'c', sizeof content);
	put(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644), FILE_RW);
	need(write(FILE_RW, content, sizeof content) == sizeof content, "content");
	lseek(FILE_RW, 0, SEEK_SET);
	put(open("file", O_RDONLY), FILE_RO);
	put(open("file", O_PATH), FILE_PATH);
	need(mkdir("dir", 0755) == 0 && mkdir("dir/below", 0755) == 0 && mkdir("empty", 0755) == 0, "mkdir");
	put(open("dir", O_RDONLY | O_DIRECTORY), DIRECTORY);
	need(symlink("file", "link") == 0 && mkfifo("fifo", 0644) == 0, "names");
	int program = open("no-program", O_WRONLY | O_CREAT, 0755);
	need(write(program, content, 100) == 100, "what is no program");
	close(program);
	struct stat status;
	fstat(FILE_RW, &status);
	device = status.st_dev;
	put(memfd_create("memfd", MFD_ALLOW_SEALING), MEMFD);
}

static void make_sockets(void)
{
	int pair[2];
	need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "stream");
	put_both(pair, STREAM_A, STREAM_B);
	need(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair) == 0, "datagram");
	put_both(pair, DATAGRAM_A, DATAGRAM_B);
	struct sockaddr_un name = { AF_UNIX, "socket" };
	put(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), LISTENER);
	need(bind(LISTENER, (void *)&name, sizeof name) == 0 && listen(LISTENER, 100) == 0, "listen");
	put(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), UDP);
}

static void make_events(void)
{
	struct epoll_event wanted = { .events = EPOLLIN | EPOLLOUT, .data.u64 = 0x0123456789abcdef };
	put(eventfd(0, EFD_NONBLOCK), EVENT);
	put(epoll_create1(0), EPOLL);
	epoll_ctl(EPOLL, EPOLL_CTL_ADD, EVENT, &wanted);
	put(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), TIMER);
	put(inotify_init1(IN_NONBLOCK), INOTIFY);
	put(syscall(SYS_pidfd_open, getpid(), 0), PIDFD);
	put(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK), PTY);
	unlockpt(PTY);
	put(open(ptsname(PTY), O_RDWR | O_NOCTTY | O_NONBLOCK), TERMINAL);
	struct mq_attr shape = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	mq_unlink(queue_name);
	mq_unlink("/tcmi-differ-none");
	put(mq_open(queue_name, O_RDWR | O_CREAT | O_NONBLOCK, 0600, &shape), QUEUE);
}

static char bytes[0x10000];

static void refill_pipes(void)
{
	while (read(PIPE_R, bytes, sizeof bytes) > 0)
		;
	while (read(PIPE2_R, bytes, sizeof bytes) > 0)
		;
	need(write(PIPE_W, bytes, 100) == 100, "pipe");
}

static void refill_streams(void)
{
	while (recv(STREAM_A, bytes, sizeof bytes, 0) > 0)
		;
	while (recv(STREAM_B, bytes, sizeof bytes, 0) > 0)
		;
	need(write(STREAM_B, bytes, 100) == 100, "stream");
}

/* The first has a descriptor with it. */
static void refill_datagrams(void)
{
	static char control[CMSG_SPACE(sizeof(int))];
	while (recv(DATAGRAM_A, bytes, sizeof bytes, 0) >= 0)
		;
	struct iovec part = { bytes, 70 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(header), &(int){ FILE_RW }, sizeof(int));
	need(sendmsg(DATAGRAM_B, &message, 0) == 70 && send(DATAGRAM_B, bytes, 30, 0) == 30, "datagrams");
}

static void refill_listener(void)
{
	for (int fd; (fd = accept(LISTENER, NULL, NULL)) >= 0;)
		close(fd);
	struct sockaddr_un name = { AF_UNIX, "socket" };
	close(CLIENT);
	put(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), CLIENT);
	fchdir(KEPT_DIRECTORY);
	need(connect(CLIENT, (void *)&name, sizeof name) == 0, "connect");
}

static void refill_queue(void)
{
	while (mq_receive(QUEUE, bytes, sizeof bytes, NULL) >= 0)
		;
	need(mq_send(QUEUE, bytes, 40, 7) == 0 && mq_send(QUEUE, bytes, 20, 3) == 0, "mq_send");
}

static void refill_messages(void)
{
	struct { long kind; char text[100]; } message = { 5, "message" };
	while (msgrcv(messages, &message, 100, 0, IPC_NOWAIT | MSG_NOERROR) >= 0)
		;
	message.kind = 5;
	need(msgsnd(messages, &message, 60, IPC_NOWAIT) == 0, "msgsnd");
}

/* What calls use up, as it was at first. */
static void refill(uint64_t first_argument)
{
	switch (first_argument) {
	case PIPE_R:
	case PIPE_W:
		return refill_pipes();
	case STREAM_A:
		return refill_streams();
	case DATAGRAM_A:
		return refill_datagrams();
	case LISTENER:
		return refill_listener();
	case QUEUE:
		return refill_queue();
	case MESSAGES:
		return refill_messages();
	case EVENT:
		need(write(EVENT, &(uint64_t){ 3 }, 8) == 8, "event");
		return;
	case FILE_RW:
		lseek(FILE_RW, 0, SEEK_SET);
		refill_pipes();
	}
}

static void make_world(void)
{
	int pair[2];
	syscall(SYS_close_range, 0, KEPT_IN - 1, 0);
	syscall(SYS_close_range, KEPT_DIRECTORY + 1, ~0U, 0);
	umask(022);
	fchdir(KEPT_DIRECTORY);
	remove_all(KEPT_DIRECTORY);
	/* No device: root changes what it calls. */
	for (int fd = 0; fd < 10; fd++)
		put(open("low", O_RDWR | O_CREAT, 0644), fd);
	make_files();
	need(pipe2(pair, O_NONBLOCK) == 0, "pipe");
	put_both(pair, PIPE_R, PIPE_W);
	need(pipe2(pair, O_NONBLOCK) == 0, "pipe");
	put_both(pair, PIPE2_R, PIPE2_W);
	make_sockets();
	make_events();
	semaphores = semget(IPC_PRIVATE, 3, 0600);
	messages = msgget(IPC_PRIVATE, 0600);
	segment = shmget(IPC_PRIVATE, 0x3000, 0600);
	need(semaphores >= 0 && messages >= 0 && segment >= 0, "System V");
	memset(bytes, 'd', 100);
	refill_pipes();
	refill_streams();
	refill_datagrams();
	refill_listener();
	refill_queue();
	refill_messages();
}

static void unmake_world(void)
{
	semctl(semaphores, 0, IPC_RMID);
	msgctl(messages, IPC_RMID, NULL);
	shmctl(segment, IPC_RMID, NULL);
	mq_unlink(queue_name);
}

static void map_buffers(void)
{
	int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	for (int i = 0; i < BUFFERS; i++)
		need(mmap((void *)BUFFER(i), BUFFER_BYTES, PROT_READ | PROT_WRITE, fixed, -1, 0) == (void *)BUFFER(i), "buffer");
	need(mmap((void *)READ_ONLY, BUFFER_BYTES, PROT_READ, fixed, -1, 0) == (void *)READ_ONLY, "read-only");
}

#endif
