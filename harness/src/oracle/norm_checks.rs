//! Layer normalization before its gain and bias: whatever the input, each row has mean 0 and variance
//! σ²/(σ² + ε), σ² the (biased) variance of the input's row. Gain and bias are undone in float64.
//!
//! docs/TOLERANCES.md derives what rounding may do to the two moments. No output of the oracle takes part.

use llorch_trace::{Point, Stage};

use super::bounds::gamma;
use super::replay::block_input;
use super::{Oracle, Result};
use crate::compare::Numbers;

/// A channel is left out where undoing a small gain would magnify the rounding of y and b beyond
/// this; z is of order 1.
const MAGNIFIED: f64 = 1.0 / 4096.0;

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
    /// Channels whose gain is too small to be undone.
    pub left_out: usize,
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
    /// it was computed. None where `point` is no norm or the shapes are no norm's, or where no gain can be
    /// undone.
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
        let (weight, bias) = (weight.to_vec(), bias.to_vec());
        let width = weight.len();
        if x.shape != y.shape || !matches!(x.shape[..], [_, e] if e == width) {
            return Ok(None);
        }
        let mut all: Option<NormMoments> = None;
        let rows = x.values.chunks_exact(width).zip(y.values.chunks_exact(width));
        for (row, (x, y)) in rows.enumerate() {
            let seen = undo(x, y, &weight, &bias, self.eps, u);
            if seen.left_out == width {
                return Ok(None);
            }
            let [mean, variance] = seen.moments(row);
            let worse = |a: Moment, b: Moment| if b.of_bound() > a.of_bound() { b } else { a };
            all = Some(match all {
                None => NormMoments { rows: 1, left_out: seen.left_out, mean, variance },
                Some(m) => NormMoments {
                    rows: m.rows + 1,
                    left_out: m.left_out.max(seen.left_out),
                    mean: worse(m.mean, mean),
                    variance: worse(m.variance, variance),
                },
            });
        }
        Ok(all)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Undone {
    pub mean: f64,
    pub mean_bound: f64,
    pub variance: f64,
    pub expected_variance: f64,
    pub variance_bound: f64,
    /// Channels whose gain is too small to be undone; there the exact value stands in.
    pub left_out: usize,
}

impl Undone {
    fn moments(&self, row: usize) -> [Moment; 2] {
        let (found, bound) = (self.mean, self.mean_bound);
        let mean = Moment { row, found, expected: 0.0, bound };
        let (found, expected) = (self.variance, self.expected_variance);
        [mean, Moment { row, found, expected, bound: self.variance_bound }]
    }
}

/// Undoes gain and bias of one row, y = z·g + b, and says how far mean and variance of z may
/// honestly be from 0 and σ²/(σ²+ε).
pub fn undo(x: &[f64], y: &[f64], gain: &[f64], bias: &[f64], eps: f64, u: f64) -> Undone {
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
