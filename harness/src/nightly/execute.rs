//! One task of a night after another: run it, keep what people look at, remember it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use llorch_models::progress::Progress;

use super::config::{Kind, Task};
use super::outcome::Outcome;
use crate::golden::check::{self, CheckError};
use crate::history::diff::diff;
use crate::history::read::History;
use crate::history::record::Record;
use crate::history::tell;
use crate::plan::Filter;
use crate::report::sentences::{Cause, first_cause, first_line, parties, place as place_of};
use crate::report::view::checkpoints;
use crate::report::{ReportFormat, Run, Style, export, junit, target};
use crate::result::{RunVerdict, Unchecked, UncheckedKind, Verdict};
use crate::run::args::Request;
use crate::run::means::Means;
use crate::run::{RunError, pipeline};
use crate::saved;
use crate::text::{count, rfc3339, shell_word};

/// What all tasks of a night share.
#[derive(Debug)]
pub struct Shared<'a> {
    pub means: &'a Means,
    /// The night's folder.
    pub out: &'a Path,
    /// Whether tensors stay there.
    pub keep: bool,
    /// The nights before.
    pub past: &'a History,
}

/// A task's outcome, and what is to be remembered of it.
pub fn execute(task: &Task, shared: &Shared<'_>) -> anyhow::Result<(Outcome, Record)> {
    let (began, started) = (Instant::now(), rfc3339(SystemTime::now()));
    let (mut outcome, mut record) = match &task.kind {
        Kind::Run { .. } => run(task, shared, &started)?,
        Kind::Published => published(task, shared, &started)?,
    };
    outcome.seconds = began.elapsed().as_secs_f64();
    record.name = Some(task.name.clone());
    outcome.record.clone_from(&record.id);
    if let Some(old) = last(shared.past, &task.name) {
        let mut changes = diff(shared.past, old, &record);
        // After a night without figures those of the night before it are still worth comparing.
        let measured = |r: &&Record| r.has_figures() && r.name.as_ref() == Some(&task.name);
        let base = shared.past.records.iter().rev().find(measured);
        if let (false, true, Some(base)) = (old.has_figures(), record.has_figures(), base) {
            changes.take_figures_of(diff(shared.past, base, &record));
        }
        outcome.news = tell::lines(&changes, &record);
        outcome.changes = Some(changes);
    }
    Ok((outcome, record))
}

/// The same task the last time.
pub fn last<'a>(past: &'a History, name: &str) -> Option<&'a Record> {
    past.records.iter().rev().find(|r| r.name.as_deref() == Some(name))
}

fn run(task: &Task, shared: &Shared<'_>, started: &str) -> anyhow::Result<(Outcome, Record)> {
    let place = Path::new("runs").join(&task.name);
    let request = request(task, shared, &place)?;
    let dir = shared.out.join(&place);
    fs::create_dir_all(dir.parent().unwrap_or(shared.out))?;
    let outcome = match pipeline::execute(&request) {
        Ok(outcome) => outcome,
        Err(error) => return Ok(not_run(task, &error, started)),
    };
    let result = &outcome.result;
    let seen = Run { result, dir: Some(outcome.out.path()) };
    let page = export(&seen, ReportFormat::Html, &Style::default())?;
    target::write(&dir.join("index.html"), &page)?;
    let record = Record::new(result, &outcome.collected.evidence);
    let missing = |u: &&Unchecked| u.kind == UncheckedKind::Missing;
    let mut failures: Vec<String> = result.odd.iter().map(crate::report::wrong).collect();
    if let (true, Some(Cause::Row(row))) = (failures.is_empty(), first_cause(result)) {
        failures.push(format!("{} at {}", parties(row), place_of(row)));
    }
    let made = Outcome {
        implementations: result.implementations.iter().map(|i| i.name.clone()).collect(),
        unchecked: result.unchecked.iter().filter(missing).cloned().collect(),
        failures,
        report: Some(path(&place.join("index.html"))),
        result: Some(path(&place.join(saved::RESULT))),
        suites: junit::suites(result),
        ..Outcome::new(task, result.verdict, first_line(result, &checkpoints(result)))
    };
    if !shared.keep {
        drop(outcome);
        drop_tensors(&dir)?;
    }
    Ok((made, record))
}

/// As it stands in a URL.
fn path(of: &Path) -> String {
    let parts: Vec<_> = of.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn request(task: &Task, shared: &Shared<'_>, place: &Path) -> Result<Request, RunError> {
    let Kind::Run { suite, dtype, references, checkpoints } = &task.kind else {
        return Err(RunError::Usage(format!("{} is no run", task.name)));
    };
    let mut command: Vec<String> = ["llorch-diff", "run", "--model"].map(String::from).to_vec();
    command.push(task.model.clone());
    let mut say = |flag: &str, value: &str| command.extend([flag.to_string(), value.to_string()]);
    if !suite.is_canonical() {
        say("--suite", &suite.name);
    }
    if dtype.to_string() != "f32" {
        say("--dtype", &dtype.to_string());
    }
    references.iter().for_each(|name| say("--ref", name));
    checkpoints.iter().for_each(|name| say("--checkpoint", name));
    task.subject.iter().for_each(|subject| say("--subject", subject));
    let words = command.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
    Progress::new(false).say(&format!("{}: {words}", task.name));
    Ok(Request {
        model: task.model.clone(),
        filter: Filter::new(checkpoints, &[])?,
        suite: suite.clone(),
        subject: crate::lineup::subject(task.subject.as_deref())?,
        references: crate::lineup::references(references)?,
        out: Some(shared.out.join(place)),
        fail_fast: false,
        jobs: 1,
        threads: shared.means.threads(),
        dtype: *dtype,
        provision: shared.means.provision(),
        limits: shared.means.limits(),
        values: 0,
        isolate: None,
        strategy: None,
        partition: None,
        command,
    })
}

/// Leaves the result, the page, and what implementations said on stderr.
fn drop_tensors(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else if path.file_name().is_some_and(|name| name == saved::EVIDENCE) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Something that could not be run. Weights that can't be had leave it INCOMPLETE; all else that stops a
/// run is its subject's or this machine's, and an ERROR.
fn not_run(task: &Task, error: &RunError, started: &str) -> (Outcome, Record) {
    let verdict = match error {
        RunError::Weights(_) => RunVerdict::Incomplete,
        _ => RunVerdict::Error,
    };
    let unchecked = vec![Unchecked {
        what: "the whole run".into(),
        kind: UncheckedKind::Missing,
        reason: error.to_string(),
    }];
    without_figures(task, verdict, error.to_string(), unchecked, Vec::new(), started)
}

fn without_figures(
    task: &Task,
    verdict: RunVerdict,
    says: String,
    unchecked: Vec<Unchecked>,
    failures: Vec<String>,
    started: &str,
) -> (Outcome, Record) {
    let mut record = Record::without_figures(&task.name, &task.model, verdict, started.to_string());
    record.unchecked.clone_from(&unchecked);
    record.failures.clone_from(&failures);
    let outcome = Outcome { unchecked, failures, ..Outcome::new(task, verdict, says) };
    (outcome, record)
}

/// The published answers on these weights.
fn published(task: &Task, shared: &Shared<'_>, started: &str) -> anyhow::Result<(Outcome, Record)> {
    let words = format!("{}: llorch-diff golden check --model {}", task.name, task.model);
    Progress::new(false).say(&words);
    let asked = check::Args::of_model(&task.model, task.subject.as_deref(), shared.means);
    let result = match check::check(&asked) {
        Ok(result) => result,
        Err(error) => {
            let error = match error {
                CheckError::Model(error) => RunError::from(error),
                other => RunError::Environment(other.to_string()),
            };
            return Ok(not_run(task, &error, started));
        }
    };
    let place = Path::new("runs").join(&task.name);
    let dir: PathBuf = shared.out.join(&place);
    fs::create_dir_all(&dir)?;
    let text = serde_json::to_string_pretty(&result)? + "\n";
    target::write(&dir.join("golden.json"), &text)?;
    let of = |verdict: Verdict| result.published.iter().filter(move |a| a.verdict == verdict);
    // One line a reason: what stops one answer mostly stops all.
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for answer in of(Verdict::Unchecked) {
        match reasons.iter_mut().find(|(reason, _)| *reason == answer.reason) {
            Some((_, n)) => *n += 1,
            None => reasons.push((&answer.reason, 1)),
        }
    }
    let missing: usize = reasons.iter().map(|(_, n)| n).sum();
    let unchecked = reasons.iter().map(|(reason, n)| Unchecked {
        what: count(*n, "published answer"),
        kind: UncheckedKind::Missing,
        reason: reason.to_string(),
    });
    let wrong = [Verdict::Fail, Verdict::Error].into_iter().flat_map(of);
    let failures = wrong.map(|a| match a.worst() {
        Some(c) => format!("{}: {} is {}; published {}", a.id, c.what, c.found, c.expected),
        None => format!("{}: {}", a.id, a.reason),
    });
    let (unchecked, failures) = (unchecked.collect::<Vec<_>>(), failures.collect::<Vec<_>>());
    let agreed = of(Verdict::Pass).count() + of(Verdict::Warn).count();
    let says = format!(
        "{} · {agreed} of {} published answers agree, {} wrong, {} UNCHECKED",
        result.verdict.name(),
        result.published.len(),
        failures.len(),
        missing
    );
    let (mut outcome, record) =
        without_figures(task, result.verdict, says, unchecked, failures, started);
    outcome.result = Some(path(&place.join("golden.json")));
    outcome.suites = vec![super::junit::answers(&result)];
    Ok((outcome, record))
}
