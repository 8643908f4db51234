//! How far rounding may take a stage from its exact value, element by element.
//!
//! u is the unit roundoff of the dtype. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
//! ed., section 3.1: a result of n roundings on its longest path, summed in any order, is off by at
//! most γₙ·A, γₙ = n·u/(1 − n·u), A the same sum of absolute values. That is the *proof bound*: beyond
//! it no order of summation in that precision gives the value. Roundings that are independent add up as
//! √n·u·A instead (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis");
//! the *noise band* is three times that, never above the proof bound.
//!
//! Layer normalization, softmax and GELU have bounds of their own, derived from the same two counts;
//! docs/TOLERANCES.md writes them out.

use ndarray::ArrayView1;

use super::ops;

/// The roundoff of the oracle's own float64: it matters only where float64 is judged.
const U64: f64 = 1.0 / (1u64 << 53) as f64;

/// What narrower dtypes are added up in.
const U32: f64 = 1.0 / (1u64 << 24) as f64;

/// Less than f32 has, the oracle's own roundoff besides.
fn is_narrow(u: f64) -> bool {
    u > 2.0 * U32
}

/// The two bounds of one element.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pair {
    pub band: f64,
    pub bound: f64,
}

impl Pair {
    fn map(self, f: impl Fn(f64) -> f64) -> Pair {
        Pair { band: f(self.band), bound: f(self.bound) }
    }

    /// Both with an absolute error besides.
    pub fn plus(self, least: f64) -> Pair {
        self.map(|limit| limit + least)
    }

    fn zip(self, other: Pair, f: impl Fn(f64, f64) -> f64) -> Pair {
        Pair { band: f(self.band, other.band), bound: f(self.bound, other.bound) }
    }
}

/// γₙ for what is judged and for the oracle's own sums.
pub fn gamma(n: usize, u: f64) -> f64 {
    let of = |u: f64| {
        let nu = n as f64 * u;
        // Where n·u reaches 1 nothing can be said.
        if nu >= 1.0 { f64::INFINITY } else { nu / (1.0 - nu) }
    };
    of(u) + of(U64)
}

/// What n roundings do to a sum, relative to its A.
///
/// Who computes in less than f32 still adds in f32: operands are rounded to the narrow dtype once (weights,
/// and inputs that are captured wider than they are read), the result once, and the sum is f32's. That is
/// 3u + γₙ(f32) at most. γₙ of the narrow u itself would say nothing: bf16 reaches n·u = 1 at 256 terms.
pub fn relative(n: usize, u: f64) -> Pair {
    if is_narrow(u) {
        let bound = 3.0 * u + gamma(n, U32);
        return Pair { band: bound, bound };
    }
    let bound = gamma(n, u);
    Pair { band: bound.min(3.0 * (n as f64).sqrt() * (u + U64)), bound }
}

/// A number that is only put away. In f32 and wider that changes nothing; who computes in less rounds it
/// once to that, where it was wider before.
pub fn storage(u: f64, value: f64) -> Pair {
    let off = if is_narrow(u) { u * value.abs() } else { 0.0 };
    Pair { band: off, bound: off }
}

/// A sum of n roundings on its longest path whose absolute terms add up to `magnitude`.
pub fn sum(n: usize, u: f64, magnitude: f64) -> Pair {
    relative(n, u).map(|r| r * magnitude)
}

/// One row of layer normalization: x [E], the gain and bias of each channel.
pub fn layer_norm(
    x: ArrayView1<'_, f64>,
    weight: ArrayView1<'_, f64>,
    bias: ArrayView1<'_, f64>,
    eps: f64,
    u: f64,
) -> Vec<Pair> {
    let n = x.len();
    let u = u + U64;
    let of = relative(n, u);
    let count = n as f64;
    let mean = x.sum() / count;
    let mean_abs = x.mapv(f64::abs).sum() / count;
    let square = x.mapv(|v| v * v).sum() / count;
    let variance = x.mapv(|v| (v - mean).powi(2)).sum() / count;
    let inverse = 1.0 / (variance + eps).sqrt();
    // The mean: a sum and a division.
    let mean_off = of.map(|r| r * mean_abs + u * mean.abs());
    // The variance: of the centred squares, or of the squares less the mean's (the one-pass form), which
    // is the worse; its root's relative error is half of it, then an addition, a root, a division.
    let inverse_off = of.map(|r| 0.5 * (r + 3.0 * u) * square / (variance + eps) + 3.0 * u);
    (0..n)
        .map(|j| {
            let (w, b, d) = (weight[j], bias[j], x[j] - mean);
            let normal = (w * d * inverse).abs();
            // Centring, or folding the mean into the bias: both round terms of the size of x and mean.
            let centring = 2.0 * u * (x[j].abs() + mean.abs());
            let rest = u * (3.0 * normal + b.abs() + (w * d * inverse + b).abs());
            mean_off
                .zip(inverse_off, |m, r| (w * inverse).abs() * (m + centring) + normal * r + rest)
        })
        .collect()
}

/// Error of exp and tanh of a good library, in units of u: 2 ulp, an ulp being 2u.
const LIBRARY: f64 = 4.0;

/// One row of softmax over its visible scores.
pub fn softmax(scores: &[f64], u: f64) -> Vec<Pair> {
    let probs = ops::softmax(scores);
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let u = u + U64;
    let of = relative(scores.len(), u);
    // s − max is rounded, and exp makes a relative error of that; the sum sees the mean of those. Where exp
    // is exp2 of a product with log2(e), the constant and the product are rounded too.
    let shift = |s: f64| 3.0 * u * (s - max).abs();
    let mean_shift: f64 = probs.iter().zip(scores).map(|(p, s)| p * shift(*s)).sum();
    let each = |(p, s): (&f64, &f64)| {
        of.map(|sum| {
            let relative = shift(*s) + mean_shift + sum + (2.0 * LIBRARY + 1.0) * u;
            // Below the smallest normal number digits are lost, or all of them.
            p * relative + f64::from(f32::MIN_POSITIVE)
        })
    };
    probs.iter().zip(scores).map(each).collect()
}

/// gelu_new of one element.
pub fn gelu(x: f64, u: f64) -> Pair {
    let u = u + U64;
    let z = ops::gelu_inner(x);
    let t = z.tanh();
    // z takes some five roundings; tanh passes on (1 − t²) of that and adds the library's error, which
    // is relative to 1 where tanh is made of exponentials; 1 + t is rounded once.
    let inner = (1.0 - t * t) * z.abs() * 6.0 * u + LIBRARY * u + u * (1.0 + t);
    let off = 0.5 * x.abs() * inner + 3.0 * u * ops::gelu_new(x).abs();
    Pair { band: off, bound: off }
}

#[cfg(test)]
mod tests {
    use super::*;

    const U32: f64 = 1.0 / (1u32 << 24) as f64;

    #[test]
    fn the_band_lies_inside_the_proof_and_both_grow_with_n() {
        let (few, many) = (relative(2, U32), relative(768, U32));
        assert!(few.band <= few.bound && (few.bound / U32 - 2.0).abs() < 1e-3);
        assert!((many.band / U32 - 3.0 * 768f64.sqrt()).abs() < 1e-3);
        assert!(many.bound / U32 > 768.0 && many.bound / U32 < 768.1);
        assert_eq!(relative(1 << 24, U32).bound, f64::INFINITY);
    }

    #[test]
    fn an_honest_fp32_layer_norm_is_inside_and_another_eps_is_not() {
        let x: Vec<f32> = (0..768).map(|i| ((i * 37 % 101) as f32 - 50.0) / 700.0).collect();
        let sum: f32 = x.iter().sum();
        let mean = sum / 768.0;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 768.0;
        let wide: ndarray::Array1<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let (ones, zeros) = (ndarray::Array1::ones(768), ndarray::Array1::zeros(768));
        let bounds = layer_norm(wide.view(), ones.view(), zeros.view(), 1e-5, U32);
        let exact = |eps: f64| {
            let row = wide.view().insert_axis(ndarray::Axis(0));
            ops::layer_norm(row, ones.view(), zeros.view(), eps)
        };
        let (truth, other) = (exact(1e-5), exact(1.1e-5));
        let off =
            |i: usize| (f64::from((x[i] - mean) / (variance + 1e-5).sqrt()) - truth[[0, i]]).abs();
        assert!((0..768).all(|i| off(i) <= bounds[i].band));
        assert!((0..768).any(|i| (other[[0, i]] - truth[[0, i]]).abs() > bounds[i].bound));
    }

    #[test]
    fn an_honest_fp32_softmax_and_gelu_are_inside() {
        let scores: Vec<f32> = (0..200).map(|i| ((i * 31 % 97) as f32 - 40.0) / 4.0).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f32 = exp.iter().sum();
        let wide: Vec<f64> = scores.iter().map(|s| f64::from(*s)).collect();
        let (truth, bounds) = (ops::softmax(&wide), softmax(&wide, U32));
        for i in 0..scores.len() {
            assert!((f64::from(exp[i] / sum) - truth[i]).abs() <= bounds[i].band, "{i}");
        }
        // As tinygrad and GPUs compute exp: exact here but for the rounded argument of exp2.
        let exp2 = |s: &f32| f64::from((s - max) * std::f32::consts::LOG2_E).exp2();
        let low: Vec<f64> = scores.iter().map(exp2).collect();
        let sum: f64 = low.iter().sum();
        let beyond_one_rounding = |i: usize| {
            let d = (wide[i] - f64::from(max)).abs();
            (low[i] / sum - truth[i]).abs() > truth[i] * d * U32
        };
        assert!((0..scores.len()).any(beyond_one_rounding));
        for i in 0..scores.len() {
            assert!((low[i] / sum - truth[i]).abs() <= bounds[i].band, "{i}");
        }
        for i in -80..80 {
            let x = i as f32 / 8.0;
            let z = 0.797_884_6 * (x + 0.044715 * x * x * x);
            let got = 0.5 * x * (1.0 + z.tanh());
            let off = (f64::from(got) - ops::gelu_new(f64::from(x))).abs();
            assert!(off <= gelu(f64::from(x), U32).bound, "{x}");
        }
    }
}
