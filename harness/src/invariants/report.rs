//! The result, `llorch.invariants/1`: one row an invariant and one verdict. Nothing is judged by
//! whoever shows it. `docs/schemas/invariants.schema.json` is its JSON Schema.

use serde::Serialize;

use super::finding::{At, Finding, Findings, Invariant};
use crate::result::{ModelRecord, RunVerdict, Unchecked, UncheckedKind, Verdict};

pub const SCHEMA: &str = "llorch.invariants/1";

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub verdict: RunVerdict,
    /// RFC 3339, UTC.
    pub started: String,
    pub seconds: f64,
    pub command: Vec<String>,
    pub model: ModelRecord,
    pub subject: SubjectRecord,
    pub cases: Vec<String>,
    pub rows: Vec<Row>,
    /// What was not checked, or not everywhere.
    pub unchecked: Vec<Unchecked>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubjectRecord {
    pub name: String,
    pub version: String,
    /// The two numbers of threads that were compared; the first is that of all other rows.
    pub threads: [usize; 2],
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub invariant: &'static str,
    pub says: &'static str,
    pub verdict: Verdict,
    /// Pairs of values compared, and those that are further apart than is allowed.
    pub comparisons: u64,
    pub exceeding: u64,
    /// The largest difference; null where nothing was compared or a value wasn't finite.
    pub largest: Option<f64>,
    /// The value that is furthest from what is allowed.
    pub worst: Option<At>,
    /// The first that exceeds, in data-flow order.
    pub first: Option<At>,
    /// By what it was judged, and why by that.
    pub rule: String,
    /// Why it is not a plain PASS, and what else is to be said.
    pub reason: String,
}

/// Rows and what is missing.
pub fn rows(findings: &Findings) -> (Vec<Row>, Vec<Unchecked>) {
    let rows = findings.iter().map(|(invariant, finding)| row(invariant, finding)).collect();
    let mut unchecked = Vec::new();
    for (invariant, finding) in findings.iter() {
        let what = invariant.sentence().to_string();
        for (kind, reason) in &finding.unchecked {
            unchecked.push(Unchecked { what: what.clone(), kind: *kind, reason: reason.clone() });
        }
        if finding.verdict() == Verdict::Unchecked && finding.unchecked.is_empty() {
            let reason = "no case has two tokens or more".to_string();
            unchecked.push(Unchecked { what, kind: UncheckedKind::Missing, reason });
        }
    }
    (rows, unchecked)
}

fn row(invariant: Invariant, finding: &Finding) -> Row {
    let largest = finding.largest;
    let mut reasons = finding.errors.clone();
    reasons.extend(finding.notes.iter().cloned());
    Row {
        invariant: invariant.slug(),
        says: invariant.sentence(),
        verdict: finding.verdict(),
        comparisons: finding.comparisons,
        exceeding: finding.exceeding,
        largest: (finding.comparisons > 0 && largest.is_finite()).then_some(largest),
        worst: finding.worst.clone(),
        first: finding.first.clone(),
        rule: match finding.rule.as_str() {
            "" => "none: the subject could not be asked".to_string(),
            rule => rule.to_string(),
        },
        reason: reasons.join("; "),
    }
}

/// The first that applies of ERROR, FAIL, INCOMPLETE, PASS. What the subject can't do by its nature
/// lowers nothing, unless it leaves nothing at all.
pub fn verdict(rows: &[Row], unchecked: &[Unchecked]) -> RunVerdict {
    let any = |verdict| rows.iter().any(|r| r.verdict == verdict);
    match () {
        _ if any(Verdict::Error) || !rows.iter().any(|r| r.comparisons > 0) => RunVerdict::Error,
        _ if any(Verdict::Fail) => RunVerdict::Fail,
        _ if unchecked.iter().any(|u| u.kind == UncheckedKind::Missing) => RunVerdict::Incomplete,
        _ => RunVerdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Allowed, Here};
    use super::*;

    const HERE: Here<'static> = Here { case: "a", step: 0, point: "h.0" };

    fn judged(change: impl Fn(Invariant, &mut Finding)) -> RunVerdict {
        let mut findings = Findings::default();
        for invariant in Invariant::ALL {
            change(invariant, findings.of(invariant));
        }
        let (rows, unchecked) = rows(&findings);
        verdict(&rows, &unchecked)
    }

    fn pass(finding: &mut Finding) {
        finding.take(HERE, Vec::new, 1.0, 1.0, Allowed::Bits);
    }

    #[test]
    fn the_worst_verdict_counts_and_nature_lowers_nothing() {
        let is = |a: Invariant, b: Invariant| a == b;
        assert_eq!(judged(|_, f| pass(f)), RunVerdict::Pass);
        let nature = |i, f: &mut Finding| match is(i, Invariant::Draws) {
            true => f.uncheck(UncheckedKind::Unsupported, "no `draw`"),
            false => pass(f),
        };
        assert_eq!(judged(nature), RunVerdict::Pass);
        let short = |i, f: &mut Finding| {
            if !is(i, Invariant::Causality) {
                pass(f)
            }
        };
        assert_eq!(judged(short), RunVerdict::Incomplete);
        let failed = |i, f: &mut Finding| match is(i, Invariant::Cache) {
            true => f.take(HERE, Vec::new, 1.0, 2.0, Allowed::Bits),
            false => short(i, f),
        };
        assert_eq!(judged(failed), RunVerdict::Fail);
        let broke = |i, f: &mut Finding| match is(i, Invariant::Repeat) {
            true => f.error("it crashed"),
            false => failed(i, f),
        };
        assert_eq!(judged(broke), RunVerdict::Error);
        assert_eq!(
            judged(|_, f| f.uncheck(UncheckedKind::Unsupported, "a daemon")),
            RunVerdict::Error,
            "nothing compared at all"
        );
    }
}
