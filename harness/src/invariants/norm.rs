//! Layer norms before gain and bias: each row has mean 0 and variance σ²/(σ²+ε).
//!
//! Gain and bias are undone in float64, ẑ = (y − b)/g, with the model's own weights; σ² is that of the
//! captured input. docs/TOLERANCES.md derives the bound of ẑ.

use std::path::Path;

use llorch_trace::files::SafetensorsFile;
use llorch_trace::{Point, Stage, Tensor};

use super::finding::{Allowed, Finding, Here, named};
use super::runs::{Run, Subject};
use crate::oracle::bounds::gamma;
use crate::result::UncheckedKind;

pub const RULE: &str =
    "derived: rounding of mean, variance, scale, gain and bias, whatever their order";

/// A channel is left out where undoing a small gain would magnify the rounding of y and b beyond
/// this; z is of order 1.
const MAGNIFIED: f64 = 1.0 / 4096.0;

/// Gains, biases and ε of a model.
#[derive(Debug)]
pub struct Norms {
    file: SafetensorsFile,
    prefix: &'static str,
    eps: f64,
}

impl Norms {
    pub fn open(model_dir: &Path) -> Result<Norms, String> {
        let config = model_dir.join("config.json");
        let text = std::fs::read_to_string(&config)
            .map_err(|e| format!("failed to read {}: {e}", config.display()))?;
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| format!("failed to read {}: not JSON: {e}", config.display()))?;
        let eps = json.get("layer_norm_epsilon").map_or(Some(1e-5), |v| v.as_f64());
        let eps =
            eps.ok_or_else(|| format!("{}: layer_norm_epsilon is no number", config.display()))?;
        let file = SafetensorsFile::open(&model_dir.join("model.safetensors"));
        let file = file.map_err(|e| e.to_string())?;
        let prefix = if file.contains("wte.weight") { "" } else { "transformer." };
        Ok(Norms { file, prefix, eps })
    }

    fn vector(&self, name: &str) -> Result<Vec<f64>, String> {
        let tensor = self.file.get(&format!("{}{name}", self.prefix));
        Ok(tensor.map_err(|e| e.to_string())?.to_f64())
    }
}

/// What a norm's input is.
fn input_of(point: Point, layers: usize) -> Point {
    match (point.stage, point.layer) {
        (Stage::Ln1, Some(0)) => Point::new(Stage::Embeddings),
        (Stage::Ln1, Some(layer)) => Point::of_layer(Stage::Block, layer - 1),
        (Stage::Ln2, Some(layer)) => Point::of_layer(Stage::ResidMid, layer),
        _ => Point::of_layer(Stage::Block, layers - 1),
    }
}

pub fn check(
    subject: &Subject,
    norms: &Norms,
    run: &Run<'_>,
    mean: &mut Finding,
    variance: &mut Finding,
) {
    let layers = subject.dims.n_layer;
    let is_norm = |p: &&Point| matches!(p.stage, Stage::Ln1 | Stage::Ln2 | Stage::LnF);
    let all = llorch_trace::all_points(layers);
    for &point in all.iter().filter(is_norm) {
        let name = named(point);
        let weights = norms.vector(&format!("{name}.weight"));
        let (gain, bias) = match (weights, norms.vector(&format!("{name}.bias"))) {
            (Ok(gain), Ok(bias)) => (gain, bias),
            (Err(what), _) | (_, Err(what)) => {
                mean.error(what.clone());
                variance.error(what);
                continue;
            }
        };
        for step in 0..run.case.steps() {
            let from = input_of(point, layers);
            let captured = run.captured;
            let Some(y) = subject.tensor(captured, step, point, mean) else { continue };
            let Some(x) = subject.tensor(captured, step, from, mean) else { continue };
            let here = Here { case: &run.case.name, step, point: &name };
            tensor(here, (x, y), (&gain, &bias, norms.eps), mean, variance);
        }
    }
    // What one could not see, the other couldn't either.
    for (kind, reason) in mean.unchecked.clone() {
        variance.uncheck(kind, reason);
    }
    mean.errors.clone().into_iter().for_each(|what| variance.error(what));
}

fn tensor(
    here: Here<'_>,
    (x, y): (&Tensor, &Tensor),
    (gain, bias, eps): (&[f64], &[f64], f64),
    mean: &mut Finding,
    variance: &mut Finding,
) {
    let width = gain.len();
    if bias.len() != width || x.shape != y.shape || x.shape.last() != Some(&width) {
        let (x, y) = (&x.shape, &y.shape);
        return mean.error(format!("{}: {x:?} in, {y:?} out, {width} gains", here.point));
    }
    let u = y.dtype().unit_roundoff().max(x.dtype().unit_roundoff());
    let (x, y) = (x.to_f64(), y.to_f64());
    for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact(width)).enumerate() {
        let seen = undo(x, y, gain, bias, eps, u);
        if seen.left_out == width {
            let reason = format!("{}: every gain is too small to be undone", here.point);
            mean.uncheck(UncheckedKind::Missing, reason.clone());
            variance.uncheck(UncheckedKind::Missing, reason);
            continue;
        }
        if seen.left_out > 0 {
            let note = format!(
                "{}: {} of {width} channels have a gain too small to be undone; there the input's own value stands in",
                here.point, seen.left_out
            );
            mean.note(note.clone());
            variance.note(note);
        }
        let allowed = Allowed::Within(seen.mean_bound);
        mean.take(here, || vec![row], seen.mean, 0.0, allowed);
        let allowed = Allowed::Within(seen.variance_bound);
        variance.take(here, || vec![row], seen.variance, seen.expected_variance, allowed);
    }
}

#[derive(Debug, Clone, Copy)]
struct Undone {
    mean: f64,
    mean_bound: f64,
    variance: f64,
    expected_variance: f64,
    variance_bound: f64,
    left_out: usize,
}

/// Undoes gain and bias of one row, y = z·g + b, and says how far mean and variance of z may
/// honestly be from 0 and σ²/(σ²+ε).
fn undo(x: &[f64], y: &[f64], gain: &[f64], bias: &[f64], eps: f64, u: f64) -> Undone {
    let n = x.len() as f64;
    let mu = x.iter().sum::<f64>() / n;
    let sigma2 = x.iter().map(|v| (v - mu).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (sigma2 + eps).sqrt();
    // The mean: a sum of n terms and a division.
    let mean_abs = x.iter().map(|v| v.abs()).sum::<f64>() / n;
    let delta_mu = gamma(x.len() + 1, u) * mean_abs;
    // The variance, also as E[x²] − μ²; then a root and a reciprocal.
    let mean_square = sigma2 + mu * mu;
    let relative =
        0.5 * (gamma(x.len() + 4, u) * mean_square + delta_mu * delta_mu) * scale * scale + 4.0 * u;
    let relative = relative * (1.0 + 4.0 * relative);
    let (mut sum, mut squares, mut errors, mut spread) = (0.0, 0.0, 0.0, 0.0);
    let mut left_out = 0;
    for j in 0..x.len() {
        let exact = (x[j] - mu) * scale;
        let size = (x[j].abs() + mu.abs()) * scale;
        let magnified = u * (y[j].abs() + bias[j].abs()) / gain[j].abs();
        let (z, error) = if gain[j] == 0.0 || !(magnified <= MAGNIFIED || y[j].is_nan()) {
            left_out += 1;
            (exact, 0.0)
        } else {
            let error = exact.abs() * relative
                + delta_mu * scale * (1.0 + relative)
                + 8.0 * u * size
                + 2.0 * magnified;
            ((y[j] - bias[j]) / gain[j], error)
        };
        sum += z;
        squares += z * z;
        errors += error;
        spread += error * (2.0 * z.abs() + error);
    }
    let mean = sum / n;
    let mean_bound = errors / n;
    Undone {
        mean,
        mean_bound,
        variance: squares / n - mean * mean,
        expected_variance: sigma2 / (sigma2 + eps),
        variance_bound: spread / n + mean_bound * mean_bound,
        left_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const U: f64 = 1.0 / (1u64 << 24) as f64;

    /// Rows of 96 values around 0.3, the first 3000; gains around 1, one of them tiny, and biases.
    fn row(i: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let wave = |j: usize, by: f32| ((j * 7919 + i * 104729) as f32 * by).sin();
        let x = (0..96).map(|j| if j == 0 && i % 2 == 1 { 3000.0 } else { 0.3 + wave(j, 0.37) });
        let gain = (0..96).map(|j| if j == 5 { 1e-7 } else { 1.0 + 0.9 * wave(j, 0.11) });
        (x.collect(), gain.collect(), (0..96).map(|j| wave(j, 0.23)).collect())
    }

    fn undone(x: &[f32], y: &[f32], gain: &[f32], bias: &[f32]) -> Undone {
        let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        undo(&wide(x), &wide(y), &wide(gain), &wide(bias), 1e-5, U)
    }

    fn holds(u: &Undone) -> bool {
        u.mean.abs() <= u.mean_bound && (u.variance - u.expected_variance).abs() <= u.variance_bound
    }

    /// Mean, variance (in two passes or as E[x²] − μ²), and what is made of them.
    fn norm(
        x: &[f32],
        gain: &[f32],
        bias: &[f32],
        one_pass: bool,
        fused: bool,
        eps: f32,
    ) -> Vec<f32> {
        let n = x.len() as f32;
        let mean = x.iter().sum::<f32>() / n;
        let variance = match one_pass {
            true => (x.iter().map(|v| v * v).sum::<f32>() / n - mean * mean).max(0.0),
            false => x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n,
        };
        let scale = 1.0 / (variance + eps).sqrt();
        let value = |j: usize| match fused {
            true => x[j] * (scale * gain[j]) + (bias[j] - mean * (scale * gain[j])),
            false => (x[j] - mean) * scale * gain[j] + bias[j],
        };
        (0..x.len()).map(value).collect()
    }

    #[test]
    fn honest_norms_of_every_form_are_within_the_bound() {
        for i in 0..50 {
            let (x, gain, bias) = row(i);
            for (one_pass, fused) in [(false, false), (false, true), (true, false), (true, true)] {
                let u = undone(&x, &norm(&x, &gain, &bias, one_pass, fused, 1e-5), &gain, &bias);
                assert!(holds(&u), "row {i}, one pass {one_pass}, fused {fused}: {u:?}");
                assert_eq!(u.left_out, 1);
                assert!(u.mean_bound < 0.05 && u.variance_bound < 0.05, "{u:?}");
            }
        }
    }

    #[test]
    fn what_no_rounding_does_is_beyond_it() {
        let (x, gain, bias) = row(2);
        let honest = norm(&x, &gain, &bias, false, false, 1e-5);
        assert!(holds(&undone(&x, &honest, &gain, &bias)));
        let other_eps = norm(&x, &gain, &bias, false, false, 1e-3);
        assert!(!holds(&undone(&x, &other_eps, &gain, &bias)));
        // Divided by n − 1.
        let unbiased: Vec<f32> =
            (0..96).map(|j| (honest[j] - bias[j]) * (95f32 / 96.0).sqrt() + bias[j]).collect();
        assert!(!holds(&undone(&x, &unbiased, &gain, &bias)));
        // One channel shifted by a hundredth.
        let mut shifted = honest.clone();
        shifted[40] += 0.01 * gain[40];
        assert!(!holds(&undone(&x, &shifted, &gain, &bias)));
        let mut nan = honest;
        nan[40] = f32::NAN;
        assert!(!holds(&undone(&x, &nan, &gain, &bias)));
    }
}
