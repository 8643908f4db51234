//! Layer norms before gain and bias: each row has mean 0 and variance σ²/(σ²+ε).
//!
//! Gain and bias are undone in float64, ẑ = (y − b)/g, with the model's own weights; σ² is that of the
//! captured input. docs/TOLERANCES.md derives the bound of ẑ.

use std::path::Path;

use llorch_trace::files::SafetensorsFile;
use llorch_trace::{Point, Stage, Tensor};

use super::finding::{Allowed, Finding, Here, named};
use super::runs::{Run, Subject};
use crate::oracle::norm_checks::{norm_input, undo};
use crate::result::UncheckedKind;

pub const RULE: &str =
    "derived: rounding of mean, variance, scale, gain and bias, whatever their order";

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
            let Some(from) = norm_input(point, layers) else { continue };
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
