//! What a stage reads, and where that comes from: an implementation's captures, or anything else that
//! has tensors by step and point.

use llorch_trace::{Point, Stage};
use ndarray::{Array2, Array3, ArrayD, Axis, Ix2, Ix3, concatenate};

use super::bounds;
use super::replay::{BoundKind, Replayed};
use crate::compare::Numbers;

/// Where a stage's inputs come from.
pub trait Inputs {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers>;
    /// The ids that are fed at a step.
    fn ids(&self, step: usize) -> Vec<u32>;
    /// Positions before a step.
    fn past(&self, step: usize) -> usize;
}

/// A stage to recompute.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "holds a trait object")]
pub struct Job<'a> {
    pub step: usize,
    pub inputs: &'a dyn Inputs,
    /// The unit roundoff of what is judged.
    pub u: f64,
}

/// The point that a block's first norm and first residual read.
pub fn block_input(layer: usize) -> Point {
    match layer.checked_sub(1) {
        None => Point::new(Stage::Embeddings),
        Some(before) => Point::of_layer(Stage::Block, before),
    }
}

/// What a stage reads, in the order in which [`Oracle::replay`] looks for it. Empty where nothing is
/// recomputed: ids, and what sampling makes of logits.
pub fn inputs_of(point: Point, n_layer: usize) -> Vec<Point> {
    let layer = point.layer.unwrap_or(0);
    let own = |stage| Point::of_layer(stage, layer);
    match point.stage {
        Stage::Tokens | Stage::Embeddings | Stage::Argmax | Stage::NextProbs | Stage::Generated => {
            vec![]
        }
        Stage::Ln1 => vec![block_input(layer)],
        Stage::Q | Stage::K | Stage::V => vec![own(Stage::Ln1)],
        Stage::CacheK => vec![own(Stage::K)],
        Stage::CacheV => vec![own(Stage::V)],
        Stage::Scores => vec![own(Stage::Q), own(Stage::CacheK)],
        Stage::Probs => vec![own(Stage::Scores)],
        Stage::Context => vec![own(Stage::Probs), own(Stage::CacheV)],
        Stage::AttnOut => vec![own(Stage::Context)],
        Stage::ResidMid => vec![block_input(layer), own(Stage::AttnOut)],
        Stage::Ln2 => vec![own(Stage::ResidMid)],
        Stage::Fc => vec![own(Stage::Ln2)],
        Stage::Act => vec![own(Stage::Fc)],
        Stage::MlpOut => vec![own(Stage::Act)],
        Stage::Block => vec![own(Stage::ResidMid), own(Stage::MlpOut)],
        Stage::LnF => vec![block_input(n_layer)],
        Stage::Logits | Stage::LogitsLast => vec![Point::new(Stage::LnF)],
    }
}

/// A [T, ·] tensor that was captured at the job's step.
pub(super) fn rows(job: &Job<'_>, point: Point) -> Option<Array2<f64>> {
    array(job.inputs.tensor(job.step, point)?)?.into_dimensionality::<Ix2>().ok()
}

/// An [H, ·, ·] tensor that was captured at the job's step.
pub(super) fn heads(job: &Job<'_>, point: Point) -> Option<Array3<f64>> {
    array(job.inputs.tensor(job.step, point)?)?.into_dimensionality::<Ix3>().ok()
}

/// The keys or values that a step reads: the captured cache, else what it should hold.
pub fn keys(job: &Job<'_>, cache: Stage, layer: usize) -> Option<Array3<f64>> {
    heads(job, Point::of_layer(cache, layer)).or_else(|| {
        let own = if cache == Stage::CacheK { Stage::K } else { Stage::V };
        array(cached(job, Point::of_layer(own, layer))?.value)?.into_dimensionality::<Ix3>().ok()
    })
}

/// The k or v of all steps so far, one after another: [H, S, D]. Who computes in less than f32 may keep
/// them in that dtype though they left the projection wider: one rounding each.
pub(super) fn cached(job: &Job<'_>, own: Point) -> Option<Replayed> {
    let parts: Vec<Array3<f64>> =
        (0..=job.step).map(|step| heads(&Job { step, ..*job }, own)).collect::<Option<_>>()?;
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    let value = concatenate(Axis(1), &views).ok()?;
    let bounds = value.iter().map(|x| bounds::storage(job.u, *x)).collect();
    Some(Replayed { value: Numbers::of_array(value.into_dyn()), bounds, kind: BoundKind::Exact })
}

pub fn array(numbers: Numbers) -> Option<ArrayD<f64>> {
    ArrayD::from_shape_vec(numbers.shape, numbers.values).ok()
}
