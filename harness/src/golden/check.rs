//! `llorch-diff golden check`: what is known for certain, asked of a subject.

use std::path::{Path, PathBuf};

use llorch_models::progress::Progress;
use llorch_models::{ModelError, ModelKind, ResolveOptions, ResolvedModel};
use llorch_trace::{Dims, Dtype};

use super::answers::{AnswerError, Questioner};
use super::outcome::{Answer, GoldenResult, GoldenRow, SCHEMA, conclude};
use super::published::{self, Entry};
use super::review::pending::whole;
use super::stop::Stop;
use super::waiting::Waiting;
use super::weights::Weights;
use super::{bundles, show, tokenizer};
use crate::lineup::{self, Member};
use crate::live::{Live, LiveError};
use crate::provision::ProvisionOptions;
use crate::report::Format;
use crate::result::{RunVerdict, Verdict};
use crate::run::means::Means;
use crate::supervise::FailureKind;

/// Check the engine against goldens and published answers.
///
/// Without --model: nano against its goldens by Hugging Face, in float32 and float64, at every
/// checkpoint of every layer; the tokenizer against 10,000 strings; and what others published of the
/// real GPT-2, where its weights are at hand. With --model: the published answers on those weights.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Put the published questions to this model: gpt2, gpt2-medium, distilgpt2, a hub id, or a
    /// folder. Weights that aren't GPT-2's fail, whatever their name
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// A command that speaks the adapter protocol, in place of llorch-cpud
    #[arg(long, value_name = "COMMAND")]
    pub subject: Option<String>,
    /// The folder with hf-f32 and hf-f64: what is pending there is told, and its goldens are checked in
    /// place of those in the program [default: golden/nano, if it is here, and the program's goldens]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Fail while goldens are pending that nobody has reviewed
    #[arg(long)]
    pub strict: bool,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

impl Args {
    /// The published answers on one model's weights.
    pub fn of_model(model: &str, subject: Option<&str>, means: &Means) -> Args {
        Args {
            model: Some(model.into()),
            format: Format::Table,
            subject: subject.map(String::from),
            offline: means.access.offline,
            dir: None,
            strict: false,
        }
    }
}

/// What stops the command, with its exit code.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Subject(#[from] lineup::LineupError),
    #[error(transparent)]
    Published(#[from] published::PublishedError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Missing(#[from] crate::provision::Missing),
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error(transparent)]
    Trace(#[from] llorch_trace::Error),
    #[error(transparent)]
    Goldens(#[from] Stop),
    #[error("failed to unpack the goldens: {0}")]
    Unpack(std::io::Error),
}

impl CheckError {
    fn exit_code(&self) -> u8 {
        match self {
            CheckError::Subject(_) => 2,
            CheckError::Goldens(stop) => stop.code,
            CheckError::Model(e) => e.exit_code(),
            CheckError::Live(LiveError::Adapter(f)) if f.kind == FailureKind::Spawn => 3,
            CheckError::Live(LiveError::Adapter(_) | LiveError::Tensor { .. }) => 5,
            _ => 3,
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<u8> {
    let result = match check(args) {
        Ok(result) => result,
        Err(error) => {
            llorch_models::errln!("error: {error}");
            return Ok(error.exit_code());
        }
    };
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&result)? + "\n",
        Format::Table => show::text(&result, false),
        Format::Md => show::text(&result, true),
    };
    crate::dumps::show::print(&text)?;
    Ok(result.verdict.exit_code(false))
}

/// Who is asked, and how it is started.
struct Subject {
    member: Member,
    options: ProvisionOptions,
}

impl Subject {
    fn load(&self, model: &ResolvedModel) -> Result<Live, CheckError> {
        let command = self.member.command(&self.options)?;
        let bar = Progress::new(false).open(&self.member.name, "loading the model");
        bar.detail(&model.name);
        Ok(Live::start(&command, &model.dir, Dtype::F32)?)
    }
}

pub fn check(args: &Args) -> Result<GoldenResult, CheckError> {
    let member = lineup::subject(args.subject.as_deref())?;
    let mut name = member.name.clone();
    let options = ProvisionOptions { offline: args.offline, quiet: false, allow: true };
    let subject = Subject { member, options };
    let published = published::read()?;
    let pending = Waiting::look(args.dir.as_deref(), args.strict)?;
    let mut goldens = Vec::new();
    let mut answers = Vec::new();
    let mut real_weights = false;
    match &args.model {
        None => {
            let nano = llorch_models::resolve("nano", &ResolveOptions::default())?;
            let mut live = subject.load(&nano)?;
            name.clone_from(&live.hello().name);
            goldens.extend(nano_goldens(&mut live, &nano, args.dir.as_deref())?);
            goldens.push(tokenizer::check(&mut live)?);
            for (of, entries) in &published {
                let (found, real) = without_asking(&subject, of, entries, &mut live)?;
                answers.extend(found);
                real_weights |= real;
            }
            live.finish();
        }
        Some(model) => {
            let resolve = ResolveOptions { offline: args.offline, ..Default::default() };
            match llorch_models::resolve(model, &resolve) {
                Ok(model) => {
                    let (of, entries) = section(&published, &model);
                    real_weights = model.kind == ModelKind::Real;
                    let mut live = subject.load(&model)?;
                    name.clone_from(&live.hello().name);
                    if is_nano(&model)? {
                        goldens.extend(nano_goldens(&mut live, &model, args.dir.as_deref())?);
                    }
                    answers.extend(ask_all(&mut live, &model, of, entries)?);
                    live.finish();
                }
                // A name that can't be one is a mistake; weights that can't be had are not.
                Err(error) if error.exit_code() == 2 => return Err(error.into()),
                Err(error) => {
                    let nano = llorch_models::resolve("nano", &ResolveOptions::default())?;
                    let mut live = subject.load(&nano)?;
                    name.clone_from(&live.hello().name);
                    let (of, entries) = named_section(&published, model);
                    answers.extend(unchecked(&mut live, of, entries, &error.to_string())?);
                    live.finish();
                }
            }
        }
    }
    let mut verdict = conclude(&goldens, &answers, args.model.is_some());
    if pending.as_ref().is_some_and(Waiting::fails) && verdict != RunVerdict::Error {
        verdict = RunVerdict::Fail;
    }
    Ok(GoldenResult {
        schema: SCHEMA,
        verdict,
        subject: name,
        real_weights,
        goldens,
        published: answers,
        pending,
    })
}

/// Published answers where no model was asked for: those whose weights are here already, and whether
/// those are the real ones.
fn without_asking(
    subject: &Subject,
    of: &str,
    entries: &[Entry],
    nano: &mut Live,
) -> Result<(Vec<Answer>, bool), CheckError> {
    let resolve = ResolveOptions { offline: true, quiet: true, ..Default::default() };
    match llorch_models::resolve(of, &resolve) {
        Ok(model) => {
            let mut live = subject.load(&model)?;
            let answers = ask_all(&mut live, &model, of, entries)?;
            live.finish();
            Ok((answers, model.kind == ModelKind::Real))
        }
        Err(_) => {
            let reason =
                format!("needs the real {of} weights: llorch-diff golden check --model {of}");
            Ok((unchecked(nano, of, entries, &reason)?, false))
        }
    }
}

/// Without the weights only the tokenizer can be asked; it is GPT-2's own in nano too.
fn unchecked(
    nano: &mut Live,
    of: &str,
    entries: &[Entry],
    reason: &str,
) -> Result<Vec<Answer>, CheckError> {
    let model = llorch_models::resolve("nano", &ResolveOptions::default())?;
    let weights = Weights::open(&model.dir)?;
    let mut answers = Vec::new();
    for entry in entries {
        if entry.needs_no_weights() {
            answers.push(ask(&mut Questioner { live: nano, weights: &weights }, of, entry)?);
        } else {
            answers.push(Answer { reason: reason.into(), missing: true, ..blank(of, entry) });
        }
    }
    Ok(answers)
}

fn ask_all(
    live: &mut Live,
    model: &ResolvedModel,
    of: &str,
    entries: &[Entry],
) -> Result<Vec<Answer>, CheckError> {
    let weights = Weights::open(&model.dir)?;
    let mut questioner = Questioner { live, weights: &weights };
    let bar = Progress::new(false).steps(&format!("published of {of}"), "answer", entries.len());
    let ask_one = |(n, entry): (usize, &Entry)| {
        bar.set(n as u64);
        bar.detail(&entry.id);
        ask(&mut questioner, of, entry)
    };
    entries.iter().enumerate().map(ask_one).collect()
}

fn ask(questioner: &mut Questioner<'_>, of: &str, entry: &Entry) -> Result<Answer, CheckError> {
    let mut answer = blank(of, entry);
    match questioner.ask(entry) {
        Ok(checks) => {
            let passes = !checks.is_empty() && checks.iter().all(|c| c.passes);
            answer.verdict = if passes { Verdict::Pass } else { Verdict::Fail };
            answer.checks = checks;
        }
        Err(AnswerError::Refused(reason)) => {
            (answer.verdict, answer.reason) = (Verdict::Fail, reason);
        }
        Err(AnswerError::Unsupported(reason)) => answer.reason = reason,
        Err(AnswerError::Live(LiveError::Adapter(f))) if f.kind == FailureKind::Unsupported => {
            answer.reason = f.message;
        }
        // It lives on: these weights can't be asked that.
        Err(AnswerError::Live(LiveError::Adapter(failure))) if failure.is_recoverable() => {
            (answer.verdict, answer.reason) = (Verdict::Fail, failure.message);
        }
        Err(AnswerError::Live(error)) => return Err(error.into()),
    }
    Ok(answer)
}

fn blank(of: &str, entry: &Entry) -> Answer {
    Answer {
        of: of.into(),
        id: entry.id.clone(),
        kind: entry.kind_name().into(),
        source: entry.source.clone(),
        trust: entry.trust.clone(),
        verdict: Verdict::Unchecked,
        reason: String::new(),
        checks: Vec::new(),
        missing: false,
    }
}

type Sections = [(String, Vec<Entry>)];

/// The published model that a name means: the last part of a hub id, without a revision.
fn named_section<'a>(published: &'a Sections, name: &str) -> (&'a str, &'a [Entry]) {
    let bare = name.split('@').next().unwrap_or(name);
    let bare = bare.trim_end_matches('/').rsplit('/').next().unwrap_or(bare);
    let found = published.iter().find(|(of, _)| of == bare).or(published.first());
    found.map_or(("gpt2", &[]), |(of, entries)| (of.as_str(), entries.as_slice()))
}

/// By name, and where that is none of theirs by depth: 24 layers are gpt2-medium's, 6 distilgpt2's.
fn section<'a>(published: &'a Sections, model: &ResolvedModel) -> (&'a str, &'a [Entry]) {
    let by_name = named_section(published, &model.name);
    if model.name.trim_end_matches('/').ends_with(by_name.0) {
        return by_name;
    }
    let layers = Dims::from_config_file(&model.dir.join("config.json")).map_or(0, |d| d.n_layer);
    named_section(
        published,
        match layers {
            24 => "gpt2-medium",
            6 => "distilgpt2",
            _ => "gpt2",
        },
    )
}

fn is_nano(model: &ResolvedModel) -> Result<bool, CheckError> {
    let nano = llorch_models::resolve("nano", &ResolveOptions::default())?;
    Ok(nano.weights_sha256() == model.weights_sha256())
}

/// Those that travel with the program, or those in a folder.
fn nano_goldens(
    live: &mut Live,
    model: &ResolvedModel,
    dir: Option<&Path>,
) -> Result<Vec<GoldenRow>, CheckError> {
    let folder =
        tempfile::Builder::new().prefix("llorch-golden-").tempdir().map_err(CheckError::Unpack)?;
    let _cleanup = crate::supervise::remove_on_interrupt(folder.path());
    if dir.is_none() {
        bundles::extract(folder.path()).map_err(CheckError::Unpack)?;
    }
    let mut rows = Vec::new();
    for name in bundles::NAMES {
        let bundle = whole(&dir.unwrap_or(folder.path()).join(name))?;
        let golden = format!("nano {name}");
        if bundles::is_of(&bundle, model.weights_sha256()) {
            rows.extend(bundles::check(live, &bundle, &golden)?);
            continue;
        }
        let recorded = bundles::recorded_sha256(&bundle).unwrap_or("unknown");
        rows.push(GoldenRow {
            golden,
            what: "all checkpoints".into(),
            compared: 0,
            worst: String::new(),
            max_abs: None,
            tolerance: 0.0,
            verdict: Verdict::Unchecked,
            missing: true,
            reason: format!(
                "recorded from weights with sha256 {recorded}, these have {}; llorch-diff golden record renews it",
                model.weights_sha256()
            ),
        });
    }
    Ok(rows)
}
