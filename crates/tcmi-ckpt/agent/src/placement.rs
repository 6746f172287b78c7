//! Keeps a shadow thread on the core that its calls come from, if that is a core of this
//! machine: to wake another core costs more than all the rest of a call.

use crate::sys::syscall;
use linux_raw_sys::general::{
    __NR_getpeername, __NR_getsockname, __NR_getsockopt, __NR_sched_setaffinity,
};

const SOL_SOCKET: u64 = 1;
const SO_INCOMING_CPU: u64 = 49;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Calls between two looks at where they come from.
const LOOK_EVERY: u32 = 16;
/// Looks after which the core is chosen anew even if it is the same: the keeper may have given
/// the thread back its own set.
const CHOOSE_EVERY: u32 = 64;
const CPUS_MAX: usize = 1024;

pub struct Placement {
    /// Both ends of the stream are on this machine.
    near: bool,
    calls: u32,
    cpu: i32,
}

impl Placement {
    pub fn of(fd: i32) -> Self {
        let (here, there) = (address(fd, __NR_getsockname), address(fd, __NR_getpeername));
        Self { near: here.is_some() && here == there, calls: 0, cpu: -1 }
    }

    pub fn follow(&mut self, fd: i32) {
        self.calls = self.calls.wrapping_add(1);
        if !self.near || !self.calls.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let cpu = incoming_cpu(fd);
        if cpu != self.cpu || self.calls.is_multiple_of(LOOK_EVERY * CHOOSE_EVERY) {
            self.cpu = cpu;
            run_on(cpu);
        }
    }
}

/// The IP address of one end of a socket.
fn address(fd: i32, which: u32) -> Option<[u8; 16]> {
    let mut name = [0u8; 32];
    let mut len = name.len() as u32;
    let args = [fd as u64, name.as_mut_ptr() as u64, (&raw mut len) as u64, 0, 0, 0];
    // SAFETY: the kernel writes at most `len` bytes to `name`, and `len`.
    if unsafe { syscall(which, args) } < 0 {
        return None;
    }
    let mut address = [0; 16];
    match u16::from_le_bytes([name[0], name[1]]) {
        AF_INET => address[..4].copy_from_slice(&name[4..8]),
        AF_INET6 => address.copy_from_slice(&name[8..24]),
        _ => return None,
    }
    Some(address)
}

fn incoming_cpu(fd: i32) -> i32 {
    let mut cpu = -1i32;
    let mut len = size_of::<i32>() as u32;
    let (cpu_at, len_at) = ((&raw mut cpu) as u64, (&raw mut len) as u64);
    let args = [fd as u64, SOL_SOCKET, SO_INCOMING_CPU, cpu_at, len_at, 0];
    // SAFETY: the kernel writes `cpu` and `len`. An error leaves -1.
    unsafe { syscall(__NR_getsockopt, args) };
    cpu
}

/// Where the process may not run there, it stays as it is.
fn run_on(cpu: i32) {
    let mut mask = [0u64; CPUS_MAX / 64];
    let Some(word) = usize::try_from(cpu).ok().and_then(|cpu| mask.get_mut(cpu / 64)) else {
        return;
    };
    *word = 1 << (cpu as u32 % 64);
    let args = [0, size_of_val(&mask) as u64, mask.as_ptr() as u64, 0, 0, 0];
    // SAFETY: the kernel reads `mask` only.
    unsafe { syscall(__NR_sched_setaffinity, args) };
}
