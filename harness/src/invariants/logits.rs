//! The last logits are the last row of the logits; argmax is the lowest index of the largest; at
//! temperature 0 that is the token generated. Copies and comparisons: exact for everybody.

use llorch_trace::{Point, Stage};

use super::finding::{Allowed, Finding, Here};
use super::runs::{Run, Subject};
use crate::oracle::argmax;

pub const LAST_RULE: &str = "exact: a copy";
pub const ARGMAX_RULE: &str =
    "exact: of equals the lowest index; the token generated where temperature is 0";

pub fn last(subject: &Subject, run: &Run<'_>, finding: &mut Finding) {
    for step in 0..run.case.steps() {
        let (all, last) = (Point::new(Stage::Logits), Point::new(Stage::LogitsLast));
        let Some(all) = subject.tensor(run.captured, step, all, finding) else { continue };
        let Some(last) = subject.tensor(run.captured, step, last, finding) else { continue };
        let here = Here { case: &run.case.name, step, point: "logits.last" };
        let begin = all.len() - last.len().min(all.len());
        for i in 0..last.len().min(all.len()) {
            finding.take(here, || vec![i], last.get(i), all.get(begin + i), Allowed::Bits);
        }
    }
}

pub fn argmax_and_token(subject: &Subject, run: &Run<'_>, finding: &mut Finding) {
    for step in 0..run.case.steps() {
        let (last, chosen) = (Point::new(Stage::LogitsLast), Point::new(Stage::Argmax));
        let Some(last) = subject.tensor(run.captured, step, last, finding) else { continue };
        let Some(chosen) = subject.tensor(run.captured, step, chosen, finding) else { continue };
        if last.is_empty() || chosen.is_empty() {
            continue;
        }
        let expected = f64::from(argmax(&last.to_f64()));
        let here = Here { case: &run.case.name, step, point: "argmax" };
        finding.take(here, Vec::new, chosen.get(0), expected, Allowed::Bits);
        let generated = run.captured.generated.get(step);
        if let Some(&token) = generated.filter(|_| subject.sampling(run.case).temperature == 0.0) {
            let here = Here { point: "generated", ..here };
            finding.take(here, || vec![step], f64::from(token), expected, Allowed::Bits);
        }
    }
}
