//! Where only some points were looked at: what is wrong there, and came in, is an interval's end. The
//! fault lies at points that nobody asked for.

use llorch_trace::{Point, Stage};

use super::memory::Memory;
use super::scan::{Finding, Judged};
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::judge::point_tolerance;
use crate::oracle::Inputs;
use crate::result::{Row, RowKind, Verdict};

/// The first place of each case at which the subject is off, though right by itself.
pub fn findings(run: &Judged<'_>) -> Vec<Finding> {
    let (looked_at, all) = run.plan.looked_at();
    if looked_at >= all {
        return Vec::new();
    }
    let cases = 0..run.plan.cases.len();
    cases.filter_map(|case| inherited(run, case).or_else(|| chosen(run, case))).collect()
}

/// By the rows: beyond the class as a whole, and right by itself.
fn inherited(run: &Judged<'_>, case: usize) -> Option<Finding> {
    let name = &run.plan.cases[case].name;
    let ours = || {
        let is = |r: &&Row| r.a == run.subject.name && r.case == *name && r.kind == RowKind::Oracle;
        run.rows.iter().filter(is)
    };
    let row = ours().filter(|r| r.verdict == Verdict::Fail).min_by_key(|r| (r.step, r.point))?;
    let before = |r: &&Row| r.step == row.step && r.point < row.point;
    let right = ours().filter(before).filter(|r| r.verdict == Verdict::Pass).map(|r| r.point);
    let after = right.max().into_iter().collect();
    let mut row = Row { local: None, ..row.clone() };
    row.reason = "this stage is right by itself; what came in was not, from points that were not \
                  looked at"
        .into();
    Some(Finding { step: row.step, point: row.point, case, row, after: Some(after) })
}

/// What a token is chosen of is captured with the choice: logits that the oracle does not have.
fn chosen(run: &Judged<'_>, case: usize) -> Option<Finding> {
    let chooses =
        |p: &&Point| matches!(p.stage, Stage::Argmax | Stage::NextProbs | Stage::Generated);
    let point = *run.plan.points.iter().find(chooses)?;
    let of = &run.plan.cases[case];
    let oracle = run.truth.continuations.get(&of.name)?;
    let memory = Memory::new(run.subject, of);
    let last = Point::new(Stage::LogitsLast);
    for (step, logits) in oracle.logits.iter().enumerate() {
        let Some(given) = memory.tensor(step, last) else { continue };
        let expected = Numbers::f64(vec![logits.len()], logits.clone());
        let within = Tolerance::Mixed(point_tolerance(last));
        let Ok(compared) = compare(&given, &expected, within, &Cells::All) else { continue };
        if compared.within() {
            continue;
        }
        let name = &run.subject.name;
        let mut row = Row::new(&of.name, step, point, RowKind::Oracle, name, "oracle");
        row.verdict = Verdict::Fail;
        row.reason = "the logits that it is made of are not the oracle's; what came in was wrong, \
                      from points that were not looked at"
            .into();
        row.metrics = Some(compared.metrics);
        return Some(Finding { step, point, case, row, after: Some(Vec::new()) });
    }
    None
}
