//! `llorch-diff run`: the same prompts through the subject and every reference, compared at every
//! checkpoint.
//!
//! Reading order: [`args`] is the command line ([`means`] what other commands share of it), [`pipeline`]
//! the order of things, [`scout`] asks one implementation something before the run, [`ahead`] recomputes stages during it, [`provisioning`] makes references ready meanwhile,
//! [`assemble`] makes the one saved result of it, [`verdicts`] what is told of each reference meanwhile.

mod ahead;
pub mod args;
pub mod assemble;
pub mod error;
pub mod means;
pub mod out_dir;
pub mod pipeline;
mod provisioning;
pub(crate) mod scout;
mod verdicts;

use std::process::ExitCode;

pub use args::{Args, Common};
pub use error::RunError;

use crate::history::recording::remember;
use crate::report::{Run, target};
use crate::result::{RunResult, Status};

/// The command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let request = args.request()?;
    if request.references.is_empty() {
        return Err(RunError::Usage(
            "failed to compare: --ref none leaves nothing to compare with; `llorch-diff bisect --ref none` asks \
             the float64 oracle alone"
                .into(),
        )
        .into());
    }
    let history = args.recorded()?;
    let outcome = pipeline::execute(&request)?;
    let run = Run { result: &outcome.result, dir: Some(outcome.out.path()) };
    args.shown.print(&run)?;
    target::tell_github(&run, &args.shown.style())?;
    require_a_reference(&outcome.result)?;
    let remembered = remember(history.as_deref(), &outcome.result, &outcome.collected);
    Ok(args.shown.exit_code(outcome.result.verdict, remembered))
}

/// Where no reference ran at all the environment is at fault, whatever else the result says.
pub fn require_a_reference(result: &RunResult) -> Result<(), RunError> {
    if result.references().any(|r| r.status != Status::Missing) {
        return Ok(());
    }
    let mend = result.references().find_map(|r| r.mend.as_ref());
    let mend = mend.map(|mend| format!("; start with `{mend}`")).unwrap_or_default();
    Err(RunError::Environment(format!(
        "failed to compare with anything: no reference could run{mend}"
    )))
}
