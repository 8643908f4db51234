//! `llorch-diff adapter check`: whether a program speaks the adapter protocol, check by check.
//!
//! Reading order: [`check`] says what a check is and how it ends; [`bench`] holds the adapter, sends,
//! listens and never waits for ever; [`ask`] makes runs of it; [`survey`] looks at a run's tensors; [`list`] names all checks in
//! their order, which are in [`greeting`], [`loading`], [`running`], [`refusals`], [`flow`], [`repeat`]
//! and [`optional`]; [`report`] is the saved form, [`show`] prints it.
//!
//! Nothing here judges numbers: an adapter passes with any model behind it.

pub mod ask;
pub mod bench;
pub mod check;
pub mod flow;
pub mod greeting;
pub mod list;
pub mod loading;
pub mod optional;
pub mod refusals;
pub mod repeat;
pub mod report;
pub mod running;
pub mod show;
pub mod survey;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use llorch_models::progress::Progress;
use llorch_models::{ResolveOptions, ResolvedModel};
use llorch_trace::Dims;

use self::bench::{Bench, Setup};
use self::check::{Check, Needs, Stop};
use self::list::CHECKS;
use self::report::{AdapterRecord, Report, Row};
use self::running::{COMPONENTS, NO_MODEL};
use crate::lineup::{self, ENGINE};
use crate::provision::engine_command;
use crate::report::Style;
use crate::result::Verdict;
use crate::run::means::Means;
use crate::run::{RunError, assemble};
use crate::supervise::{AdapterCommand, Limits};
use crate::text::{print, rfc3339};

/// The model that is loaded in the first one's place: small, and computed on the spot.
const OTHER: &str = "synth:tiny";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The adapter: a command that speaks the protocol, one argument, split into words as a shell does
    /// it, run without one
    #[arg(value_name = "COMMAND", required_unless_present = "reference")]
    pub subject: Option<String>,

    /// Check one of our own adapters instead: a reference (hf, candle:upstream, …) or llorch-cpud
    #[arg(long = "ref", value_name = "NAME", conflicts_with = "subject")]
    pub reference: Option<String>,

    /// Model: nano, gpt2, gpt2-medium, …, synth:gpt2, any hub id, or a folder
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,

    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,

    #[command(flatten)]
    pub means: Means,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Text,
    Json,
}

/// The command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = execute(args)?;
    let text = match args.format {
        Form::Text => show::text(&report, &Style::of_stdout(false)),
        Form::Json => serde_json::to_string_pretty(&report)?,
    };
    print(&text)?;
    Ok(ExitCode::from(report.verdict.exit_code(false)))
}

fn execute(args: &Args) -> Result<Report, RunError> {
    let (began, started) = (Instant::now(), SystemTime::now());
    let progress = Progress::new(false);
    let command = command(args)?;
    let model = resolve(&args.model, args.means.access.offline)?;
    let other = resolve(OTHER, args.means.access.offline)?;
    let setup = Setup {
        command: &command,
        model_dir: &model.dir,
        dims: dims(&model)?,
        other: (other.dir.clone(), dims(&other)?),
        threads: args.means.threads(),
        limits: limits(&args.means),
    };
    let scratch = scratch()?;
    let _cleanup = crate::supervise::remove_on_interrupt(scratch.path());
    // Resolved, so that what the adapter calls absolute is below it.
    let folder = scratch.path().canonicalize().unwrap_or_else(|_| scratch.path().to_path_buf());
    let mut bench = Bench::new(&setup, &folder);
    let rows = checked(&mut bench, &progress)?;
    let hello = bench.hello.take();
    Ok(Report {
        schema: report::SCHEMA,
        verdict: report::verdict(&rows),
        started: rfc3339(started),
        seconds: began.elapsed().as_secs_f64(),
        command: std::env::args().collect(),
        adapter: AdapterRecord {
            command: command.display(),
            name: hello.as_ref().map(|h| h.name.clone()).unwrap_or_default(),
            version: hello.as_ref().map(|h| h.version.clone()).unwrap_or_default(),
            capabilities: hello.map(|h| h.capabilities).unwrap_or_default(),
        },
        model: assemble::model_record(&model)?,
        rows,
    })
}

fn command(args: &Args) -> Result<AdapterCommand, RunError> {
    let missing = |m: crate::provision::Missing| {
        RunError::Environment(format!("failed to find the adapter: {m}"))
    };
    let options = args.means.provision();
    if let Some(name) = &args.reference {
        if name == ENGINE {
            return engine_command(&options).map_err(missing);
        }
        if name == lineup::NOBODY || name.contains('=') {
            let what = "expected a reference's name; give a command without --ref";
            return Err(RunError::Usage(format!("failed to read --ref {name}: {what}")));
        }
        let members = lineup::references(std::slice::from_ref(name))?;
        return members[0].command(&options).map_err(missing);
    }
    let line = args.subject.as_deref().unwrap_or_default();
    if line.starts_with("http://") || line.starts_with("https://") {
        let what = "it loads no second model, as an adapter does; expected a command that speaks the protocol";
        return Err(RunError::Usage(format!("failed to check {line}: {what}")));
    }
    AdapterCommand::from_words("the adapter", line).map_err(|e| RunError::Usage(e.to_string()))
}

fn resolve(name: &str, offline: bool) -> Result<ResolvedModel, RunError> {
    Ok(llorch_models::resolve(name, &ResolveOptions { offline, ..ResolveOptions::default() })?)
}

fn dims(model: &ResolvedModel) -> Result<Dims, RunError> {
    let config = model.dir.join("config.json");
    Dims::from_config_file(&config).map_err(|e| RunError::Usage(e.to_string()))
}

/// A case of `run` may compile kernels for minutes; requests here are small, and a silent adapter is
/// waited for several times.
fn limits(means: &Means) -> Limits {
    const ANSWER: Duration = Duration::from_secs(300);
    let limits = means.limits();
    Limits { case: limits.case.min(ANSWER), ..limits }
}

fn scratch() -> Result<tempfile::TempDir, RunError> {
    let failed = |e: std::io::Error| {
        RunError::Environment(format!("failed to create a temporary folder: {e}"))
    };
    let dir = tempfile::Builder::new().prefix("llorch-check-").tempdir().map_err(failed)?;
    for name in ["out", "in", "models"] {
        std::fs::create_dir(dir.path().join(name)).map_err(failed)?;
    }
    Ok(dir)
}

/// Makes all checks. Only a program that can't be started at all is an error.
fn checked(bench: &mut Bench<'_>, progress: &Progress) -> Result<Vec<Row>, RunError> {
    bench.start().map_err(|failure| RunError::Environment(failure.message))?;
    let bar = progress.open("", "checking the adapter");
    // What is broken, by the need that it leaves unmet.
    let mut broken: Option<(Needs, &'static str)> = None;
    let mut rows = Vec::new();
    for check in CHECKS {
        bar.detail(check.slug);
        bench.current = check.slug;
        let result = match broken {
            Some((needs, first)) if check.needs >= needs => {
                Err(Stop::Skip(format!("check {first} failed, which must go well first")))
            }
            _ if check.needs == Needs::Run && check.slug != "inject" && bench.can(COMPONENTS) => {
                Err(Stop::Skip(NO_MODEL.into()))
            }
            _ => (check.test)(bench),
        };
        if let Err(Stop::Wrong(_)) = &result {
            bench.discard();
            let leaves = match check.slug {
                "hello" => Some(Needs::Hello),
                "load" => Some(Needs::Load),
                "run" => Some(Needs::Run),
                _ => None,
            };
            broken = broken.or(leaves.map(|needs| (needs, check.slug)));
        }
        rows.push(row(check, result));
    }
    Ok(rows)
}

fn row(check: &'static Check, result: Result<(), Stop>) -> Row {
    let mut row = Row {
        check: check.slug,
        says: check.says,
        verdict: Verdict::Pass,
        document: format!("adapters/PROTOCOL.md, {}", check.section),
        sent: None,
        found: None,
        expected: None,
        mend: None,
        reason: String::new(),
    };
    match result {
        Ok(()) => {}
        Err(Stop::Skip(reason)) => {
            row.verdict = Verdict::Unchecked;
            row.reason = reason;
        }
        Err(Stop::Wrong(wrong)) => {
            row.verdict = Verdict::Fail;
            row.mend = Some(wrong.mend.unwrap_or_else(|| check.mend.to_string()));
            (row.sent, row.found) = (Some(wrong.sent), Some(wrong.found));
            row.expected = Some(wrong.expected);
        }
    }
    row
}
