//! Layer normalization.

use super::parallel::for_each_chunk;
use super::simd::dispatched;
use crate::team::Team;

/// `(x − mean) / √(variance + eps) · gain + bias` over each row, with the biased variance.
///
/// Two passes, all in f64, rounded once: real GPT-2 has rows with a few channels in the thousands,
/// where f32 sums would lose the others.
///
/// - `x`, `out`: `[T, E]` in rows, `gain`, `bias`: `[E]`
pub fn layer_norm(team: &Team, x: &[f32], gain: &[f32], bias: &[f32], eps: f64, out: &mut [f32]) {
    let width = gain.len();
    assert_eq!((x.len(), width), (out.len(), bias.len()));
    for_each_chunk(team, out, width, x.len() * 8, |t, out| {
        normalize_row(&x[t * width..][..width], gain, bias, eps, out);
    });
}

dispatched! {
    fn normalize_row(x: &[f32], gain: &[f32], bias: &[f32], eps: f64, out: &mut [f32]) {
        let n = x.len() as f64;
        let mean = sum(x, |x| x as f64) / n;
        let variance = sum(x, |x| (x as f64 - mean) * (x as f64 - mean)) / n;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((y, &x), &g), &b) in out.iter_mut().zip(x).zip(gain).zip(bias) {
            *y = ((x as f64 - mean) * scale).mul_add(g as f64, b as f64) as f32;
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

    fn normed(x: &[f32], gain: &[f32], bias: &[f32], eps: f64) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        layer_norm(&Team::new(2).unwrap(), x, gain, bias, eps, &mut out);
        out
    }

    #[test]
    fn a_row_by_hand() {
        // mean 2.5, biased variance 1.25
        let out = normed(&[1.0, 2.0, 3.0, 4.0], &[1.0; 4], &[0.0; 4], 0.0);
        let want = [-1.3416408, -0.4472136, 0.4472136, 1.3416408];
        for (got, want) in out.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let out = normed(&[7.0, 7.0], &[3.0; 2], &[0.5, -0.5], 1e-5);
        assert_eq!(out, [0.5, -0.5], "a constant row is the bias");
    }

    #[test]
    fn an_outlier_channel_does_not_drown_the_others() {
        let x: Vec<f32> =
            (0..768).map(|i| if i == 138 { 3000.0 } else { (i as f32).sin() }).collect();
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / 768.0;
        let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / 768.0;
        let out = same_at_every_level(|| normed(&x, &[1.0; 768], &[0.0; 768], 1e-5));
        for (got, &x) in out.iter().zip(&x) {
            let want = ((x as f64 - mean) / (variance + 1e-5).sqrt()) as f32;
            assert!((got - want).abs() <= want.abs() * 2e-7, "{got} {want}");
        }
    }

    #[test]
    fn odd_widths_and_no_rows() {
        for width in [1, 3, 7, 8, 9, 17] {
            let x: Vec<f32> =
                (0..2 * width).map(|i| (i / width * 5 + i % width * (i % width)) as f32).collect();
            let out = normed(&x, &vec![1.0; width], &vec![0.0; width], 1e-5);
            assert!(out.chunks(width).all(|row| row.iter().sum::<f32>().abs() < 1e-4), "{width}");
        }
        assert!(normed(&[], &[1.0; 4], &[0.0; 4], 1e-5).is_empty());
    }
}
