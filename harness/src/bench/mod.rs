//! `llorch-diff bench`: correctness first, then speed, every engine side by side in one run.
//!
//! Reading order: [`args`] is the command line, [`contest`] the order of things, [`truth`] what is asked of
//! everybody and what the oracle says to the answers, [`measure`] one engine's figures, [`limits`] those of the
//! machine, [`record`] the result as it is saved, [`table`], [`markdown`] and [`svg`] how it is shown.
//!
//! Speed counts only for right output: an engine whose logits the oracle rejects is listed and left out of
//! every ratio. docs/PERFORMANCE.md says what is measured and how.

mod args;
mod batch;
mod contest;
mod limits;
mod markdown;
mod measure;
mod record;
mod shown;
mod svg;
mod table;
mod truth;

use std::process::ExitCode;

pub use args::Args;
pub use record::BenchResult;

use crate::report::target;
use crate::text;

/// The command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = args.plan()?;
    if let Some(file) = &args.to {
        target::writable(file)?;
    }
    let result = contest::hold(&plan)?;
    let shown = shown::show(&result, args.format)?;
    match &args.to {
        Some(file) => target::write(file, &shown)?,
        None => text::print(&shown)?,
    }
    Ok(ExitCode::from(result.exit_code()))
}
