//! The judge: from evidence to rows and verdicts. Pure: it reads bundles and starts nothing, so a
//! saved run can be judged again.
//!
//! Reading order: [`tolerance`] says how far a point may be off, [`pairs`] compares two
//! implementations, [`own`] one with itself, [`oracle_rows`] one with the float64 oracle, of which
//! [`local`] is what a stage does by itself; [`tokens`] excuses choices between near equals,
//! [`probabilities`] judges filtered distributions, [`deviations`] are those that an adapter declares,
//! [`narrow`] is who computes in less than f32,
//! [`daemon`] holds what came over HTTP against the engine. Then [`blame`] says whose fault a
//! difference is, [`odd`] who is wrong where first, and [`overall`] makes one verdict of all rows.
//! [`isolated`] judges stages that were given the same input. docs/TOLERANCES.md derives the rules.

mod blame;
mod daemon;
mod deviations;
pub mod isolated;
mod local;
mod narrow;
mod odd;
mod oracle_rows;
mod overall;
mod own;
mod pairs;
mod probabilities;
#[cfg(test)]
mod stage_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokens;
mod tolerance;

use std::collections::BTreeMap;

use llorch_models::progress::Progress;
use llorch_trace::{Class, Dims, Point, Stage};

use self::oracle_rows::OracleRows;
use crate::compare::{Cells, Comparison, Numbers, excerpt};
use crate::evidence::{Case, Evidence, FaultKind, Plan};
use crate::oracle::{Continuation, Truth};
use crate::parallel;
use crate::result::{Odd, Row, RowKind, RunVerdict, Status, Unchecked, Verdict};

pub use oracle_rows::Beforehand;
pub use overall::conclude;

pub use local::{Captured, describe, measure, times};
pub use tolerance::{Override, Overrides, point_tolerance};

#[derive(Debug, Clone)]
pub struct JudgeOptions {
    /// Elements to show in each row, on PASS too.
    pub values: usize,
    /// Recompute every stage of every implementation: the oracle's rows are there, with local errors.
    pub stages: bool,
    /// In place of the contract's classes.
    pub tolerances: Overrides,
    /// Where it is told how far the judge is.
    pub progress: Progress,
}

impl Default for JudgeOptions {
    fn default() -> JudgeOptions {
        JudgeOptions {
            values: 0,
            stages: true,
            tolerances: Overrides::default(),
            progress: Progress::silent(),
        }
    }
}

#[derive(Debug)]
pub struct Verdicts {
    pub rows: Vec<Row>,
    pub odd: Vec<Odd>,
    pub unchecked: Vec<Unchecked>,
    pub verdict: RunVerdict,
    /// By implementation: its status and the reason for it.
    pub statuses: BTreeMap<String, (Status, String)>,
}

/// Elements around the worst one that a FAIL shows.
const SHOWN_ON_FAIL: usize = 8;

/// Judges everything that was collected; `evidence` has the subject first.
pub fn judge(
    plan: &Plan,
    evidence: &[Evidence],
    truth: &Truth,
    options: &JudgeOptions,
) -> Verdicts {
    judge_the_rest(plan, evidence, truth, options, Beforehand::default())
}

/// The same where some of it was done while implementations were still at work.
pub fn judge_the_rest(
    plan: &Plan,
    evidence: &[Evidence],
    truth: &Truth,
    options: &JudgeOptions,
    beforehand: Beforehand,
) -> Verdicts {
    let oracle_rows = OracleRows::of(plan, evidence, truth, options, beforehand);
    let mut rows = Vec::new();
    let bar = options.progress.steps("comparing", "case", plan.cases.len());
    for (n, case) in plan.cases.iter().enumerate() {
        bar.set(n as u64);
        let points = || plan.points.iter().filter(|p| p.stage != Stage::Generated);
        let places: Vec<(usize, Point)> =
            (0..case.steps()).flat_map(|step| points().map(move |point| (step, *point))).collect();
        let found = parallel::map(&places, |&(step, point)| {
            let mut rows = Vec::new();
            let mut place = Place::new(plan, evidence, options, case, step, point);
            place.oracle = truth.continuations.get(&case.name);
            pairs::rows(&place, &oracle_rows, &mut rows);
            own::rows(&place, &mut rows);
            rows.extend_from_slice(oracle_rows.at(&case.name, step, point));
            rows
        });
        rows.extend(found.into_iter().flatten());
        if plan.points.iter().any(|p| p.stage == Stage::Generated) {
            tokens::generation_rows(evidence, truth, &oracle_rows, case, &mut rows);
        }
        daemon::rows(plan, evidence, case, &mut rows);
    }
    blame::assign(&mut rows);
    overall::conclude(plan, evidence, rows)
}

/// One point at one step of one case, with what each implementation gave there.
struct Place<'a> {
    dims: &'a Dims,
    evidence: &'a [Evidence],
    oracle: Option<&'a Continuation>,
    options: &'a JudgeOptions,
    case: &'a Case,
    step: usize,
    point: Point,
    /// By implementation, in the order of `evidence`.
    found: Vec<Found>,
}

/// What one implementation has at a place.
enum Found {
    Tensor(Numbers),
    /// Nothing, by nature or because it never ran: no verdict.
    Unchecked(String),
    /// Nothing, and there should be something.
    Broken(String),
}

impl<'a> Place<'a> {
    fn new(
        plan: &'a Plan,
        evidence: &'a [Evidence],
        options: &'a JudgeOptions,
        case: &'a Case,
        step: usize,
        point: Point,
    ) -> Place<'a> {
        Self::of_some(plan, evidence, options, case, step, point, &|_| true)
    }

    /// As if some of the implementations had nothing there.
    fn of_some(
        plan: &'a Plan,
        evidence: &'a [Evidence],
        options: &'a JudgeOptions,
        case: &'a Case,
        step: usize,
        point: Point,
        whose: &dyn Fn(usize) -> bool,
    ) -> Place<'a> {
        let found = evidence.iter().enumerate().map(|(who, e)| match whose(who) {
            true => find(e, case, step, point),
            false => Found::Unchecked(String::new()),
        });
        let found = found.collect();
        Place { dims: &plan.dims, evidence, oracle: None, options, case, step, point, found }
    }

    fn tensor(&self, who: usize, point: Point) -> Option<Numbers> {
        self.tensor_at(who, self.step, point)
    }

    fn tensor_at(&self, who: usize, step: usize, point: Point) -> Option<Numbers> {
        let e = &self.evidence[who];
        Some(Numbers::of(&e.tensor(&self.case.name, step, point)?).computed_in(e.computes))
    }

    /// What is allowed at a point: the contract's, unless another was asked for.
    fn tolerance(&self, point: Point) -> f64 {
        self.options.tolerances.of(point).unwrap_or_else(|| point_tolerance(point))
    }

    /// The class that local errors are held to, in every layer.
    fn class(&self) -> Class {
        match self.options.tolerances.of(self.point) {
            Some(t) => Class::Mixed(t),
            None => self.point.checkpoint().class,
        }
    }

    /// The elements that mean anything.
    fn cells(&self) -> Cells {
        let (t, s) = self.case.sizes(self.step);
        Cells::of(self.point.stage, &self.point.shape(self.dims, t, s))
    }

    fn row(&self, kind: RowKind, a: usize, b: &str, verdict: Verdict, reason: String) -> Row {
        let (case, name) = (&self.case.name, &self.evidence[a].name);
        Row {
            tolerance: self.tolerance(self.point),
            verdict,
            reason,
            ..Row::new(case, self.step, self.point, kind, name, b)
        }
    }

    /// What two implementations gave, or the row that says why that can't be compared.
    fn both(&self, a: usize, b: usize) -> Result<(&Numbers, &Numbers), Box<Row>> {
        let (verdict, reason) = match (&self.found[a], &self.found[b]) {
            (Found::Tensor(x), Found::Tensor(y)) => return Ok((x, y)),
            (Found::Broken(reason), _) | (_, Found::Broken(reason)) => (Verdict::Error, reason),
            (Found::Unchecked(reason), _) | (_, Found::Unchecked(reason)) => {
                (Verdict::Unchecked, reason)
            }
        };
        let name = &self.evidence[b].name;
        Err(Box::new(self.row(RowKind::Pair, a, name, verdict, reason.clone())))
    }

    /// A row with its figures; a FAIL says how many elements exceed and shows those around the worst.
    fn judged(
        &self,
        kind: RowKind,
        a: usize,
        b: &str,
        numbers: (&Numbers, &Numbers),
        comparison: Result<Comparison, String>,
    ) -> Row {
        let c = match comparison {
            Ok(c) => c,
            Err(shapes) => return self.row(kind, a, b, Verdict::Error, shapes),
        };
        let (verdict, reason) = match c.within() {
            true => (Verdict::Pass, String::new()),
            false => (Verdict::Fail, failure(&c, &self.evidence[a].name, b)),
        };
        let mut row = self.row(kind, a, b, verdict, reason);
        // Where it hangs on logits that are not finite, none can be said.
        if c.tolerance.is_finite() {
            row.tolerance = c.tolerance;
        }
        row.excerpt = match (verdict, self.options.values) {
            (_, n) if n > 0 => Some(excerpt(numbers.0, numbers.1, 0, 0, n)),
            (Verdict::Fail, _) => {
                Some(excerpt(numbers.0, numbers.1, c.worst, SHOWN_ON_FAIL / 2, SHOWN_ON_FAIL))
            }
            _ => None,
        };
        row.metrics = Some(c.metrics);
        row
    }
}

fn failure(c: &Comparison, a: &str, b: &str) -> String {
    let whose = match c.non_finite {
        [0, 0] => None,
        [_, 0] => Some(a.to_string()),
        [0, _] => Some(b.to_string()),
        _ => Some(format!("{a} and {b}")),
    };
    match whose {
        Some(who) => format!(
            "{who} {} values that are not finite",
            if c.non_finite.contains(&0) { "has" } else { "have" }
        ),
        None => {
            format!("{} of {} elements exceed the tolerance", c.metrics.exceeding, c.metrics.total)
        }
    }
}

fn find(e: &Evidence, case: &Case, step: usize, point: Point) -> Found {
    if let Some((reason, _)) = &e.missing {
        return Found::Unchecked(format!("{}: {reason}", e.name));
    }
    let named = |reason: &str| format!("{}: {reason}", e.name);
    let can = |what: &str| e.hello.as_ref().is_none_or(|h| h.can(what));
    if point.stage == Stage::NextProbs && case.sampling.temperature > 0.0 && !can("sample") {
        return Found::Unchecked(named(
            "does not sample, so no temperature above 0 was asked of it",
        ));
    }
    let declared = e.hello.as_ref().and_then(|h| h.unsupported_reason(&point.to_string()));
    if let Some(reason) = declared {
        return Found::Unchecked(named(reason));
    }
    let fault = e.fault(&case.name, step, point);
    match (e.tensor(&case.name, step, point), fault) {
        // A tensor that is not finite is kept, so that the row can show where.
        (Some(tensor), None) => Found::Tensor(Numbers::of(&tensor).computed_in(e.computes)),
        (Some(tensor), Some(f)) if f.kind == FaultKind::NonFinite => {
            Found::Tensor(Numbers::of(&tensor).computed_in(e.computes))
        }
        (Some(tensor), Some(f)) if f.kind == FaultKind::Process => {
            // It came before the process failed.
            Found::Tensor(Numbers::of(&tensor).computed_in(e.computes))
        }
        (_, Some(f)) if f.kind == FaultKind::Unsupported => Found::Unchecked(named(&f.message)),
        (_, Some(f)) => Found::Broken(named(&f.message)),
        (None, None) => Found::Broken(named("the tensor did not come")),
    }
}
