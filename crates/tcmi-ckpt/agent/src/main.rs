//! The agent: what runs in a shadow on the guest's behalf, and in a guest on the
//! monitor's. `tcmi_call::abi` is its interface.
//!
//! It lives in a foreign process: no libc, no thread-local storage (fs belongs to
//! the program), no allocation, and no writable state but what the areas hold and
//! the CPU detection's cache.
#![no_std]
#![no_main]

mod aead;
mod batch;
mod broken;
mod call;
mod descriptors;
mod header;
mod lifecycle;
mod mem;
mod placement;
mod serve;
mod settle;
mod signal;
mod steward;
mod stream;
mod sys;
mod window;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ud2 raises SIGILL; it touches nothing.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}
