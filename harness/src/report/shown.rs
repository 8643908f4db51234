//! How a command that judges prints its result and ends: shared by `run`, `judge` and `merge`.

use std::process::ExitCode;

use super::target::{self, Target};
use super::{Format, Run, Style, export};
use crate::result::RunVerdict;
use crate::run::RunError;
use crate::text::print;

#[derive(Debug, Clone, clap::Args)]
pub struct Shown {
    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Write a report too, in any form of `llorch-diff report`; several with commas, or repeated
    #[arg(long, value_name = "FORMAT=PATH", value_delimiter = ',')]
    report: Vec<Target>,

    /// Show the first N elements of each compared tensor, on PASS too
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub values: usize,

    /// Show every pair, also where there are more than three references
    #[arg(long)]
    pairs: bool,

    /// Exit with 1 on WARN
    #[arg(long)]
    deny_warnings: bool,
}

impl Shown {
    pub fn style(&self) -> Style {
        Style::of_stdout(self.pairs)
    }

    /// Whether the reports can be written, before anything is run for them.
    pub fn check(&self) -> Result<(), RunError> {
        target::check(&self.report)
    }

    /// Prints the result, and writes the reports that were asked for.
    pub fn print(&self, run: &Run<'_>) -> anyhow::Result<()> {
        print(&export(run, self.format.into(), &self.style())?)?;
        target::write_all(run, &self.report, &self.style())
    }

    /// That of the verdict. A run that passed and could not be remembered though that was asked for
    /// is no success.
    pub fn exit_code(&self, verdict: RunVerdict, remembered: bool) -> ExitCode {
        match verdict.exit_code(self.deny_warnings) {
            0 if !remembered => ExitCode::from(3),
            code => ExitCode::from(code),
        }
    }
}
