//! The command line: which command means which module, and what exit code an error has.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::RunError;
use crate::{
    adapter_cmd, adapters_cmd, bench, bisect, dumps, golden, guides, history, invariants,
    judge_cmd, limits, merge, nightly, points_cmd, report_cmd, run,
};

const EXIT_CODES: &str = "\
Exit codes:
    0  PASS or WARN (--deny-warnings: WARN is 1); bisect: no divergence
    1  FAIL; bisect: a cause was found
    2  usage
    3  environment: nothing could run (no engine, no model, no reference at all)
    4  INCOMPLETE: a reference is missing or broke; bisect: only an interval could be named
    5  ERROR of the subject, or nothing was compared
  130  interrupted";

const NIGHT_EXIT_CODES: &str = "\
Exit codes, the worst of all runs:
    0  PASS or WARN (--deny-warnings: WARN is 1)
    1  FAIL
    2  usage: the config can't be meant
    3  environment: a night that passed could not be recorded, or nothing can be written
    4  INCOMPLETE: weights could not be had, or a reference is missing or broke
    5  ERROR of a subject
  130  interrupted";

const BENCH_EXIT_CODES: &str = "\
Exit codes:
    0  everything was measured that can be
    1  the output of the subject is wrong: its speed doesn't count
    2  usage
    3  environment: nothing could run
    4  INCOMPLETE: a peer is missing, broke, or its output is wrong
    5  ERROR of the subject
  130  interrupted";

const SHOWN_EXIT_CODES: &str = "\
Exit codes:
    0  shown, whatever it says
    2  usage: there is no such run, or it can't be read
    3  environment: what was asked for can't be read or written";

/// Differential testing of GPT-2 implementations, checkpoint by checkpoint.
///
/// Runs the same input through an engine and through independent reference implementations,
/// compares their tensors at every step, and names the first one that is wrong.
#[derive(Debug, Parser)]
#[command(name = "llorch-diff", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say nothing on stderr but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run prompts through the engine and the references and compare them at every checkpoint
    #[command(after_help = EXIT_CODES)]
    Run(Box<run::Args>),
    /// Find the first point at which the engine goes wrong
    #[command(after_help = EXIT_CODES)]
    Bisect(Box<bisect::Args>),
    /// Check what needs no reference: caches, causality, determinism, layer norms, draws
    #[command(after_help = EXIT_CODES)]
    Invariants(invariants::Args),
    /// Judge a saved run again
    Judge(judge_cmd::Args),
    /// Show a saved run in another form: an HTML page, SVG, tables, Markdown, JUnit, …
    #[command(after_help = SHOWN_EXIT_CODES)]
    Report(report_cmd::Args),
    /// Join the parts of a run that was split with `run --partition`
    #[command(after_help = EXIT_CODES)]
    Merge(merge::Args),
    #[command(after_help = SHOWN_EXIT_CODES)]
    History(history::Args),
    /// Run a matrix of models, suites and references, and say what is new since the last night
    #[command(after_help = NIGHT_EXIT_CODES)]
    Nightly(nightly::Args),
    /// Show what a saved run could have seen: the smallest change that each stage's verdict shows
    Limits(limits::Args),
    /// List the points that are compared, with checkpoint, shape, tolerance and recipe
    Points(points_cmd::Args),
    Explain(guides::explain::Args),
    Compare(dumps::compare::Args),
    Export(dumps::export::Args),
    Golden(golden::Args),
    Adapters(adapters_cmd::AdaptersArgs),
    Adapter(adapter_cmd::AdapterArgs),
    #[command(after_help = BENCH_EXIT_CODES)]
    Bench(Box<bench::Args>),
}

/// Runs the command; errors are told on stderr.
pub fn main(cli: Cli) -> ExitCode {
    llorch_models::progress::set_quiet(cli.quiet);
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Bisect(args) => bisect::run(args),
        Command::Golden(args) => golden::run(args).map(ExitCode::from),
        Command::Invariants(args) => invariants::run(args),
        Command::Judge(args) => judge_cmd::run(args),
        Command::Report(args) => report_cmd::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Nightly(args) => nightly::run(args),
        Command::History(args) => history::run(args),
        Command::Limits(args) => limits::run(args),
        Command::Points(args) => points_cmd::run(args),
        Command::Explain(args) => guides::explain::run(args),
        Command::Compare(args) => dumps::compare::run(args).map(ExitCode::from),
        Command::Export(args) => dumps::export::run(args).map(ExitCode::from),
        Command::Adapters(args) => adapters_cmd::run(args),
        Command::Adapter(args) => adapter_cmd::run(args),
        Command::Bench(args) => bench::run(args),
    };
    result.unwrap_or_else(|error| {
        llorch_models::errln!("error: {error:#}");
        ExitCode::from(exit_code(&error))
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<RunError>() {
        Some(error) => error.exit_code(),
        // What nobody foresaw is of the environment: a full disk, a closed pipe.
        None => 3,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
