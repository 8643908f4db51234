//! Exporters: one saved run in, text out. Nothing is judged here and nothing runs.
//!
//! [`view`] groups a result's rows for the eye, [`stages`] what the oracle says of them, [`sentences`] puts
//! it into words. [`tensors`], [`vocabulary`], [`failures`], [`flow`], [`heat`] and [`continuations`] are what
//! pictures are made of. Then one small file a format; [`target`] is where a report goes.

mod continuations;
mod failures;
mod flow;
pub(crate) mod github;
mod heat;
pub(crate) mod html;
mod json;
pub(crate) mod junit;
pub(crate) mod markdown;
pub(crate) mod numbers;
mod releases;
pub(crate) mod sentences;
mod shown;
mod stages;
mod svg;
pub(crate) mod table;
pub mod target;
mod tensors;
#[cfg(test)]
mod tests;
pub(crate) mod view;
mod vocabulary;

use std::path::Path;

use crate::result::RunResult;

pub use numbers::{error, row_values, values};
pub use sentences::{verdict_line, wrong};
pub use shown::Shown;
pub(crate) use svg::CSS as CHART_CSS;

/// What commands print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Tables for a terminal.
    #[default]
    Table,
    /// All of it as JSON, by the schema in docs/schemas.
    Json,
    /// Markdown, for a pull request or an issue.
    Md,
}

/// What a saved run can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ReportFormat {
    /// Tables for a terminal.
    #[default]
    Table,
    /// Markdown, for a pull request or an issue.
    Md,
    /// The result as it is saved in result.json.
    Json,
    /// One page that opens from disk: matrix, chart, heat maps, generated text.
    Html,
    /// JUnit XML, for CI.
    Junit,
    /// The chart of errors along the data flow.
    Svg,
    /// Annotations and a step summary, as GitHub Actions takes them.
    Github,
}

impl From<Format> for ReportFormat {
    fn from(format: Format) -> ReportFormat {
        match format {
            Format::Table => ReportFormat::Table,
            Format::Json => ReportFormat::Json,
            Format::Md => ReportFormat::Md,
        }
    }
}

impl ReportFormat {
    fn exporter(self) -> &'static dyn Exporter {
        match self {
            ReportFormat::Table => &table::Tables,
            ReportFormat::Md => &markdown::Markdown,
            ReportFormat::Json => &json::Json,
            ReportFormat::Html => &html::Html,
            ReportFormat::Svg => &svg::Svg,
            ReportFormat::Junit => &junit::Junit,
            ReportFormat::Github => &github::Github,
        }
    }
}

/// How a terminal or a page wants it.
#[derive(Debug, Clone, Default)]
pub struct Style {
    /// Columns; `None` for no limit.
    pub width: Option<u16>,
    pub colour: bool,
    /// A column for every pair of references, however many there are.
    pub pairs: bool,
}

impl Style {
    /// What standard output asks for: its width, colour unless NO_COLOR is set or it is a pipe.
    pub fn of_stdout(pairs: bool) -> Style {
        use std::io::IsTerminal;
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = std::io::stdout().is_terminal();
        let asked_not = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| v != "0" && !v.is_empty());
        let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
        let width = if terminal { terminal_width() } else { columns() };
        Style { width, colour: !asked_not && (terminal && !dumb || forced), pairs }
    }
}

fn terminal_width() -> Option<u16> {
    // A table that loads its content measures the terminal itself; asked here once for all of them.
    comfy_table::Table::new().width()
}

/// A run as exporters see it.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub result: &'a RunResult,
    /// The folder with its bundles; None where only the result is at hand.
    pub dir: Option<&'a Path>,
}

/// One output form.
trait Exporter {
    fn export(&self, run: &Run<'_>, style: &Style) -> anyhow::Result<String>;
}

/// A run in one of its forms.
pub fn export(run: &Run<'_>, format: ReportFormat, style: &Style) -> anyhow::Result<String> {
    format.exporter().export(run, style)
}

/// A result as commands print it.
pub fn render(result: &RunResult, format: Format, style: &Style) -> anyhow::Result<String> {
    export(&Run { result, dir: None }, format.into(), style)
}
