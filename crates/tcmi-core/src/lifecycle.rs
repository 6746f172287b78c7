//! Where a process is on its way out and back.

use std::fmt;

/// One word each, as the `state` file shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// At home, running. A process directory exists before its state leaves this,
    /// and a process whose move failed is here again.
    Running,
    /// Examined, and the node asked whether it takes it; still running at home.
    Preparing,
    /// Its threads are being stopped.
    Freezing,
    /// Stopped; its memory is on the way.
    Transferring,
    /// The one interval in which neither end alone knows where it runs.
    Committing,
    /// Its guest runs on the execution node.
    Emigrated,
    /// The guest is stopped and on its way home.
    Returning,
    /// Its execution node is lost for good after the commit.
    Failed,
    /// Ended, or not ours any more; its directory is about to go.
    Gone,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Running,
        State::Preparing,
        State::Freezing,
        State::Transferring,
        State::Committing,
        State::Emigrated,
        State::Returning,
        State::Failed,
        State::Gone,
    ];

    /// The states that may follow this one.
    pub const fn next(self) -> &'static [State] {
        use State::*;
        match self {
            Running => &[Preparing, Gone],
            Preparing => &[Freezing, Running, Gone],
            Freezing => &[Transferring, Running, Gone],
            Transferring => &[Committing, Running, Gone],
            // Running: the peer, asked after a broken link, did not have the commit.
            Committing => &[Emigrated, Running, Failed, Gone],
            Emigrated => &[Returning, Failed, Gone],
            // Emigrated: the return failed before its own commit and the guest goes on.
            Returning => &[Running, Emigrated, Failed, Gone],
            Failed => &[Gone],
            Gone => &[],
        }
    }

    /// Ok: the new state. Err: nothing changed, the move is not in the table.
    pub fn to(self, next: State) -> Result<State, IllegalTransition> {
        if self.next().contains(&next) {
            Ok(next)
        } else {
            Err(IllegalTransition { from: self, to: next })
        }
    }

    /// A command for the process has to wait its turn: EBUSY.
    pub const fn is_moving(self) -> bool {
        use State::*;
        match self {
            Preparing | Freezing | Transferring | Committing | Returning => true,
            Running | Emigrated | Failed | Gone => false,
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Preparing => "preparing",
            State::Freezing => "freezing",
            State::Transferring => "transferring",
            State::Committing => "committing",
            State::Emigrated => "emigrated",
            State::Returning => "returning",
            State::Failed => "failed",
            State::Gone => "gone",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a process that is {from} cannot become {to}")]
pub struct IllegalTransition {
    pub from: State,
    pub to: State,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_goes_out_and_back() {
        use State::*;
        let way =
            [Preparing, Freezing, Transferring, Committing, Emigrated, Returning, Running, Gone];
        let end = way.into_iter().try_fold(Running, State::to);
        assert_eq!(end, Ok(Gone));
    }

    #[test]
    fn every_failure_before_the_commit_leads_home() {
        use State::*;
        for state in [Preparing, Freezing, Transferring, Committing] {
            assert_eq!(state.to(Running), Ok(Running));
        }
    }

    #[test]
    fn nothing_runs_at_home_again_without_a_return() {
        use State::*;
        assert_eq!(Emigrated.to(Running), Err(IllegalTransition { from: Emigrated, to: Running }));
        assert_eq!(Failed.to(Running), Err(IllegalTransition { from: Failed, to: Running }));
        for state in State::ALL {
            assert!(Gone.to(state).is_err(), "{state} after gone");
            assert!(state.to(state).is_err(), "{state} twice");
        }
    }

    #[test]
    fn every_state_can_end_and_has_its_own_word() {
        for state in State::ALL {
            assert!(state == State::Gone || state.next().contains(&State::Gone), "{state}");
            let same = State::ALL.iter().filter(|s| s.word() == state.word()).count();
            assert_eq!(same, 1, "{state}");
        }
    }
}
