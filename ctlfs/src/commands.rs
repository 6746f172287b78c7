//! Commands on their way through the daemon, whoever brought them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tcmi_core::command::Form;
use tcmi_core::error::Errno;
use tcmi_core::limits::CONTROL_COMMANDS_MAX;

use crate::control::{Answer, Caller, Control, Reply};
use crate::handles::{LastAnswers, lock};
use crate::place::Place;
use crate::tree::{Grammar, Item};

type Result = std::result::Result<Answer, Errno>;

pub struct Commands {
    pub control: Arc<dyn Control>,
    pub answers: Arc<LastAnswers>,
    /// Those that have not been answered.
    running: Arc<AtomicUsize>,
}

pub struct Command {
    pub caller: Caller,
    pub place: Place,
    pub command: tcmi_core::command::Command,
    /// For its end, not only for a refusal.
    pub waits: bool,
}

impl Commands {
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self {
            control,
            answers: Arc::new(LastAnswers::new()),
            running: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// None: as many wait as may.
    fn admit(&self, caller: Caller) -> Option<Admitted> {
        let admitted = Admitted::new(Arc::clone(&self.running));
        let waiting = admitted.number;
        // Root is not held to the bound: others must not lock it out.
        (waiting <= CONTROL_COMMANDS_MAX || caller.is_root()).then_some(admitted)
    }

    /// On a thread of its own. `done` sees the result at its end, `writer` may have been
    /// answered before.
    pub fn run(
        &self,
        command: Command,
        writer: Writer,
        done: impl FnOnce(&Result) + Send + 'static,
    ) {
        let Some(admitted) = self.admit(command.caller) else {
            return writer.answer(Err(Errno::Busy));
        };
        let control = Arc::clone(&self.control);
        let answers = Arc::clone(&self.answers);
        let later = writer.clone();
        let spawned = thread::Builder::new().name("ctlfs-command".to_owned()).spawn(move || {
            let Command { caller, place, command, waits } = command;
            let explains = place.entry.item == Item::Explain;
            let for_reply = later.clone();
            let reply = Reply::new(move |result| {
                if explains {
                    keep(&answers, caller.uid, &result);
                }
                done(&result);
                for_reply.answer(result);
                drop(admitted);
            });
            control.write(caller, &place, command, reply);
            if !waits {
                // Unless it was refused at once, which the writer has been told.
                later.answer(Ok(Answer::Done));
            }
        });
        if spawned.is_err() {
            writer.answer(Err(Errno::Busy));
        }
    }
}

fn keep(answers: &LastAnswers, uid: u32, result: &Result) {
    match result {
        Ok(Answer::Text(text)) => answers.keep(uid, Arc::from(text.as_str())),
        Ok(Answer::Done) | Err(_) => answers.clear(uid),
    }
}

/// One of the commands that wait for their end.
struct Admitted {
    commands: Arc<AtomicUsize>,
    /// How many there are with this one.
    number: usize,
}

impl Admitted {
    fn new(commands: Arc<AtomicUsize>) -> Self {
        let number = commands.fetch_add(1, Ordering::Relaxed) + 1;
        Self { commands, number }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.commands.fetch_sub(1, Ordering::Relaxed);
    }
}

type Told = Box<dyn FnOnce(Result) + Send>;

/// The process that waits in write(2); the first answer is the one it gets.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<Option<Told>>>);

impl Writer {
    pub fn new(tell: impl FnOnce(Result) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(tell)))))
    }

    pub fn answer(&self, result: Result) {
        let tell = lock(&self.0).take();
        if let Some(tell) = tell {
            tell(result);
        }
    }
}

pub fn form(grammar: Grammar) -> Form {
    match grammar {
        Grammar::Address => Form::Address,
        Grammar::KeyLines => Form::KeyLines,
        Grammar::AddressKey => Form::AddressKey,
        Grammar::PidNode => Form::PidNode,
        Grammar::PidNodeTree => Form::PidNodeTree,
        Grammar::Pid => Form::Pid,
        Grammar::PidPath => Form::PidPath,
        Grammar::PidMaybeNode => Form::PidMaybeNode,
        Grammar::One => Form::One,
    }
}
