//! One argument at a time, by its kind.

use super::message::{u32_at, u64_at};
use super::{
    BAD_POINTER, Call, Content, DATA_MAX_BYTES, Extent, GuestMemory, Place, Slot, USER_END,
    wire_rule,
};
use crate::frame::out_rule;
use crate::table::errno::{EFAULT, ENOTTY, Errno};
use crate::table::{Arg, Size, When, ioctl, prctl};

const NS_PER_S: u64 = 1_000_000_000;
/// Descriptor bits of a `select` that are looked at; kernels stop at the table's size.
const SELECT_BITS_MAX: u64 = 1 << 20;
/// User space has all below its last page.
pub(super) const LAST_PAGE: u64 = USER_END - 4096;
/// `struct ifconf`, and what a machine's interfaces take at most.
const IFCONF_BYTES: usize = 16;
const IFCONF_MAX_BYTES: u64 = 1024 * 1024;
/// No process has lower mappings (`mmap_min_addr`), so a pointer there is bad for sure.
const LOWEST_POINTER: u64 = 4096;

/// How many bytes `size` means here; at most what a call can carry.
fn extent(size: Size, args: &[u64; 6]) -> Extent {
    let max = DATA_MAX_BYTES as u64;
    let counted = |i: u8, n: u64, unit: u64, more: u64| {
        let most = (max - more) / unit;
        let clamped = (n > most).then_some((usize::from(i), most));
        Extent { len: (n.min(most) * unit + more) as usize, clamped }
    };
    match size {
        Size::Bytes(n) => Extent { len: n as usize, clamped: None },
        Size::Arg(i) | Size::Checked(i) => counted(i, args[i as usize], 1, 0),
        // Negative: for home to refuse.
        Size::Plus(i, more) if i64::try_from(args[i as usize]).is_err() => {
            Extent { len: more as usize, clamped: None }
        }
        Size::Plus(i, more) => counted(i, args[i as usize], 1, more.into()),
        Size::Int(i) => counted(i, natural(args[i as usize]), 1, 0),
        Size::Items(i, unit) => {
            let n = natural(args[i as usize]);
            let extent = counted(i, n, unit.into(), 0);
            // More than any kernel takes: for home to refuse.
            let refused = n > i32::MAX as u64 / u64::from(unit);
            Extent { clamped: extent.clamped.filter(|_| !refused), ..extent }
        }
    }
}

/// An `int`; a negative one is for home to refuse, and means no bytes.
fn natural(int: u64) -> u64 {
    u64::try_from(int as i32).unwrap_or(0)
}

/// Pointers that mean the same on every machine: none, and surely bad ones.
pub(super) fn universal(pointer: u64) -> Option<u64> {
    (!(LOWEST_POINTER..USER_END).contains(&pointer)).then_some(pointer)
}

impl Call {
    pub(super) fn copy_argument<M: GuestMemory>(
        &mut self,
        i: usize,
        arg: Arg,
        args: &[u64; 6],
        mem: &mut M,
    ) -> Result<(), Errno> {
        match arg {
            Arg::Unused => {}
            Arg::Value => self.header.args[i] = args[i],
            Arg::Fd => {
                self.header.args[i] = args[i];
                self.header.fd_args |= 1 << i;
            }
            Arg::TimeoutMs => self.header.args[i] = self.shortened_ms(args[i]),
            // In force in the guest, not at home.
            Arg::Mask | Arg::MaskPair => self.header.args[i] = 0,
            // Done with the buffer it belongs to.
            Arg::Length => {}
            Arg::Ioctl => self.copy_argument(i, ioctl::ioctl(args[1]).ok_or(ENOTTY)?, args, mem)?,
            Arg::Fcntl => self.copy_argument(i, ioctl::fcntl(args[1]), args, mem)?,
            Arg::Semctl => self.copy_argument(i, ioctl::semctl(args[2]), args, mem)?,
            Arg::Shmctl => self.copy_argument(i, ioctl::shmctl(args[1]), args, mem)?,
            Arg::Msgctl => self.copy_argument(i, ioctl::msgctl(args[1]), args, mem)?,
            Arg::Prctl => match prctl::option(args[0]) {
                prctl::Side::Home(arg) | prctl::Side::HomeThenLocal(arg) => {
                    self.copy_argument(i, arg, args, mem)?
                }
                prctl::Side::Local => {}
                prctl::Side::Refused(errno) => return Err(errno),
            },
            Arg::Measured(length, max) => {
                self.copy_measured(i, length as usize, max, args, mem);
            }
            _ => match universal(args[i]) {
                Some(pointer) => self.header.args[i] = pointer,
                None => self.copy_pointed(i, arg, args, mem)?,
            },
        }
        Ok(())
    }

    /// `args[i]` points into user space.
    fn copy_pointed<M: GuestMemory>(
        &mut self,
        i: usize,
        arg: Arg,
        args: &[u64; 6],
        mem: &mut M,
    ) -> Result<(), Errno> {
        let slot = Slot::Arg(i);
        match arg {
            Arg::Path => self.copy_path(slot, args[i], mem)?,
            Arg::In(size) | Arg::InOut(size, _) | Arg::Out(size, _) if beyond(size, i, args) => {
                self.point_raw(slot, LAST_PAGE);
            }
            Arg::In(size) => self.copy_in(slot, args[i], extent(size, args), None, mem),
            Arg::InOut(size, when) => {
                self.copy_in(slot, args[i], extent(size, args), Some(when), mem);
            }
            Arg::Out(size, when) => {
                let extent = extent(size, args);
                let there = mem.writable(args[i], extent.len);
                let place = Place { addr: args[i], content: Content::Buffer(when) };
                self.receives(slot, extent, there, wire_rule(when), place);
            }
            Arg::Bits => self.copy_bits(slot, args[i], args[0], mem),
            Arg::Ifconf => self.copy_ifconf(slot, args[i], mem),
            Arg::Timeout => self.copy_timeout(slot, args[i], 1, None, mem),
            Arg::TimeoutRest => {
                self.copy_timeout(slot, args[i], 1, Some(When::SuccessOrInterrupted), mem)
            }
            Arg::TimevalRest => {
                self.copy_timeout(slot, args[i], 1000, Some(When::SuccessOrInterrupted), mem)
            }
            Arg::IovecIn(n) => self.copy_iovec_argument(i, n as usize, args, true, mem),
            Arg::IovecOut(n) => self.copy_iovec_argument(i, n as usize, args, false, mem),
            Arg::MsghdrIn => self.copy_msghdr(slot, args[i], true, false, mem),
            Arg::MsghdrOut => self.copy_msghdr(slot, args[i], false, false, mem),
            Arg::MmsghdrIn | Arg::MmsghdrOut => {
                // An `unsigned int`.
                let count = u64::from(args[2] as u32).min(1);
                self.header.args[2] = count;
                match count {
                    0 => self.header.args[i] = 0,
                    _ => self.copy_msghdr(slot, args[i], arg == Arg::MmsghdrIn, true, mem),
                }
            }
            Arg::Unused
            | Arg::Value
            | Arg::Fd
            | Arg::TimeoutMs
            | Arg::Mask
            | Arg::MaskPair
            | Arg::Length
            | Arg::Measured(..)
            | Arg::Ioctl
            | Arg::Fcntl
            | Arg::Semctl
            | Arg::Msgctl
            | Arg::Shmctl
            | Arg::Prctl => unreachable!("resolved by copy_argument"),
        }
        Ok(())
    }

    fn copy_path<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        mem: &mut M,
    ) -> Result<(), Errno> {
        let at = self.align();
        match mem.read_string(addr, &mut self.image) {
            Ok(()) => self.point(slot, at),
            Err(EFAULT) => self.point_raw(slot, BAD_POINTER),
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    pub(super) fn copy_in<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        extent: Extent,
        back: Option<When>,
        mem: &mut M,
    ) {
        let back = back.map(|when| (when, Place { addr, content: Content::Buffer(when) }));
        let must_be_writable = matches!(back, Some((When::Success | When::Always, _)));
        let len = extent.len;
        if len > 0 && must_be_writable && mem.writable(addr, len) < len {
            return self.point_raw(slot, BAD_POINTER);
        }
        let at = self.align();
        if self.append(addr, len, mem).is_err() {
            let part = self.image.split_off(at);
            return self.sends_part(slot, extent, part, back);
        }
        self.clamp(extent);
        self.point(slot, at);
        if let Some((when, place)) = back {
            self.returns(at, len, wire_rule(when), place);
        }
    }

    /// How much of it home's kernel looks at is told by its descriptors, which are more there
    /// than here: what is not there is empty.
    fn copy_bits<M: GuestMemory>(&mut self, slot: Slot, addr: u64, bits: u64, mem: &mut M) {
        let wanted = (natural(bits).min(SELECT_BITS_MAX).div_ceil(64) * 8) as usize;
        let at = self.align();
        let there = match self.append(addr, wanted, mem) {
            Ok(_) => wanted,
            Err(fault) => fault.copied & !7,
        };
        self.image.truncate(at + there);
        if wanted > 0 && there == 0 {
            return self.point_raw(slot, BAD_POINTER);
        }
        self.image.resize(at + wanted, 0);
        self.point(slot, at);
        let place = Place { addr, content: Content::Buffer(When::Success) };
        self.returns(at, there, wire_rule(When::Success), place);
    }

    fn copy_ifconf<M: GuestMemory>(&mut self, slot: Slot, addr: u64, mem: &mut M) {
        let at = self.align();
        if self.append(addr, IFCONF_BYTES, mem).is_err() {
            self.image.truncate(at);
            return self.point_raw(slot, BAD_POINTER);
        }
        self.point(slot, at);
        let place = Place { addr, content: Content::Buffer(When::Success) };
        self.returns(at, 4, wire_rule(When::Success), place);
        let word = |at: usize| u64_at(&self.image, at);
        let (room, pointer) = (natural(word(at)).min(IFCONF_MAX_BYTES), word(at + 8));
        let base = Slot::Image(at + 8);
        if let Some(pointer) = universal(pointer) {
            return self.point_raw(base, pointer);
        }
        self.image[at..at + 4].copy_from_slice(&(room as u32).to_le_bytes());
        let extent = Extent { len: room as usize, clamped: None };
        let there = mem.writable(pointer, extent.len);
        let place = Place { addr: pointer, content: Content::Buffer(When::Success) };
        self.receives(base, extent, there, (out_rule::BY_LENGTH, at as u32), place);
    }

    fn shortened_ms(&self, timeout: u64) -> u64 {
        match u64::try_from(timeout as i32) {
            Ok(ms) => ms.saturating_sub(self.elapsed_ns / 1_000_000),
            Err(_) => timeout,
        }
    }

    /// A timespec, or a timeval with `ns_per_unit` 1000.
    fn copy_timeout<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        ns_per_unit: u64,
        back: Option<When>,
        mem: &mut M,
    ) {
        let at = self.image.len().next_multiple_of(8);
        self.copy_in(slot, addr, Extent { len: 16, clamped: None }, back, mem);
        if self.elapsed_ns == 0 || self.image.len() != at + 16 {
            return;
        }
        let word = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let (seconds, parts) = (word(&self.image[at..]), word(&self.image[at + 8..]));
        // What is not a time goes to home as it is, for its EINVAL.
        let (Ok(seconds), Ok(parts)) = (u64::try_from(seconds), u64::try_from(parts)) else {
            return;
        };
        let total = u128::from(seconds) * u128::from(NS_PER_S) + u128::from(parts * ns_per_unit);
        let left = total.saturating_sub(u128::from(self.elapsed_ns));
        let seconds = (left / u128::from(NS_PER_S)) as u64;
        let parts = (left % u128::from(NS_PER_S)) as u64 / ns_per_unit;
        self.image[at..at + 8].copy_from_slice(&seconds.to_le_bytes());
        self.image[at + 8..at + 16].copy_from_slice(&parts.to_le_bytes());
    }

    /// A result whose room stands in guest memory, at the pointer in argument `length`.
    fn copy_measured<M: GuestMemory>(
        &mut self,
        i: usize,
        length: usize,
        max: u32,
        args: &[u64; 6],
        mem: &mut M,
    ) {
        let result = universal(args[i]);
        if let Some(pointer) = result {
            self.header.args[i] = pointer;
        }
        if let Some(pointer) = universal(args[length]) {
            self.header.args[length] = pointer;
            if result.is_none() {
                self.header.args[i] = BAD_POINTER;
            }
            return;
        }
        let at = self.align();
        let room = match self.append(args[length], 4, mem) {
            Ok(_) => u32_at(&self.image, at) as i32,
            Err(_) => 0,
        };
        // A negative one is refused before anything is written.
        let must_be_writable = result.is_none() && room >= 0;
        if self.image.len() < at + 4 || (must_be_writable && mem.writable(args[length], 4) < 4) {
            self.image.truncate(at);
            self.header.args[length] = BAD_POINTER;
            if result.is_none() {
                self.header.args[i] = BAD_POINTER;
            }
            return;
        }
        self.point(Slot::Arg(length), at);
        let len = u32::try_from(room).map_or(0, |n| n.min(max));
        let clamped = result.is_none() && room > 0 && len < room as u32;
        let place = Place { addr: args[length], content: Content::Length { clamped } };
        self.returns(at, 4, wire_rule(When::Always), place);
        if result.is_some() {
            return;
        }
        if clamped {
            self.image[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        let extent = Extent { len: len as usize, clamped: None };
        let there = mem.writable(args[i], extent.len);
        let place = Place { addr: args[i], content: Content::Buffer(When::Success) };
        self.receives(Slot::Arg(i), extent, there, (out_rule::BY_LENGTH, at as u32), place);
    }
}

/// Whether a call that checks its buffer finds that it ends behind user space.
fn beyond(size: Size, i: usize, args: &[u64; 6]) -> bool {
    let ends_behind = |n: u64| args[i].checked_add(n).is_none_or(|end| end > LAST_PAGE);
    matches!(size, Size::Checked(n) if ends_behind(args[n as usize]))
}
