//! Softmax: the causal one of attention, in f32, and that over the vocabulary, in f64.

use ndarray::Array3;

use super::exp::exp;
use super::parallel::for_each_chunk;
use super::simd::dispatched;
use crate::team::Team;

/// Softmax of each row over the keys that its query sees; masked cells become exactly 0. In place.
///
/// `scores`: `[H, T, S]`; query t is the (S−T+t)-th token, so it sees keys 0 to S−T+t. What stands in
/// the masked cells is not read: it cannot change a sum.
pub fn causal_softmax(team: &Team, scores: &mut Array3<f32>) {
    const WORK: usize = 24; // an exponential and its share of the sums, in multiply-adds
    let (_, queries, keys) = scores.dim();
    let work = scores.len() * WORK;
    let values = scores.as_slice_mut().expect("scores are in standard layout");
    for_each_chunk(team, values, queries * keys, work, |_, head| {
        for (t, row) in head.chunks_exact_mut(keys).enumerate() {
            let (visible, masked) = row.split_at_mut(keys - queries + t + 1);
            softmax(visible);
            masked.fill(0.0);
        }
    });
}

dispatched! {
    /// Softmax of one row, in place: exponentials in f32, their sum in f64 in eight interleaved parts.
    pub fn softmax(row: &mut [f32]) {
        let mut highest = [f32::NEG_INFINITY; 16];
        let (sixteens, rest) = row.as_chunks::<16>();
        for sixteen in sixteens {
            for lane in 0..16 {
                highest[lane] = if sixteen[lane] > highest[lane] { sixteen[lane] } else { highest[lane] };
            }
        }
        let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        for x in row.iter_mut() {
            *x = exp(*x - highest);
        }
        let mut parts = [0.0f64; 8];
        let (eights, rest) = row.as_chunks::<8>();
        for eight in eights {
            for lane in 0..8 {
                parts[lane] += eight[lane] as f64;
            }
        }
        for (part, &x) in parts.iter_mut().zip(rest) {
            *part += x as f64;
        }
        let [a, b, c, d, e, f, g, h] = parts;
        let scale = 1.0 / (((a + e) + (c + g)) + ((b + f) + (d + h)));
        for x in row.iter_mut() {
            *x = (*x as f64 * scale) as f32;
        }
    }
}

/// Softmax of `logits / temperature` in f64. −∞ gives 0; a NaN makes all NaN.
pub fn softmax_f64(logits: &[f32], temperature: f64) -> Vec<f64> {
    let highest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }) as f64;
    let mut probabilities: Vec<f64> =
        logits.iter().map(|&x| ((x as f64 - highest) / temperature).exp()).collect();
    let total: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|p| *p /= total);
    probabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::same_at_every_level;

    #[test]
    fn agrees_with_float64_at_any_length() {
        for n in [1, 2, 7, 8, 15, 16, 17, 100, 1024] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
            let got = same_at_every_level(|| {
                let mut y = x.clone();
                softmax(&mut y);
                y
            });
            let highest = x.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            for ((x, got), want) in x.iter().zip(got).zip(softmax_f64(&x, 1.0)) {
                // The difference from the highest is rounded to f32 before its exponential.
                let bound = want * (2e-7 + f64::from(highest - x) * 6e-8);
                assert!((f64::from(got) - want).abs() <= bound, "{n}: {got} {want}");
            }
        }
    }

    #[test]
    fn masked_cells_are_zero_and_never_read() {
        // [H=1, T=2, S=3]: one cached key, two new
        let mut scores = Array3::from_elem((1, 2, 3), 0.0f32);
        scores[[0, 0, 2]] = f32::NAN;
        causal_softmax(&Team::new(1).unwrap(), &mut scores);
        assert_eq!(scores.as_slice().unwrap(), [0.5, 0.5, 0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn survives_large_scores_and_shows_nan() {
        let mut x = [1e4, -1e4, 1e4];
        softmax(&mut x);
        assert_eq!(x, [0.5, 0.0, 0.5]);
        let mut x = [1.0, f32::NAN];
        softmax(&mut x);
        assert!(x.iter().all(|p| p.is_nan()));
        let mut empty: [f32; 0] = [];
        softmax(&mut empty);
    }

    #[test]
    fn temperature_and_filtered_logits() {
        let p = softmax_f64(&[2.0, f32::NEG_INFINITY, 0.0], 2.0);
        assert_eq!(p[1], 0.0);
        assert!((p[0] / p[2] - 1f64.exp()).abs() < 1e-12);
    }
}
