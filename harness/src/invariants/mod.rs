//! `llorch-diff invariants`: what must hold of any GPT-2, whoever wrote it, and needs no reference.
//!
//! Reading order: [`finding`] is the one form of what a check found, [`rule`] says which differences
//! are allowed, [`runs`] what the subject is asked; then one small file a check: [`cache`],
//! [`prefill`], [`causality`], [`repeat`], [`probabilities`], [`norm`], [`logits`], [`draws`] (with
//! [`chi_square`]); [`check`] makes the runs and calls them, [`report`] is the saved form, [`show`]
//! prints it.

pub mod cache;
pub mod causality;
pub mod check;
pub mod chi_square;
pub mod draws;
pub mod finding;
pub mod logits;
pub mod norm;
pub mod prefill;
pub mod probabilities;
pub mod repeat;
pub mod report;
pub mod rows;
pub mod rule;
pub mod runs;
pub mod show;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use llorch_models::progress::Progress;
use llorch_models::{ResolveOptions, ResolvedModel};
use llorch_trace::Dims;

use crate::evidence::Case;
use crate::lineup;
use crate::live::{LiveError, Setup};
use crate::plan;
use crate::provision::ProvisionOptions;
use crate::report::Style;
use crate::result::Unchecked;
use crate::run::args::suite;
use crate::run::means::{Means, Precision};
use crate::run::scout::Scout;
use crate::run::{RunError, assemble};
use crate::supervise::{AdapterCommand, FailureKind};
use crate::text::{print, rfc3339};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The implementation under test: a command that speaks the adapter protocol, split into words
    /// as a shell does it, run without one [default: `llorch-cpud trace`]
    #[arg(long, value_name = "COMMAND")]
    pub subject: Option<String>,

    /// Model: nano, gpt2, gpt2-medium, …, synth:gpt2, any hub id, or a folder
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,

    /// Check on this prompt instead of the canonical suite, 10 new tokens; may be repeated
    #[arg(long, value_name = "TEXT", conflicts_with = "suite")]
    pub prompt: Vec<String>,

    /// Check on the cases of this TOML file instead of the canonical suite
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,

    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,

    #[command(flatten)]
    pub precision: Precision,

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

fn execute(args: &Args) -> Result<report::Report, RunError> {
    let (began, started) = (Instant::now(), SystemTime::now());
    let progress = Progress::new(false);
    let suite = suite(args.suite.as_deref(), &args.prompt)?;
    let means = &args.means;
    let provision = means.provision();
    let member = lineup::subject(args.subject.as_deref())?;
    if let Some(url) = member.address() {
        let what = "nobody can set the threads of a running daemon; expected a command";
        return Err(RunError::Usage(format!("failed to check {url}: {what}")));
    }
    let resolve = ResolveOptions { offline: means.access.offline, ..ResolveOptions::default() };
    let model = llorch_models::resolve(&args.model, &resolve)?;
    progress.say(&format!("model {}: {}, {}", model.name, model.kind, model.source));
    let missing = |m: crate::provision::Missing| {
        RunError::Environment(format!("failed to find the subject: {m}"))
    };
    let command = member.command(&provision).map_err(missing)?;
    let setup = Setup {
        dtype: args.precision.dtype.into(),
        threads: means.threads(),
        limits: means.limits(),
    };
    let (cases, left_out) = cases(&suite, &model, &command, &setup, &provision)?;
    let job = check::Job { command: &command, model_dir: &model.dir, cases: &cases, setup: &setup };
    let checked = match check::check(&job, &progress) {
        Ok(checked) => checked,
        Err(error) => not_started(&error)?,
    };
    let (rows, mut unchecked) = report::rows(&checked.findings);
    unchecked.extend(left_out);
    let hello = checked.subject.map(|s| s.hello);
    Ok(report::Report {
        schema: report::SCHEMA,
        verdict: report::verdict(&rows, &unchecked),
        started: rfc3339(started),
        seconds: began.elapsed().as_secs_f64(),
        command: std::env::args().collect(),
        model: assemble::model_record(&model)?,
        subject: report::SubjectRecord {
            name: hello.as_ref().map_or(command.name.clone(), |h| h.name.clone()),
            version: hello.map(|h| h.version).unwrap_or_default(),
            threads: [means.threads(), job.other_threads()],
        },
        cases: cases.iter().map(|c| c.name.clone()).collect(),
        rows,
        unchecked,
    })
}

/// A subject that can't be started is no subject; one that breaks before it can be asked anything
/// has everything wrong.
fn not_started(error: &LiveError) -> Result<check::Checked, RunError> {
    match error {
        LiveError::Adapter(failure) if failure.kind != FailureKind::Spawn => {
            let mut findings = finding::Findings::default();
            finding::Invariant::ALL.into_iter().for_each(|i| findings.of(i).trouble(error));
            Ok(check::Checked { subject: None, findings })
        }
        _ => Err(RunError::Environment(error.to_string())),
    }
}

fn cases(
    suite: &crate::suite::Suite,
    model: &ResolvedModel,
    command: &AdapterCommand,
    setup: &Setup,
    provision: &ProvisionOptions,
) -> Result<(Vec<Case>, Vec<Unchecked>), RunError> {
    let config = model.dir.join("config.json");
    let dims = Dims::from_config_file(&config).map_err(|e| RunError::Usage(e.to_string()))?;
    let scratch = tempfile::Builder::new()
        .prefix("llorch-scout-")
        .tempdir()
        .map_err(|e| RunError::Environment(format!("failed to create a temporary folder: {e}")))?;
    let _cleanup = crate::supervise::remove_on_interrupt(scratch.path());
    let mut scout = Scout::new(
        model.dir.clone(),
        setup.limits.clone(),
        setup.dtype,
        setup.threads,
        scratch.path().to_path_buf(),
    );
    scout.add(&command.name, || Ok(command.clone()));
    // The subject may have no tokenizer; the model's files are there all the same.
    scout.add(lineup::ENGINE, move || {
        crate::provision::engine_command(provision).map_err(|missing| missing.to_string())
    });
    let (cases, left_out) = plan::cases(suite, &dims, &mut |text| scout.tokenize(text))?;
    if cases.is_empty() {
        return Err(RunError::Usage("failed to plan: no case of the suite fits the model".into()));
    }
    Ok((cases, left_out))
}
