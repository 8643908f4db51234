//! Failed points, one by one: where to look, and with whom to compare.

use std::collections::BTreeMap;

use llorch_trace::{Point, Stage};

use super::sentences::{Cause, first_cause};
use crate::result::{Row, RowKind, RunResult, Verdict};

/// A point at which somebody is wrong.
#[derive(Debug)]
pub struct Failure<'a> {
    pub who: &'a str,
    pub point: Point,
    pub case: &'a str,
    pub step: usize,
    /// The run's first cause.
    pub is_first: bool,
    /// The stage is wrong by itself, whatever came in.
    pub by_itself: bool,
    /// Why, in the words of the judge.
    pub reason: &'a str,
    /// Against another implementation: its tensors can be shown side by side.
    pub pair: Option<&'a Row>,
    /// Against the oracle.
    pub oracle: Option<&'a Row>,
    /// Against itself, where that is what failed.
    pub own: Option<&'a Row>,
}

/// The first cause first, then as data flows; after the subject's those of others.
pub fn failures(result: &RunResult) -> Vec<Failure<'_>> {
    let subject = result.subject_name();
    let cause = first_cause(result);
    let (cause_point, cause_case, cause_step) = match cause {
        Some(Cause::Stage(odd)) => (Some(odd.point), odd.case.as_str(), odd.step),
        Some(Cause::Row(row)) => (Some(row.point), row.case.as_str(), row.step),
        None => (None, "", 0),
    };
    let mut by_point: BTreeMap<Point, Vec<&Row>> = BTreeMap::new();
    for row in result.rows.iter().filter(|r| r.verdict_of(subject) == Verdict::Fail) {
        by_point.entry(row.point).or_default().push(row);
    }
    let mut found: Vec<Failure<'_>> = Vec::new();
    for (point, rows) in by_point {
        let at_cause = |r: &&&Row| r.case == cause_case && r.step == cause_step;
        let Some(row) = rows.iter().find(at_cause).or_else(|| rows.iter().min_by_key(|r| r.step))
        else {
            continue;
        };
        let mut failure = at(result, subject, point, &row.case, row.step);
        failure.is_first = cause_point == Some(point);
        if let (true, Some(Cause::Stage(odd))) = (failure.is_first, cause) {
            failure.reason = &odd.reason;
        }
        found.push(failure);
    }
    for odd in result.odd.iter().filter(|odd| odd.name != subject) {
        let mut failure = at(result, &odd.name, odd.point, &odd.case, odd.step);
        (failure.by_itself, failure.reason) = (true, &odd.reason);
        found.push(failure);
    }
    found.sort_by_key(|f| (!f.is_first, f.who != subject));
    found
}

fn at<'a>(
    result: &'a RunResult,
    who: &'a str,
    point: Point,
    case: &'a str,
    step: usize,
) -> Failure<'a> {
    let here = || {
        let is = move |r: &&Row| r.point == point && r.case == case && r.step == step;
        result.rows.iter().filter(is)
    };
    let oracle = here().find(|r| r.kind == RowKind::Oracle && r.a == who);
    let own = here().find(|r| r.kind == RowKind::Own && r.a == who && r.verdict == Verdict::Fail);
    // Best against one that is right, and best where the two differ.
    let is_odd = |name: &str| result.odd.iter().any(|odd| odd.name == name);
    let pairs = here().filter(|r| {
        r.kind == RowKind::Pair && (r.a == who || r.b == who) && r.verdict != Verdict::Unchecked
    });
    let pair = pairs.min_by_key(|r| {
        let other = if r.a == who { &r.b } else { &r.a };
        (is_odd(other), r.verdict != Verdict::Fail)
    });
    let local = oracle.and_then(|r| r.local.as_ref());
    let failed = |r: &&Row| r.verdict == Verdict::Fail && !r.reason.is_empty();
    let reason = [oracle, own, pair].into_iter().flatten().find(failed);
    Failure {
        who,
        point,
        case,
        step,
        is_first: false,
        by_itself: local.is_some_and(|l| l.verdict == Verdict::Fail),
        reason: reason.map_or("", |r| r.reason.as_str()),
        pair,
        oracle,
        own,
    }
}

/// What the axes of a point's tensor are called.
pub fn axes(stage: Stage) -> &'static [&'static str] {
    match stage {
        Stage::Q | Stage::K | Stage::V | Stage::CacheK | Stage::CacheV => {
            &["head", "token", "channel"]
        }
        Stage::Scores | Stage::Probs => &["head", "token", "key"],
        Stage::Logits => &["token", "id"],
        Stage::LogitsLast | Stage::NextProbs => &["id"],
        Stage::Tokens | Stage::Generated => &["token"],
        Stage::Argmax => &[],
        _ => &["token", "channel"],
    }
}
