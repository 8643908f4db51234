//! Layer normalization.

use ndarray::{Array2, ArrayView2};

use super::parallel::for_each_chunk;
use super::simd::dispatched;

/// `(x − mean) / √(variance + eps) · gain + bias` over each row, with the biased variance.
///
/// Two passes, all in f64, rounded once: real GPT-2 has rows with a few channels in the thousands,
/// where f32 sums would lose the others.
///
/// - `x`: `[T, E]`, `gain`, `bias`: `[E]`
/// - result: `[T, E]`
pub fn layer_norm(x: ArrayView2<'_, f32>, gain: &[f32], bias: &[f32], eps: f64) -> Array2<f32> {
    let mut out = x.as_standard_layout().into_owned(); // [T, E]
    let (rows, width) = out.dim();
    let values = out.as_slice_mut().expect("standard layout");
    for_each_chunk(values, width, rows * width * 4, |_, row| {
        normalize_row(row, gain, bias, eps);
    });
    out
}

dispatched! {
    fn normalize_row(row: &mut [f32], gain: &[f32], bias: &[f32], eps: f64) {
        let n = row.len() as f64;
        let mean = sum(row, |x| x as f64) / n;
        let variance = sum(row, |x| (x as f64 - mean) * (x as f64 - mean)) / n;
        let scale = 1.0 / (variance + eps).sqrt();
        for ((x, &g), &b) in row.iter_mut().zip(gain).zip(bias) {
            *x = ((*x as f64 - mean) * scale).mul_add(g as f64, b as f64) as f32;
        }
    }
}

/// Sums `f` over the row in eight interleaved partial sums, added pairwise at the end.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let mut parts = [0.0; 8];
    let (eights, rest) = row.as_chunks::<8>();
    for eight in eights {
        for lane in 0..8 {
            parts[lane] += f(eight[lane]);
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        *part += f(x);
    }
    let [a, b, c, d, e, f, g, h] = parts;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::same_at_every_level;
    use ndarray::{Array2, array};

    #[test]
    fn a_row_by_hand() {
        // mean 2.5, biased variance 1.25
        let out = layer_norm(array![[1.0, 2.0, 3.0, 4.0]].view(), &[1.0; 4], &[0.0; 4], 0.0);
        let want = [-1.3416408, -0.4472136, 0.4472136, 1.3416408];
        for (got, want) in out.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let out = layer_norm(array![[7.0, 7.0]].view(), &[3.0; 2], &[0.5, -0.5], 1e-5);
        assert_eq!(out, array![[0.5, -0.5]], "a constant row is the bias");
    }

    #[test]
    fn an_outlier_channel_does_not_drown_the_others() {
        let x: Vec<f32> =
            (0..768).map(|i| if i == 138 { 3000.0 } else { (i as f32).sin() }).collect();
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / 768.0;
        let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / 768.0;
        let out = same_at_every_level(|| {
            let x = Array2::from_shape_vec((1, 768), x.clone()).unwrap();
            layer_norm(x.view(), &[1.0; 768], &[0.0; 768], 1e-5).into_raw_vec_and_offset().0
        });
        for (got, &x) in out.iter().zip(&x) {
            let want = ((x as f64 - mean) / (variance + 1e-5).sqrt()) as f32;
            assert!((got - want).abs() <= want.abs() * 2e-7, "{got} {want}");
        }
    }

    #[test]
    fn odd_widths_and_no_rows() {
        for width in [1, 3, 7, 8, 9, 17] {
            let x = Array2::from_shape_fn((2, width), |(t, e)| (t * 5 + e * e) as f32);
            let out = layer_norm(x.view(), &vec![1.0; width], &vec![0.0; width], 1e-5);
            assert!(out.rows().into_iter().all(|row| row.sum().abs() < 1e-4), "{width}");
        }
        assert_eq!(
            layer_norm(Array2::zeros((0, 4)).view(), &[1.0; 4], &[0.0; 4], 1e-5).dim(),
            (0, 4)
        );
    }
}
