//! `llorch-diff bisect`, first form: the first FAIL of the subject in data-flow order, and the command
//! that reproduces it.
//!
//! Reading order: [`search`] finds the place among the rows, [`element`] the head, token and element
//! in the tensors, [`tell`] prints. What this form does not know (local errors, certificates,
//! signatures, healing) is null in JSON.

pub mod element;
pub mod search;
pub mod tell;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::result::{RunResult, Status};
use crate::run::{self, Common, RunError, pipeline};
use crate::saved::{self, Collected};
use crate::text::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,

    /// Search a saved run instead of making one
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "prompt", "suite", "references", "subject", "out"])]
    pub from: Option<PathBuf>,

    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Text,
    Json,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // `_out` keeps the tensors until the element has been looked up.
    let (result, collected, _out) = match &args.from {
        Some(dir) => {
            let (result, collected) =
                saved::open(dir).map_err(|error| RunError::Usage(error.to_string()))?;
            if result.isolate.is_some() {
                let dir = dir.display();
                let what = format!(
                    "failed to search {dir}: its stages were isolated, so none comes after another; expected a run without --isolate"
                );
                return Err(RunError::Usage(what).into());
            }
            (result, collected, None)
        }
        None => {
            let outcome = pipeline::execute(&args.common.request(0)?)?;
            (outcome.result, outcome.collected, Some(outcome.out))
        }
    };
    let (text, code) = report(&result, &collected, args.format)?;
    print(&text)?;
    run::require_a_reference(&result)?;
    Ok(ExitCode::from(code))
}

/// What is printed, and the exit code.
fn report(result: &RunResult, collected: &Collected, form: Form) -> anyhow::Result<(String, u8)> {
    let found = search::search(result);
    let code = match &found {
        search::Found::Cause(_) => 1,
        search::Found::Between(..) => 4,
        search::Found::Nothing { .. }
            if result.subject().is_some_and(|s| s.status != Status::Ok) =>
        {
            5
        }
        search::Found::Nothing { unchecked } if !unchecked.is_empty() => 4,
        search::Found::Nothing { .. } => 0,
    };
    let text = match form {
        Form::Text => tell::text(result, collected, &found),
        Form::Json => serde_json::to_string_pretty(&tell::json(result, collected, &found))?,
    };
    Ok((text, code))
}
