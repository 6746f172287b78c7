//! 50 Rust threads pass numbers through a ring of channels and verify the order,
//! while each holds thread-local state and a share of an atomic sum.
use std::cell::Cell;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: usize = 50;
const FULL_TURN_TIMEOUT: Duration = Duration::from_secs(20);

thread_local!(static SEEN: Cell<u64> = const { Cell::new(0) });

struct Ring {
    turns: AtomicU64,
    broken: AtomicBool,
}

fn relay(ring: &Ring, from: &mpsc::Receiver<u64>, to: &mpsc::Sender<u64>, first: bool) {
    for token in from.iter() {
        let expected = SEEN.get();
        if token != expected {
            ring.broken.store(true, Ordering::SeqCst);
        }
        SEEN.set(expected + 1);
        let next = if first {
            ring.turns.fetch_add(1, Ordering::SeqCst);
            token + 1
        } else {
            token
        };
        if to.send(next).is_err() {
            return;
        }
    }
}

fn verdict(ring: &Ring) -> String {
    let before = ring.turns.load(Ordering::SeqCst);
    let limit = Instant::now() + FULL_TURN_TIMEOUT;
    while ring.turns.load(Ordering::SeqCst) < before + 2 {
        if Instant::now() > limit {
            return format!("FAIL full turn of the ring: {} {}", before + 2, before);
        }
        thread::yield_now();
    }
    if ring.broken.load(Ordering::SeqCst) { "FAIL order in the ring: 0 1".into() } else { "OK".into() }
}

fn main() {
    let ring = Arc::new(Ring { turns: AtomicU64::new(0), broken: AtomicBool::new(false) });
    let (first_to, mut from) = mpsc::channel();
    for place in (0..THREADS).rev() {
        let (to, next_from) = if place == 0 {
            (first_to.clone(), None)
        } else {
            let (to, next) = mpsc::channel();
            (to, Some(next))
        };
        let (ring, mine) = (ring.clone(), from);
        thread::spawn(move || relay(&ring, &mine, &to, place == 0));
        match next_from {
            Some(next) => from = next,
            None => break,
        }
    }
    first_to.send(0).expect("the ring was just built");
    println!("READY {}", std::process::id());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is a pipe of text");
        if line == "check" {
            println!("{}", verdict(&ring));
        } else if let Some(status) = line.strip_prefix("end ") {
            std::io::stdout().flush().expect("stdout is open");
            std::process::exit(status.parse().expect("a status after end"));
        }
    }
    std::process::exit(98);
}
