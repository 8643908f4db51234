//! Makes references ready while others run already.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::lineup::Member;
use crate::provision::{Missing, ProvisionOptions};
use crate::supervise::AdapterCommand;

type Answer = Result<AdapterCommand, Missing>;

/// What has become of each reference, by its place among them.
#[derive(Debug)]
pub struct Provisioning {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    answers: Vec<Option<Answer>>,
    taken: Vec<bool>,
    stopped: bool,
}

impl Provisioning {
    pub fn new(references: usize) -> Provisioning {
        let state = State {
            answers: vec![None; references],
            taken: vec![false; references],
            stopped: false,
        };
        Provisioning { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// First those that need nothing, then the others one after another.
    pub fn work(&self, references: &[Member], options: &ProvisionOptions) {
        let at_hand = ProvisionOptions { allow: false, quiet: true, ..*options };
        // (What `@latest` means now is not at hand, though an earlier one may be installed.)
        for (i, member) in references.iter().enumerate().filter(|(_, m)| !m.is_newest()) {
            if let Ok(command) = member.command(&at_hand) {
                self.set(i, Ok(command));
            }
        }
        for (i, member) in references.iter().enumerate() {
            let known = self.lock().answers[i].is_some();
            if !known && !self.lock().stopped {
                self.set(i, member.command(options));
            }
        }
        let mut state = self.lock();
        state.stopped = true;
        drop(state);
        self.changed.notify_all();
    }

    /// The next reference that is ready or known to be missing, the earlier ones first; none when all
    /// have been taken or the run was stopped.
    pub fn next(&self) -> Option<(usize, Answer)> {
        let mut state = self.lock();
        loop {
            let found =
                (0..state.answers.len()).find(|&i| !state.taken[i] && state.answers[i].is_some());
            if let Some(i) = found {
                state.taken[i] = true;
                return state.answers[i].clone().map(|answer| (i, answer));
            }
            if state.stopped || state.taken.iter().all(|taken| *taken) {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until it is known what has become of this one.
    pub fn wait(&self, i: usize) -> Answer {
        let mut state = self.lock();
        loop {
            if let Some(answer) = &state.answers[i] {
                return answer.clone();
            }
            if state.stopped {
                let reason = "the run was stopped before it was made ready".into();
                return Err(Missing { reason, mend: String::new() });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more is taken, and nothing more is begun.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.taken.fill(true);
        drop(state);
        self.changed.notify_all();
    }

    fn set(&self, i: usize, answer: Answer) {
        self.lock().answers[i] = Some(answer);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
