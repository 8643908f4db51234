//! Rows of kind `oracle`: every implementation at every point, against the float64 oracle.
//!
//! Each has two errors. The *total* is that against the oracle's own pass: what came in, and what the
//! stage added. The *local* one is that against the stage recomputed from what the implementation
//! itself had captured: what this stage alone did. They are computed stage by stage over all
//! implementations, cases and steps, so that a layer's weights are widened once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use llorch_trace::{Class, Point, Stage};

use super::deviations;
use super::local::{Captured, describe, measure};
use super::narrow;
use super::{Found, JudgeOptions, Place};
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::evidence::{Case, Evidence, Plan};
use crate::oracle::replay::{context_from_scores, inputs_of};
use crate::oracle::{Job, Oracle, Replayed, Trace, Truth};
use crate::parallel;
use crate::result::{Deviates, Role, Row, RowKind, Verdict};

/// Rows by case, step and point; each has one row for every implementation that gave the tensor.
#[derive(Debug, Default)]
pub struct OracleRows {
    rows: BTreeMap<(String, usize, Point), Vec<Row>>,
    /// What a ratio of errors is at least taken of.
    floors: BTreeMap<(String, usize, Point), f64>,
}

/// Elements, of all jobs that are recomputed together: bounds the memory of it at some 300 MB.
const TOGETHER: usize = 8 << 20;

/// What the ratio of two errors is at least taken of, in units of u times the largest value: below
/// that both are noise.
const RATIO_FLOOR: f64 = 4.0;

/// What was recomputed of implementations while others were still at work.
#[derive(Debug, Default)]
pub struct Beforehand {
    traces: Option<Traces>,
    /// By implementation: the points that are done.
    done: BTreeMap<String, BTreeSet<Point>>,
    rows: OracleRows,
}

/// The oracle's own pass, by case.
type Traces = BTreeMap<String, Trace>;

impl Beforehand {
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Recomputes the stages of one more, point by point, until `enough` is so.
    pub fn add(
        &mut self,
        plan: &Plan,
        one: &Evidence,
        truth: &Truth,
        options: &JudgeOptions,
        enough: &AtomicBool,
    ) {
        let traces = self.traces.get_or_insert_with(|| traces(plan, truth, options));
        let evidence = std::slice::from_ref(one);
        let work = Work { plan, evidence, truth, traces, options };
        for point in work.points() {
            if enough.load(Ordering::Relaxed) {
                return;
            }
            self.rows.merge(work.point(point, &|_| true));
            self.done.entry(one.name.clone()).or_default().insert(point);
        }
    }
}

impl OracleRows {
    /// Of all implementations, whatever was done of them beforehand.
    pub fn of(
        plan: &Plan,
        evidence: &[Evidence],
        truth: &Truth,
        options: &JudgeOptions,
        beforehand: Beforehand,
    ) -> OracleRows {
        let Beforehand { traces: known, done, rows: mut found } = beforehand;
        let traces = known.unwrap_or_else(|| traces(plan, truth, options));
        let work = Work { plan, evidence, truth, traces: &traces, options };
        let is_left = |point: Point, who: usize| {
            done.get(&evidence[who].name).is_none_or(|points| !points.contains(&point))
        };
        let mut points = work.points();
        points.retain(|point| (0..evidence.len()).any(|who| is_left(*point, who)));
        let bar = options.progress.steps("recomputing stages", "point", points.len());
        bar.set(0);
        // Points are independent of one another.
        let parts = parallel::map(&points, |point| {
            let part = work.point(*point, &|who| is_left(*point, who));
            bar.add(1);
            part
        });
        parts.into_iter().for_each(|part| found.merge(part));
        let place = |row: &Row| evidence.iter().position(|e| e.name == row.a);
        found.rows.values_mut().for_each(|rows| rows.sort_by_key(place));
        found.attribute_deviations(plan, evidence);
        if let Some(subject) = evidence.iter().find(|e| e.role == Role::Subject) {
            for (key, rows) in &mut found.rows {
                if let Some(floor) = found.floors.get(key) {
                    compare_with_references(&subject.name, *floor, rows);
                }
            }
        }
        found
    }

    fn merge(&mut self, part: OracleRows) {
        for (key, rows) in part.rows {
            self.rows.entry(key).or_default().extend(rows);
        }
        self.floors.extend(part.floors);
    }

    pub fn at(&self, case: &str, step: usize, point: Point) -> &[Row] {
        self.rows.get(&(case.to_string(), step, point)).map_or(&[], Vec::as_slice)
    }

    /// A reference that is right there by itself, and with no deviation of its own there or before: what
    /// that hands down may lie within the class, and is no measure of rounding all the same.
    pub fn is_admitted(row: &Row) -> bool {
        matches!(row.verdict, Verdict::Pass | Verdict::Warn)
            && row.deviation.is_none()
            && row.deviates.is_empty()
    }

    /// The largest |logits − oracle| of the admitted references at a step: what honest rounding may
    /// do to a logit there. 0 where none is admitted. The subject has no say.
    pub fn admitted_error(&self, evidence: &[Evidence], case: &str, step: usize) -> f64 {
        let references: Vec<&str> = evidence
            .iter()
            .filter(|e| e.role == Role::Reference)
            .map(|e| e.name.as_str())
            .collect();
        let rows = self.at(case, step, Point::new(Stage::LogitsLast)).iter();
        let admitted = rows.filter(|r| references.contains(&r.a.as_str()) && Self::is_admitted(r));
        admitted.filter_map(|r| r.metrics.as_ref()?.max_abs).fold(0.0, f64::max)
    }

    /// B of docs/TOLERANCES.md for a choice among logits of these implementations: what honest rounding may
    /// do to a logit there. Of who computes in less than f32, or deviates as declared, what its last stage
    /// may do by itself.
    pub fn logits_error(
        &self,
        evidence: &[Evidence],
        case: &str,
        step: usize,
        of: [&str; 2],
    ) -> f64 {
        let rows = self.at(case, step, Point::new(Stage::LogitsLast)).iter();
        let is_own = |r: &&Row| r.deviation == Some(Deviates::Narrow) || !r.deviates.is_empty();
        let own = rows
            .filter(|r| of.contains(&r.a.as_str()))
            .filter(is_own)
            .filter_map(|r| Some(r.local.as_ref()?.band));
        own.fold(self.admitted_error(evidence, case, step), f64::max)
    }

    /// What a declared deviation does to the stages after it is no fault of theirs: where every stage
    /// up to a point was recomputed and is right by itself, and one deviates as declared, a total
    /// error beyond the class is that deviation's, carried on.
    fn attribute_deviations(&mut self, plan: &Plan, evidence: &[Evidence]) {
        for e in evidence.iter().filter(|e| e.declares_deviations()) {
            for case in &plan.cases {
                let (mut deviant, mut wrong) = (false, false);
                for step in 0..case.steps() {
                    for point in &plan.points {
                        let key = (case.name.clone(), step, *point);
                        let rows = self.rows.get_mut(&key).into_iter().flatten();
                        let Some(row) = rows.into_iter().find(|r| r.a == e.name) else { continue };
                        let local = row.local.as_ref().map(|l| l.verdict);
                        if row.deviation == Some(Deviates::Declared) {
                            deviant = true;
                            continue;
                        }
                        if deviant {
                            row.deviates = vec![e.name.clone()];
                        }
                        if row.verdict == Verdict::Fail && !wrong {
                            match (deviant, local) {
                                (true, Some(Verdict::Pass | Verdict::Warn)) => {
                                    deviations::inherit(row, Deviates::Inherited);
                                }
                                // Wrong by itself: what follows can't be told apart any more.
                                _ => wrong = true,
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What rows are made of.
struct Work<'a> {
    plan: &'a Plan,
    evidence: &'a [Evidence],
    truth: &'a Truth,
    traces: &'a Traces,
    options: &'a JudgeOptions,
}

impl Work<'_> {
    /// Points with a row: those asked for, and the last logits where a choice of token hangs on them.
    fn points(&self) -> Vec<Point> {
        let last = Point::new(Stage::LogitsLast);
        let chooses =
            |p: &&Point| matches!(p.stage, Stage::Argmax | Stage::NextProbs | Stage::Generated);
        let n_layer = self.plan.dims.n_layer;
        let asked = self.plan.points.iter().copied();
        let mut points: Vec<Point> = asked
            .filter(|p| *p == Point::new(Stage::Embeddings) || !inputs_of(*p, n_layer).is_empty())
            .collect();
        if !points.contains(&last) && self.plan.points.iter().any(|p| chooses(&p)) {
            points.push(last);
        }
        if self.truth.oracle.is_none() || !self.options.stages {
            // Of the continuation only the last logits are known; nothing else need be read.
            points.retain(|p| *p == last);
        }
        points
    }

    /// One point at every step of every case, a group of them at a time, of some of the implementations.
    fn point(&self, point: Point, whose: &dyn Fn(usize) -> bool) -> OracleRows {
        let Work { plan, evidence, options, .. } = *self;
        let mut found = OracleRows::default();
        let mut group: Vec<Place<'_>> = Vec::new();
        let mut size = 0;
        for case in &plan.cases {
            for step in 0..case.steps() {
                let (t, s) = case.sizes(step);
                size += evidence.len() * point.shape(&plan.dims, t, s).iter().product::<usize>();
                group.push(Place::of_some(plan, evidence, options, case, step, point, whose));
                if size > TOGETHER {
                    self.take(std::mem::take(&mut group), &mut found);
                    size = 0;
                }
            }
        }
        self.take(group, &mut found);
        found
    }

    fn take(&self, group: Vec<Place<'_>>, to: &mut OracleRows) {
        let oracle = self.truth.oracle.as_ref().filter(|_| self.options.stages);
        let mut replayed = oracle.map(|o| replay(o, &group)).unwrap_or_default().into_iter();
        for place in &group {
            let expected = match self.traces.get(&place.case.name) {
                Some(trace) => trace.get(place.step, place.point),
                None => last_logits(self.truth, place),
            };
            let mut rows = Vec::new();
            for (who, found) in place.found.iter().enumerate() {
                let Found::Tensor(x) = found else { continue };
                let replayed = replayed.next().flatten();
                let Some(expected) = &expected else { continue };
                rows.push(row(place, who, x, expected, replayed.as_ref(), oracle.is_some()));
            }
            let key = (place.case.name.clone(), place.step, place.point);
            if let Some(floor) = expected.as_ref().and_then(|e| ratio_floor(place, e)) {
                to.floors.insert(key.clone(), floor);
            }
            to.rows.insert(key, rows);
        }
    }
}

/// Nothing where stages aren't recomputed.
fn traces(plan: &Plan, truth: &Truth, options: &JudgeOptions) -> Traces {
    let Some(oracle) = truth.oracle.as_ref().filter(|_| options.stages) else {
        return Traces::new();
    };
    let trace = |case: &Case| {
        let fed = &case.forced_ids[..case.forced_ids.len().min(case.steps() - 1)];
        // The oracle has been through this case before, so that nothing is refused here.
        Some((case.name.clone(), oracle.trace(&case.ids, fed).ok()?))
    };
    parallel::map(&plan.cases, trace).into_iter().flatten().collect()
}

/// One result for each tensor of each place, in that order; None where an input is missing.
fn replay(oracle: &Oracle, group: &[Place<'_>]) -> Vec<Option<Replayed>> {
    let Some(point) = group.first().map(|p| p.point) else { return Vec::new() };
    let mut inputs = Vec::new();
    for place in group {
        for (who, found) in place.found.iter().enumerate() {
            if let Found::Tensor(x) = found {
                let captured = Captured { evidence: &place.evidence[who], case: place.case };
                inputs.push((captured, place.step, x));
            }
        }
    }
    let jobs: Vec<Job<'_>> = inputs
        .iter()
        .map(|(captured, step, x)| Job {
            step: *step,
            inputs: captured,
            u: x.dtype.unit_roundoff(),
        })
        .collect();
    let Ok(mut all) = oracle.replay_many(point, &jobs) else { return vec![None; jobs.len()] };
    if point.stage == Stage::Context {
        for ((job, replayed), (_, _, x)) in jobs.iter().zip(&mut all).zip(&inputs) {
            prefer_scores(point, job, replayed, x);
        }
    }
    all
}

/// A streaming softmax multiplies with other probabilities than it can show. Where the context is more
/// than rounding away from the captured ones, and right for the captured scores, those are what counts.
fn prefer_scores(point: Point, job: &Job<'_>, replayed: &mut Option<Replayed>, given: &Numbers) {
    let within = |r: &Replayed| {
        measure(given, r, point.checkpoint().class, &Cells::All)
            .is_some_and(|local| local.verdict == Verdict::Pass)
    };
    if replayed.as_ref().is_some_and(within) {
        return;
    }
    let from_scores = context_from_scores(job, point.layer.unwrap_or(0));
    if let Some(better) = from_scores.filter(within) {
        *replayed = Some(better);
    }
}

/// Without stages there are the last logits of each step.
fn last_logits(truth: &Truth, place: &Place<'_>) -> Option<Numbers> {
    if place.point.stage != Stage::LogitsLast {
        return None;
    }
    let logits = truth.continuations.get(&place.case.name)?.logits.get(place.step)?;
    Some(Numbers::f64(vec![logits.len()], logits.clone()))
}

/// One implementation at one place: `stages` says whether its local error was asked for.
fn row(
    place: &Place<'_>,
    who: usize,
    x: &Numbers,
    expected: &Numbers,
    replayed: Option<&Replayed>,
    stages: bool,
) -> Row {
    let tolerance = match place.tolerance(place.point) {
        0.0 => Tolerance::Exact,
        t => Tolerance::Mixed(t),
    };
    let compared = compare(x, expected, tolerance, &place.cells());
    let mut row = place.judged(RowKind::Oracle, who, "oracle", (x, expected), compared);
    let Some(replayed) = replayed else {
        if stages && row.verdict != Verdict::Error {
            row.local_unchecked = Some(missing_inputs(place, who));
        }
        return narrow::by_itself(x, row);
    };
    let Some(local) = measure(x, replayed, place.class(), &place.cells()) else { return row };
    let inherited = compare(&replayed.value, expected, Tolerance::Mixed(1.0), &place.cells());
    row.inherited = inherited.ok().and_then(|c| c.metrics.max_abs);
    match (local.verdict, row.verdict) {
        (Verdict::Fail, _) => (row.verdict, row.reason) = (Verdict::Fail, describe(&local)),
        (_, Verdict::Fail) => {
            row.reason = format!("{}; {}, the rest came in", row.reason, describe(&local));
        }
        (Verdict::Warn, _) => (row.verdict, row.reason) = (Verdict::Warn, describe(&local)),
        _ => {}
    }
    row.local = Some(local);
    let row = narrow::by_itself(x, row);
    // A deviation is declared for what the stage does itself.
    deviations::excuse_local(place, who, (x, &replayed.value), row)
}

/// Why there is no local error: never guessed.
fn missing_inputs(place: &Place<'_>, who: usize) -> String {
    let e = &place.evidence[who];
    let absent = inputs_of(place.point, place.dims.n_layer)
        .into_iter()
        .filter(|p| e.tensor(&place.case.name, place.step, *p).is_none())
        .map(|p| p.to_string());
    let absent: Vec<String> = absent.collect();
    match absent.is_empty() {
        true => "its inputs could not be recomputed".into(),
        false => format!("{} was not captured", absent.join(" and ")),
    }
}

/// What a ratio of errors is at least taken of, where there is one: not of what is exact.
fn ratio_floor(place: &Place<'_>, expected: &Numbers) -> Option<f64> {
    if matches!(place.point.checkpoint().class, Class::Exact) {
        return None;
    }
    let cells = place.cells();
    let counted =
        expected.values.iter().enumerate().filter(|(i, v)| cells.contain(*i) && v.is_finite());
    let largest = counted.fold(0.0f64, |m, (_, v)| m.max(v.abs()));
    Some(RATIO_FLOOR * llorch_trace::Dtype::F32.unit_roundoff() * largest)
}

/// The subject's errors as multiples of those of the references: its total of those that are admitted, its
/// local of those that are right there by themselves, whatever came in.
fn compare_with_references(subject: &str, floor: f64, rows: &mut [Row]) {
    let others = || rows.iter().filter(|r| r.a != subject);
    let right = |r: &&Row| matches!(r.verdict, Verdict::Pass | Verdict::Warn);
    let by_itself = |r: &&Row| matches!(r.deviation, None | Some(Deviates::Inherited));
    let admitted = others().filter(|r| OracleRows::is_admitted(r));
    let total = admitted.map(|r| r.metrics.as_ref().and_then(|m| m.rmse).unwrap_or(0.0));
    let total = total.reduce(f64::max);
    let local = others().filter(right).filter(by_itself);
    let local = local.map(|r| r.local.as_ref().and_then(|l| l.rms).unwrap_or(0.0));
    let local = local.reduce(f64::max);
    // Ratios are of like and like: f32's.
    let like = |r: &&mut Row| r.a == subject && r.deviation != Some(Deviates::Narrow);
    let Some(ours) = rows.iter_mut().find(like) else { return };
    let of = |ours: f64, theirs: f64| {
        let ratio = ours / theirs.max(floor);
        ratio.is_finite().then_some(ratio)
    };
    let rmse = ours.metrics.as_ref().and_then(|m| m.rmse);
    ours.ratio = rmse.zip(total).and_then(|(ours, theirs)| of(ours, theirs));
    if let Some(l) = &mut ours.local {
        l.ratio = l.rms.zip(local).and_then(|(ours, theirs)| of(ours, theirs));
    }
}
