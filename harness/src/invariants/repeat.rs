//! The same again: in one process, in another, with another number of threads.

use super::finding::{Allowed, Finding, Here};
use super::rows;
use super::rule::Rule;
use super::runs::{Run, Subject};
use crate::live::Captured;

/// Every tensor of every step, and the tokens that were chosen.
pub fn check(
    subject: &Subject,
    rule: &Rule,
    run: &Run<'_>,
    again: &Captured,
    finding: &mut Finding,
) {
    let case = run.case.name.as_str();
    let steps = if subject.can("generate") { run.case.steps() } else { 1 };
    for step in 0..steps {
        for &point in &subject.points {
            let Some(a) = subject.tensor(run.captured, step, point, finding) else { continue };
            let Some(b) = subject.tensor(again, step, point, finding) else { continue };
            rows::compare_whole(finding, rule, (case, step, point), a, b);
        }
    }
    if !rule.bits {
        return;
    }
    let (before, after) = (&run.captured.generated, &again.generated);
    if before.len() != after.len() {
        finding.error(format!("generated {} tokens, then {}", before.len(), after.len()));
    }
    for (i, (a, b)) in before.iter().zip(after).enumerate() {
        let here = Here { case, step: i, point: "generated" };
        finding.take(here, || vec![i], f64::from(*a), f64::from(*b), Allowed::Bits);
    }
}
