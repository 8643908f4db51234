//! Layer normalization before its gain and bias: whatever the input, each row has mean 0 and variance
//! σ²/(σ² + ε), σ² the (biased) variance of the input's row. Gain and bias are undone in float64.
//!
//! What rounding may do to the two moments follows from what it may do to each output
//! ([`bounds::layer_norm`]): docs/TOLERANCES.md writes it out. No output of the oracle takes part.

use llorch_trace::{Point, Stage};
use ndarray::{Array2, ArrayView1};

use super::replay::block_input;
use super::{Oracle, Result, bounds};
use crate::compare::Numbers;

/// Gains below this part of the largest one are not divided by: they would turn rounding into noise
/// that hides the rest. Those channels are taken from the input instead.
const LEAST_GAIN: f64 = 1e-3;

/// One moment in the row in which it is furthest beyond its bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    pub row: usize,
    pub found: f64,
    pub expected: f64,
    pub bound: f64,
}

impl Moment {
    pub fn off(&self) -> f64 {
        (self.found - self.expected).abs()
    }

    /// |found − expected| over the bound; NaN counts as infinitely far.
    pub fn of_bound(&self) -> f64 {
        let of = self.off() / self.bound;
        if of.is_nan() { f64::INFINITY } else { of }
    }

    pub fn holds(&self) -> bool {
        self.of_bound() <= 1.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormMoments {
    pub rows: usize,
    pub mean: Moment,
    pub variance: Moment,
}

impl NormMoments {
    pub fn hold(&self) -> bool {
        self.mean.holds() && self.variance.holds()
    }
}

/// What a norm reads; None for a stage that is none.
pub fn norm_input(norm: Point, n_layer: usize) -> Option<Point> {
    let layer = norm.layer.unwrap_or(0);
    match norm.stage {
        Stage::Ln1 => Some(block_input(layer)),
        Stage::Ln2 => Some(Point::of_layer(Stage::ResidMid, layer)),
        Stage::LnF => Some(block_input(n_layer)),
        _ => None,
    }
}

impl Oracle {
    /// The moments of a norm's output `y`, [T, E], given its input `x`; u is the unit roundoff in which
    /// it was computed. None where `point` is no norm or the shapes are no norm's.
    pub fn norm_moments(
        &self,
        point: Point,
        x: &Numbers,
        y: &Numbers,
        u: f64,
    ) -> Result<Option<NormMoments>> {
        let name = match point.stage {
            Stage::Ln1 | Stage::Ln2 | Stage::LnF => point.to_string(),
            _ => return Ok(None),
        };
        let weight = self.weights.vector(&format!("{name}.weight"))?;
        let bias = self.weights.vector(&format!("{name}.bias"))?;
        let matrix = |n: &Numbers| match n.shape[..] {
            [t, e] if e == weight.len() => Array2::from_shape_vec((t, e), n.values.clone()).ok(),
            _ => None,
        };
        let (Some(x), Some(y)) = (matrix(x), matrix(y)) else { return Ok(None) };
        if x.dim() != y.dim() {
            return Ok(None);
        }
        let mut all: Option<NormMoments> = None;
        for (row, (x, y)) in x.rows().into_iter().zip(y.rows()).enumerate() {
            let [mean, variance] = moments(row, x, y, weight.view(), bias.view(), self.eps, u);
            let worse = |a: Moment, b: Moment| if b.of_bound() > a.of_bound() { b } else { a };
            all = Some(match all {
                None => NormMoments { rows: 1, mean, variance },
                Some(m) => NormMoments {
                    rows: m.rows + 1,
                    mean: worse(m.mean, mean),
                    variance: worse(m.variance, variance),
                },
            });
        }
        Ok(all)
    }
}

/// Mean and variance of one row of (y − bias) / weight.
fn moments(
    row: usize,
    x: ArrayView1<'_, f64>,
    y: ArrayView1<'_, f64>,
    weight: ArrayView1<'_, f64>,
    bias: ArrayView1<'_, f64>,
    eps: f64,
    u: f64,
) -> [Moment; 2] {
    let n = x.len() as f64;
    let centre = x.sum() / n;
    let square = x.mapv(|v| (v - centre).powi(2)).sum() / n;
    let inverse = 1.0 / (square + eps).sqrt();
    let off = bounds::layer_norm(x, weight, bias, eps, u);
    let least = LEAST_GAIN * weight.fold(0.0f64, |m, w| m.max(w.abs()));
    // n̂, its value as given, and how far rounding may take that from n̂.
    let channels: Vec<(f64, f64, f64)> = (0..x.len())
        .map(|j| {
            let exact = (x[j] - centre) * inverse;
            match weight[j].abs() > least {
                true => (exact, (y[j] - bias[j]) / weight[j], off[j].bound / weight[j].abs()),
                false => (exact, exact, 0.0),
            }
        })
        .collect();
    let mean = channels.iter().map(|c| c.1).sum::<f64>() / n;
    let variance = channels.iter().map(|c| (c.1 - mean).powi(2)).sum::<f64>() / n;
    // The mean moves by the mean of δ at most; n̂ − mean by δ + that, and the square accordingly.
    let shift = channels.iter().map(|c| c.2).sum::<f64>() / n;
    let spread = |c: &(f64, f64, f64)| (2.0 * c.0.abs() + c.2 + shift) * (c.2 + shift);
    let spread = channels.iter().map(spread).sum::<f64>() / n;
    [
        Moment { row, found: mean, expected: 0.0, bound: shift },
        Moment { row, found: variance, expected: square / (square + eps), bound: spread },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array1;

    const U32: f64 = 1.0 / (1u32 << 24) as f64;

    /// fp32 layer normalization as a library would do it.
    fn honest(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
        let n = x.len() as f32;
        let mean = x.iter().sum::<f32>() / n;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
        let inverse = 1.0 / (variance + eps).sqrt();
        (0..x.len()).map(|j| (x[j] - mean) * inverse * weight[j] + bias[j]).collect()
    }

    fn wide(x: &[f32]) -> Array1<f64> {
        x.iter().map(|v| f64::from(*v)).collect()
    }

    fn check(x: &[f32], y: &[f32], weight: &[f32], bias: &[f32]) -> [Moment; 2] {
        let (x, y, weight, bias) = (wide(x), wide(y), wide(weight), wide(bias));
        moments(0, x.view(), y.view(), weight.view(), bias.view(), 1e-5, U32)
    }

    fn data(scale: f32) -> [Vec<f32>; 3] {
        let x = (0..256).map(|i| ((i * 37 % 101) as f32 - 43.0) * scale).collect();
        let weight = (0..256).map(|i| 0.2 + (i * 13 % 29) as f32 / 20.0).collect();
        let bias = (0..256).map(|i| (i * 7 % 17) as f32 / 9.0 - 1.0).collect();
        [x, weight, bias]
    }

    #[test]
    fn an_honest_norm_has_both_moments_whatever_its_scale() {
        for scale in [1e-4, 1e-2, 1.0, 300.0] {
            let [x, weight, bias] = data(scale);
            let y = honest(&x, &weight, &bias, 1e-5);
            let [mean, variance] = check(&x, &y, &weight, &bias);
            assert!(mean.holds() && variance.holds(), "{scale}: {mean:?} {variance:?}");
            assert!(mean.bound < 1e-3 && variance.bound < 1e-3, "{scale}: {mean:?} {variance:?}");
        }
        // Where ε counts the variance is not 1.
        let [x, weight, bias] = data(1e-4);
        let [_, variance] = check(&x, &honest(&x, &weight, &bias, 1e-5), &weight, &bias);
        assert!((0.2..0.6).contains(&variance.expected), "{variance:?}");
    }

    #[test]
    fn another_eps_the_unbiased_variance_and_a_lost_mean_show() {
        let [x, weight, bias] = data(1e-2);
        let [mean, variance] = check(&x, &honest(&x, &weight, &bias, 1e-4), &weight, &bias);
        assert!(mean.holds() && !variance.holds(), "{variance:?}");
        let root = (255f32 / 256.0).sqrt();
        let unbiased: Vec<f32> = honest(&x, &weight, &bias, 1e-5)
            .iter()
            .zip(weight.iter().zip(&bias))
            .map(|(y, (_, b))| (y - b) * root + b)
            .collect();
        assert!(!check(&x, &unbiased, &weight, &bias)[1].holds());
        let rms = (x.iter().map(|v| v * v).sum::<f32>() / 256.0 + 1e-5).sqrt();
        let uncentred: Vec<f32> = (0..256).map(|j| x[j] / rms * weight[j] + bias[j]).collect();
        assert!(!check(&x, &uncentred, &weight, &bias)[0].holds());
    }

    #[test]
    fn a_gain_of_zero_hides_its_channel_and_no_more() {
        let [x, mut weight, bias] = data(1.0);
        weight[3] = 0.0;
        let mut y = honest(&x, &weight, &bias, 1e-5);
        assert!(check(&x, &y, &weight, &bias).iter().all(Moment::holds));
        y[4] = f32::NAN;
        assert!(!check(&x, &y, &weight, &bias)[0].holds());
    }
}
