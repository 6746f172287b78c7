//! One kernel's vDSO in the place of another's. A program keeps addresses of vDSO functions, so
//! the text of its home stays where it was, and each function there jumps to the one of the same
//! name in the vDSO that this kernel maps. What this kernel lacks becomes a system call.
//!
//! Home's text behind the entries stays whole, over data pages of zeros: a signal handler that
//! interrupted it goes back into it, and with a clock mode of 0 it asks the kernel.

use crate::error::{Error, Result};
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::sym::STT_FUNC;
use goblin::elf::{Elf, Sym};
use std::collections::BTreeMap;

/// `movabs $imm64, %rax; jmp *%rax`. A function's caller expects nothing of rax.
const JUMP_BYTES: usize = 12;

/// Functions of a vDSO by name: where they begin, in bytes from its start.
fn functions(text: &[u8]) -> Result<BTreeMap<String, usize>> {
    const BROKEN: Error = Error::Image("a vDSO that is no ELF file");
    let elf = Elf::parse(text).map_err(|_| BROKEN)?;
    let load = elf.program_headers.iter().find(|p| p.p_type == PT_LOAD).ok_or(BROKEN)?;
    let bias = load.p_offset.wrapping_sub(load.p_vaddr);
    let is_function = |s: &Sym| s.st_type() == STT_FUNC && s.st_shndx != 0;
    let mut all = BTreeMap::new();
    for symbol in elf.dynsyms.iter().filter(is_function) {
        let at = symbol.st_value.wrapping_add(bias) as usize;
        let name = elf.dynstrtab.get_at(symbol.st_name).ok_or(BROKEN)?;
        if at >= text.len() {
            return Err(BROKEN);
        }
        all.insert(name.to_owned(), at);
    }
    Ok(all)
}

/// `theirs` with all functions redirected to those of `ours`, which is mapped at `ours_at`.
pub fn redirected(theirs: &[u8], ours: &[u8], ours_at: u64) -> Result<Vec<u8>> {
    let (wanted, here) = (functions(theirs)?, functions(ours)?);
    // Two names may have one entry: `clock_gettime` and `__vdso_clock_gettime`.
    let mut entries: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    for (name, at) in &wanted {
        let code = match here.get(name) {
            Some(target) => jump(ours_at + *target as u64),
            None => system_call(name),
        };
        entries.insert(*at, code);
    }
    let mut text = theirs.to_vec();
    let ends = entries.keys().skip(1).copied().chain([text.len()]).collect::<Vec<_>>();
    for ((at, code), end) in entries.into_iter().zip(ends) {
        if at + code.len() > end {
            return Err(Error::unsupported("a function of its vDSO has no room for a jump"));
        }
        text[at..at + code.len()].copy_from_slice(&code);
    }
    Ok(text)
}

fn jump(to: u64) -> Vec<u8> {
    let mut code = Vec::with_capacity(JUMP_BYTES);
    code.extend_from_slice(&[0x48, 0xb8]);
    code.extend_from_slice(&to.to_le_bytes());
    code.extend_from_slice(&[0xff, 0xe0]);
    code
}

/// A function that does its work by a system call. Up to three arguments are in the same
/// registers for both.
fn system_call(name: &str) -> Vec<u8> {
    const RETURN: u8 = 0xc3;
    let with_number = |opcode: &[u8], number: i64| {
        [opcode, &(number as i32).to_le_bytes(), &[0x0f, 0x05, RETURN]].concat()
    };
    let set_eax = [0xb8];
    let fail = [&set_eax[..], &(-libc::ENOSYS).to_le_bytes(), &[RETURN]].concat();
    let number = match name.strip_prefix("__vdso_").unwrap_or(name) {
        "clock_gettime" => libc::SYS_clock_gettime,
        "gettimeofday" => libc::SYS_gettimeofday,
        "clock_getres" => libc::SYS_clock_getres,
        "time" => libc::SYS_time,
        "getcpu" => libc::SYS_getcpu,
        // Asked with -1 in r8 it would tell the form of its state, which no system call can.
        "getrandom" => {
            let call = with_number(&set_eax, libc::SYS_getrandom);
            let is_asked = [0x49, 0x83, 0xf8, 0xff, 0x74, call.len() as u8];
            return [&is_asked[..], &call, &fail].concat();
        }
        _ => return fail,
    };
    with_number(&set_eax, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (Vec<u8>, u64) {
        let maps = tcmi_sys::maps::read(std::process::id() as i32).expect("maps");
        let vdso = maps.iter().find(|m| m.name == "[vdso]").expect("a vDSO");
        let mut text = vec![0; vdso.len() as usize];
        let pid = std::process::id() as i32;
        tcmi_sys::memory::read(pid, vdso.start, &mut text).expect("its text");
        (text, vdso.start)
    }

    /// Maps bytes as code.
    fn map(text: &[u8]) -> *mut u8 {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping of its own, filled within its length.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), text.len(), prot, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(text.as_ptr(), at.cast::<u8>(), text.len());
            at.cast()
        }
    }

    type ClockGettime = extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int;

    /// What a mapped text's `__vdso_clock_gettime` says.
    fn ask(code: *mut u8, text: &[u8]) -> i64 {
        let at = functions(text).expect("functions")["__vdso_clock_gettime"];
        // SAFETY: the function of that name at this place, with its C signature.
        let ask: ClockGettime = unsafe { std::mem::transmute(code.add(at)) };
        let mut seen = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(ask(libc::CLOCK_MONOTONIC, &mut seen), 0);
        seen.tv_sec * 1_000_000_000 + seen.tv_nsec
    }

    #[test]
    fn a_copy_leads_to_the_one_that_works() {
        let (text, at) = own();
        let copy = map(&redirected(&text, &text, at).expect("redirected"));
        let before = tcmi_sys::namespace::clock(libc::CLOCK_MONOTONIC);
        let seen = ask(copy, &text);
        let after = tcmi_sys::namespace::clock(libc::CLOCK_MONOTONIC);
        assert!((before..=after).contains(&seen), "{before} {seen} {after}");
    }

    #[test]
    fn what_is_lacking_becomes_a_call() {
        let (text, _) = own();
        let mut code = text.clone();
        let at = functions(&text).expect("functions")["__vdso_clock_gettime"];
        let call = system_call("__vdso_clock_gettime");
        code[at..at + call.len()].copy_from_slice(&call);
        let before = tcmi_sys::namespace::clock(libc::CLOCK_MONOTONIC);
        let seen = ask(map(&code), &text);
        assert!(seen >= before);

        type GetRandom = extern "C" fn(*mut u8, usize, u32, *mut u8, usize) -> isize;
        let code = map(&system_call("__vdso_getrandom"));
        // SAFETY: our own code, with the C signature of the kernel's function.
        let get: GetRandom = unsafe { std::mem::transmute(code) };
        let mut bytes = [0; 32];
        assert_eq!(get(bytes.as_mut_ptr(), 32, 0, std::ptr::null_mut(), 0), 32);
        assert_ne!(bytes, [0; 32]);
        let asked = get(std::ptr::null_mut(), 0, 0, bytes.as_mut_ptr(), usize::MAX);
        assert_eq!(asked as i32, -libc::ENOSYS);
    }

    #[test]
    fn damaged_text_is_refused() {
        let (text, at) = own();
        for len in [0, 1, 63, 64, 200, 1000] {
            assert!(redirected(&text[..len], &text, at).is_err(), "{len} bytes");
        }
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut damaged = text.clone();
            for _ in 0..8 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // Where the headers and the symbols are.
                damaged[(seed >> 33) as usize % 1500] = (seed >> 25) as u8;
            }
            if let Ok(patched) = redirected(&damaged, &text, at) {
                assert_eq!(patched.len(), damaged.len());
            }
        }
    }
}
