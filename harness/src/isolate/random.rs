//! Random inputs that anybody can draw again.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
//! generators", OOPSLA; the constants are those of Vigna's `splitmix64.c`). Its state begins with the
//! first eight bytes, little endian, of the SHA-256 of the text `SEED:STEP:POINT`, so every tensor has
//! numbers of its own. An element is the sum of four uniform numbers less 2, times √3 and the point's
//! scale: mean 0, standard deviation the scale, never beyond 3.47 of them. Additions and multiplications
//! of float64 alone: the same bits on every machine. Probabilities are uniform numbers over their row's
//! sum.

use llorch_trace::{Point, Stage};

struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1), a multiple of 2⁻⁵³.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The standard deviation of a point's elements: about what GPT-2 has there.
pub fn scale(stage: Stage) -> f64 {
    match stage {
        // Before softmax and GELU: wide enough to reach the flat ends of both.
        Stage::Scores | Stage::Fc => 2.0,
        Stage::Embeddings | Stage::AttnOut | Stage::MlpOut => 0.5,
        _ => 1.0,
    }
}

/// The elements of a point at a step, in row-major order.
pub fn draw(seed: u64, step: usize, point: Point, shape: &[usize]) -> Vec<f64> {
    let digest = llorch_trace::hash::sha256_bytes(format!("{seed}:{step}:{point}").as_bytes());
    // The digest is 64 hexadecimal digits.
    let state = u64::from_str_radix(&digest[..16], 16).unwrap_or_default().swap_bytes();
    let mut generator = SplitMix64(state);
    let n = shape.iter().product();
    if point.stage == Stage::Probs {
        let (t, s) = (shape[1], shape[2]);
        let uniform: Vec<f64> = (0..n).map(|_| generator.uniform()).collect();
        return normalized(uniform, t, s);
    }
    let factor = 3f64.sqrt() * scale(point.stage);
    (0..n).map(|_| ((0..4).map(|_| generator.uniform()).sum::<f64>() - 2.0) * factor).collect()
}

/// Rows of [H, T, S] over their visible sum.
fn normalized(mut values: Vec<f64>, t: usize, s: usize) -> Vec<f64> {
    for (row, cells) in values.chunks_mut(s).enumerate() {
        let seen = crate::oracle::ops::visible(row % t, t, s).min(s);
        let sum: f64 = cells[..seen].iter().sum();
        cells[..seen].iter_mut().for_each(|v| *v /= sum);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        // The first outputs of splitmix64.c from state 1234567.
        let mut generator = SplitMix64(1_234_567);
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([generator.next(), generator.next(), generator.next()], expected);
    }

    #[test]
    fn the_draws_are_those_of_the_documented_python() {
        // docs/ISOLATION.md's function, run by Python: draw(7, 1, "h.0.mlp.fc", 3, 2.0).
        let expected = [-0.3975776390086389, 5.128788318052222, -3.563802565953412];
        assert_eq!(draw(7, 1, "h.0.mlp.fc".parse().unwrap(), &[3]), expected);
    }

    #[test]
    fn draws_have_their_scale_and_depend_on_seed_step_and_point() {
        let point: Point = "h.0.mlp.fc".parse().unwrap();
        let x = draw(1, 0, point, &[100, 100]);
        let mean = x.iter().sum::<f64>() / 1e4;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.08 && (variance - 4.0).abs() < 0.3, "{mean} {variance}");
        assert_eq!(x, draw(1, 0, point, &[100, 100]));
        assert_ne!(x[0], draw(2, 0, point, &[1])[0]);
        assert_ne!(x[0], draw(1, 1, point, &[1])[0]);
        assert_ne!(x[0], draw(1, 0, "h.1.mlp.fc".parse().unwrap(), &[1])[0]);
    }

    #[test]
    fn probabilities_sum_to_one_over_what_is_visible() {
        let probs = draw(0, 0, "h.0.attn.probs".parse().unwrap(), &[2, 3, 3]);
        for (row, cells) in probs.chunks(3).enumerate() {
            let sum: f64 = cells[..row % 3 + 1].iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{row}: {sum}");
        }
    }
}
