//! Watched processes that begin others all the time.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tcmi_ckpt::watched::{Happening, Watched};

/// How often a fork is met, and the longest that it may take.
const MET: usize = 5;
const MET_MAX: Duration = Duration::from_secs(60);
const SOON_MS: u16 = 10_000;

struct Forks(Child);

impl Drop for Forks {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

impl Forks {
    fn start() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do (:); echo; done"]).stdout(Stdio::piped());
        Self(command.spawn().expect("sh"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// It begins another, and waits for its end.
    fn goes_on(&mut self) {
        let out = self.0.stdout.as_mut().expect("a pipe");
        let mut all = [0; 1 << 16];
        for _ in 0..3 {
            let timeout = PollTimeout::from(SOON_MS);
            let n = poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLIN)], timeout);
            assert_eq!(n, Ok(1), "it begins nobody any more");
            match out.read(&mut all) {
                Ok(n) => assert!(n > 0, "it has ended"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Interrupted),
            }
        }
    }
}

/// A stop that was asked for is forgotten by the kernel for the stop at a fork, and a child that
/// is begun while its parent is to be held is let go all the same.
#[test]
fn a_process_is_held_in_the_midst_of_its_forks() {
    let mut forks = Forks::start();
    let mut meanwhile = 0;
    let until = Instant::now() + MET_MAX;
    while meanwhile < MET {
        assert!(Instant::now() < until, "{meanwhile} forks were met in {MET_MAX:?}");
        let mut watched = Watched::seize(forks.pid()).expect("seize");
        watched.poll().expect("poll");
        let (frozen, happened) = watched.freeze().expect("freeze");
        meanwhile += happened.iter().filter(|h| matches!(h, Happening::Began(_))).count();
        assert_eq!(frozen.threads.len(), 1);
        frozen.thaw().expect("thaw");
        forks.goes_on();
    }
}
