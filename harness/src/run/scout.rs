//! Asks an implementation one thing before the run proper: token ids of a prompt, or a continuation
//! where the oracle doesn't know the model.

use std::path::PathBuf;

use llorch_trace::Precision;
use llorch_trace::protocol::RunRequest;

use crate::supervise::{AdapterCommand, Failure, Limits, Session};

/// Candidates, asked in their order; whoever has been started stays until the scout goes.
pub struct Scout<'a> {
    candidates: Vec<Candidate<'a>>,
    pub model_dir: PathBuf,
    pub limits: Limits,
    pub dtype: Precision,
    pub threads: usize,
    scratch: PathBuf,
}

/// Its command may have to be waited for.
type Find<'a> = Box<dyn FnOnce() -> Result<AdapterCommand, String> + 'a>;

enum Candidate<'a> {
    Unasked { name: String, dtype: Precision, find: Find<'a> },
    Running(Box<Session>),
    Failed(String),
}

impl<'a> Scout<'a> {
    pub fn new(
        model_dir: PathBuf,
        limits: Limits,
        dtype: impl Into<Precision>,
        threads: usize,
        scratch: PathBuf,
    ) -> Self {
        Scout { candidates: Vec::new(), model_dir, limits, dtype: dtype.into(), threads, scratch }
    }

    pub fn add(&mut self, name: &str, find: impl FnOnce() -> Result<AdapterCommand, String> + 'a) {
        self.add_in(self.dtype, name, find);
    }

    /// One that is asked in another dtype than that of the run.
    pub fn add_in(
        &mut self,
        dtype: impl Into<Precision>,
        name: &str,
        find: impl FnOnce() -> Result<AdapterCommand, String> + 'a,
    ) {
        let (name, dtype, find) = (name.to_string(), dtype.into(), Box::new(find));
        self.candidates.push(Candidate::Unasked { name, dtype, find });
    }

    pub fn tokenize(&mut self, text: &str) -> Result<Vec<u32>, String> {
        self.ask("tokenize", |session| session.tokenize(text))
    }

    /// `n` greedy tokens after `ids`.
    pub fn continue_greedily(&mut self, ids: &[u32], n: usize) -> Result<Vec<u32>, String> {
        let out_dir = self.scratch.clone();
        let ids = ids.to_vec();
        self.ask("generate", move |session| {
            let id = format!("forced-{}-{n}", ids.len());
            let (ids, out_dir) = (ids.clone(), out_dir.clone());
            let request =
                RunRequest { id, ids, max_new_tokens: n, out_dir, ..RunRequest::default() };
            session.run(request, &mut |_| {}).map(|done| done.generated)
        })
    }

    /// The first answer; if there is none, what each candidate said.
    fn ask<T>(
        &mut self,
        capability: &str,
        mut question: impl FnMut(&mut Session) -> Result<T, Failure>,
    ) -> Result<T, String> {
        let mut reasons = Vec::new();
        for i in 0..self.candidates.len() {
            self.start(i);
            match &mut self.candidates[i] {
                Candidate::Running(session) if !session.hello().can(capability) => {
                    reasons.push(format!("{} has no {capability}", session.name()));
                }
                Candidate::Running(session) => match question(session) {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => reasons.push(failure.to_string()),
                },
                Candidate::Failed(reason) => reasons.push(reason.clone()),
                Candidate::Unasked { name, .. } => reasons.push(format!("{name} was not asked")),
            }
        }
        Err(format!("nobody can {capability}: {}", reasons.join("; ")))
    }

    fn start(&mut self, i: usize) {
        let candidate = &mut self.candidates[i];
        if !matches!(candidate, Candidate::Unasked { .. }) {
            return;
        }
        let unasked = std::mem::replace(candidate, Candidate::Failed(String::new()));
        let Candidate::Unasked { name, dtype, find } = unasked else { return };
        let stderr = self.scratch.join(format!("scout-{i}.stderr.txt"));
        let started = find().and_then(|command| {
            let mut session =
                Session::start(&command, &self.limits, &stderr).map_err(told(&command))?;
            session.load(&self.model_dir, dtype, self.threads).map_err(told(&command))?;
            Ok(session)
        });
        *candidate = match started {
            Ok(session) => Candidate::Running(Box::new(session)),
            Err(reason) => Candidate::Failed(format!("{name}: {reason}")),
        };
    }
}

/// A failure for where the name stands in front already.
fn told(command: &AdapterCommand) -> impl Fn(Failure) -> String {
    |failure| failure.without_name(&command.name).to_string()
}

impl Drop for Scout<'_> {
    fn drop(&mut self) {
        for candidate in self.candidates.drain(..) {
            if let Candidate::Running(session) = candidate {
                session.finish();
            }
        }
    }
}
