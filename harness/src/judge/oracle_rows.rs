//! Rows of kind `oracle`: every implementation at every point, against the float64 oracle.
//!
//! Each has two errors. The *total* is that against the oracle's own pass: what came in, and what the
//! stage added. The *local* one is that against the stage recomputed from what the implementation
//! itself had captured: what this stage alone did. They are computed stage by stage over all
//! implementations, cases and steps, so that a layer's weights are widened once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use llorch_trace::{Class, Point, Stage};

use super::deviations;
use super::local::{Captured, describe, measure};
use super::{Found, JudgeOptions, Place};
use crate::compare::{Numbers, Tolerance, compare};
use crate::evidence::{Case, Evidence, Plan};
use crate::oracle::replay::{context_from_scores, inputs_of};
use crate::oracle::{Job, Oracle, Replayed, Trace, Truth};
use crate::result::{Deviates, Role, Row, RowKind, Verdict};

/// Rows by case, step and point; each has one row for every implementation that gave the tensor.
#[derive(Debug, Default)]
pub struct OracleRows {
    rows: BTreeMap<(String, usize, Point), Vec<Row>>,
}

/// Elements, of all jobs that are recomputed together: bounds the memory of it at some 300 MB.
const TOGETHER: usize = 8 << 20;

/// What the ratio of two errors is at least taken of, in units of u times the largest value: below
/// that both are noise.
const RATIO_FLOOR: f64 = 4.0;

impl OracleRows {
    pub fn of(
        plan: &Plan,
        evidence: &[Evidence],
        truth: &Truth,
        options: &JudgeOptions,
    ) -> OracleRows {
        let traces = match &truth.oracle {
            Some(oracle) if options.stages => traces(plan, oracle),
            _ => BTreeMap::new(),
        };
        let mut points = judged_points(plan);
        if truth.oracle.is_none() || !options.stages {
            // Of the continuation only the last logits are known; nothing else need be read.
            points.retain(|p| p.stage == Stage::LogitsLast);
        }
        let next = AtomicUsize::new(0);
        let bar = options.progress.steps("recomputing stages", "point", points.len());
        bar.set(0);
        // Points are independent of one another: a thread takes the next that nobody has.
        let work = || {
            let mut found = OracleRows::default();
            while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.take_point(plan, evidence, truth, &traces, options, *point);
                bar.add(1);
            }
            found
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let mut found = OracleRows::default();
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            found.rows.extend(work().rows);
            for other in others {
                match other.join() {
                    Ok(rows) => found.rows.extend(rows.rows),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        found.attribute_deviations(plan, evidence);
        found
    }

    pub fn at(&self, case: &str, step: usize, point: Point) -> &[Row] {
        self.rows.get(&(case.to_string(), step, point)).map_or(&[], Vec::as_slice)
    }

    /// A reference that is right there by itself, and by no deviation of its own.
    pub fn is_admitted(row: &Row) -> bool {
        matches!(row.verdict, Verdict::Pass | Verdict::Warn) && row.deviation.is_none()
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

    /// One point at every step of every case, a group of them at a time.
    fn take_point(
        &mut self,
        plan: &Plan,
        evidence: &[Evidence],
        truth: &Truth,
        traces: &BTreeMap<String, Trace>,
        options: &JudgeOptions,
        point: Point,
    ) {
        let mut group: Vec<Place<'_>> = Vec::new();
        let mut size = 0;
        for case in &plan.cases {
            for step in 0..case.steps() {
                let (t, s) = case.sizes(step);
                size += evidence.len() * point.shape(&plan.dims, t, s).iter().product::<usize>();
                group.push(Place::new(plan, evidence, options, case, step, point));
                if size > TOGETHER {
                    self.take(std::mem::take(&mut group), truth, traces, options);
                    size = 0;
                }
            }
        }
        self.take(group, truth, traces, options);
    }

    fn take(
        &mut self,
        group: Vec<Place<'_>>,
        truth: &Truth,
        traces: &BTreeMap<String, Trace>,
        options: &JudgeOptions,
    ) {
        let oracle = truth.oracle.as_ref().filter(|_| options.stages);
        let mut replayed = oracle.map(|o| replay(o, &group)).unwrap_or_default().into_iter();
        for place in &group {
            let expected = match traces.get(&place.case.name) {
                Some(trace) => trace.get(place.step, place.point),
                None => last_logits(truth, place),
            };
            let mut rows = Vec::new();
            for (who, found) in place.found.iter().enumerate() {
                let Found::Tensor(x) = found else { continue };
                let replayed = replayed.next().flatten();
                let Some(expected) = &expected else { continue };
                rows.push(row(place, who, x, expected, replayed.as_ref(), oracle.is_some()));
            }
            if let Some(expected) = &expected {
                compare_with_references(place, expected, &mut rows);
            }
            let key = (place.case.name.clone(), place.step, place.point);
            self.rows.insert(key, rows);
        }
    }

    /// What a declared deviation does to the stages after it is no fault of theirs: where every stage
    /// up to a point was recomputed and is right by itself, and one deviates as declared, a total
    /// error beyond the class is that deviation's, carried on.
    fn attribute_deviations(&mut self, plan: &Plan, evidence: &[Evidence]) {
        for e in
            evidence.iter().filter(|e| e.hello.as_ref().is_some_and(|h| !h.deviations.is_empty()))
        {
            'cases: for case in &plan.cases {
                let mut deviant: Option<Point> = None;
                for step in 0..case.steps() {
                    for point in &plan.points {
                        let key = (case.name.clone(), step, *point);
                        let rows = self.rows.get_mut(&key).into_iter().flatten();
                        let Some(row) = rows.into_iter().find(|r| r.a == e.name) else { continue };
                        let local = row.local.as_ref().map(|l| l.verdict);
                        if row.deviation == Some(Deviates::Declared) {
                            deviant.get_or_insert(*point);
                        } else if row.verdict == Verdict::Fail {
                            match (deviant, local) {
                                (Some(_), Some(Verdict::Pass | Verdict::Warn)) => {
                                    deviations::inherit(row);
                                }
                                // Wrong by itself: what follows can't be told apart any more.
                                _ => continue 'cases,
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Points with a row: those asked for, and the last logits where a choice of token hangs on them.
fn judged_points(plan: &Plan) -> Vec<Point> {
    let last = Point::new(Stage::LogitsLast);
    let chooses =
        |p: &&Point| matches!(p.stage, Stage::Argmax | Stage::NextProbs | Stage::Generated);
    let mut points: Vec<Point> = plan
        .points
        .iter()
        .copied()
        .filter(|p| {
            *p == Point::new(Stage::Embeddings) || !inputs_of(*p, plan.dims.n_layer).is_empty()
        })
        .collect();
    if !points.contains(&last) && plan.points.iter().any(|p| chooses(&p)) {
        points.push(last);
    }
    points
}

fn traces(plan: &Plan, oracle: &Oracle) -> BTreeMap<String, Trace> {
    let trace = |case: &Case| {
        let fed = &case.forced_ids[..case.forced_ids.len().min(case.steps() - 1)];
        // The oracle has been through this case before, so that nothing is refused here.
        Some((case.name.clone(), oracle.trace(&case.ids, fed).ok()?))
    };
    plan.cases.iter().filter_map(trace).collect()
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
        measure(given, r, point.checkpoint().class, |_| true)
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
    let compared = compare(x, expected, tolerance, place.counts());
    let mut row = place.judged(RowKind::Oracle, who, "oracle", (x, expected), compared);
    let Some(replayed) = replayed else {
        if stages && row.verdict != Verdict::Error {
            row.local_unchecked = Some(missing_inputs(place, who));
        }
        return row;
    };
    let Some(local) = measure(x, replayed, place.class(), place.counts()) else { return row };
    let inherited = compare(&replayed.value, expected, Tolerance::Mixed(1.0), place.counts());
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

/// The subject's errors as multiples of those of the admitted references.
fn compare_with_references(place: &Place<'_>, expected: &Numbers, rows: &mut [Row]) {
    let Some(subject) = place.evidence.iter().find(|e| e.role == Role::Subject) else { return };
    let (mut total, mut local, mut any) = (0.0f64, 0.0f64, false);
    for row in rows.iter().filter(|r| r.a != subject.name && OracleRows::is_admitted(r)) {
        any = true;
        total = total.max(row.metrics.as_ref().and_then(|m| m.rmse).unwrap_or(0.0));
        local = local.max(row.local.as_ref().and_then(|l| l.rms).unwrap_or(0.0));
    }
    let ours = rows.iter_mut().find(|r| r.a == subject.name);
    let Some(ours) =
        ours.filter(|_| any && !matches!(place.point.checkpoint().class, Class::Exact))
    else {
        return;
    };
    let counts = place.counts();
    let counted = expected.values.iter().enumerate().filter(|(i, v)| counts(*i) && v.is_finite());
    let largest = counted.fold(0.0f64, |m, (_, v)| m.max(v.abs()));
    let floor = RATIO_FLOOR * llorch_trace::Dtype::F32.unit_roundoff() * largest;
    let of = |ours: f64, theirs: f64| {
        let ratio = ours / theirs.max(floor);
        ratio.is_finite().then_some(ratio)
    };
    ours.ratio = ours.metrics.as_ref().and_then(|m| m.rmse).and_then(|ours| of(ours, total));
    if let Some(l) = &mut ours.local {
        l.ratio = l.rms.and_then(|ours| of(ours, local));
    }
}
