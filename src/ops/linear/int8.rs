//! Products of numbers rounded to eight bits, summed in f32.
//!
//! 64 inputs are a group. A group of weights of one output, and a group of one token's inputs, are whole numbers from
//! −127 to 127 and a scale: the largest of the group is 127 times it. The products of a group are summed as whole numbers,
//! exactly; then `sum · (scale of the inputs · scale of the weights)` is added to the output by a fused multiply-add, group
//! after group. So there is nothing that the width of a register could change.
//!
//! The CPU's instruction for it (`vpdpbusd`) multiplies bytes without a sign by bytes with one, four at a time: weights
//! are kept with 128 added, and a group's sum begins at −128 · Σ inputs.

use super::Inputs;
use crate::ops::simd::{self, Level, dispatched, with_rows};
use crate::packed::PANEL;

/// Inputs that share a scale.
pub const GROUP: usize = 64;
/// Words of four weights of a group.
const WORDS: usize = GROUP / 4;
/// Rows of a panel that a group takes: its scales, then its words.
pub const PANEL_ROWS: usize = 1 + WORDS;
/// Words of a token that a group takes: its scale, what its sums begin with, then its inputs.
pub const INPUT_WORDS: usize = 2 + WORDS;
/// Members that are computed side by side.
const LANES: usize = 16;
/// A group without anything larger is taken for zeros: the reciprocal of its scale would be infinite.
const SMALLEST: f32 = 1e-30;

/// The scale of a group, and what its members are multiplied with to be whole numbers. NaN where a member isn't finite: so is
/// then every output that reads it.
#[inline(always)]
fn scales(group: &[f32; GROUP]) -> (f32, f32) {
    // Sizes are in the order of their bits, those that aren't finite above all others.
    let mut largest = [0; LANES];
    for x in group.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            largest[l] = x[l].abs().to_bits().max(largest[l]);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    match () {
        _ if !largest.is_finite() => (f32::NAN, 0.0),
        _ if largest < SMALLEST => (0.0, 0.0),
        _ => (largest / 127.0, 127.0 / largest),
    }
}

/// 1.5 · 2²³: a number from −127 to 127 that is added to it is rounded to the nearest whole one, ties to even, which is
/// then the difference of their bits.
const TO_WHOLE: f32 = 12_582_912.0;

/// The members of a group as whole numbers: words of four neighbours, the first in the lowest byte, `more` added to each;
/// and the sum of all without that. (A conversion by `as` would ask each whether it is a number.)
#[inline(always)]
fn whole(group: &[f32; GROUP], reciprocal: f32, more: i32) -> ([u32; WORDS], i32) {
    let mut bytes = [[0; LANES]; GROUP / LANES];
    let mut sums = [0i32; LANES];
    for (x, bytes) in group.as_chunks::<LANES>().0.iter().zip(&mut bytes) {
        for l in 0..LANES {
            let bits = (x[l] * reciprocal + TO_WHOLE).to_bits();
            let q = bits.wrapping_sub(TO_WHOLE.to_bits()).cast_signed();
            bytes[l] = q.wrapping_add(more) as u8;
            // Wrapping: where the scale is NaN these are no numbers either.
            sums[l] = sums[l].wrapping_add(q);
        }
    }
    let words: [u32; WORDS] = bytemuck::cast(bytes);
    (words.map(u32::from_le), sums.into_iter().fold(0, i32::wrapping_add))
}

/// Fills a panel's rows for one group of K' ≤ 64 inputs, `[K', 64]`.
pub fn pack_group(weights: &[[f32; PANEL]], out: &mut [[u32; PANEL]]) {
    for lane in 0..PANEL {
        let mut column = [0.0; GROUP];
        for (x, row) in column.iter_mut().zip(weights) {
            *x = row[lane];
        }
        let (scale, reciprocal) = scales(&column);
        out[0][lane] = scale.to_bits();
        let (words, _) = whole(&column, reciprocal, 128);
        for (out, word) in out[1..].iter_mut().zip(words) {
            out[lane] = word;
        }
    }
}

/// The weights of one output in a group, as they are multiplied.
pub fn unpack_group(rows: &[[u32; PANEL]], lane: usize, out: &mut [f32]) {
    let scale = f32::from_bits(rows[0][lane]);
    for (four, row) in out.chunks_mut(4).zip(&rows[1..]) {
        for (x, byte) in four.iter_mut().zip(row[lane].to_le_bytes()) {
            *x = (i32::from(byte) - 128) as f32 * scale;
        }
    }
}

dispatched! {
    /// A row of K inputs as ⌈K/64⌉ groups of words.
    pub fn quantize(x: &[f32], out: &mut [u32]) {
        let (whole, rest) = x.as_chunks::<GROUP>();
        let (out, _) = out.as_chunks_mut::<INPUT_WORDS>();
        for (group, out) in whole.iter().zip(&mut *out) {
            quantize_group(group, out);
        }
        if let Some(out) = out.get_mut(whole.len()) {
            let mut group = [0.0; GROUP];
            group[..rest.len()].copy_from_slice(rest);
            quantize_group(&group, out);
        }
    }
}

#[inline(always)]
fn quantize_group(group: &[f32; GROUP], out: &mut [u32; INPUT_WORDS]) {
    let (scale, reciprocal) = scales(group);
    let (words, sum) = whole(group, reciprocal, 0);
    out[0] = scale.to_bits();
    out[1] = sum.wrapping_mul(-128).cast_unsigned();
    out[2..].copy_from_slice(&words);
}

/// Adds `x[r] · panel` to `sums[r]`, group by group: one to six rows of ⌈K/64⌉ · 18 words, all 64 outputs.
pub(super) fn accumulate(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
    #[cfg(target_arch = "x86_64")]
    if simd::level() == Level::Avx512 && native::available() {
        return native::accumulate(x, panel, sums);
    }
    portable(x, panel, sums);
}

/// As many groups of each row as the panel has.
#[inline(always)]
fn groups<'a, const R: usize>(
    x: Inputs<'a>,
    panel: &[[u32; PANEL]],
) -> [&'a [[u32; INPUT_WORDS]]; R] {
    x.take::<R>(panel.len() / PANEL_ROWS * INPUT_WORDS).map(|row| row.as_chunks().0)
}

dispatched! {
    fn portable(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        with_rows!(sums.len(), R => tiles::<R>(x, panel, sums));
    }
}

#[inline(always)]
fn tiles<const R: usize>(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
    const W: usize = 16;
    let x = groups::<R>(x, panel);
    for (g, panel) in panel.as_chunks::<PANEL_ROWS>().0.iter().enumerate() {
        let x = x.map(|row| &row[g]);
        for lane in (0..PANEL).step_by(W) {
            let mut group = [[0i32; W]; R];
            for r in 0..R {
                group[r] = [x[r][1].cast_signed(); W];
            }
            for (k, w) in panel[1..].iter().enumerate() {
                let w: &[u32; W] = w[lane..lane + W].try_into().expect("W of 64");
                for r in 0..R {
                    let x = x[r][2 + k].to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
                    for l in 0..W {
                        let w = w[l].to_le_bytes().map(i32::from);
                        group[r][l] += w[0] * x[0] + w[1] * x[1] + (w[2] * x[2] + w[3] * x[3]);
                    }
                }
            }
            for r in 0..R {
                let scale = f32::from_bits(x[r][0]);
                for l in 0..W {
                    let scale = scale * f32::from_bits(panel[0][lane + l]);
                    let sum = &mut sums[r][lane + l];
                    *sum = (group[r][l] as f32).mul_add(scale, *sum);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod native {
    //! The same by `vpdpbusd`, which the compiler does not find by itself.

    use std::arch::x86_64::{
        __m512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::super::{Inputs, registers};
    use super::{PANEL, PANEL_ROWS, groups, with_rows};

    pub fn available() -> bool {
        is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f")
    }

    pub fn accumulate(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        assert!(available());
        // SAFETY: the CPU has both instruction sets.
        unsafe { with_rows!(sums.len(), R => tiles::<R>(x, panel, sums)) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn tiles<const R: usize>(x: Inputs<'_>, panel: &[[u32; PANEL]], sums: &mut [[f32; PANEL]]) {
        let x = groups::<R>(x, panel);
        for (g, panel) in panel.as_chunks::<PANEL_ROWS>().0.iter().enumerate() {
            let x = x.map(|row| &row[g]);
            let mut group = [[_mm512_set1_epi32(0); 4]; R];
            for r in 0..R {
                group[r] = [_mm512_set1_epi32(x[r][1].cast_signed()); 4];
            }
            for (k, w) in panel[1..].iter().enumerate() {
                let w = registers(w);
                for r in 0..R {
                    let x = _mm512_set1_epi32(x[r][2 + k].cast_signed());
                    for q in 0..4 {
                        group[r][q] = _mm512_dpbusd_epi32(group[r][q], w[q], x);
                    }
                }
            }
            let (scales, _) = panel[0].as_chunks::<16>();
            for r in 0..R {
                let scale = _mm512_set1_ps(f32::from_bits(x[r][0]));
                let (sums, _) = sums[r].as_chunks_mut::<16>();
                for q in 0..4 {
                    let scale = _mm512_mul_ps(scale, floats(&scales[q].map(f32::from_bits)));
                    let sum = _mm512_cvtepi32_ps(group[r][q]);
                    let sum = _mm512_fmadd_ps(sum, scale, floats(&sums[q]));
                    // SAFETY: there is room for 16 floats.
                    unsafe { _mm512_storeu_ps(sums[q].as_mut_ptr(), sum) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn floats(floats: &[f32; 16]) -> __m512 {
        // SAFETY: there are 16 floats.
        unsafe { _mm512_loadu_ps(floats.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_stays_none() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.5; GROUP + 3];
            x[GROUP + 1] = bad;
            let mut out = [0; 2 * INPUT_WORDS];
            quantize(&x, &mut out);
            assert!(f32::from_bits(out[0]).is_finite());
            assert!(f32::from_bits(out[INPUT_WORDS]).is_nan(), "{bad}");
        }
    }

    #[test]
    fn a_group_is_off_by_half_a_step_at_most_and_its_largest_by_nothing() {
        let weights: Vec<[f32; PANEL]> = (0..GROUP)
            .map(|k| std::array::from_fn(|n| ((k * 37 + n * 11) as f32).sin() * (n as f32 + 1e-6)))
            .collect();
        let mut rows = [[0; PANEL]; PANEL_ROWS];
        pack_group(&weights, &mut rows);
        for lane in 0..PANEL {
            let mut out = [0.0; GROUP];
            unpack_group(&rows, lane, &mut out);
            let largest = weights.iter().map(|row| row[lane].abs()).fold(0.0, f32::max);
            for (x, row) in out.iter().zip(&weights) {
                assert!((x - row[lane]).abs() <= largest / 127.0 * 0.500_01, "{x} {}", row[lane]);
            }
        }
        pack_group(&[[0.0; PANEL]; GROUP], &mut rows);
        let mut out = [1.0; GROUP];
        unpack_group(&rows, 0, &mut out);
        assert_eq!(out, [0.0; GROUP]);
    }
}
