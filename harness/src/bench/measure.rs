//! One engine's figures: by its own clock, which is held against ours.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use llorch_trace::Precision;

use crate::live::{Ask, Live, Setup};
use crate::supervise::{AdapterCommand, Limits};
use crate::text::count;

/// What all engines that are compared with each other compute in, and with how many threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    pub precision: Precision,
    pub threads: usize,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.precision, count(self.threads, "thread"))
    }
}

impl Job {
    pub fn setup(self, limits: &Limits) -> Setup {
        Setup { dtype: self.precision, threads: self.threads, limits: limits.clone() }
    }
}

/// How long a prompt and the tokens after it took, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub prefill: f64,
    pub decode: f64,
}

/// A prompt and `new` tokens after the one that the prompt itself gives; nothing is captured.
pub fn prompt(live: &mut Live, ids: &[u32], new: usize) -> Result<Times, String> {
    together(live, &[ids.to_vec()], new).map(|(times, _)| times)
}

/// The same for several prompts at once, with what each went on with.
pub fn together(
    live: &mut Live,
    prompts: &[Vec<u32>],
    new: usize,
) -> Result<(Times, Vec<Vec<u32>>), String> {
    let began = Instant::now();
    let [first, beside @ ..] = prompts else { return Err("there are no prompts".into()) };
    let (ids, beside) = (first.clone(), beside.to_vec());
    let ask = Ask { ids, beside, max_new_tokens: new + 1, without_text: true, ..Ask::default() };
    let done = live.run(ask).map_err(|error| error.to_string())?;
    let wall = began.elapsed().as_secs_f64();
    let told = "expected `seconds` with prefill and decode in `done`";
    let (Some(prefill), Some(decode)) = (done.seconds.prefill, done.seconds.decode) else {
        return Err(format!("it has no clock: {told}"));
    };
    let positive = |x: f64| x.is_finite() && x > 0.0;
    // Its own clock leaves out what it takes to speak to it, and can't have run for longer than ours.
    if !positive(prefill) || !positive(decode) || prefill + decode > wall {
        return Err(format!(
            "its clock can't be right: {prefill} s and {decode} s of a request that took {wall:.4} s; {told}"
        ));
    }
    let answers = std::iter::once(done.generated).chain(done.beside).collect();
    Ok((Times { prefill, decode }, answers))
}

/// A process from its start to its first token.
#[derive(Debug, Clone, Copy)]
pub struct ColdStart {
    /// Seconds of all of it.
    pub first_token: f64,
    /// Of which loading the model.
    pub load: f64,
}

/// Starts a process, loads the model, gives it a prompt.
pub fn cold_start(
    command: &AdapterCommand,
    model_dir: &Path,
    setup: &Setup,
    ids: &[u32],
) -> Result<ColdStart, String> {
    let began = Instant::now();
    let mut live =
        Live::start_with(command, model_dir, setup).map_err(|error| error.to_string())?;
    let ask = Ask { ids: ids.to_vec(), max_new_tokens: 1, without_text: true, ..Ask::default() };
    let answer = live.run(ask).map_err(|error| error.to_string());
    let times = ColdStart { first_token: began.elapsed().as_secs_f64(), load: live.load_seconds };
    live.finish();
    answer.map(|_| times)
}
