//! One stage again in float64, from what an implementation itself captured before it. What the
//! implementation gave, less that, is its *local* error: what this stage alone did wrong, whatever the
//! stages before it did.

use llorch_trace::{Point, Stage};
use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate, s};
use serde::{Deserialize, Serialize};

use super::bounds::{self, Pair};
use super::inputs::{cached, heads, rows};
use super::product::Layout;
use super::{Oracle, OracleError, Result, forward, ops};

pub use super::inputs::{Inputs, Job, array, block_input, inputs_of, keys};
use crate::compare::Numbers;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundKind {
    /// Equality: the stage only moves numbers.
    Exact,
    /// Above it, no order of summation in this precision gives the value.
    Proof,
    /// From the same counts of roundings, but with what libraries are known to do: no proof.
    Derived,
}

/// A stage in float64 with what rounding may do to each element.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub value: Numbers,
    pub bounds: Vec<Pair>,
    pub kind: BoundKind,
}

impl Oracle {
    /// None where an input was not captured.
    pub fn replay(&self, point: Point, job: Job<'_>) -> Result<Option<Replayed>> {
        Ok(self.replay_many(point, &[job])?.pop().flatten())
    }

    /// One stage for many implementations, cases and steps: weights are widened once, and the rows of
    /// all go through one product.
    pub fn replay_many(&self, point: Point, jobs: &[Job<'_>]) -> Result<Vec<Option<Replayed>>> {
        let layer = point.layer.unwrap_or(0);
        let own = |stage| Point::of_layer(stage, layer);
        let h = format!("h.{layer}");
        let each = |f: &dyn Fn(&Job<'_>) -> Result<Option<Replayed>>| jobs.iter().map(f).collect();
        let sum_of = |a: Point, b: Point| {
            each(&|job| Ok(rows(job, a).zip(rows(job, b)).and_then(|(a, b)| sum(&a, &b, job.u))))
        };
        match point.stage {
            Stage::Tokens | Stage::Argmax | Stage::NextProbs | Stage::Generated => {
                Ok(vec![None; jobs.len()])
            }
            Stage::Embeddings => each(&|job| self.embeddings(job)),
            Stage::Ln1 => self.norms(jobs, block_input(layer), &format!("{h}.ln_1")),
            Stage::Ln2 => self.norms(jobs, own(Stage::ResidMid), &format!("{h}.ln_2")),
            Stage::LnF => self.norms(jobs, block_input(self.dims.n_layer), "ln_f"),
            Stage::Q | Stage::K | Stage::V => {
                let third = point.stage as usize - Stage::Q as usize;
                self.thirds(jobs, own(Stage::Ln1), &format!("{h}.attn.c_attn"), third)
            }
            Stage::CacheK => each(&|job| Ok(cached(job, own(Stage::K)))),
            Stage::CacheV => each(&|job| Ok(cached(job, own(Stage::V)))),
            Stage::Scores => each(&|job| Ok(self.scores(job, layer))),
            Stage::Probs => {
                each(&|job| Ok(heads(job, own(Stage::Scores)).map(|s| probs(&s, job.u))))
            }
            Stage::Context => each(&|job| Ok(context(job, layer))),
            Stage::AttnOut => self.linears(jobs, own(Stage::Context), &format!("{h}.attn.c_proj")),
            Stage::ResidMid => sum_of(block_input(layer), own(Stage::AttnOut)),
            Stage::Fc => self.linears(jobs, own(Stage::Ln2), &format!("{h}.mlp.c_fc")),
            Stage::Act => each(&|job| Ok(rows(job, own(Stage::Fc)).map(|x| gelu(&x, job.u)))),
            Stage::MlpOut => self.linears(jobs, own(Stage::Act), &format!("{h}.mlp.c_proj")),
            Stage::Block => sum_of(own(Stage::ResidMid), own(Stage::MlpOut)),
            Stage::Logits => self.heads_of(jobs, false),
            Stage::LogitsLast => self.heads_of(jobs, true),
        }
    }

    /// One rounded addition of two numbers that are what they are.
    fn embeddings(&self, job: &Job<'_>) -> Result<Option<Replayed>> {
        let (ids, past) = (job.inputs.ids(job.step), job.inputs.past(job.step));
        let inside = ids.iter().all(|id| (*id as usize) < self.dims.vocab_size)
            && past + ids.len() <= self.dims.n_positions;
        if ids.is_empty() || !inside {
            return Ok(None);
        }
        let value = forward::embeddings(self, &ids, past)?;
        let positions = self.weights.rows("wpe.weight", past..past + ids.len())?;
        let pair = |(x, p): (&f64, &f64)| bounds::sum(1, job.u, p.abs() + (x - p).abs());
        let bounds = value.iter().zip(&positions).map(pair).collect();
        Ok(Some(Replayed {
            value: Numbers::of_array(value.into_dyn()),
            bounds,
            kind: BoundKind::Proof,
        }))
    }

    fn norms(&self, jobs: &[Job<'_>], input: Point, name: &str) -> Result<Vec<Option<Replayed>>> {
        let weight = self.weights.vector(&format!("{name}.weight"))?;
        let bias = self.weights.vector(&format!("{name}.bias"))?;
        let one = |job: &Job<'_>| {
            let x = rows(job, input).filter(|x| x.ncols() == weight.len())?;
            let value = ops::layer_norm(x.view(), weight.view(), bias.view(), self.eps);
            let row = |x| bounds::layer_norm(x, weight.view(), bias.view(), self.eps, job.u);
            Some(Replayed {
                value: Numbers::of_array(value.into_dyn()),
                bounds: x.rows().into_iter().flat_map(row).collect(),
                kind: BoundKind::Derived,
            })
        };
        Ok(jobs.iter().map(one).collect())
    }

    /// x · W + b for every job that has its input, [T, N].
    fn linears(&self, jobs: &[Job<'_>], input: Point, name: &str) -> Result<Vec<Option<Replayed>>> {
        let all = self.products(jobs, input, name)?;
        let whole = |(found, job): (Option<Product>, &Job<'_>)| found.map(|p| p.replayed(job.u));
        Ok(all.into_iter().zip(jobs).map(whole).collect())
    }

    /// The same of c_attn, of which `third` is taken and its heads split: 0 for q, 1 for k, 2 for v.
    fn thirds(
        &self,
        jobs: &[Job<'_>],
        input: Point,
        name: &str,
        third: usize,
    ) -> Result<Vec<Option<Replayed>>> {
        let e = self.dims.n_embd;
        let all = self.part_products(jobs, input, name, third * e..(third + 1) * e)?;
        let split = |(found, job): (Option<Product>, &Job<'_>)| {
            found.map(|p| {
                let split = |x: &Array2<f64>| ops::split_heads(x.view(), self.dims.n_head);
                let value = split(&p.value).into_dyn();
                let pair = |magnitude: &f64| bounds::sum(p.roundings, job.u, *magnitude);
                let bounds = split(&p.magnitude).iter().map(pair).collect();
                Replayed { value: Numbers::of_array(value), bounds, kind: BoundKind::Proof }
            })
        };
        Ok(all.into_iter().zip(jobs).map(split).collect())
    }

    fn products(&self, jobs: &[Job<'_>], input: Point, name: &str) -> Result<Vec<Option<Product>>> {
        let weight = self.weights.stored(&format!("{name}.weight"), Layout::ByInput)?;
        self.part_products(jobs, input, name, 0..weight.outputs())
    }

    fn part_products(
        &self,
        jobs: &[Job<'_>],
        input: Point,
        name: &str,
        columns: std::ops::Range<usize>,
    ) -> Result<Vec<Option<Product>>> {
        let weight = self.weights.stored(&format!("{name}.weight"), Layout::ByInput)?;
        let bias = self.weights.vector(&format!("{name}.bias"))?;
        forward::fits(name, bias.len(), weight.outputs())?;
        if columns.end > weight.outputs() {
            return Err(OracleError::Input(format!(
                "{name}: it has {} columns only",
                weight.outputs()
            )));
        }
        let bias = bias.slice(s![columns.clone()]);
        let inputs: Vec<_> = jobs
            .iter()
            .map(|job| rows(job, input).filter(|x| x.ncols() == weight.inputs()))
            .collect();
        let present: Vec<ArrayView2<'_, f64>> = inputs.iter().flatten().map(|x| x.view()).collect();
        if present.is_empty() {
            return Ok(inputs.into_iter().map(|_| None).collect());
        }
        let stacked = stack(&present)?;
        let (value, magnitude) = weight.times_with_magnitude(stacked.view(), columns);
        let (value, magnitude) = (value + bias, magnitude + bias.mapv(f64::abs));
        // K terms and the bias.
        Ok(unstack(&inputs, &value, &magnitude, weight.inputs() + 1))
    }

    /// The head, of all rows or of the last, a group of rows at a time: [T, V] or [V].
    fn heads_of(&self, jobs: &[Job<'_>], last: bool) -> Result<Vec<Option<Replayed>>> {
        let input = |job: &Job<'_>| {
            let x = rows(job, Point::new(Stage::LnF))?;
            let x = if last { x.slice(s![-1.., ..]).to_owned() } else { x };
            (x.ncols() == self.dims.n_embd).then_some(x)
        };
        let inputs: Vec<_> = jobs.iter().map(input).collect();
        let present: Vec<ArrayView2<'_, f64>> = inputs.iter().flatten().map(|x| x.view()).collect();
        if present.is_empty() {
            return Ok(inputs.into_iter().map(|_| None).collect());
        }
        let stacked = stack(&present)?;
        let (value, magnitude) = forward::head_and_magnitude(self, stacked.view())?;
        let products = unstack(&inputs, &value, &magnitude, self.dims.n_embd);
        let finish = |(found, job): (Option<Product>, &Job<'_>)| {
            found.map(|p| {
                let mut replayed = p.replayed(job.u);
                if last {
                    replayed.value.shape.remove(0);
                }
                replayed
            })
        };
        Ok(products.into_iter().zip(jobs).map(finish).collect())
    }

    /// q · k · scale over the visible keys. The scale 1/√D is rounded, and multiplying by it is.
    fn scores(&self, job: &Job<'_>, layer: usize) -> Option<Replayed> {
        let q = heads(job, Point::of_layer(Stage::Q, layer))?;
        let k = keys(job, Stage::CacheK, layer)?;
        if (q.dim().0, q.dim().2) != (k.dim().0, k.dim().2) {
            return None;
        }
        let scale = self.scale(layer);
        let value = ops::scores(q.view(), k.view(), scale);
        let magnitude = ops::scores(q.mapv(f64::abs).view(), k.mapv(f64::abs).view(), scale);
        let d = q.dim().2;
        let bounds = magnitude.iter().map(|m| bounds::sum(d + 2, job.u, m.max(0.0)));
        let bounds = bounds.collect();
        Some(Replayed {
            value: Numbers::of_array(value.into_dyn()),
            bounds,
            kind: BoundKind::Proof,
        })
    }
}

/// x · W + b of one job, and the same of absolute values.
struct Product {
    value: Array2<f64>,
    magnitude: Array2<f64>,
    /// Roundings on the longest path.
    roundings: usize,
}

impl Product {
    fn replayed(self, u: f64) -> Replayed {
        let pair = |magnitude: &f64| bounds::sum(self.roundings, u, *magnitude);
        Replayed {
            bounds: self.magnitude.iter().map(pair).collect(),
            value: Numbers::of_array(self.value.into_dyn()),
            kind: BoundKind::Proof,
        }
    }
}

fn stack(parts: &[ArrayView2<'_, f64>]) -> Result<Array2<f64>> {
    concatenate(Axis(0), parts).map_err(|e| OracleError::Input(e.to_string()))
}

/// Gives each job its rows of the stacked product back.
fn unstack(
    inputs: &[Option<Array2<f64>>],
    value: &Array2<f64>,
    magnitude: &Array2<f64>,
    roundings: usize,
) -> Vec<Option<Product>> {
    let mut begin = 0;
    let mut part = |x: &Array2<f64>| {
        let range = begin..begin + x.nrows();
        begin = range.end;
        let cut = |all: &Array2<f64>| all.slice(s![range.clone(), ..]).to_owned();
        Product { value: cut(value), magnitude: cut(magnitude), roundings }
    };
    inputs.iter().map(|x| x.as_ref().map(&mut part)).collect()
}

/// A residual: one addition.
fn sum(a: &Array2<f64>, b: &Array2<f64>, u: f64) -> Option<Replayed> {
    if a.dim() != b.dim() {
        return None;
    }
    let pair = |(a, b): (&f64, &f64)| bounds::sum(1, u, a.abs() + b.abs());
    let bounds = a.iter().zip(b).map(pair).collect();
    let value = Numbers::of_array((a + b).into_dyn());
    Some(Replayed { value, bounds, kind: BoundKind::Proof })
}

fn gelu(x: &Array2<f64>, u: f64) -> Replayed {
    Replayed {
        value: Numbers::of_array(x.mapv(ops::gelu_new).into_dyn()),
        bounds: x.iter().map(|x| bounds::gelu(*x, u)).collect(),
        kind: BoundKind::Derived,
    }
}

fn probs(scores: &Array3<f64>, u: f64) -> Replayed {
    let (_, t, s) = scores.dim();
    let mut bounds = vec![Pair { band: 0.0, bound: 0.0 }; scores.len()];
    for (row, cells) in scores.rows().into_iter().enumerate() {
        let seen = ops::visible(row % t, t, s).min(s);
        let pairs = bounds::softmax(&cells.slice(s![..seen]).to_vec(), u);
        bounds[row * s..row * s + seen].copy_from_slice(&pairs);
    }
    let value = Numbers::of_array(ops::causal_softmax(scores.view()).into_dyn());
    Replayed { value, bounds, kind: BoundKind::Derived }
}

/// probs · v from the captured probabilities, whatever the mask was: what an implementation lets through
/// is the fault of its scores or probabilities, and this stage multiplies with what it gets.
fn context(job: &Job<'_>, layer: usize) -> Option<Replayed> {
    let mut probs = heads(job, Point::of_layer(Stage::Probs, layer))?;
    let v = keys(job, Stage::CacheV, layer)?;
    let ((h, t, s), d) = (probs.dim(), v.dim().2);
    if (v.dim().0, v.dim().1) != (h, s) {
        return None;
    }
    for ((_, row, key), p) in probs.indexed_iter_mut() {
        // What stands in a masked cell may be anything that nobody reads.
        if !p.is_finite() && key >= ops::visible(row, t, s) {
            *p = 0.0;
        }
    }
    let value = ops::context(probs.view(), v.view());
    let magnitude = ops::context(probs.mapv(f64::abs).view(), v.mapv(f64::abs).view());
    let terms = |head, row| {
        let cells = probs.slice(s![head, row, ..]);
        cells.iter().filter(|p| **p != 0.0).count().max(1)
    };
    let terms = Array2::from_shape_fn((h, t), |(head, row)| terms(head, row));
    let bounds =
        magnitude.indexed_iter().map(|((row, c), m)| bounds::sum(terms[[c / d, row]], job.u, *m));
    let bounds = bounds.collect();
    debug_assert_eq!(magnitude.ncols(), h * d);
    Some(Replayed { value: Numbers::of_array(value.into_dyn()), bounds, kind: BoundKind::Proof })
}

/// The context from the scores, for implementations whose captured probabilities are not what they
/// multiplied with.
pub fn context_from_scores(job: &Job<'_>, layer: usize) -> Option<Replayed> {
    let scores = heads(job, Point::of_layer(Stage::Scores, layer))?;
    let v = keys(job, Stage::CacheV, layer)?;
    let ((h, t, s), d) = (scores.dim(), v.dim().2);
    if (v.dim().0, v.dim().1) != (h, s) {
        return None;
    }
    let softmax = probs(&scores, job.u);
    let exact = Array3::from_shape_vec((h, t, s), softmax.value.values).ok()?;
    let off = |f: fn(&Pair) -> f64| {
        let off: Vec<f64> = softmax.bounds.iter().map(f).collect();
        Array3::from_shape_vec((h, t, s), off).ok()
    };
    let magnitude_v = v.mapv(f64::abs);
    let of_softmax = |off: Array3<f64>| ops::context(off.view(), magnitude_v.view());
    let (band, bound) = (of_softmax(off(|p| p.band)?), of_softmax(off(|p| p.bound)?));
    let magnitude = ops::context(exact.view(), magnitude_v.view());
    let bounds = magnitude.indexed_iter().map(|((row, c), m)| {
        let sum = bounds::sum(ops::visible(row, t, s).min(s) + 1, job.u, *m);
        Pair { band: sum.band + band[[row, c]], bound: sum.bound + bound[[row, c]] }
    });
    let bounds = bounds.collect();
    debug_assert_eq!(magnitude.ncols(), h * d);
    let value = ops::context(exact.view(), v.view());
    Some(Replayed { value: Numbers::of_array(value.into_dyn()), bounds, kind: BoundKind::Derived })
}
