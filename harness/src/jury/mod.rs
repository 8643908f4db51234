//! `llorch-diff adapters jury`: the references themselves under examination. What each is worth, its
//! version and licence, how far it is from float64 at each stage, what it can't show and why.
//!
//! docs/REFERENCES.md is what this prints. Reading order: the command here, [`portrait`] gathers what is
//! known of a reference from its pins and from a finished run, [`markdown`] writes it down.

mod markdown;
mod portrait;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::lineup;
use crate::report::target;
use crate::result::RunResult;
use crate::run::args::Common;
use crate::run::{RunError, pipeline};
use crate::saved::{self, Collected};

pub use portrait::Portrait;

#[derive(Debug, Clone, clap::Args)]
pub struct JuryArgs {
    /// Examine this folder, which `llorch-diff run --out` wrote, instead of running them
    #[arg(long, value_name = "DIR", conflicts_with_all = ["references", "suite", "prompt", "subject", "out"])]
    pub from: Option<PathBuf>,

    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    #[command(flatten)]
    pub common: Common,
}

pub fn run(args: &JuryArgs) -> anyhow::Result<ExitCode> {
    if let Some(file) = &args.to {
        target::writable(file)?;
    }
    let (result, collected) = match &args.from {
        Some(dir) => saved::open(dir).map_err(|error| RunError::Usage(error.to_string()))?,
        None => examined(&args.common)?,
    };
    let page = markdown::page(&result, &portrait::all(&result, &collected.evidence));
    match &args.to {
        Some(file) => target::write(file, &page)?,
        // A reader that has left is no error.
        None => drop(std::io::stdout().write_all(page.as_bytes())),
    }
    Ok(ExitCode::SUCCESS)
}

fn examined(common: &Common) -> Result<(RunResult, Collected), RunError> {
    let mut common = common.clone();
    if common.references.is_empty() {
        common.references.push(lineup::EVERYBODY.into());
    }
    let outcome = pipeline::execute(&common.request(0)?)?;
    Ok((outcome.result, outcome.collected))
}
