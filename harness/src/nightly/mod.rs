//! `llorch-diff nightly`: a matrix of runs, and what is new since the last night.
//!
//! Reading order: [`config`] is what a night runs, [`execute`] one task of it, [`outcome`] what it gave;
//! [`index`], [`markdown`] and [`junit`] show it.

mod config;
mod execute;
mod index;
mod junit;
mod markdown;
mod outcome;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use llorch_models::progress::Progress;
use llorch_trace::points::glob_matches;

use crate::history::read::History;
use crate::history::recording;
use crate::history::store::Store;
use crate::report::target;
use crate::result::RunVerdict;
use crate::run::RunError;
use crate::run::means::Means;
use crate::text::{print, rfc3339};

use config::Task;
use outcome::{News, Night, Outcome};

/// What says that a folder is a night's.
const NIGHT: &str = "nightly.json";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is run, as TOML [default: the config that ships: nano, gpt2's shapes, and the real gpt2 and
    /// gpt2-medium]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Run each reference's newest release beside the pinned one, everywhere
    #[arg(long)]
    latest: bool,

    /// Only runs whose names fit this glob; may be repeated
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,

    /// Where index.html, summary.md, junit.xml, nightly.json and a folder a run are written; the night
    /// that is there is replaced
    #[arg(long, value_name = "DIR", default_value = "nightly")]
    out: PathBuf,

    /// Keep each run's tensors too
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    history: recording::Place,

    /// Exit with 1 on WARN
    #[arg(long)]
    deny_warnings: bool,

    #[command(flatten)]
    means: Means,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tasks = tasks(args)?;
    is_free(&args.out)?;
    let store = args.history.to_record()?;
    let past = match &store {
        Some(store) => History::read(&**store).map_err(RunError::from)?,
        None => {
            History { place: String::new(), records: Vec::new(), others: 0, skipped: Vec::new() }
        }
    };
    for skipped in &past.skipped {
        llorch_models::errln!("{skipped}");
    }
    let _alone = clear(&args.out)?;
    let (began, started) = (Instant::now(), rfc3339(SystemTime::now()));
    let (runs, remembered) = execute_all(args, &tasks, &past, store.as_deref())?;
    let night = Night {
        schema: config::SCHEMA,
        verdict: runs.iter().map(|r| r.verdict).max().unwrap_or(RunVerdict::Error),
        started,
        seconds: began.elapsed().as_secs_f64(),
        command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        config: match &args.config {
            Some(path) => path.display().to_string(),
            None => "the config that ships".into(),
        },
        history: store.as_ref().map(|store| store.place()),
        news: news(&runs, &tasks, &past),
        runs,
    };
    write(&night, &args.out)?;
    print(&text(&night, &args.out))?;
    let code = match night.verdict.exit_code(args.deny_warnings) {
        0 if !remembered => 3,
        code => code,
    };
    Ok(ExitCode::from(code))
}

fn tasks(args: &Args) -> Result<Vec<Task>, RunError> {
    let mut tasks = config::tasks(args.config.as_deref(), args.latest)?;
    if !args.only.is_empty() {
        let names: Vec<String> = tasks.iter().map(|t| t.name.clone()).collect();
        for glob in &args.only {
            if !names.iter().any(|name| glob_matches(glob, name)) {
                return Err(RunError::Usage(format!(
                    "failed to find a run {glob:?}; there are {}",
                    crate::text::listed(&names)
                )));
            }
        }
        tasks.retain(|t| args.only.iter().any(|glob| glob_matches(glob, &t.name)));
    }
    Ok(tasks)
}

/// Each is remembered as soon as it is done: a night that is interrupted keeps what it has.
fn execute_all(
    args: &Args,
    tasks: &[Task],
    past: &History,
    store: Option<&dyn Store>,
) -> anyhow::Result<(Vec<Outcome>, bool)> {
    let shared = execute::Shared { means: &args.means, out: &args.out, keep: args.keep, past };
    let (mut runs, mut remembered) = (Vec::new(), true);
    let bar = Progress::new(false).steps("nightly", "run", tasks.len());
    for (n, task) in tasks.iter().enumerate() {
        bar.set(n as u64);
        bar.detail(&task.name);
        let (outcome, record) = execute::execute(task, &shared)?;
        bar.say(&format!("{}: {}", task.name, outcome.says));
        if let Some(Err(error)) = store.map(|store| recording::append(store, &record)) {
            llorch_models::errln!("error: {} is not recorded: {error}", task.name);
            remembered = false;
        }
        runs.push(outcome);
    }
    Ok((runs, remembered))
}

/// Whether the folder is empty, a night's, or not there yet.
fn is_free(out: &Path) -> Result<(), RunError> {
    let refuse = |found: &str| {
        Err(RunError::Usage(format!(
            "failed to write to --out {}: found {found}; expected an empty folder or an earlier night",
            out.display()
        )))
    };
    if out.exists() && !out.is_dir() {
        return refuse("a file");
    }
    let holds_something = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    match holds_something && !out.join(MARK).exists() {
        true => refuse("other files in it"),
        false => Ok(()),
    }
}

/// Nothing stays that would be mistaken for this night's. The folder is this night's as long as the
/// file lives: another one is refused.
fn clear(out: &Path) -> Result<fs::File, RunError> {
    let failed = |e: std::io::Error| {
        RunError::Environment(format!("failed to write to --out {}: {e}", out.display()))
    };
    fs::create_dir_all(out).map_err(failed)?;
    let mark = fs::File::create(out.join(MARK)).map_err(failed)?;
    if let Err(error) = fs4::FileExt::try_lock(&mark) {
        return Err(match error {
            fs4::TryLockError::WouldBlock => RunError::Environment(format!(
                "failed to write to --out {}: another night is at it",
                out.display()
            )),
            fs4::TryLockError::Error(error) => failed(error),
        });
    }
    for name in [NIGHT, "index.html", "summary.md", "junit.xml"] {
        match fs::remove_file(out.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    let runs = out.join("runs");
    if runs.exists() {
        fs::remove_dir_all(runs).map_err(failed)?;
    }
    Ok(mark)
}

/// Says that the folder is a night's even before there is one.
const MARK: &str = ".llorch-nightly";

fn news(runs: &[Outcome], tasks: &[Task], past: &History) -> News {
    let before = tasks.iter().filter_map(|task| execute::last(past, &task.name));
    let mut news = News {
        since: before.map(|record| record.started.clone()).max(),
        nothing_changed: runs.iter().all(|r| r.changes.as_ref().is_some_and(|c| c.nothing_changed)),
        ..News::default()
    };
    for run in runs {
        let old = execute::last(past, &run.name);
        let failed = |v: RunVerdict| matches!(v, RunVerdict::Fail | RunVerdict::Error);
        let was_failure = old.is_some_and(|old| failed(old.verdict));
        let fresh = match &run.changes {
            // All that it has, where there is no night before.
            None => run.failures.clone(),
            Some(c) => {
                let causes = c.causes.iter().map(crate::report::wrong);
                causes.chain(c.failures.iter().cloned()).collect()
            }
        };
        news.new_failures.extend(fresh.iter().map(|what| format!("{}: {what}", run.name)));
        if run.is_failure() && !was_failure && fresh.is_empty() {
            news.new_failures.push(format!("{}: {}", run.name, run.says));
        }
        if was_failure && !run.is_failure() && run.verdict != RunVerdict::Incomplete {
            news.mended.push(format!("{}: {}", run.name, run.says));
        }
    }
    news
}

/// The JSON last: a folder that has it is whole.
fn write(night: &Night, out: &Path) -> anyhow::Result<()> {
    target::write(&out.join("index.html"), &index::page(night)?)?;
    target::write(&out.join("summary.md"), &markdown::summary(night))?;
    target::write(&out.join("junit.xml"), &junit::report(night)?)?;
    target::write(&out.join(NIGHT), &(serde_json::to_string_pretty(night)? + "\n"))
}

/// What a terminal shows: the news, then a line a run.
fn text(night: &Night, out: &Path) -> String {
    let mut lines = vec![night.headline(), String::new()];
    let news = &night.news;
    lines.extend(news.new_failures.iter().map(|f| format!("new failure  {f}")));
    lines.extend(news.mended.iter().map(|f| format!("mended  {f}")));
    for run in night.changed().filter(|r| !r.news.is_empty()) {
        lines.push(format!("{} changed:", run.name));
        lines.extend(run.news.iter().map(|line| format!("  {line}")));
    }
    if lines.len() > 2 {
        lines.push(String::new());
    }
    let width = night.runs.iter().map(|r| r.name.len()).max().unwrap_or(0);
    for run in &night.runs {
        let says = run.detail();
        lines.push(format!("{:<width$}  {:<10}  {says}", run.name, run.verdict.name()));
    }
    lines.push(String::new());
    lines.push(format!("{}", out.join("index.html").display()));
    lines.join("\n") + "\n"
}
