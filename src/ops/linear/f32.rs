//! Products in f32.

use super::{CHUNK, add_chunk};
use crate::ops::simd::{self, Level, dispatched, with_rows};
use crate::packed::PANEL;

/// `sums[r] = x[r] · panel`: one to six rows, `[K, R]`, all 64 outputs.
pub fn products(x: &[f32], panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
    match (simd::level(), sums.len()) {
        (_, 1) => one(x, panel, sums),
        (Level::Avx512, _) => wide(x, panel, sums),
        _ => narrow(x, panel, sums),
    }
}

dispatched! {
    fn one(x: &[f32], panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
        tiles::<1, PANEL>(x, panel, sums);
    }
}

dispatched! {
    /// All outputs at once.
    fn wide(x: &[f32], panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
        rows::<PANEL>(x, panel, sums);
    }
}

dispatched! {
    /// 16 outputs at a time, for CPUs with fewer or shorter registers.
    fn narrow(x: &[f32], panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
        rows::<16>(x, panel, sums);
    }
}

#[inline(always)]
fn rows<const W: usize>(x: &[f32], panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
    with_rows!(sums.len(), R => tiles::<R, W>(x, panel, sums));
}

#[inline(always)]
fn tiles<const R: usize, const W: usize>(
    x: &[f32],
    panel: &[[f32; PANEL]],
    sums: &mut [[f32; PANEL]],
) {
    let (x, _) = x.as_chunks::<R>(); // [K, R]
    for (x, panel) in x.chunks(CHUNK).zip(panel.chunks(CHUNK)) {
        for lane in (0..PANEL).step_by(W) {
            // The sums of one chunk for W outputs, in registers.
            let mut chunk = [[0.0f32; W]; R];
            for (x, w) in x.iter().zip(panel) {
                let w: &[f32; W] = w[lane..lane + W].try_into().expect("W of 64");
                for r in 0..R {
                    for i in 0..W {
                        chunk[r][i] = x[r].mul_add(w[i], chunk[r][i]);
                    }
                }
            }
            add_chunk(sums, lane, &chunk);
        }
    }
}
