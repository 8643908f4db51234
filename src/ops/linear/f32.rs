//! Products in f32.

use super::Inputs;
use crate::ops::simd::{self, Level, dispatched, with_rows};
use crate::packed::PANEL;

/// Inputs between two looks at where the rows end.
const STEP: usize = 8;

/// Adds `x[r] · panel` to `sums[r]`, input by input, by fused multiply-adds: one to six rows, all 64 outputs.
pub(super) fn accumulate(x: Inputs<'_>, panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
    match (simd::level(), sums.len()) {
        (_, 1) => one(x, panel, sums),
        (Level::Avx512, _) => wide(x, panel, sums),
        _ => narrow(x, panel, sums),
    }
}

dispatched! {
    fn one(x: Inputs<'_>, panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
        tiles::<1, PANEL>(x, panel, sums);
    }
}

dispatched! {
    /// All outputs at once.
    fn wide(x: Inputs<'_>, panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
        rows::<PANEL>(x, panel, sums);
    }
}

dispatched! {
    /// 16 outputs at a time, for CPUs with fewer or shorter registers.
    fn narrow(x: Inputs<'_>, panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
        rows::<16>(x, panel, sums);
    }
}

#[inline(always)]
fn rows<const W: usize>(x: Inputs<'_>, panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]]) {
    with_rows!(sums.len(), R => tiles::<R, W>(x, panel, sums));
}

#[inline(always)]
fn tiles<const R: usize, const W: usize>(
    x: Inputs<'_>,
    panel: &[[f32; PANEL]],
    sums: &mut [[f32; PANEL]],
) {
    let x = x.take::<R>(panel.len());
    let x = x.map(|row| bytemuck::cast_slice::<u32, f32>(row).as_chunks::<STEP>());
    let (steps, rest) = panel.as_chunks::<STEP>();
    for lane in (0..PANEL).step_by(W) {
        // The sums of W outputs, in registers.
        let mut own = [[0.0; W]; R];
        for r in 0..R {
            own[r].copy_from_slice(&sums[r][lane..lane + W]);
        }
        for (s, step) in steps.iter().enumerate() {
            let mut ahead = [&[0.0; STEP]; R];
            for r in 0..R {
                ahead[r] = &x[r].0[s];
            }
            for (k, w) in step.iter().enumerate() {
                let w: &[f32; W] = w[lane..lane + W].try_into().expect("W of 64");
                for r in 0..R {
                    for l in 0..W {
                        own[r][l] = ahead[r][k].mul_add(w[l], own[r][l]);
                    }
                }
            }
        }
        for (k, w) in rest.iter().enumerate() {
            let w: &[f32; W] = w[lane..lane + W].try_into().expect("W of 64");
            for r in 0..R {
                for l in 0..W {
                    own[r][l] = x[r].1[k].mul_add(w[l], own[r][l]);
                }
            }
        }
        for r in 0..R {
            sums[r][lane..lane + W].copy_from_slice(&own[r]);
        }
    }
}
