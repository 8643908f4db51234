//! `llorch-diff run`: the same prompts through the subject and every reference, compared at every
//! checkpoint.
//!
//! Reading order: [`args`] is the command line, [`pipeline`] the order of things, [`scout`] asks one
//! implementation something before the run, [`provisioning`] makes references ready meanwhile,
//! [`assemble`] makes the one saved result of it, [`progress`] is what is said on stderr.

pub mod args;
pub mod assemble;
pub mod error;
pub mod out_dir;
pub mod pipeline;
pub mod progress;
mod provisioning;
mod scout;

use std::process::ExitCode;

pub use args::{Args, Common};
pub use error::RunError;

use crate::report::{Style, render};
use crate::result::Status;
use crate::text::print;

/// The command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let request = args.common.request(args.values)?;
    let outcome = pipeline::execute(&request)?;
    print(&render(&outcome.result, args.format, &Style::of_stdout(args.pairs)))?;
    let references = || outcome.result.references();
    if references().all(|r| r.status == Status::Missing) {
        let mends: Vec<String> = references().filter_map(|r| r.mend.clone()).collect();
        let first = mends.first().map(|m| format!("; start with `{m}`")).unwrap_or_default();
        return Err(RunError::Environment(format!(
            "failed to compare with anything: no reference could run{first}"
        ))
        .into());
    }
    Ok(ExitCode::from(outcome.result.verdict.exit_code(args.deny_warnings)))
}
