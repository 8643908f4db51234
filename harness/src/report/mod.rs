//! Renderers: one saved result in, text out. Nothing is judged here.
//!
//! [`view`] groups a result's rows for the eye, [`stages`] what the oracle says of them, [`sentences`] puts it into words; then one small file
//! a format.

mod json;
mod markdown;
pub(crate) mod numbers;
mod sentences;
mod stages;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod view;

use crate::result::RunResult;

pub use numbers::{error, row_values, values};
pub use sentences::{verdict_line, wrong};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Tables for a terminal.
    #[default]
    Table,
    /// The result as it is saved in result.json.
    Json,
    /// Markdown, for a pull request or an issue.
    Md,
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
        let terminal = std::io::stdout().is_terminal();
        let asked_not = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| v != "0" && !v.is_empty());
        let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
        let width = if terminal { terminal_width() } else { columns() };
        Style { width, colour: !asked_not && (terminal || forced), pairs }
    }
}

fn terminal_width() -> Option<u16> {
    // A table that loads its content measures the terminal itself; asked here once for all of them.
    comfy_table::Table::new().width()
}

/// One output form.
trait Renderer {
    fn render(&self, result: &RunResult, style: &Style) -> String;
}

pub fn render(result: &RunResult, format: Format, style: &Style) -> String {
    let renderer: &dyn Renderer = match format {
        Format::Table => &table::TableRenderer,
        Format::Json => &json::JsonRenderer,
        Format::Md => &markdown::MarkdownRenderer,
    };
    renderer.render(result, style)
}
