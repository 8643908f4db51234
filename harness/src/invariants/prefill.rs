//! All tokens at once, and one at a time: every stage of every token, the last logits too.
//!
//! Three runs of one sequence are compared: the case as it is (its prompt at once, then step by
//! step), the whole sequence at once, and the whole sequence token by token.

use llorch_trace::{Point, Stage, Tensor};

use super::finding::Finding;
use super::rows::{self, Row};
use super::rule::Rule;
use super::runs::{Run, Subject};
use crate::live::Captured;

/// `whole` is the prefill of all of the case's tokens, `singly` the run that was fed them one by one.
pub fn check(
    subject: &Subject,
    rule: &Rule,
    run: &Run<'_>,
    whole: &Captured,
    singly: &Captured,
    finding: &mut Finding,
) {
    let case = run.case.name.as_str();
    let tokens = run.fed().len();
    for token in 0..tokens {
        let (step, row) = place(run, token);
        for &point in &subject.points {
            let Some(at_once) = subject.tensor(whole, 0, point, finding) else { continue };
            let Some(alone) = subject.tensor(singly, token, point, finding) else { continue };
            let Some(stepped) = subject.tensor(run.captured, step, point, finding) else {
                continue;
            };
            for (other, row) in [(alone, 0), (stepped, row)] {
                token_rows(finding, rule, (case, token, point), (at_once, token), (other, row));
            }
        }
    }
    last(subject, rule, run, (whole, singly), finding);
}

/// In which step of the run a token was fed, and in which row.
fn place(run: &Run<'_>, token: usize) -> (usize, usize) {
    match token.checked_sub(run.case.ids.len()) {
        None => (0, token),
        Some(n) => (n + 1, 0),
    }
}

/// Everything that belongs to the token at position `token`; the cache up to there.
fn token_rows(
    finding: &mut Finding,
    rule: &Rule,
    place: (&str, usize, Point),
    (whole, token): (&Tensor, usize),
    (other, row): (&Tensor, usize),
) {
    let visible = token + 1;
    if !matches!(place.2.stage, Stage::CacheK | Stage::CacheV) {
        let a = (whole, Row { row: token, visible });
        return rows::compare(finding, rule, place, a, (other, Row { row, visible }));
    }
    for position in 0..visible {
        let at = Row { row: position, visible };
        rows::compare(finding, rule, place, (whole, at), (other, at));
    }
}

/// What only the last token has, and every token's logits against the last logits of its own step.
fn last(
    subject: &Subject,
    rule: &Rule,
    run: &Run<'_>,
    (whole, singly): (&Captured, &Captured),
    finding: &mut Finding,
) {
    let case = run.case.name.as_str();
    let tokens = run.fed().len();
    for stage in [Stage::LogitsLast, Stage::Argmax, Stage::NextProbs] {
        let point = Point::new(stage);
        let Some(at_once) = subject.tensor(whole, 0, point, finding) else { continue };
        for (captured, step) in [(singly, tokens - 1), (run.captured, run.case.steps() - 1)] {
            let Some(other) = subject.tensor(captured, step, point, finding) else { continue };
            rows::compare_whole(finding, rule, (case, tokens - 1, point), at_once, other);
        }
    }
}
