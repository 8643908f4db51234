//! `e^x` in f32, written so that a loop over it becomes vector instructions.

/// Largest and smallest argument with a finite, normal result; beyond them ∞ and 0.
const HIGHEST: f32 = 88.0;
const LOWEST: f32 = -87.3;

/// 1.5 · 2²³: adding it leaves a float's nearest whole number in its lowest mantissa bits.
const ROUNDER: f32 = 12_582_912.0;

/// `e^x`, within 1.5 ulp. NaN stays NaN.
///
/// x = n·ln 2 + r with whole n and |r| ≤ ln 2 / 2, so e^x = 2ⁿ·e^r; ln 2 is taken in two parts to
/// keep r exact, and e^r is the polynomial of Cephes' `expf` (S. Moshier, public domain).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let e_r = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ: the low bits of `shifted` are n; moved into the exponent's place and biased by 127.
    let two_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let y = e_r * two_n;
    let y = if x < LOWEST { 0.0 } else { y };
    if x > HIGHEST { f32::INFINITY } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_one_and_a_half_ulp_of_float64() {
        let mut worst: f64 = 0.0;
        for i in 0..2_000_000 {
            let x = LOWEST + (HIGHEST - LOWEST) * (i as f32 / 2_000_000.0);
            let want = (x as f64).exp();
            let ulp = (want as f32).next_up() as f64 - (want as f32) as f64;
            worst = worst.max((exp(x) as f64 - want).abs() / ulp);
        }
        assert!(worst <= 1.5, "{worst} ulp");
    }

    #[test]
    fn ends_in_zero_infinity_and_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-1e4), exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((exp(1e4), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }
}
