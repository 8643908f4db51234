//! The MLP's activation.

use super::exp::exp;
use super::parallel::for_each_chunk;
use super::simd::dispatched;
use crate::team::Team;

/// The activations that this engine has, under their meaning rather than their many names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU by its tanh approximation: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    Relu,
}

/// Elements that one thread takes at a time: small enough to share out, long enough to vectorize.
const CHUNK: usize = 3072;
/// A GELU costs about as much as this many multiply-adds.
const GELU_WORK: usize = 16;

/// Applies the activation to every element, in place.
pub fn activate(team: &Team, x: &mut [f32], activation: Activation) {
    let work = x.len() * GELU_WORK;
    for_each_chunk(team, x, CHUNK, work, |_, part| apply(part, activation));
}

/// The same on this thread.
pub fn apply(x: &mut [f32], activation: Activation) {
    match activation {
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
    }
}

dispatched! {
    /// `0.5·x·(1 + tanh u)`, u = √(2/π)·(x + 0.044715·x³), computed as the equal `x / (1 + e^(−2u))`:
    /// one exponential, and no cancellation where tanh is near −1.
    pub fn gelu_tanh(x: &mut [f32]) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        for x in x {
            let u = SQRT_2_OVER_PI * (*x * *x * *x).mul_add(0.044_715, *x);
            *x /= 1.0 + exp(-2.0 * u);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::same_at_every_level;

    fn float64(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + u.tanh())
    }

    #[test]
    fn gelu_is_within_3e_7_of_float64_everywhere() {
        let xs: Vec<f32> = (0..200_001).map(|i| (i as f32 - 100_000.0) * 1e-3 / 5.0).collect();
        let got = same_at_every_level(|| {
            let mut y = xs.clone();
            gelu_tanh(&mut y);
            y
        });
        for (&x, &y) in xs.iter().zip(&got) {
            let want = float64(x as f64);
            assert!(
                (y as f64 - want).abs() <= 3e-7 * want.abs().max(1.0),
                "gelu({x}) = {y}, {want}"
            );
        }
    }

    #[test]
    fn gelu_has_the_right_ends() {
        let mut x = [0.0, 1e4, -1e4, f32::INFINITY, f32::NAN, -3e38];
        gelu_tanh(&mut x);
        assert_eq!(x[..4], [0.0, 1e4, 0.0, f32::INFINITY]);
        assert!(x[4].is_nan());
    }

    #[test]
    fn relu_cuts_below_zero() {
        let mut x = [-1.0, 0.0, 2.5];
        activate(&Team::new(2).unwrap(), &mut x, Activation::Relu);
        assert_eq!(x, [0.0, 0.0, 2.5]);
    }
}
