//! The table has what the kernel that runs here and the headers that are installed have.
#![cfg(feature = "table")]

use std::io;
use std::process::Command;

use tcmi_call::table;

/// Tried behind the table's end: no more than a status can tell.
const NEWER: u32 = 200;

/// The first of `numbers` that this kernel has a call for. A process of its own tries them: whatever
/// such a call does, it does to that.
fn first_served(numbers: &[u32]) -> Option<u32> {
    assert!(numbers.len() < usize::from(u8::MAX));
    // SAFETY: the child makes system calls and ends; numbers that nobody has do nothing, and no
    // argument of one that somebody has points to anything.
    let child = unsafe {
        match libc::fork() {
            0 => libc::_exit(
                numbers.iter().position(|nr| is_served(*nr)).map_or(0, |at| at as i32 + 1),
            ),
            child => child,
        }
    };
    let mut status = 0;
    // SAFETY: our own child.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert!(waited == child && libc::WIFEXITED(status), "the child: {waited} {status}");
    let at = usize::try_from(libc::WEXITSTATUS(status)).expect("8 bits");
    at.checked_sub(1).map(|at| numbers[at])
}

/// # Safety
/// As the call of that number with arguments that are all -1.
unsafe fn is_served(nr: u32) -> bool {
    // SAFETY: the caller's.
    let result =
        unsafe { libc::syscall(i64::from(nr), -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
    result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

#[test]
fn this_kernel_has_no_call_that_the_table_lacks() {
    let end = table::ROWS as u32;
    let newer: Vec<u32> = (end..end + NEWER).collect();
    assert_eq!(first_served(&newer), None);
    let unassigned: Vec<u32> =
        table::rows().filter(|(_, row)| row.name == "unassigned").map(|(nr, _)| nr).collect();
    assert_eq!(first_served(&unassigned), None);
    // It can be seen: with these arguments it is EBADF.
    let close = table::number("close").expect("a row");
    assert_eq!(first_served(&[end, close]), Some(close));
}

#[test]
fn the_headers_have_no_call_that_the_table_lacks() {
    let cc = ["-E", "-dM", "-x", "c", "-include", "asm/unistd_64.h", "/dev/null"];
    let output = Command::new("cc").args(cc).output().expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let macros = String::from_utf8(output.stdout).expect("ASCII");
    let calls: Vec<(&str, u32)> = macros
        .lines()
        .filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '))
        .map(|(name, nr)| (name, nr.parse().expect("a number")))
        .collect();
    assert!(calls.len() > 300, "{calls:?}");
    for (name, nr) in calls {
        assert_eq!(table::row(nr).map(|row| row.name), Some(name), "number {nr}");
    }
}
