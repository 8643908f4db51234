//! Runs that were made before: an append-only record of each, and what changed since.
//!
//! Reading order: [`record`] is what is remembered, [`store`] where ([`files`] is a folder, [`s3`] a
//! bucket), [`recording`] the flag by which a run is remembered, [`read`] the way back. Then the commands: [`list`]; [`series`],
//! [`plot`] and [`svg`] of `show`; [`usual`], [`diff`] and [`tell`] of `diff`.

pub mod diff;
#[cfg(test)]
mod diff_tests;
mod files;
mod list;
mod plot;
pub mod read;
pub mod record;
pub mod recording;
mod s3;
mod series;
pub mod store;
mod svg;
pub mod tell;
#[cfg(test)]
mod testing;
pub mod usual;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use llorch_models::progress::Progress;
use llorch_trace::points::glob_matches;

use crate::report::{Style, target};
use crate::run::RunError;
use crate::text::print;

use read::History;
use record::Record;
use series::Error;

/// Show the runs that were made before: `history`, `history show POINT`, `history diff RUN RUN`
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List runs, the latest last
    List(ListArgs),
    /// Plot the errors at a point over time
    Show(ShowArgs),
    /// Say what changed between two runs
    Diff(DiffArgs),
}

/// Whose runs.
#[derive(Debug, clap::Args)]
struct Which {
    #[command(flatten)]
    place: recording::Place,

    /// Only runs of this model, by the name it was asked for; `*` stands for anything
    #[arg(long, value_name = "GLOB")]
    model: Option<String>,

    /// Only runs of this name in a nightly's matrix; `*` stands for anything
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    which: Which,

    /// How many, the latest
    #[arg(long, value_name = "N", default_value = "20")]
    last: NonZeroUsize,

    /// All of them
    #[arg(long, conflicts_with = "last")]
    all: bool,

    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// A point, or a pattern of points of which the largest error counts: h.3.attn.scores, attn.scores, 'h.*.ln_1'
    #[arg(value_name = "POINT")]
    point: String,

    #[command(flatten)]
    which: Which,

    /// Which error
    #[arg(long, value_enum, default_value_t = Error::Total)]
    error: Error,

    /// How many runs, the latest
    #[arg(long, value_name = "N", default_value = "30")]
    last: NonZeroUsize,

    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = ShowFormat::Table)]
    format: ShowFormat,

    /// Write it to this file, not to stdout
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct DiffArgs {
    /// The old run and the new one: an id or how it begins, its six digits, last, last~N [default: the
    /// last run and the one before it: of the same name in a nightly, else of the same model, cases, precision
    /// and machine, else of the same model]
    #[arg(value_name = "RUN", num_args = 2)]
    runs: Vec<String>,

    #[command(flatten)]
    which: Which,

    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For a terminal
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ShowFormat {
    /// For a terminal
    Table,
    Json,
    /// A picture
    Svg,
}

/// Exit codes: 0; 2 for what can't be meant; 3 where the history can't be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        None => list(&args.list)?,
        Some(Command::List(args)) => list(args)?,
        Some(Command::Show(args)) => show(args)?,
        Some(Command::Diff(args)) => diff(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Which {
    /// The records that are meant; what had to be skipped is told on stderr.
    fn read(&self) -> Result<History, RunError> {
        let store = self.place.store()?;
        let Some(store) = store else {
            return Err(RunError::Usage("failed to read the history: it is `none`".into()));
        };
        let mut history = History::read(&*store)?;
        for skipped in &history.skipped {
            Progress::new(false).say(&skipped.to_string());
        }
        let model =
            |r: &Record| self.model.as_ref().is_none_or(|glob| glob_matches(glob, &r.model.name));
        let name = |r: &Record| {
            let named = r.name.as_deref().unwrap_or_default();
            self.name.as_ref().is_none_or(|glob| glob_matches(glob, named))
        };
        let all = history.records.len();
        history.records.retain(|r| model(r) && name(r));
        history.others = all - history.records.len();
        Ok(history)
    }
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let history = args.which.read()?;
    let from = if args.all { 0 } else { history.records.len().saturating_sub(args.last.get()) };
    let records: Vec<&Record> = history.records[from..].iter().collect();
    match args.format {
        Format::Table => print(&list::table(&history, &records, &Style::of_stdout(false)))?,
        Format::Json => print(&serde_json::to_string_pretty(&list::json(&history, &records))?)?,
    }
    Ok(())
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    args.output.iter().try_for_each(|path| target::writable(path))?;
    let history = args.which.read()?;
    let series = series::of(&history, &args.point, args.error, args.last.get())?;
    let text = match args.format {
        ShowFormat::Table => plot::text(&series, &Style::of_stdout(false)),
        ShowFormat::Json => serde_json::to_string_pretty(&series.json())? + "\n",
        ShowFormat::Svg => svg::picture(&series)?,
    };
    match &args.output {
        Some(path) => target::write(path, &text)?,
        None => print(&text)?,
    }
    Ok(())
}

fn diff(args: &DiffArgs) -> anyhow::Result<()> {
    let history = args.which.read()?;
    let (old, new) = match &args.runs[..] {
        [old, new] => (find(&history, old)?, find(&history, new)?),
        _ => {
            let new = find(&history, "last")?;
            let old = before(&history, new).ok_or_else(|| {
                RunError::Usage(format!(
                    "failed to find a run before {} of the same name or model in {}; expected two runs to be named",
                    new.id, history.place
                ))
            })?;
            (old, new)
        }
    };
    let changes = diff::diff(&history, old, new);
    match args.format {
        Format::Table => print(&tell::text(&changes, old, new))?,
        Format::Json => print(&serde_json::to_string_pretty(&changes)?)?,
    }
    Ok(())
}

/// The last of the same name in a nightly's matrix; else of the same series; else of the same model.
fn before<'a>(history: &'a History, new: &'a Record) -> Option<&'a Record> {
    let earlier = || history.records.iter().take_while(|r| r.id != new.id);
    let named = earlier().filter(|r| new.name.is_some() && r.name == new.name).last();
    let series = || history.before(new).last();
    named.or_else(series).or_else(|| earlier().filter(|r| r.model.name == new.model.name).last())
}

fn find<'a>(history: &'a History, asked: &str) -> Result<&'a Record, RunError> {
    history.find(asked).map_err(|e| RunError::Usage(e.to_string()))
}
