//! Pages on a bulk stream: runs of (address u64, length u64, bytes), ended by (0, 0).

use crate::error::{Error, Result};
use std::ops::Range;
use tcmi_ckpt::image::Vma;
use tcmi_ckpt::rebuild::Pages;
use tcmi_kkc::{BulkReader, BulkWriter};

const RUN_BYTES_MAX: u64 = 1 << 30;

/// Sends the pages of a frozen process. `sent` is told how many bytes are on their way.
pub fn send(
    w: &mut BulkWriter,
    pid: i32,
    vmas: &[Vma],
    runs: &[Range<u64>],
    sent: &dyn Fn(u64),
) -> Result<()> {
    let forced = Pages::open(pid, vmas)?;
    let mut total = 0;
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let len = (run.end - at).min(RUN_BYTES_MAX);
            header(w, at, len)?;
            send_run(w, pid, &forced, at, len, &mut |n| {
                total += n;
                sent(total);
            })?;
            at += len;
        }
    }
    header(w, 0, 0)?;
    Ok(w.flush()?)
}

fn header(w: &mut BulkWriter, addr: u64, len: u64) -> Result<()> {
    w.write(&addr.to_le_bytes())?;
    Ok(w.write(&len.to_le_bytes())?)
}

fn send_run(
    w: &mut BulkWriter,
    pid: i32,
    forced: &Pages,
    addr: u64,
    len: u64,
    sent: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut done = 0;
    while done < len {
        let got = {
            let mut rooms = w.spaces((len - done) as usize)?;
            tcmi_sys::memory::gather(pid, addr + done, &mut rooms)
        };
        let n = match got {
            Ok(n) => n,
            // Pages that the process itself cannot read.
            Err(_) => {
                let room = w.space()?;
                let n = (room.len() as u64).min(len - done) as usize;
                forced.read(addr + done, &mut room[..n])?;
                n
            }
        };
        w.commit(n)?;
        done += n as u64;
        sent(n as u64);
    }
    Ok(())
}

/// Receives pages into a process that has the mappings of `into`. Returns the bytes received.
pub fn receive(r: &mut BulkReader, into: &Pages, got: &dyn Fn(u64)) -> Result<u64> {
    let mut total = 0;
    loop {
        let mut head = [0; 16];
        r.read_exact(&mut head)?;
        let word = |i: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&head[i..i + 8]);
            u64::from_le_bytes(w)
        };
        let (mut addr, len) = (word(0), word(8));
        if len == 0 {
            return Ok(total);
        }
        let end = addr.checked_add(len).filter(|_| len <= RUN_BYTES_MAX);
        let end = end.ok_or(Error::Process(tcmi_ckpt::Error::Image("page run")))?;
        while addr < end {
            let bytes = r.fill()?;
            let n = bytes.len().min((end - addr) as usize);
            into.write(addr, &bytes[..n])?;
            r.consume(n);
            addr += n as u64;
            total += n as u64;
            got(total);
        }
    }
}
