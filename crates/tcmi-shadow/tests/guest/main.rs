//! Calls of a guest against the same calls made natively: results, errnos, memory.

mod bodies;
mod home;
mod rig;
mod signals;

use rig::{Rig, run_native};

fn same(name: &str, body: rig::Body) {
    let native = run_native(body);
    let guest = Rig::start(1, body).finish();
    assert!(!native.is_empty());
    bodies::compare(name, &native, &guest);
}

fn main() {
    rig::mask_sigchld(libc::SIG_BLOCK);
    let only = std::env::args().nth(1).filter(|a| !a.starts_with('-'));
    let chosen = |name: &str| only.as_deref().is_none_or(|o| name.contains(o));
    let mut ran = 0;
    for (name, body) in bodies::ALL {
        if chosen(name) {
            same(name, *body);
            println!("test {name} ... ok");
            ran += 1;
        }
    }
    for (name, test) in signals::ALL {
        if chosen(name) {
            test();
            println!("test {name} ... ok");
            ran += 1;
        }
    }
    println!("test result: ok. {ran} passed");
}
