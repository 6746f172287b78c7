/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * What /dev/tcmi speaks. An open file is a session: what it holds is let go when
 * the file is closed, however its owner ended.
 *
 * Reserved fields must be zero. Process ids are those of the caller's pid
 * namespace, unless it says otherwise; what was asked for can be asked for in no
 * other session at the same time (EBUSY).
 */
#ifndef _UAPI_TCMI_H
#define _UAPI_TCMI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define TCMI_ABI 3

struct tcmi_version {
	__u32 abi;
	__u32 ctl_entries;
	/* FNV-1a of the control filesystem's table, as the module has it. */
	__u64 ctl_hash;
};

/* Descendants too, and those that they fork meanwhile. */
#define TCMI_FREEZE_TREE 1

#define TCMI_FREEZE_TIMEOUT_MS_DEFAULT 1000
#define TCMI_FREEZE_TIMEOUT_MS_MAX 60000

/*
 * A thread that job control has stopped, or the caller by ptrace, is frozen as it is;
 * let go on, it stops for us.
 */
struct tcmi_freeze_args {
	__s32 pid;
	__u32 flags;
	/* 0: the default. EBUSY when it has passed and a thread still runs. */
	__u32 timeout_ms;
	/* Set by the module. */
	__u32 processes;
	__u32 threads;
	__u32 reserved[3];
};

/*
 * Fills the buffer with records: each frozen thread's, and before that of a main
 * thread its process's. EMSGSIZE: too small; length says what is needed now. What
 * has ended since is left out.
 */
struct tcmi_capture_args {
	__u64 buffer;
	__u64 length;
	__u64 reserved;
};

struct tcmi_sigaction {
	__u64 handler;
	__u64 flags;
	__u64 restorer;
	__u64 mask;
};

enum tcmi_record_type {
	TCMI_RECORD_PROCESS = 1,
	TCMI_RECORD_THREAD = 2,
};

/* Followed by pending_count of siginfo_t. */
struct tcmi_captured_process {
	__u32 type;
	/* With what follows. */
	__u32 length;
	__s32 pid;
	/* The signal of the job-control stop that it is in or about to be, or 0. */
	__u32 stopped_by;
	/* May have more bits than there are siginfos: the kernel drops those first. */
	__u64 pending;
	__u32 pending_count;
	__u32 reserved;
	struct tcmi_sigaction actions[64];
};

/* Stopped by job control, not by us; SIGCONT makes it ours. */
#define TCMI_THREAD_STOPPED 1

/* Followed by pending_count of siginfo_t, then by xstate_length of xsave area. */
struct tcmi_captured_thread {
	__u32 type;
	__u32 length;
	__s32 pid;
	__s32 tid;
	/* struct user_regs_struct; a restart code in ax is as the kernel left it. */
	__u64 regs[27];
	/* Of two masks the one that the interrupted call will give back. */
	__u64 blocked;
	__u64 pending;
	__u64 altstack_sp;
	__u64 altstack_size;
	__u32 altstack_flags;
	__u32 rseq_signature;
	__u64 rseq;
	__u32 rseq_length;
	__u32 pending_count;
	__u64 robust_list;
	__u64 clear_child_tid;
	__u32 xstate_length;
	__u32 flags;
};

#define TCMI_SIGINFO_BYTES 128

/*
 * Sends memory of a frozen process into a connected stream socket, as it is; with
 * kTLS set on the socket, as records. A signal or a hole in the memory ends it early:
 * sent says where, and what stopped it is the error when nothing was sent.
 */
struct tcmi_send_args {
	__s32 pid;
	__s32 socket;
	__u64 address;
	__u64 length;
	/* Set by the module. */
	__u64 sent;
};

/* Watching ends with the process, or by TCMI_UNWATCH. */
struct tcmi_watch_args {
	__s32 pid;
	__u32 reserved;
};

/*
 * The control filesystem. One session serves it; process ids in requests are
 * those of its pid namespace at TCMI_CTL_SERVE, or 0 where that has none.
 */
struct tcmi_ctl_serve_args {
	__u64 reserved;
};

#define TCMI_CTL_NAME_BYTES 80
#define TCMI_CTL_KEY_MAX ((1ULL << 56) - 1)

/* Makes the directory or link that stands for a wildcard, with what is in it. */
struct tcmi_ctl_add_args {
	/* Index in the table. */
	__u32 entry;
	__u32 uid;
	__u32 gid;
	__u32 reserved;
	/* Comes back in requests; (entry, key) is unique. */
	__u64 key;
	/* Ends in a NUL. */
	char name[TCMI_CTL_NAME_BYTES];
};

struct tcmi_ctl_remove_args {
	__u32 entry;
	__u32 reserved;
	__u64 key;
};

#define TCMI_PEER_KEY_BYTES 32
#define TCMI_PEER_ADDRESS_BYTES 28
#define TCMI_PEERS_ABANDONED_MAX 64

/*
 * The other end of a link between two nodes: its module and ours ask each other by UDP.
 * One a session. What we answer outlives the session, for that is what it tells, until
 * so many later ones have been abandoned. Only in the initial network namespace
 * (EOPNOTSUPP).
 */
struct tcmi_peer_set_args {
	/* Never used before. The peer has them the other way round. */
	__u8 sent_key[TCMI_PEER_KEY_BYTES];
	__u8 received_key[TCMI_PEER_KEY_BYTES];
	/* A sockaddr_in or sockaddr_in6 each, of the same family. */
	__u8 local[TCMI_PEER_ADDRESS_BYTES];
	__u8 remote[TCMI_PEER_ADDRESS_BYTES];
};

/* The peer's session that set us there: is open, or was closed with its process. */
enum tcmi_peer_state {
	TCMI_PEER_SERVED = 1,
	TCMI_PEER_ABANDONED = 2,
};

#define TCMI_PEER_TIMEOUT_MS_MAX 60000

/* ETIMEDOUT: no answer. */
struct tcmi_peer_ask_args {
	__u32 timeout_ms;
	/* Set by the module. */
	__u32 state;
};

/*
 * Adds what a process has used elsewhere to what the kernel has counted for it, until it is
 * reaped. Times in nanoseconds, maxrss in pages. Needs CAP_SYS_ADMIN.
 */
struct tcmi_charge_args {
	__s32 pid;
	__u32 reserved;
	__u64 utime;
	__u64 stime;
	__u64 min_flt;
	__u64 maj_flt;
	/* The most at once; the larger counts. */
	__u64 maxrss;
};

#define TCMI_VERSION	_IOR(0xB7, 0x00, struct tcmi_version)
#define TCMI_FREEZE	_IOWR(0xB7, 0x01, struct tcmi_freeze_args)
#define TCMI_CAPTURE	_IOWR(0xB7, 0x02, struct tcmi_capture_args)
#define TCMI_THAW	_IO(0xB7, 0x03)
#define TCMI_WATCH	_IOW(0xB7, 0x04, struct tcmi_watch_args)
#define TCMI_UNWATCH	_IOW(0xB7, 0x05, struct tcmi_watch_args)
#define TCMI_CTL_SERVE	_IOW(0xB7, 0x06, struct tcmi_ctl_serve_args)
#define TCMI_CTL_ADD	_IOW(0xB7, 0x07, struct tcmi_ctl_add_args)
#define TCMI_CTL_REMOVE	_IOW(0xB7, 0x08, struct tcmi_ctl_remove_args)
#define TCMI_SEND	_IOWR(0xB7, 0x09, struct tcmi_send_args)
#define TCMI_PEER_SET	_IOW(0xB7, 0x0a, struct tcmi_peer_set_args)
#define TCMI_PEER_ASK	_IOWR(0xB7, 0x0b, struct tcmi_peer_ask_args)
#define TCMI_PEER_FORGET _IO(0xB7, 0x0c)
#define TCMI_CHARGE	_IOW(0xB7, 0x0d, struct tcmi_charge_args)

/*
 * read() gives one message and waits for it unless the file is O_NONBLOCK;
 * EMSGSIZE if it does not fit, so ask with TCMI_MESSAGE_BYTES_MAX of room.
 */
enum tcmi_message_type {
	TCMI_MESSAGE_EVENT = 1,
	TCMI_MESSAGE_REQUEST = 2,
};

#define TCMI_MESSAGE_BYTES_MAX 8192

/*
 * What became of a watched process since it was last told. Of stop and continue
 * only the later is told.
 */
#define TCMI_EVENT_STOP 1	/* Took a stop signal; its threads are about to stop. */
#define TCMI_EVENT_CONTINUE 2	/* Was sent SIGCONT. */
#define TCMI_EVENT_KILL 4	/* Was sent SIGKILL; its threads may not have ended. */
#define TCMI_EVENT_EXIT 8	/* Its last thread has ended; it is not yet a zombie. */

struct tcmi_event {
	__u32 type;
	__u32 length;
	__s32 pid;
	__u32 what;
	/* TCMI_EVENT_STOP: the signal. */
	__u32 stop_signal;
	/* TCMI_EVENT_EXIT: as wait() tells it. */
	__u32 status;
};

enum tcmi_ctl_op {
	/* The whole value of a file that is being opened. */
	TCMI_CTL_READ = 1,
	/* One command; its answer may have text, which the same handle then reads. */
	TCMI_CTL_WRITE = 2,
	TCMI_CTL_READLINK = 3,
};

/* Does not wait for the end of what it asks for: answer when it is begun. */
#define TCMI_CTL_NONBLOCK 1

/* Followed by data_length bytes. */
struct tcmi_request {
	__u32 type;
	__u32 length;
	__u64 id;
	/* Of the entry or of the directory that it is in; 0 if neither has one. */
	__u64 key;
	__u32 entry;
	__u32 op;
	__u32 flags;
	/* Who opened the file, in the initial user namespace. */
	__u32 uid;
	__u32 gid;
	__s32 tid;
	/*
	 * The process that the command's first word names in the writer's pid
	 * namespace, where the table says that it names one here. 0: there is none.
	 * If that is the server's namespace too, the word as it is.
	 */
	__s32 target;
	__u32 data_length;
};

#define TCMI_CTL_COMMAND_BYTES_MAX 4096
#define TCMI_CTL_VALUE_BYTES_MAX (4 << 20)

/* Written to the session, followed by data_length bytes. ENOENT: nobody waits. */
struct tcmi_answer {
	__u64 id;
	/* 0, or an errno of asm-generic/errno.h: positive. */
	__u32 error;
	__u32 data_length;
};

#endif /* _UAPI_TCMI_H */
