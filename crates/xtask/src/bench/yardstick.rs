//! What this machine can do at all, measured with nothing of ours.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execv, fork};
use serde::Serialize;

const FORKS: usize = 300;
const ROUND_TRIPS: usize = 20_000;
const ROUND_TRIP_BYTES: usize = 64;
const BULK_BYTES: usize = 1 << 30;
const BULK_SEND_BYTES: usize = 512 * 1024;
const COPY_BYTES: usize = 256 << 20;
const COPIES: usize = 8;

#[derive(Clone, Debug, Serialize)]
pub struct Yardsticks {
    pub fork_exec_us: f64,
    pub round_trip_us: f64,
    pub bulk_gb_s: f64,
    pub memcpy_gb_s: f64,
}

impl Yardsticks {
    pub fn take() -> Result<Self> {
        Ok(Self {
            fork_exec_us: fork_exec_us()?,
            round_trip_us: round_trip_us()?,
            bulk_gb_s: bulk_gb_s()?,
            memcpy_gb_s: memcpy_gb_s(),
        })
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn fork_exec_us() -> Result<f64> {
    let program = c"/bin/true";
    let mut times = Vec::new();
    for _ in 0..FORKS {
        let start = Instant::now();
        // SAFETY: the child calls nothing but execv and _exit; its argument was made before.
        match unsafe { fork() }? {
            ForkResult::Child => {
                // Returns only if it failed.
                let Err(_) = execv(program, &[program]);
                // SAFETY: _exit runs no destructors and no exit handlers of the parent's image.
                unsafe { libc::_exit(127) }
            }
            ForkResult::Parent { child } => waitpid(child, None)?,
        };
        times.push(micros(start.elapsed()));
    }
    Ok(median(times))
}

fn connected() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    Ok((near, far))
}

fn pin_to_first_of(allowed: &CpuSet) -> Result<()> {
    let first = (0..CpuSet::count())
        .find(|cpu| allowed.is_set(*cpu).is_ok_and(|set| set))
        .context("a processor that is allowed")?;
    let mut one = CpuSet::new();
    one.set(first)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

fn round_trip_us() -> Result<f64> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let (mut near, mut far) = connected()?;
    // Affinity is a thread's: both ends are threads of their own, on one core.
    thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<()> {
            pin_to_first_of(&allowed)?;
            let mut bytes = [0; ROUND_TRIP_BYTES];
            for _ in 0..ROUND_TRIPS {
                far.read_exact(&mut bytes)?;
                far.write_all(&bytes)?;
            }
            Ok(())
        });
        let ask = scope.spawn(|| -> Result<f64> {
            pin_to_first_of(&allowed)?;
            let mut bytes = [0; ROUND_TRIP_BYTES];
            let start = Instant::now();
            for _ in 0..ROUND_TRIPS {
                near.write_all(&bytes)?;
                near.read_exact(&mut bytes)?;
            }
            Ok(micros(start.elapsed()) / ROUND_TRIPS as f64)
        });
        let time = ask.join().expect("it does not panic")?;
        echo.join().expect("it does not panic")?;
        Ok(time)
    })
}

fn bulk_gb_s() -> Result<f64> {
    let (mut near, mut far) = connected()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let piece = vec![0x5au8; BULK_SEND_BYTES];
            for _ in 0..BULK_BYTES / BULK_SEND_BYTES {
                near.write_all(&piece)?;
            }
            Ok(())
        });
        // Zeroed by the kernel at first touch: each page faults while it is received.
        let mut fresh = vec![0u8; BULK_BYTES];
        let start = Instant::now();
        far.read_exact(&mut fresh)?;
        let time = start.elapsed();
        sender.join().expect("it does not panic")?;
        ensure!(fresh[BULK_BYTES - 1] == 0x5a, "the bytes did not arrive");
        Ok(BULK_BYTES as f64 / time.as_secs_f64() / 1e9)
    })
}

fn memcpy_gb_s() -> f64 {
    let from = vec![1u8; COPY_BYTES];
    let mut to = vec![2u8; COPY_BYTES];
    let times = (0..COPIES)
        .map(|_| {
            let start = Instant::now();
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&mut to);
            start.elapsed().as_secs_f64()
        })
        .collect();
    COPY_BYTES as f64 / median(times) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yardsticks_are_within_what_machines_do() -> Result<()> {
        let round_trip = round_trip_us()?;
        assert!((0.5..1000.0).contains(&round_trip), "{round_trip} us");
        let fork_exec = fork_exec_us()?;
        assert!((50.0..100_000.0).contains(&fork_exec), "{fork_exec} us");
        Ok(())
    }
}
