//! Whether causes are all there is, for a subject that can't inject: the oracle goes on in float64 from
//! the subject's own tensors behind the causes. If it arrives at the subject's logits, they are.

use llorch_trace::{Point, Stage};

use super::causes::Cause;
use super::continuation::Continuation;
use super::memory::Memory;
use super::scan::Judged;
use crate::compare::{Cells, Tolerance, compare};
use crate::judge::point_tolerance;
use crate::oracle::Inputs;

/// Writes into each cause whether it and those before it explain the logits, up to the first that
/// does.
pub fn explain(run: &Judged<'_>, causes: &mut [Cause]) {
    for n in 1..=causes.len() {
        let told = explained(run, &causes[..n]);
        causes[n - 1].explains = told;
    }
}

/// Null where there are no logits to arrive at.
fn explained(run: &Judged<'_>, causes: &[Cause]) -> Option<bool> {
    let oracle = run.truth.oracle.as_ref()?;
    let last = causes.last()?;
    // Right by itself: there is nothing at it that could explain anything.
    if last.first().after.is_some() && last.first().row.local_unchecked.is_none() {
        return None;
    }
    if last.point().stage > Stage::Logits && last.point().layer.is_none() {
        return None;
    }
    let case = &run.plan.cases[last.first().case];
    let memory = Memory::new(run.subject, case);
    let takes = |_: usize, point: Point| causes.iter().any(|cause| cause.covers(point));
    let continued = Continuation::new(oracle, &memory, &takes);
    let point = Point::new(Stage::LogitsLast);
    let mut any = None;
    for step in 0..case.steps() {
        let Some(given) = memory.tensor(step, point) else { continue };
        let arrived = continued.tensor(step, point)?;
        let within = Tolerance::Mixed(point_tolerance(point));
        let near = compare(&given, &arrived, within, &Cells::All).is_ok_and(|c| c.within());
        any = Some(any.unwrap_or(true) && near);
    }
    any
}
