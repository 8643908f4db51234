//! `llorch-diff merge`: the parts of a run that was split with `run --partition`, joined into the
//! result that one machine would have written, and judged anew from their tensors.
//!
//! Reading order: [`parts`] opens the parts and refuses those that don't belong together, [`join`]
//! makes one run's evidence of theirs.

mod join;
mod parts;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use llorch_models::progress::Progress;

use crate::guides::assess::assess;
use crate::history::recording::{self, remember};
use crate::judge::JudgeOptions;
use crate::machine::Machine;
use crate::report::{Run, Shown, target};
use crate::result::RunResult;
use crate::run::out_dir::OutDir;
use crate::run::pipeline::collected_verdicts;
use crate::run::{RunError, assemble};
use crate::saved;

use parts::Part;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders that `llorch-diff run --partition K/N --out` wrote, in any order
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,

    /// Leave the joined result.json, tensors and stderr in this folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    #[command(flatten)]
    pub history: recording::Place,

    #[command(flatten)]
    pub shown: Shown,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let history = args.history.to_record()?;
    let parts = parts::open(&args.dirs)?;
    let inside = |dir: &PathBuf| match (dir.canonicalize(), args.out.canonicalize()) {
        (Ok(dir), Ok(out)) => dir == out,
        _ => false,
    };
    if let Some(dir) = args.dirs.iter().find(|dir| inside(dir)) {
        return Err(RunError::Usage(format!(
            "failed to write to --out {}: it is one of the parts; expected another folder",
            dir.display()
        ))
        .into());
    }
    let out = OutDir::create(Some(&args.out))?;
    join::copy_stderr(&parts, out.path())?;
    let (model, command) = (parts[0].result.model.clone(), command(&parts[0].result, args));
    let (started, seconds) = (started(&parts), seconds(&parts));
    let (means, machine) = (parts[0].result.means.clone(), machine(&parts));
    let collected = join::join(parts, out.path())?;
    let progress = Progress::new(false);
    let options = JudgeOptions { values: args.shown.values, progress, ..JudgeOptions::default() };
    let verdicts = collected_verdicts(&collected, &options);
    let facts =
        assemble::Facts { model, started, seconds, command, means, machine, partition: None };
    let mut result = assemble::result(&collected, verdicts, facts);
    result.assessment = Some(assess(&result));
    saved::write_evidence(out.path(), &collected)?;
    saved::write_result(out.path(), &result)?;
    let run = Run { result: &result, dir: Some(out.path()) };
    args.shown.print(&run)?;
    target::tell_github(&run, &args.shown.style())?;
    let remembered = remember(history.as_deref(), &result, &collected);
    Ok(args.shown.exit_code(result.verdict, remembered))
}

/// When the first part began.
fn started(parts: &[Part]) -> String {
    parts.iter().map(|p| p.result.started.clone()).min().unwrap_or_default()
}

/// The kind that all parts were made on, if it is one.
fn machine(parts: &[Part]) -> Option<Machine> {
    let first = parts[0].result.machine.clone()?;
    parts.iter().all(|p| p.result.machine.as_ref() == Some(&first)).then_some(first)
}

/// What all parts took together: the time of one machine that had done them one after another.
fn seconds(parts: &[Part]) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for (name, seconds) in parts.iter().flat_map(|p| &p.result.seconds) {
        *all.entry(name.clone()).or_default() += seconds;
    }
    all
}

/// That of the first part without what made it a part: the command of the whole run.
fn command(of: &RunResult, args: &Args) -> Vec<String> {
    let mut command = Vec::new();
    let mut words = of.command.iter();
    while let Some(word) = words.next() {
        let (name, value) =
            word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
        let mut skip = || value.is_none().then(|| words.next());
        match name {
            "--partition" | "--partition-by" => drop(skip()),
            "--out" => {
                skip();
                command.extend(["--out".to_string(), args.out.display().to_string()]);
            }
            _ => command.push(word.clone()),
        }
    }
    command
}
