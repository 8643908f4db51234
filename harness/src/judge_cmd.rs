//! `llorch-diff judge`: judges a saved run again, with the rules of this version and no process
//! started.

use std::path::PathBuf;
use std::process::ExitCode;

use llorch_models::progress::Progress;

use crate::guides::assess::assess;
use crate::judge::{JudgeOptions, Override, Overrides};
use crate::report::{Run, Shown};
use crate::run::pipeline::collected_verdicts;
use crate::run::{RunError, assemble};
use crate::saved;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder that `llorch-diff run --out` wrote
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Judge by another tolerance than the contract's: `1e-5` at every checkpoint that has one, or
    /// `4=1e-5` or `scores=1e-5` at one; repeatable. The report says so, and no rounding bound moves
    #[arg(long = "tolerance", value_name = "[CHECKPOINT=]TOLERANCE")]
    pub tolerances: Vec<Override>,

    #[command(flatten)]
    pub shown: Shown,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut result, collected) =
        saved::open(&args.dir).map_err(|error| RunError::Usage(error.to_string()))?;
    let tolerances = Overrides::new(&args.tolerances);
    let options = JudgeOptions {
        values: args.shown.values,
        tolerances: tolerances.clone(),
        progress: Progress::new(false),
        ..Default::default()
    };
    let verdicts = collected_verdicts(&collected, &options);
    assemble::judged_again(&mut result, &collected, verdicts);
    result.tolerances = tolerances;
    // Everything that was collected is judged, whatever the run's own report left out.
    result.strategy = None;
    result.assessment = Some(assess(&result));
    args.shown.print(&Run { result: &result, dir: Some(&args.dir) })?;
    Ok(args.shown.exit_code(result.verdict, true))
}
