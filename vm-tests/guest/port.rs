//! The second serial port, where the host listens.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tcmi_vm_tests::wire::{DONE, Order, Said};

pub struct Port {
    writes: File,
    reads: RefCell<BufReader<File>>,
    opened: Instant,
}

impl Port {
    pub fn open() -> Result<Self> {
        let port = OpenOptions::new().read(true).write(true).open("/dev/ttyS1").context("port")?;
        // A terminal that echoes would say the host's answers back to it.
        let mut settings = tcgetattr(&port)?;
        cfmakeraw(&mut settings);
        tcsetattr(&port, SetArg::TCSANOW, &settings)?;
        let reads = RefCell::new(BufReader::new(port.try_clone()?));
        Ok(Self { writes: port, reads, opened: Instant::now() })
    }

    pub fn say(&self, said: &Said) -> Result<()> {
        (&self.writes).write_all(format!("{said}\n").as_bytes())?;
        // What is still in the port's buffer when the power goes is lost.
        Ok(nix::sys::termios::tcdrain(&self.writes)?)
    }

    pub fn progress(&self, text: &str) -> Result<()> {
        println!("case: {text} (at {:.1} s)", self.opened.elapsed().as_secs_f32());
        self.say(&Said::Progress(text.to_owned()))
    }

    /// Ok: the host did it.
    pub fn please(&self, order: Order) -> Result<()> {
        self.say(&Said::Please(order))?;
        let mut line = String::new();
        self.reads.borrow_mut().read_line(&mut line)?;
        ensure!(line.trim() == DONE, "the host answers {line:?}");
        Ok(())
    }
}
