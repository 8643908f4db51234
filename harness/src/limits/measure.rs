//! The smallest change of each stage that its verdict would have shown, from a run's own tensors.
//!
//! A change is shown where it moves an element by more than the noise band (WARN), or more than the
//! bound or the class (FAIL). What an implementation's own rounding adds to it or takes from it is at
//! most as large as the band, and is left out.

use std::collections::BTreeMap;

use crate::compare::is_visible;
use llorch_models::progress::Progress;
use llorch_trace::{Class, Point, Stage};
use ndarray::{ArrayView2, Axis};

use crate::evidence::{Evidence, Plan};
use crate::judge::Captured;
use crate::oracle::replay::block_input;
use crate::oracle::{Inputs, Job, Oracle, OracleError, Replayed};

/// What is just seen at one kind of point.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub stage: Stage,
    /// Layers, steps and cases that were looked at.
    pub places: usize,
    /// The whole tensor times 1 + x, in whichever layer, step and case: WARN and FAIL.
    pub factor_warn: f64,
    pub factor_fail: f64,
    /// The same where it shows best.
    pub best: f64,
    pub best_at: Place,
    /// One element moved by this much: the median of all elements.
    pub element_warn: f64,
    pub element_fail: f64,
    /// Of layer norms: ε off by this much, where it shows best.
    pub eps: Option<(f64, Place)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub point: Point,
    pub case: String,
    pub step: usize,
}

/// One entry for each kind of point that was captured with its inputs, as data flows.
pub fn measure(
    plan: &Plan,
    evidence: &Evidence,
    oracle: &Oracle,
) -> Result<Vec<Limits>, OracleError> {
    let mut found: BTreeMap<Stage, Limits> = BTreeMap::new();
    let mut elements: BTreeMap<Stage, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let bar = Progress::new(false).steps("measuring", "point", plan.points.len());
    for (n, point) in plan.points.iter().enumerate() {
        bar.set(n as u64);
        for case in &plan.cases {
            for step in 0..case.steps() {
                let captured = Captured { evidence, case };
                let Some(given) = captured.tensor(step, *point) else { continue };
                let job = Job { step, inputs: &captured, u: given.dtype.unit_roundoff() };
                let Some(replayed) = oracle.replay(*point, job)? else { continue };
                let shown = Shown::of(*point, &replayed);
                let Some((warn, fail)) = shown.factor(&replayed) else { continue };
                let place = Place { point: *point, case: case.name.clone(), step };
                let eps = norm_eps(oracle, *point, &captured, step, &shown)?;
                let (warns, fails) = elements.entry(point.stage).or_default();
                sample(warns, &shown.warn);
                sample(fails, &shown.fail);
                let limits = found.entry(point.stage).or_insert_with(|| Limits {
                    stage: point.stage,
                    places: 0,
                    factor_warn: 0.0,
                    factor_fail: 0.0,
                    best: f64::INFINITY,
                    best_at: place.clone(),
                    element_warn: 0.0,
                    element_fail: 0.0,
                    eps: None,
                });
                limits.places += 1;
                limits.factor_warn = limits.factor_warn.max(warn);
                limits.factor_fail = limits.factor_fail.max(fail);
                if fail < limits.best {
                    (limits.best, limits.best_at) = (fail, place.clone());
                }
                if let Some(eps) = eps
                    && limits.eps.as_ref().is_none_or(|(best, _)| eps < *best)
                {
                    limits.eps = Some((eps, place));
                }
            }
        }
    }
    for (stage, (warns, fails)) in elements {
        if let Some(limits) = found.get_mut(&stage) {
            (limits.element_warn, limits.element_fail) = (median(warns), median(fails));
        }
    }
    Ok(found.into_values().collect())
}

/// How far each element may be moved unseen, and whether it means anything.
struct Shown {
    warn: Vec<f64>,
    fail: Vec<f64>,
    counts: Vec<bool>,
}

impl Shown {
    fn of(point: Point, replayed: &Replayed) -> Shown {
        let class = |y: f64| match point.checkpoint().class {
            // One step of the dtype away is unequal; the bound is the smaller of the two.
            Class::Exact => f64::INFINITY,
            Class::Mixed(t) => t * 1f64.max(y.abs()),
        };
        let values = &replayed.value.values;
        let fail: Vec<f64> =
            values.iter().zip(&replayed.bounds).map(|(y, p)| p.bound.min(class(*y))).collect();
        let warn = fail.iter().zip(&replayed.bounds).map(|(fail, p)| fail.min(p.band)).collect();
        let counts =
            (0..values.len()).map(|i| is_visible(point.stage, &replayed.value.shape, i)).collect();
        Shown { warn, fail, counts }
    }

    /// The smallest |x| for which value·(1 + x) is shown: WARN and FAIL. None where all is 0.
    fn factor(&self, replayed: &Replayed) -> Option<(f64, f64)> {
        let smallest = |limits: &[f64]| {
            let elements = replayed.value.values.iter().zip(limits).zip(&self.counts);
            let sensitive =
                elements.filter(|((y, _), counts)| **counts && y.is_finite() && **y != 0.0);
            sensitive.map(|((y, limit), _)| limit / y.abs()).reduce(f64::min)
        };
        Some((smallest(&self.warn)?, smallest(&self.fail)?))
    }
}

/// The change of ε that is just a FAIL: the derivative of y by ε is −½·g·(x − μ)·r³.
fn norm_eps(
    oracle: &Oracle,
    point: Point,
    captured: &Captured<'_>,
    step: usize,
    shown: &Shown,
) -> Result<Option<f64>, OracleError> {
    let layer = point.layer.unwrap_or(0);
    let (input, name) = match point.stage {
        Stage::Ln1 => (block_input(layer), format!("h.{layer}.ln_1")),
        Stage::Ln2 => (Point::of_layer(Stage::ResidMid, layer), format!("h.{layer}.ln_2")),
        Stage::LnF => (block_input(oracle.dims.n_layer), "ln_f".to_string()),
        _ => return Ok(None),
    };
    let Some(x) = captured.tensor(step, input) else { return Ok(None) };
    let gain = oracle.weights.vector(&format!("{name}.weight"))?;
    let width = gain.len();
    let Ok(x) = ArrayView2::from_shape((x.values.len() / width, width), &x.values) else {
        return Ok(None);
    };
    let mut smallest = f64::INFINITY;
    for (row, x) in x.axis_iter(Axis(0)).enumerate() {
        let mean = x.sum() / width as f64;
        let variance = x.mapv(|v| (v - mean).powi(2)).sum() / width as f64;
        let cube = (variance + oracle.eps).powf(-1.5);
        for j in 0..width {
            let slope = (0.5 * gain[j] * (x[j] - mean) * cube).abs();
            smallest = smallest.min(shown.fail[row * width + j] / slope);
        }
    }
    Ok(smallest.is_finite().then_some(smallest))
}

/// Every so many elements, so that a long run stays small.
fn sample(into: &mut Vec<f64>, from: &[f64]) {
    const EACH: usize = 1000;
    into.extend(from.iter().step_by((from.len() / EACH).max(1)).filter(|v| **v > 0.0));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
