//! Where what a stage reads was not captured, the oracle continues in float64 from the last tensors
//! that were: an error that the class does not allow lies somewhere between those and the point.

use std::cell::RefCell;
use std::collections::BTreeSet;

use llorch_trace::{Point, Stage};

use super::continuation::Continuation;
use super::memory::Memory;
use super::scan::{Finding, Judged};
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::judge::point_tolerance;
use crate::oracle::Inputs;
use crate::result::{Row, RowKind, Verdict};

/// The intervals at whose end something is wrong that is in no stage that was recomputed.
pub fn findings(run: &Judged<'_>) -> Vec<Finding> {
    let Judged { plan, truth, subject, rows, .. } = *run;
    let Some(oracle) = &truth.oracle else { return Vec::new() };
    let mut all = Vec::new();
    for (case, of) in plan.cases.iter().enumerate() {
        let unknown = rows.iter().filter(|r| {
            r.a == subject.name
                && r.case == of.name
                && r.kind == RowKind::Oracle
                && r.local_unchecked.is_some()
                && r.point.stage != Stage::Tokens
        });
        let unknown: Vec<&Row> = unknown.collect();
        if unknown.is_empty() {
            continue;
        }
        let memory = Memory::new(subject, of);
        for row in unknown {
            // Everything before the point is taken as it was captured.
            let point = row.point;
            let step = row.step;
            let read = Read { memory: &memory, taken: RefCell::default() };
            let takes = |s: usize, p: Point| (s, p) != (step, point);
            let continued = Continuation::new(oracle, &read, &takes);
            let Some(expected) = continued.tensor(step, point) else { continue };
            let Some(given) = memory.tensor(step, point) else { continue };
            let cells = Cells::of(point.stage, &given.shape);
            let tolerance = Tolerance::Mixed(point_tolerance(point).max(1e-5));
            let Ok(compared) = compare(&given, &expected, tolerance, &cells) else { continue };
            if compared.within() {
                continue;
            }
            let mut row = row.clone();
            row.verdict = Verdict::Fail;
            row.reason = format!(
                "{} of {} elements are beyond the class, continued from what was captured before",
                compared.metrics.exceeding, compared.metrics.total
            );
            row.metrics = Some(compared.metrics);
            let taken = read.taken.into_inner();
            all.push(Finding { step, point, case, row, after: Some(latest(taken, step)) });
        }
    }
    all
}

/// Of the tensors that were read, those of this step that no other one lies behind.
fn latest(taken: BTreeSet<(usize, Point)>, step: usize) -> Vec<Point> {
    let here: Vec<Point> = taken.iter().filter(|t| t.0 == step).map(|t| t.1).collect();
    here.last().copied().into_iter().collect()
}

/// Notes which tensors there were.
struct Read<'a> {
    memory: &'a Memory<'a>,
    taken: RefCell<BTreeSet<(usize, Point)>>,
}

impl Inputs for Read<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        let found = self.memory.tensor(step, point)?;
        self.taken.borrow_mut().insert((step, point));
        Some(found)
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        self.memory.ids(step)
    }

    fn past(&self, step: usize) -> usize {
        self.memory.past(step)
    }
}

/// The ends of an interval: the last point that was captured before it, and where the fault shows.
pub fn between(finding: &Finding) -> Option<(Option<Point>, Point)> {
    let after = finding.after.as_ref()?;
    Some((after.last().copied(), finding.point))
}
