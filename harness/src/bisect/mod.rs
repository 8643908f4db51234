//! `llorch-diff bisect`: where an engine first goes wrong, by how much, and what kind of mistake it is.
//!
//! Reading order: [`scan`] finds every place at which the subject is wrong by itself ([`intervals`] and
//! [`outside`] where only a stretch can be named), [`causes`] makes causes of them with the help of [`signatures`] and
//! [`zoom`]; [`heal`] and [`explain`] tell whether those are all there is, [`continuation`] being the
//! oracle's pass with some tensors given. [`answer`] is the whole of it, [`tell`] and [`json`] say it.
//! Where the oracle doesn't know the model, [`pairs`] has only differences to go by. [`commits`] asks all
//! this of git history.

mod answer;
mod causes;
mod choice;
mod commits;
mod continuation;
mod explain;
mod heal;
mod intervals;
mod json;
mod memory;
mod outside;
mod pairs;
mod reproduce;
mod scan;
mod signatures;
mod tell;
mod zoom;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use llorch_models::progress::Progress;

use crate::judge::JudgeOptions;
use crate::plan::Filter;
use crate::result::RunResult;
use crate::run::{self, Common, RunError, assemble, pipeline};
use crate::saved::{self, Collected};
use crate::text::print;

use answer::Answer;
use heal::Surgery;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,

    /// Search a saved run instead of making one; it is judged anew
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "prompt", "suite", "references", "subject", "out"])]
    pub from: Option<PathBuf>,

    /// Don't run the subject again with the oracle's tensors put at each cause
    #[arg(long)]
    pub no_heal: bool,

    /// Find the first bad commit between these, each built by the command behind `--` and started by
    /// --subject in a worktree of its own
    #[arg(long, value_name = "GOOD..BAD", requires = "build", conflicts_with = "from")]
    pub commits: Option<String>,

    /// Where the answer for the commit that is checked out goes: what `git bisect run` is given
    #[arg(long, value_name = "DIR", hide = true, conflicts_with_all = ["from", "commits"])]
    pub as_commit: Option<PathBuf>,

    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,

    /// What builds a commit, for --commits
    #[arg(last = true, value_name = "BUILD_COMMAND")]
    pub build: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Text,
    Json,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match (&args.commits, &args.as_commit) {
        (Some(range), _) => commits::run(args, range),
        (None, Some(answers)) => Ok(commits::one(args, answers)),
        (None, None) if !args.build.is_empty() => {
            let what = "failed to read the command line: words behind -- build commits; expected --commits too";
            Err(RunError::Usage(what.into()).into())
        }
        (None, None) => {
            let (text, code) = search(args)?;
            print(&text)?;
            Ok(ExitCode::from(code))
        }
    }
}

/// What is to be printed, and the exit code.
fn search(args: &Args) -> anyhow::Result<(String, u8)> {
    match &args.from {
        Some(dir) => from_saved(args, dir),
        None => live(args),
    }
}

fn live(args: &Args) -> anyhow::Result<(String, u8)> {
    let request = args.common.request(0)?;
    // Its folder keeps the tensors until they have been looked at.
    let outcome = pipeline::execute(&request)?;
    let (result, collected) = (&outcome.result, &outcome.collected);
    if collected.truth.oracle.is_none() {
        run::require_a_reference(result)?;
    }
    let command = request.subject.command(&request.provision).ok().filter(|_| !args.no_heal);
    let surgery = command.as_ref().map(|command| Surgery {
        command,
        limits: request.limits.clone(),
        dtype: request.dtype,
        threads: request.threads,
    });
    finish(args, result, collected, surgery.as_ref())
}

fn from_saved(args: &Args, dir: &Path) -> anyhow::Result<(String, u8)> {
    let (mut result, mut collected) =
        saved::open(dir).map_err(|error| RunError::Usage(error.to_string()))?;
    if result.isolate.is_some() {
        let what = format!(
            "failed to search {}: its stages were isolated, so none comes after another; expected a run without \
             --isolate",
            dir.display()
        );
        return Err(RunError::Usage(what).into());
    }
    let filter =
        Filter::new(&args.common.checkpoint, &args.common.layer).map_err(RunError::from)?;
    let asked = filter.points(&collected.plan.dims).map_err(RunError::from)?;
    collected.plan.points.retain(|point| asked.contains(point));
    if collected.plan.points.is_empty() {
        let what = format!("failed to search {}: none of these points was saved", dir.display());
        return Err(RunError::Usage(what).into());
    }
    // What the saved result says of its rows is not believed.
    let verdicts = pipeline::collected_verdicts(
        &collected,
        &JudgeOptions { progress: Progress::new(false), ..JudgeOptions::default() },
    );
    assemble::judged_again(&mut result, &collected, verdicts);
    finish(args, &result, &collected, None)
}

fn finish(
    args: &Args,
    result: &RunResult,
    collected: &Collected,
    surgery: Option<&Surgery<'_>>,
) -> anyhow::Result<(String, u8)> {
    let answer = Answer::of(result, collected, surgery);
    let text = match args.format {
        Form::Text => tell::text(&answer),
        Form::Json => serde_json::to_string_pretty(&json::json(&answer))?,
    };
    Ok((text, answer.exit_code()))
}
