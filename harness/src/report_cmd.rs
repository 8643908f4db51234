//! `llorch-diff report`: a saved run in another form; nothing is run or judged again.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::report::{ReportFormat, Run, Style, export, github, target};
use crate::run::RunError;
use crate::saved;
use crate::text::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder that `llorch-diff run --out` wrote
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Form of the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    pub format: ReportFormat,

    /// Write it to this file, not to stdout
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,

    /// Show every pair, also where there are more than three references
    #[arg(long)]
    pub pairs: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let targets =
        args.output.iter().map(|path| target::Target { format: args.format, path: path.clone() });
    let targets: Vec<_> = targets.collect();
    target::check(&targets)?;
    let result = saved::result(&args.dir).map_err(|e| RunError::Usage(e.to_string()))?;
    let run = Run { result: &result, dir: Some(&args.dir) };
    let style = Style::of_stdout(args.pairs);
    match targets.is_empty() {
        false => target::write_all(&run, &targets, &style)?,
        true if args.format == ReportFormat::Github && github::is_here() => {
            target::tell_github(&run, &style)?
        }
        true => print(&export(&run, args.format, &style)?)?,
    }
    Ok(ExitCode::SUCCESS)
}
