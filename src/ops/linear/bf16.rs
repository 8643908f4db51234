//! Products of numbers rounded to bf16, summed in f32.
//!
//! Two inputs at a time: the CPU's instruction for it (`vdpbf16ps`) adds the product of the odd one, then
//! that of the even one, each by a fused multiply-add; so does the portable form, and the two agree bit for bit (on
//! AMD Zen 4, on two million random triples), but for numbers below 1.2e-38, which the instruction takes for 0.

use super::Inputs;
use crate::ops::simd::{self, Level, dispatched, with_rows};
use crate::packed::PANEL;

/// The nearest bf16, ties to even; NaN stays NaN. By hand: `half` tells NaN apart by a branch, which no vector
/// instruction does.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits << 1 > 0xff00_0000 { bits >> 16 | 0x40 } else { nearest }
}

/// Two neighbouring inputs in one word, the even one in the lower half.
#[inline(always)]
pub fn pair(even: f32, odd: f32) -> u32 {
    round(even) | round(odd) << 16
}

/// The even input and the odd one of a word.
#[inline(always)]
pub fn halves(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}

dispatched! {
    /// Rounds a row of K inputs to ⌈K/2⌉ pairs.
    pub fn pairs(x: &[f32], out: &mut [u32]) {
        let (twos, rest) = x.as_chunks::<2>();
        for (out, two) in out.iter_mut().zip(twos) {
            *out = pair(two[0], two[1]);
        }
        if let ([last], Some(out)) = (rest, out.last_mut()) {
            *out = round(*last);
        }
    }
}

/// Adds `x[r] · panel` to `sums[r]`, pair by pair: one to six rows of pairs, all 64 outputs.
pub(super) fn accumulate(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
    #[cfg(target_arch = "x86_64")]
    if simd::level() == Level::Avx512 && native::available() {
        return native::accumulate(x, panel, sums);
    }
    match (simd::level(), sums.len()) {
        (Level::Avx512, _) => wide(x, panel, sums),
        _ => narrow(x, panel, sums),
    }
}

dispatched! {
    fn wide(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        rows::<PANEL>(x, panel, sums);
    }
}

dispatched! {
    fn narrow(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        rows::<16>(x, panel, sums);
    }
}

#[inline(always)]
fn rows<const W: usize>(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
    with_rows!(sums.len(), R => tiles::<R, W>(x, panel, sums));
}

#[inline(always)]
fn tiles<const R: usize, const W: usize>(
    x: Inputs<'_>,
    panel: &[[u32; PANEL]],
    sums: &mut [[f32; PANEL]],
) {
    let x = x.take::<R>(panel.len());
    for lane in (0..PANEL).step_by(W) {
        let mut own = [[0.0; W]; R];
        for r in 0..R {
            own[r].copy_from_slice(&sums[r][lane..lane + W]);
        }
        for (k, w) in panel.iter().enumerate() {
            let w: &[u32; W] = w[lane..lane + W].try_into().expect("W of 64");
            for r in 0..R {
                let (even, odd) = halves(x[r][k]);
                for l in 0..W {
                    let (w_even, w_odd) = halves(w[l]);
                    own[r][l] = even.mul_add(w_even, odd.mul_add(w_odd, own[r][l]));
                }
            }
        }
        for r in 0..R {
            sums[r][lane..lane + W].copy_from_slice(&own[r]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_as_the_standard_library_of_halves_does_it() {
        let mut x: Vec<f32> =
            (0..100_001u32).map(|i| f32::from_bits(i.wrapping_mul(42_949))).collect();
        x.extend([
            0.0,
            -0.0,
            1.0,
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            1e-40,
            1.003_906_2,
        ]);
        let mut out = vec![0; x.len().div_ceil(2)];
        pairs(&x, &mut out);
        for (i, x) in x.iter().enumerate() {
            let due = half::bf16::from_f32(*x).to_bits();
            assert_eq!((out[i / 2] >> (16 * (i % 2))) as u16, due, "{x:e} {i}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod native {
    //! The same by `vdpbf16ps`, which the compiler does not find by itself.

    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::super::{Inputs, registers};
    use super::{PANEL, with_rows};

    /// Pairs between two looks at where the rows end.
    const STEP: usize = 8;

    pub fn available() -> bool {
        is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f")
    }

    pub fn accumulate(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        assert!(available());
        // SAFETY: the CPU has both instruction sets.
        unsafe { with_rows!(sums.len(), R => tiles::<R>(x, panel, sums)) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn tiles<const R: usize>(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        let x = x.take::<R>(panel.len());
        let mut own = [[_mm512_setzero_ps(); 4]; R];
        for r in 0..R {
            for q in 0..4 {
                own[r][q] = floats(&sums[r].as_chunks().0[q]);
            }
        }
        // Not a function: the sums would have to leave their registers for it.
        macro_rules! add {
            ($w:expr, $r:ident => $x:expr) => {
                let w = registers($w);
                for $r in 0..R {
                    let x = as_pairs(_mm512_set1_epi32($x.cast_signed()));
                    for q in 0..4 {
                        own[$r][q] = _mm512_dpbf16_ps(own[$r][q], x, as_pairs(w[q]));
                    }
                }
            };
        }
        let (steps, rest) = panel.as_chunks::<STEP>();
        for (s, step) in steps.iter().enumerate() {
            let mut words = [&[0; STEP]; R];
            for r in 0..R {
                words[r] = &x[r].as_chunks().0[s];
            }
            for k in 0..STEP {
                add!(&step[k], r => words[r][k]);
            }
        }
        for (k, w) in rest.iter().enumerate() {
            add!(w, r => x[r][steps.len() * STEP + k]);
        }
        for (sums, own) in sums.iter_mut().zip(own) {
            for (sums, own) in sums.as_chunks_mut::<16>().0.iter_mut().zip(own) {
                // SAFETY: there is room for 16 floats.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), own) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn floats(floats: &[f32; 16]) -> __m512 {
        // SAFETY: there are 16 floats.
        unsafe { _mm512_loadu_ps(floats.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn as_pairs(words: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes in which every pattern of bits is a value.
        unsafe { std::mem::transmute(words) }
    }
}
