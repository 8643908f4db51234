//! The page: what stands where.

use askama::Template;

use super::super::Run;
use super::super::continuations::{Continuation, continuations};
use super::super::failures::failures;
use super::super::flow::flow;
use super::super::numbers::{list, seconds};
use super::super::sentences::{
    Cause, conclusion, first_cause, first_line, input_line, place, statement, step_of, where_of,
    wrong,
};
use super::super::svg::{CSS, Chart};
use super::super::tensors::Tensors;
use super::super::view::checkpoints;
use super::super::vocabulary::Vocabulary;
use super::checkpoints::{Matrix, Section, matrix, sections};
use super::failed::{self, Failed};
use super::{Mark, anchor};
use crate::result::{Implementation, Role, RunResult, Status, UncheckedKind};
use crate::text::shell_word;

#[derive(Debug, Template)]
#[template(path = "report.html")]
pub struct Page<'a> {
    css: &'static str,
    chart_css: &'static str,
    script: &'static str,
    title: String,
    mark: Mark,
    headline: String,
    /// The point that the first sentence links to.
    first: Option<First>,
    details: Vec<String>,
    /// Who else is wrong, and the section that shows it.
    others: Vec<(String, String)>,
    /// What the run amounts to: likely cause, level, next checkpoint.
    conclusion: Vec<(String, String)>,
    line: String,
    facts: Vec<(&'static str, String)>,
    implementations: Vec<Party>,
    unchecked: Vec<NotChecked>,
    command: String,
    subject: String,
    matrix: Matrix,
    chart: Chart,
    by_oracle: bool,
    failed: Vec<Failed>,
    /// How many of them only by what came in.
    inherited: usize,
    cases: Vec<Continuation<'a>>,
    sections: Vec<Section>,
    data: String,
    version: &'static str,
}

#[derive(Debug)]
struct First {
    point: String,
    anchor: String,
    place: String,
}

#[derive(Debug)]
struct Party {
    name: String,
    version: String,
    worth: String,
    status: &'static str,
    reason: String,
    mend: Option<String>,
    time: String,
}

#[derive(Debug)]
struct NotChecked {
    what: String,
    reason: String,
    /// Not by nature: the run is INCOMPLETE for it.
    missing: bool,
}

impl<'a> Page<'a> {
    pub fn new(run: &Run<'a>) -> Page<'a> {
        let result = run.result;
        let views = checkpoints(result);
        let subject = result.subject_name();
        let flow = flow(result);
        let mut tensors = Tensors::new(run.dir);
        let vocabulary = Vocabulary::of_run(run.dir);
        let failures = failures(result);
        let own = failures.iter().filter(|f| f.who == subject);
        let points: Vec<_> = own.map(|f| f.point).collect();
        let cause = first_cause(result);
        let cause_point = cause.map(|cause| match cause {
            Cause::Stage(odd) => odd.point,
            Cause::Row(row) => row.point,
        });
        let others = result.odd.iter().filter(|odd| odd.name != subject);
        let failed = failed::sections(result, &failures, &mut tensors, &vocabulary);
        let unchecked = result.unchecked.iter().map(|u| NotChecked {
            what: u.what.clone(),
            reason: u.reason.clone(),
            missing: u.kind == UncheckedKind::Missing,
        });
        Page {
            css: super::REPORT_CSS,
            chart_css: CSS,
            script: include_str!("../../../templates/report.js"),
            title: format!("{} · {subject} · {}", result.verdict.name(), result.model.name),
            mark: result.verdict.into(),
            headline: match cause {
                Some(_) => format!("{subject} goes wrong first at"),
                None => statement(result, &views),
            },
            first: cause.map(|cause| first(subject, cause)),
            details: details(result, cause),
            others: others.map(|odd| (wrong(odd), anchor(&odd.name, odd.point, subject))).collect(),
            conclusion: conclusion(result).into_iter().map(sentence_case).collect(),
            line: first_line(result, &views),
            facts: facts(result),
            implementations: result.implementations.iter().map(|i| party(result, i)).collect(),
            unchecked: unchecked.collect(),
            command: command(result),
            subject: subject.into(),
            matrix: matrix(result, &views),
            chart: Chart::new(&flow, cause_point, false),
            by_oracle: flow.by_oracle,
            inherited: failed.iter().filter(|f| !f.is_first && !f.by_itself).count(),
            failed,
            cases: continuations(result, &mut tensors, &vocabulary),
            sections: sections(result, &views, &flow, &points),
            // A name in it must not end the script.
            data: flow.json().to_string().replace('<', "\\u003c"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// `LIKELY CAUSE` shouts on a page.
fn sentence_case((heading, text): (&str, String)) -> (String, String) {
    (heading.to_lowercase(), text)
}

fn first(subject: &str, cause: Cause<'_>) -> First {
    let (point, text, case, step) = match cause {
        Cause::Stage(odd) => (odd.point, where_of(odd), &odd.case, odd.step),
        Cause::Row(row) => (row.point, row.point.to_string(), &row.case, row.step),
    };
    let checkpoint = point.checkpoint();
    let layer = point.layer.map(|l| format!("layer {l}, ")).unwrap_or_default();
    First {
        point: text,
        anchor: anchor(subject, point, subject),
        place: format!(
            "{layer}checkpoint {} ({}), case {case}{}",
            checkpoint.number,
            checkpoint.name,
            step_of(step)
        ),
    }
}

/// The sentences below the first.
fn details(result: &RunResult, cause: Option<Cause<'_>>) -> Vec<String> {
    let subject = result.subject_name();
    match cause {
        Some(Cause::Stage(odd)) => {
            let more = result.odd.iter().filter(|o| o.name == subject).skip(1);
            let also = more.map(|odd| format!("also {}", wrong(odd)));
            [odd.reason.clone()].into_iter().chain(also).collect()
        }
        Some(Cause::Row(row)) => {
            vec![format!("{} against {} at {}: {}", row.a, row.b, place(row), row.reason)]
        }
        None => Vec::new(),
    }
}

fn facts(result: &RunResult) -> Vec<(&'static str, String)> {
    let m = &result.model;
    let kind = serde_json::to_value(m.kind).ok().and_then(|v| v.as_str().map(String::from));
    let mut facts = vec![
        ("model", format!("{} ({})", m.name, kind.unwrap_or_default())),
        ("source", m.source.clone()),
    ];
    if let Some(revision) = &m.revision {
        facts.push(("revision", revision.clone()));
    }
    facts.push(("weights sha256", m.sha256.clone()));
    let cases: Vec<&str> = result.cases.iter().map(|c| c.name.as_str()).collect();
    facts.push(("cases", list(&cases)));
    if let Some(isolate) = &result.isolate {
        facts.push(("stages by themselves", input_line(isolate)));
    }
    let took = result.seconds.get("total").map(|s| format!(", {}", seconds(*s)));
    facts.push(("started", format!("{}{}", result.started, took.unwrap_or_default())));
    facts
}

fn party(result: &RunResult, i: &Implementation) -> Party {
    Party {
        name: i.name.clone(),
        version: i.version.clone(),
        worth: match i.role {
            Role::Subject => "subject".into(),
            Role::Reference => i.worth.map_or("–".into(), |w| w.to_string()),
        },
        status: match i.status {
            Status::Ok => "ok",
            Status::Partial => "partial",
            Status::Missing => "missing",
            Status::Error => "error",
        },
        reason: i.reason.clone(),
        mend: i.mend.clone(),
        time: result.seconds.get(&i.name).map_or("–".into(), |s| seconds(*s)),
    }
}

/// As a shell takes it again, by the program's name instead of where it was.
fn command(result: &RunResult) -> String {
    let mut words: Vec<String> = result.command.iter().map(|w| shell_word(w)).collect();
    if let Some(program) = words.first_mut() {
        *program = "llorch-diff".into();
    }
    words.join(" ")
}
