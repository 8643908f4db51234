//! JUnit XML, for CI: a suite a checkpoint, a case for each point and pair, cases and steps of the run
//! folded onto the worst. The first suite, `run`, holds the verdict and what was not checked.

use std::fmt::Write;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::numbers::{error, index, tolerance, value_at};
use super::sentences::{first_line, parties, place};
use super::view::{CheckpointView, PointLine, checkpoints, points};
use super::{Exporter, Run, Style};
use crate::result::{Row, RowKind, RunResult, RunVerdict, UncheckedKind, Verdict};

pub struct Junit;

impl Exporter for Junit {
    fn export(&self, run: &Run<'_>, _: &Style) -> anyhow::Result<String> {
        let mut report = Report::new("llorch-diff");
        let total =
            run.result.seconds.get("total").and_then(|s| Duration::try_from_secs_f64(*s).ok());
        if let Some(total) = total {
            report.set_time(total);
        }
        report.add_test_suites(suites(run.result));
        Ok(report.to_string()?)
    }
}

/// The run's own suite, then one a checkpoint.
pub fn suites(result: &RunResult) -> Vec<TestSuite> {
    let views = checkpoints(result);
    let of = |view: &CheckpointView<'_>| suite(result, view);
    [whole(result, &views)].into_iter().chain(views.iter().map(of)).collect()
}

/// The run itself: its verdict must show even where nothing was compared.
fn whole(result: &RunResult, views: &[CheckpointView<'_>]) -> TestSuite {
    let mut suite = TestSuite::new("run");
    let m = &result.model;
    let revision = m.revision.as_deref().unwrap_or_default();
    for (name, value) in [
        ("model", m.name.as_str()),
        ("source", &m.source),
        ("revision", revision),
        ("sha256", &m.sha256),
        ("started", &result.started),
    ] {
        suite.add_property((name, value));
    }
    for i in &result.implementations {
        suite.add_property((format!("version of {}", i.name), i.version.clone()));
    }
    let line = first_line(result, views);
    let status = match result.verdict {
        RunVerdict::Pass | RunVerdict::Warn => TestCaseStatus::success(),
        RunVerdict::Fail => non_success(NonSuccessKind::Failure, "FAIL", &line),
        RunVerdict::Error => non_success(NonSuccessKind::Error, "ERROR", &line),
        RunVerdict::Incomplete => skipped("INCOMPLETE", &line),
    };
    suite.add_test_case(case("verdict", "llorch.run", status, &line));
    for u in &result.unchecked {
        let kind = match u.kind {
            UncheckedKind::Missing => "missing",
            UncheckedKind::Unsupported => "unsupported",
        };
        let status = skipped(kind, &format!("UNCHECKED: {}", u.reason));
        suite.add_test_case(case(&u.what, "llorch.run.unchecked", status, &u.reason));
    }
    suite
}

fn suite(result: &RunResult, view: &CheckpointView<'_>) -> TestSuite {
    let subject = result.subject_name();
    let mut suite = TestSuite::new(format!("{} {}", view.number, view.name));
    for point in points(subject, view) {
        for pair in pairs_of(&point) {
            let worst = worst(subject, &pair);
            let name = format!("{} {}", worst.point, parties(worst));
            let class = format!("llorch.{}.{}", view.number, worst.point.checkpoint().slug);
            let status = status(subject, worst);
            suite.add_test_case(case(&name, &class, status, &numbers(worst, pair.len())));
        }
    }
    suite
}

/// The rows of each pair at a point, in the order of the result.
fn pairs_of<'a>(point: &PointLine<'a>) -> Vec<Vec<&'a Row>> {
    let mut pairs: Vec<Vec<&Row>> = Vec::new();
    for row in &point.rows {
        let same = |r: &&Row| r.kind == row.kind && r.a == row.a && r.b == row.b;
        match pairs.iter_mut().find(|p| same(&p[0])) {
            Some(pair) => pair.push(row),
            None => pairs.push(vec![row]),
        }
    }
    pairs
}

/// What is the subject's comes first, then the worse verdict, then the larger error; the first of equals.
fn worst<'a>(subject: &str, rows: &[&'a Row]) -> &'a Row {
    let key = |r: &Row| {
        let size = r.metrics.as_ref().map_or(-1.0, |m| m.max_abs.unwrap_or(f64::INFINITY));
        let checked = r.verdict != Verdict::Unchecked;
        let own = r.verdict_of(subject);
        (if own == Verdict::Unchecked { Verdict::Pass } else { own }, checked, r.verdict, size)
    };
    let mut worst = rows[0];
    for row in &rows[1..] {
        let (a, b) = (key(row), key(worst));
        if (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)).then(a.3.total_cmp(&b.3)).is_gt() {
            worst = row;
        }
    }
    worst
}

fn status(subject: &str, row: &Row) -> TestCaseStatus {
    let message = match row.reason.is_empty() {
        true => format!("{} at {}", row.verdict.name(), place(row)),
        false => format!("{}: {}", place(row), row.reason),
    };
    match (row.verdict, row.verdict_of(subject)) {
        (Verdict::Pass | Verdict::Warn, _) => TestCaseStatus::success(),
        (Verdict::Unchecked, _) => skipped("UNCHECKED", &message),
        (Verdict::Error, _) => non_success(NonSuccessKind::Error, "ERROR", &message),
        // A test of the subject does not fail for what another did.
        (Verdict::Fail, Verdict::Unchecked) => {
            skipped("FAIL of another", &format!("not {subject}'s: {message}"))
        }
        (Verdict::Fail, _) => non_success(NonSuccessKind::Failure, "FAIL", &message),
    }
}

/// The figures of a row, one a line.
fn numbers(row: &Row, rows: usize) -> String {
    let mut out = format!("{} · {} · the worst of {rows}\n", row.verdict.name(), place(row));
    if !row.reason.is_empty() {
        let _ = writeln!(out, "reason: {}", row.reason);
    }
    if let Some(m) = &row.metrics {
        let [a, b] = m.worst_values.map(|v| value_at(row.point, v));
        let _ = writeln!(out, "max_abs: {}", exact(m.max_abs));
        let _ = writeln!(out, "max_rel: {}", exact(m.max_rel));
        let _ = writeln!(out, "rel_l2: {}", exact(m.rel_l2));
        let _ = writeln!(out, "rmse: {}", exact(m.rmse));
        let ulp = m.ulp_max.map_or("not finite".into(), |u| u.to_string());
        let _ = writeln!(out, "ulp_max: {ulp}");
        let _ = writeln!(out, "tolerance: {}", tolerance(row.tolerance));
        let _ = writeln!(out, "beyond the tolerance: {} of {}", m.exceeding, m.total);
        let _ = writeln!(out, "worst: {} {a} against {b}", index(&m.worst));
    }
    if let Some(local) = &row.local {
        let bound = local.bound.map_or("none".into(), |b| error(Some(b)));
        let _ = writeln!(out, "local: {} (proof bound {bound})", exact(local.max_abs));
    }
    if let Some(inherited) = row.inherited.filter(|_| row.kind == RowKind::Oracle) {
        let _ = writeln!(out, "inherited: {}", exact(Some(inherited)));
    }
    out
}

/// As result.json has it.
fn exact(value: Option<f64>) -> String {
    value.map_or("not finite".into(), |v| format!("{v:e}"))
}

pub(crate) fn case(name: &str, class: &str, status: TestCaseStatus, out: &str) -> TestCase {
    let mut case = TestCase::new(name, status);
    case.set_classname(class).set_system_out(out);
    case
}

pub(crate) fn non_success(kind: NonSuccessKind, what: &str, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(what).set_message(message);
    status
}

fn skipped(what: &str, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_type(what).set_message(message);
    status
}
