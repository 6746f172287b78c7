//! Pages on a bulk stream: runs of (address u64, length u64, bytes), ended by (0, 0), or by
//! (u64::MAX, 0) from a sender that gives up, whose Failed is then the next message.
//!
//! Whatever happens to the pages, either side leaves the stream between two messages, so that
//! both can still agree on who goes on; only a failure of the stream itself cannot be mended.

use crate::error::{Error, Result};
use crate::fault::{self, Point};
use crate::messages as msg;
use crate::module;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use tcmi_ckpt::image::Vma;
use tcmi_ckpt::rebuild::Pages;
use tcmi_kkc::{BulkReader, BulkWriter};

/// A sender that fails inside a run has to fill it up, so runs are short.
const RUN_BYTES_MAX: u64 = 4 << 20;
/// Stands where a run's address would. No run has length 0.
const ABORT: u64 = u64::MAX;

/// Pages of a frozen process that are to be sent.
pub struct Outgoing<'a> {
    pub pid: i32,
    pub vmas: &'a [Vma],
    pub runs: &'a [Range<u64>],
    /// Sends what it can.
    pub module: Option<module::Sending>,
}

/// Sends them. `sent` is told how many bytes are on their way.
///
/// Err, but for a failure of the stream: the receiver waits for our Failed.
pub fn send(w: &mut BulkWriter, pages: &Outgoing, half: Point, sent: &dyn Fn(u64)) -> Result<()> {
    match send_runs(w, pages, half, sent) {
        Err(e @ Error::Stream(_)) => Err(e),
        done => {
            header(w, if done.is_ok() { 0 } else { ABORT }, 0)?;
            w.flush()?;
            done
        }
    }
}

/// Sends ranges of a file by their offsets, as pages go.
///
/// Err, but for a failure of the stream: the receiver waits for our Failed.
pub fn send_file(w: &mut BulkWriter, f: &File, ranges: &[Range<u64>]) -> Result<()> {
    let mut sent = Ok(());
    'all: for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(RUN_BYTES_MAX);
            header(w, at, len)?;
            sent = send_extent(w, f, at, len);
            if sent.is_err() {
                break 'all;
            }
            at += len;
        }
    }
    match sent {
        Err(e @ Error::Stream(_)) => Err(e),
        done => {
            header(w, if done.is_ok() { 0 } else { ABORT }, 0)?;
            w.flush()?;
            done
        }
    }
}

fn send_extent(w: &mut BulkWriter, f: &File, addr: u64, len: u64) -> Result<()> {
    let mut done = 0;
    while done < len {
        let room = w.space()?;
        let n = (room.len() as u64).min(len - done) as usize;
        if let Err(e) = f.read_exact_at(&mut room[..n], addr + done) {
            fill_up(w, len - done)?;
            return Err(Error::io("read a mapped file")(e));
        }
        w.commit(n)?;
        done += n as u64;
    }
    Ok(())
}

fn send_runs(w: &mut BulkWriter, pages: &Outgoing, half: Point, sent: &dyn Fn(u64)) -> Result<()> {
    let forced = Pages::open(pages.pid, pages.vmas)?;
    let mut total = 0;
    for run in pages.runs {
        let mut at = run.start;
        while at < run.end {
            let len = (run.end - at).min(RUN_BYTES_MAX);
            header(w, at, len)?;
            let mut told = |n| {
                total += n;
                sent(total);
            };
            let module = pages.module.as_ref().filter(|_| len >= module::RUN_BYTES_MIN);
            let done = module.map_or(Ok(0), |m| send_by_module(w, m, at, len, &mut told))?;
            send_run(w, pages.pid, &forced, at + done, len - done, &mut told)?;
            at += len;
            fault::pass(half)?;
        }
    }
    Ok(())
}

fn header(w: &mut BulkWriter, addr: u64, len: u64) -> Result<()> {
    w.write(&addr.to_le_bytes())?;
    Ok(w.write(&len.to_le_bytes())?)
}

/// The bytes at the start of a run that went this way.
fn send_by_module(
    w: &mut BulkWriter,
    module: &module::Sending,
    addr: u64,
    len: u64,
    sent: &mut dyn FnMut(u64),
) -> Result<u64> {
    let mut done = 0;
    while done < len {
        match module.send(addr + done..addr + len, w)? {
            0 => break,
            n => {
                done += n;
                sent(n);
            }
        }
    }
    Ok(done)
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
                if let Err(e) = forced.read(addr + done, &mut room[..n]) {
                    fill_up(w, len - done)?;
                    return Err(e.into());
                }
                n
            }
        };
        w.commit(n)?;
        done += n as u64;
        sent(n as u64);
    }
    Ok(())
}

/// The rest of a run that nobody is going to use.
fn fill_up(w: &mut BulkWriter, mut len: u64) -> Result<()> {
    while len > 0 {
        let room = w.space()?;
        let n = (room.len() as u64).min(len) as usize;
        room[..n].fill(0);
        w.commit(n)?;
        len -= n as u64;
    }
    Ok(())
}

enum Head {
    Run(Range<u64>),
    End,
    Abort,
}

/// Pages that are to come on a stream.
pub struct Incoming<'a> {
    r: &'a mut BulkReader,
    /// What was not read yet of the run that was begun.
    run: Range<u64>,
    ended: bool,
}

impl<'a> Incoming<'a> {
    pub fn new(r: &'a mut BulkReader) -> Self {
        Self { r, run: 0..0, ended: false }
    }

    /// Receives them into a process that has the mappings of `into`. Returns the bytes received.
    ///
    /// Err: the stream stands where it failed; [`Incoming::discard`] brings it to the end.
    pub fn receive(&mut self, into: &Pages, half: Point, got: &dyn Fn(u64)) -> Result<u64> {
        self.each(&mut |at, bytes| Ok(into.write(at, bytes)?), Some(half), got)
    }

    /// The same with what [`send_file`] sends, into each of `files`.
    pub fn receive_file(&mut self, files: &[&File], mapped: &[Range<u64>]) -> Result<u64> {
        let mut write = |at: u64, bytes: &[u8]| {
            let end = at + bytes.len() as u64;
            if !mapped.iter().any(|r| r.start <= at && end <= r.end) {
                return Err(tcmi_ckpt::Error::Image("bytes of a file that are not mapped").into());
            }
            let mut written = files.iter().map(|f| f.write_all_at(bytes, at));
            written.try_for_each(|done| done.map_err(Error::io("fill a mapped file")))
        };
        self.each(&mut write, None, &|_| {})
    }

    fn each(
        &mut self,
        write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
        half: Option<Point>,
        got: &dyn Fn(u64),
    ) -> Result<u64> {
        let mut total = 0;
        loop {
            match self.head()? {
                Head::Run(run) => self.run = run,
                Head::End => return Ok(total),
                Head::Abort => {
                    let failed: msg::Failed = msg::expect(self.r)?;
                    return Err(failed.into());
                }
            }
            while !self.run.is_empty() {
                let at = self.run.start;
                total += self.take(|bytes| write(at, bytes))?;
                got(total);
            }
            half.map_or(Ok(()), fault::pass)?;
        }
    }

    /// Reads on to the end of pages that nobody can use because of `why`, so that the peer can
    /// be told. Returns what is to be told, or that the stream failed.
    pub fn discard(mut self, why: Error) -> Error {
        // Where the next header would be, nobody can know.
        if matches!(why, Error::Stream(_) | Error::PageRun { .. }) {
            return why;
        }
        while !self.ended {
            let step = match self.run.is_empty() {
                true => self.head().map(|head| {
                    if let Head::Run(run) = head {
                        self.run = run;
                    }
                }),
                false => self.take(|_| Ok(())).map(drop),
            };
            if let Err(e) = step {
                return e;
            }
        }
        why
    }

    fn head(&mut self) -> Result<Head> {
        let mut words = [[0; 8]; 2];
        self.r.read_exact(words.as_flattened_mut())?;
        let head = match words.map(u64::from_le_bytes) {
            [0, 0] => Head::End,
            [ABORT, 0] => Head::Abort,
            [addr, len] => {
                let end = addr.checked_add(len).filter(|_| (1..=RUN_BYTES_MAX).contains(&len));
                let end = end.ok_or(Error::PageRun { addr, len })?;
                return Ok(Head::Run(addr..end));
            }
        };
        self.ended = true;
        Ok(head)
    }

    /// The next bytes of the run, which are gone afterwards whether `with` could use them or not.
    fn take(&mut self, with: impl FnOnce(&[u8]) -> Result<()>) -> Result<u64> {
        let bytes = self.r.fill()?;
        let n = bytes.len().min((self.run.end - self.run.start) as usize);
        let used = with(&bytes[..n]);
        self.r.consume(n);
        self.run.start += n as u64;
        used.map(|()| n as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use tcmi_ckpt::image::Backing;
    use tcmi_kkc::{Stream, StreamKind};
    use tcmi_sys::pages::PAGE_BYTES;

    const HALF: Point = Point::HomePagesHalfSent;

    fn end(fd: UnixStream, tx: u8, rx: u8) -> (BulkWriter, BulkReader) {
        let keys =
            |k| tcmi_call::record::DirectionKeys { key: [k; 32], iv: [k; 12], pad: 0, seq: 0 };
        Stream { id: 1, kind: StreamKind::Bulk, fd: fd.into(), tx: keys(tx), rx: keys(rx) }
            .into_bulk()
    }

    fn pair() -> ((BulkWriter, BulkReader), (BulkWriter, BulkReader)) {
        let (a, b) = UnixStream::pair().unwrap();
        (end(a, 1, 2), end(b, 2, 1))
    }

    fn me() -> i32 {
        std::process::id() as i32
    }

    fn of_me<'a>(vmas: &'a [Vma], runs: &'a [Range<u64>]) -> Outgoing<'a> {
        Outgoing { pid: me(), vmas, runs, module: None }
    }

    /// `n` pages of this process, and a hole of as many behind them.
    fn some_pages(n: u64) -> (u64, [Vma; 1]) {
        let len = (n * PAGE_BYTES) as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), 2 * len, prot, flags, -1, 0) };
        assert_ne!(p, libc::MAP_FAILED);
        let start = p as u64;
        // SAFETY: the second half of what was just mapped, to which nothing points.
        assert_eq!(unsafe { libc::munmap(p.add(len), len) }, 0);
        let end = start + len as u64;
        (start, [Vma { start, end, prot, backing: Backing::Anonymous, flags: 0 }])
    }

    #[test]
    fn a_sender_that_fails_inside_a_run_is_heard() {
        let (start, vmas) = some_pages(4);
        let run = start..vmas[0].end + 2 * PAGE_BYTES;
        let ((mut w, _keep), (_w, mut r)) = pair();
        let sender = std::thread::spawn(move || {
            let e = send(&mut w, &of_me(&vmas, &[run]), HALF, &|_| {}).unwrap_err();
            let failed = msg::Failed { errno: 5, text: e.to_string() };
            msg::send(&mut w, &failed).unwrap();
            msg::send(&mut w, &msg::Thawed {}).unwrap();
        });
        let (_, into) = some_pages(4);
        let mut pages = Incoming::new(&mut r);
        let why = pages.receive(&Pages::open(me(), &into).unwrap(), HALF, &|_| {}).unwrap_err();
        // The sender's addresses are not mapped here: the receiver fails first.
        assert!(matches!(why, Error::Process(tcmi_ckpt::Error::Image(_))), "{why}");
        assert!(matches!(pages.discard(why), Error::Process(_)));
        let said = msg::expect::<msg::Thawed>(&mut r).unwrap_err();
        assert!(matches!(said, Error::Peer { errno: 5, .. }), "{said}");
        msg::expect::<msg::Thawed>(&mut r).unwrap();
        sender.join().unwrap();
    }

    #[test]
    fn the_senders_reason_reaches_a_receiver_that_is_well() {
        let (start, vmas) = some_pages(4);
        let runs = [start..vmas[0].end, vmas[0].end..vmas[0].end + PAGE_BYTES];
        let ((mut w, _keep), (_w, mut r)) = pair();
        let wide = [Vma { end: vmas[0].end + PAGE_BYTES, prot: libc::PROT_NONE, ..vmas[0] }];
        send(&mut w, &of_me(&vmas, &runs[..1]), HALF, &|_| {}).unwrap();
        let e = send(&mut w, &of_me(&wide, &runs[1..]), HALF, &|_| {}).unwrap_err();
        msg::send(&mut w, &msg::Failed { errno: e.errno(), text: "hole".into() }).unwrap();
        let into = Pages::open(me(), &vmas).unwrap();
        let got = Incoming::new(&mut r).receive(&into, HALF, &|_| {}).unwrap();
        assert_eq!(got, 4 * PAGE_BYTES);
        let mut none = Incoming::new(&mut r);
        assert!(matches!(none.head().unwrap(), Head::Run(run) if run == runs[1]));
        none.run = runs[1].clone();
        none.take(|zeros| {
            assert!(zeros.iter().all(|b| *b == 0));
            Ok(())
        })
        .unwrap();
        assert!(none.run.is_empty());
        let said = none.receive(&into, HALF, &|_| {}).unwrap_err();
        assert!(matches!(said, Error::Peer { .. }), "{said}");
    }

    #[test]
    fn a_run_that_cannot_be_is_not_read_past() {
        let ((mut w, _keep), (_w, mut r)) = pair();
        let (_, vmas) = some_pages(1);
        header(&mut w, 4096, RUN_BYTES_MAX + 1).unwrap();
        w.flush().unwrap();
        let into = Pages::open(me(), &vmas).unwrap();
        let mut pages = Incoming::new(&mut r);
        let why = pages.receive(&into, HALF, &|_| {}).unwrap_err();
        assert!(matches!(pages.discard(why), Error::PageRun { addr: 4096, .. }));
    }
}
