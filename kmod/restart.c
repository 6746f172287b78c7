// SPDX-License-Identifier: GPL-2.0-only
/* Calls that a freeze interrupted, as if it had not. */

#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/thread_info.h>
#include <asm/syscall.h>
#include <asm/unistd.h>

#include "tcmi.h"

/*
 * Calls that end with EINTR when their thread is merely woken (signal(7)), and have
 * then done nothing.
 */
static bool ends_by_wake_up(int nr)
{
	switch (nr) {
	case __NR_epoll_wait:
	case __NR_epoll_pwait:
	case __NR_epoll_pwait2:
	case __NR_rt_sigtimedwait:
	case __NR_semop:
	case __NR_semtimedop:
	case __NR_io_getevents:
	case __NR_io_pgetevents:
	/* Sockets with a timeout. */
	case __NR_read:
	case __NR_readv:
	case __NR_recvfrom:
	case __NR_recvmsg:
	case __NR_recvmmsg:
	case __NR_accept:
	case __NR_accept4:
	case __NR_write:
	case __NR_writev:
	case __NR_sendto:
	case __NR_sendmsg:
	case __NR_sendmmsg:
		return true;
	default:
		return false;
	}
}

/* Of what goes on by a restart block, that which a block tells without its call. */
static bool sleeps(int nr)
{
	return nr == __NR_nanosleep || nr == __NR_clock_nanosleep || nr == __NR_restart_syscall;
}

/*
 * What we woke goes on waiting, as what a handled signal woke does not: with this
 * code the kernel tells them apart when the thread goes on. Other waits would go on
 * by restart_syscall, in which nobody sees what waits: they are made again.
 */
void tcmi_restart_what_we_ended(struct pt_regs *regs)
{
	int nr = syscall_get_nr(current, regs);
	long error = syscall_get_error(current, regs);
	bool again = false;

	if (nr < 0)
		return;
	if (error == -EINTR)
		again = ends_by_wake_up(nr) && !test_thread_flag(TIF_SIGPENDING);
	else if (error == -ERESTART_RESTARTBLOCK)
		again = !sleeps(nr);
	if (again)
		regs->ax = -ERESTARTNOHAND;
}
