//! `llorch-diff judge`: judges a saved run again, with the rules of this version and no process
//! started.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::guides::assess::assess;
use crate::judge::{JudgeOptions, Override, Overrides};
use crate::report::{Format, Style, render};
use crate::result::{RunVerdict, UncheckedKind};
use crate::run::RunError;
use crate::run::pipeline::collected_verdicts;
use crate::saved;
use crate::text::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder that `llorch-diff run --out` wrote
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Show the first N elements of each compared tensor, on PASS too
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub values: usize,

    /// Judge by another tolerance than the contract's: `1e-5` at every checkpoint that has one, or
    /// `4=1e-5` or `scores=1e-5` at one; repeatable. The report says so, and no rounding bound moves
    #[arg(long = "tolerance", value_name = "[CHECKPOINT=]TOLERANCE")]
    pub tolerances: Vec<Override>,

    /// Show every pair, also where there are more than three references
    #[arg(long)]
    pub pairs: bool,

    /// Exit with 1 on WARN
    #[arg(long)]
    pub deny_warnings: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut result, collected) =
        saved::open(&args.dir).map_err(|error| RunError::Usage(error.to_string()))?;
    let tolerances = Overrides::new(&args.tolerances);
    let options =
        JudgeOptions { values: args.values, tolerances: tolerances.clone(), ..Default::default() };
    let verdicts = collected_verdicts(&collected, &options);
    for implementation in &mut result.implementations {
        if let Some((status, reason)) = verdicts.statuses.get(&implementation.name) {
            (implementation.status, implementation.reason) = (*status, reason.clone());
        }
    }
    // Weights that are not here any more leave something unchecked that was not.
    let missing = collected.unchecked.iter().any(|u| u.kind == UncheckedKind::Missing);
    let least = if missing { RunVerdict::Incomplete } else { RunVerdict::Pass };
    result.verdict = verdicts.verdict.max(least);
    result.rows = verdicts.rows;
    result.odd = verdicts.odd;
    result.tolerances = tolerances;
    result.unchecked = verdicts.unchecked;
    result.unchecked.extend(collected.unchecked);
    // Everything that was collected is judged, whatever the run's own report left out.
    result.strategy = None;
    result.assessment = Some(assess(&result));
    print(&render(&result, args.format, &Style::of_stdout(args.pairs))?)?;
    Ok(ExitCode::from(result.verdict.exit_code(args.deny_warnings)))
}
