//! Which pages of a mapping hold bytes of their own.

use crate::errno::{Errno, Result, check};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

pub const PAGE_BYTES: u64 = 4096;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
/// _IOWR('f', 16, struct pm_scan_arg), a structure of 96 bytes.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// An open /proc/PID/pagemap.
pub struct Pagemap {
    file: File,
    scan_works: bool,
}

impl Pagemap {
    pub fn open(pid: i32) -> Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))
            .map_err(|e| Errno::from_io("open pagemap", &e))?;
        Ok(Self { file, scan_works: true })
    }

    /// Whether the kernel looks for a process's own pages itself.
    pub fn has_scan(&mut self) -> Result<bool> {
        // The first page is no program's; the question is whether it can be asked for.
        self.own_runs(0..4096, &mut Vec::new())?;
        Ok(self.scan_works)
    }

    /// Appends the runs of `range` (page-aligned) whose pages are the process's own: resident
    /// or swapped, and not the zero page. Where `file_backed`, pages that are still the
    /// file's are left out.
    pub fn own_runs(&mut self, range: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<()> {
        if self.scan_works {
            match self.scan(range.clone(), out) {
                Err(e) if e.code == libc::ENOTTY => self.scan_works = false,
                done => return done,
            }
        }
        self.walk(range, out)
    }

    fn scan(&self, range: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<()> {
        let mut regions = [Region::default(); 512];
        let mut start = range.start;
        while start < range.end {
            let mut arg = ScanArg {
                size: 96,
                start,
                end: range.end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                ..ScanArg::default()
            };
            // SAFETY: `arg` is a pm_scan_arg of the size it says, `vec` has room for vec_len.
            let n = check("PAGEMAP_SCAN", unsafe {
                libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg)
            } as i64)?;
            for r in &regions[..n as usize] {
                if r.categories & (PAGE_IS_FILE | PAGE_IS_PFNZERO) == 0 {
                    push(out, r.start..r.end);
                }
            }
            if arg.walk_end <= start {
                return Err(Errno::new("PAGEMAP_SCAN made no progress", libc::EIO));
            }
            start = arg.walk_end;
        }
        Ok(())
    }

    /// Appends the runs of `range` that were written since the last such look at them, or may have
    /// been, and begins anew. Err (EPERM): a part of it is not watched by a
    /// [`crate::userfault::Userfault`].
    pub fn written_runs(&self, range: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<()> {
        let mut regions = [Region::default(); 64];
        let mut start = range.start;
        while start < range.end {
            // With these masks a page without an entry counts as written: a written one that was
            // taken from the process has none.
            let mut arg = ScanArg {
                size: 96,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start,
                end: range.end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_mask: PAGE_IS_WRITTEN,
                return_mask: PAGE_IS_WRITTEN,
                ..ScanArg::default()
            };
            // SAFETY: as in `scan`.
            let n = check("PAGEMAP_SCAN", unsafe {
                libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg)
            } as i64)?;
            regions[..n as usize].iter().for_each(|r| push(out, r.start..r.end));
            if arg.walk_end <= start {
                return Err(Errno::new("PAGEMAP_SCAN made no progress", libc::EIO));
            }
            start = arg.walk_end;
        }
        Ok(())
    }

    /// For kernels before 6.7: one word a page.
    fn walk(&self, range: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<()> {
        const FILE: u64 = 1 << 61;
        const SWAPPED: u64 = 1 << 62;
        const PRESENT: u64 = 1 << 63;
        let mut words = vec![0u8; 64 * 1024];
        let mut page = range.start / PAGE_BYTES;
        let end = range.end / PAGE_BYTES;
        while page < end {
            let want = ((end - page) as usize * 8).min(words.len());
            self.file
                .read_exact_at(&mut words[..want], page * 8)
                .map_err(|e| Errno::from_io("read pagemap", &e))?;
            for (i, w) in words[..want].as_chunks::<8>().0.iter().enumerate() {
                let w = u64::from_le_bytes(*w);
                if w & (PRESENT | SWAPPED) != 0 && w & FILE == 0 {
                    let a = (page + i as u64) * PAGE_BYTES;
                    push(out, a..a + PAGE_BYTES);
                }
            }
            page += (want / 8) as u64;
        }
        Ok(())
    }
}

fn push(out: &mut Vec<Range<u64>>, r: Range<u64>) {
    match out.last_mut() {
        Some(last) if last.end == r.start => last.end = r.end,
        _ => out.push(r),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_written_pages() {
        let len = 64 * PAGE_BYTES as usize;
        // SAFETY: a new private mapping at a place of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(p, libc::MAP_FAILED);
        let base = p as u64;
        // SAFETY: offsets are inside the mapping made above.
        unsafe {
            libc::madvise(p, len, libc::MADV_NOHUGEPAGE);
            for i in [3usize, 4, 5, 20] {
                p.cast::<u8>().add(i * 4096).write_volatile(1);
            }
            assert_eq!(p.cast::<u8>().add(40 * 4096).read_volatile(), 0);
        }
        let want = [base + 3 * 4096..base + 6 * 4096, base + 20 * 4096..base + 21 * 4096];
        let mut map = Pagemap::open(std::process::id() as i32).expect("pagemap");
        let mut runs = Vec::new();
        map.own_runs(base..base + len as u64, &mut runs).expect("scan");
        assert_eq!(runs, want);
        let mut runs = Vec::new();
        map.walk(base..base + len as u64, &mut runs).expect("walk");
        assert!(want.iter().all(|w| runs.iter().any(|r| r.start <= w.start && w.end <= r.end)));
        // SAFETY: our own mapping, no longer used.
        unsafe { libc::munmap(p, len) };
    }
}
