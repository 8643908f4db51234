//! The linear layer: `x · W + b`; the head is one without a bias.
//!
//! Every output element is summed in this order, however many tokens and threads there are:
//! over chunks of `CHUNK` inputs in order; inside a chunk, fused multiply-adds from 0 in the order
//! of the inputs; the chunks' sums added in order; the bias last.
//!
//! Weights come in panels of 64 outputs ([`Packed`]), and one kernel computes some tokens' outputs of one panel,
//! all sums in registers: with one token it reads weights as fast as memory gives them, with six it
//! multiplies as fast as the registers allow (docs/PERFORMANCE.md).

mod bf16;
mod f32;
pub mod int8;

use std::borrow::Cow;

use super::activation::{self, Activation};
use super::parallel::{Tile, for_each_chunk, for_each_tile};
use super::simd::{ROWS, dispatched};
use crate::packed::{Format, PANEL, Packed, Panel};
use crate::team::Team;

pub use bf16::{halves, pair, pairs};

/// Inputs summed before the sum is added to the output: bounds the rounding error of long sums.
const CHUNK: usize = 256;
/// Tokens of one piece of work: their inputs stay in the cache beside a panel.
const PIECE: usize = 32 * ROWS;

/// What becomes of outputs before they leave the cache.
#[derive(Debug, Clone, Copy)]
pub enum Then {
    /// They replace what stands there.
    Store,
    /// They are added to what stands there.
    Add,
    /// They go through an activation.
    Activate(Activation),
}

/// `x · weight + bias`, and `then` what, in `out`.
///
/// - `x`: `[T, K]` in rows; `weight`: K inputs, N outputs; `bias`: `[N]`, or empty for none
/// - `out`: `[T, N]` in rows
pub fn linear(team: &Team, x: &[f32], weight: &Packed, bias: &[f32], then: Then, out: &mut [f32]) {
    let (inputs, outputs) = (weight.inputs(), weight.outputs());
    let tokens = x.len() / inputs.max(1);
    assert_eq!((x.len(), out.len()), (tokens * inputs, tokens * outputs), "[{inputs}, {outputs}]");
    assert!(bias.is_empty() || bias.len() == outputs, "{} biases, {outputs} outputs", bias.len());
    // Where weights are rounded, so are the inputs that they are multiplied by.
    type Round = fn(&[f32], &mut [u32]);
    let rounded = |words: usize, round: Round| {
        let mut rounded = vec![0u32; tokens * words];
        for_each_chunk(team, &mut rounded, words.max(1), x.len() * 4, |t, out| {
            round(&x[t * inputs..(t + 1) * inputs], out);
        });
        Cow::Owned(rounded)
    };
    // Words of a token, and rows of a panel that are a chunk.
    let (x, words, chunk) = match weight.format() {
        Format::F32 => (Cow::Borrowed(bytemuck::cast_slice(x)), inputs, CHUNK),
        Format::Bf16 => {
            let words = inputs.div_ceil(2);
            (rounded(words, bf16::pairs), words, CHUNK / 2)
        }
        Format::Int8 => {
            let words = inputs.div_ceil(int8::GROUP) * int8::INPUT_WORDS;
            (rounded(words, int8::quantize), words, usize::MAX) // it adds group by group
        }
    };
    let work = tokens * inputs * outputs;
    for_each_tile(team, out, outputs.max(1), (PIECE, PANEL), work, |mut tile: Tile<'_>| {
        let panel = weight.panel(tile.columns.start / PANEL);
        let bias = if bias.is_empty() { bias } else { &bias[tile.columns.clone()] };
        let tokens = tile.rows.clone();
        let x = Inputs::new(&x[tokens.start * words..], words);
        in_chunks(panel, chunk, x, tokens.len(), |t, y| {
            finish(y, bias, then, tile.row(tokens.start + t));
        });
    });
}

dispatched! {
    fn finish(y: &mut [f32; PANEL], bias: &[f32], then: Then, out: &mut [f32]) {
        match <&[f32; PANEL]>::try_from(bias) {
            Ok(bias) => add(y, bias),
            Err(_) => add(y, bias),
        }
        if let Then::Activate(activation) = then {
            activation::apply(y, activation);
        }
        // Of a length that the compiler knows, where it is that one.
        match (<&mut [f32; PANEL]>::try_from(&mut *out), then) {
            (Ok(out), Then::Add) => add(out, y),
            (Ok(out), _) => *out = *y,
            (Err(_), Then::Add) => add(out, y),
            (Err(_), _) => out.copy_from_slice(&y[..out.len()]),
        }
    }
}

dispatched! {
    fn add_rows(sums: &mut [[f32; PANEL]], more: &[[f32; PANEL]]) {
        sums.iter_mut().zip(more).for_each(|(sums, more)| add(sums, more));
    }
}

/// Adds as much of `more` as there is of both.
#[inline(always)]
fn add(sums: &mut [f32], more: &[f32]) {
    sums.iter_mut().zip(more).for_each(|(y, x)| *y += x);
}

/// Adds the sums of chunks of inputs, each from 0, in order, and hands out those of each of the `rows`. A chunk of the panel
/// is read for all of them before the next one is, so that it stays in the cache however many inputs there are.
fn in_chunks(
    panel: Panel<'_>,
    chunk: usize,
    x: Inputs<'_>,
    rows: usize,
    mut end: impl FnMut(usize, &mut [f32; PANEL]),
) {
    let (mut few, mut many) = ([[0.0; PANEL]; ROWS], Vec::new());
    let sums = if rows <= ROWS {
        &mut few[..rows]
    } else {
        many.resize(rows, [0.0; PANEL]);
        &mut many[..]
    };
    for begin in (0..panel.height()).step_by(chunk) {
        let until = panel.height().min(begin.saturating_add(chunk));
        let last = until == panel.height();
        for (g, sums) in sums.chunks_mut(ROWS).enumerate() {
            let (x, panel) = (x.after(g * ROWS).from(begin), panel.rows(begin..until));
            if begin == 0 {
                accumulate(x, panel, sums);
            } else {
                let mut own = [[0.0; PANEL]; ROWS];
                accumulate(x, panel, &mut own[..sums.len()]);
                add_rows(sums, &own);
            }
            if last {
                sums.iter_mut().enumerate().for_each(|(r, sums)| end(g * ROWS + r, sums));
            }
        }
    }
}

/// Adds `x[r] · panel` to `sums[r]`, one row of the panel after another: one to six rows, all 64 outputs.
///
/// `x`: as many words of each row as the panel has rows; for int8 18 to each 17.
pub fn accumulate(x: Inputs<'_>, panel: Panel<'_>, sums: &mut [[f32; PANEL]]) {
    match panel {
        Panel::F32(w) => f32::accumulate(x, w, sums),
        Panel::Bf16(w) => bf16::accumulate(x, w, sums),
        Panel::Int8(w) => int8::accumulate(x, w, sums),
    }
}

/// One or more rows of words that a kernel reads, `stride` apart; of the last there may be less.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    words: &'a [u32],
    stride: usize,
}

impl<'a> Inputs<'a> {
    pub fn new(words: &'a [u32], stride: usize) -> Inputs<'a> {
        Inputs { words, stride }
    }

    /// The same without the first words of each.
    fn from(self, first: usize) -> Inputs<'a> {
        Inputs { words: &self.words[first..], stride: self.stride }
    }

    /// Those after the first `rows`.
    fn after(self, rows: usize) -> Inputs<'a> {
        Inputs { words: &self.words[rows * self.stride..], stride: self.stride }
    }

    /// The first `width` words of each.
    #[inline(always)]
    fn take<const R: usize>(self, width: usize) -> [&'a [u32]; R] {
        std::array::from_fn(|r| &self.words[r * self.stride..][..width])
    }
}

/// A row of a panel in registers.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn registers(row: &[u32; PANEL]) -> [std::arch::x86_64::__m512i; 4] {
    let [a, b, c, d] = row.as_chunks::<16>().0 else { unreachable!("64 is four times 16") };
    let load = |words: &[u32; 16]| {
        // SAFETY: there are 16 words.
        unsafe { std::arch::x86_64::_mm512_loadu_si512(words.as_ptr().cast()) }
    };
    [load(a), load(b), load(c), load(d)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::same_at_every_level;
    use crate::packed::Layout;
    use ndarray::Array2;
    use proptest::prelude::*;

    /// The order of summation, element by element, as the head of this file states it.
    fn by_definition(x: &Array2<f32>, weight: &Array2<f32>, bias: &[f32]) -> Vec<f32> {
        let element = |(t, n): (usize, usize)| {
            let mut total = 0.0f32;
            for begin in (0..x.ncols()).step_by(CHUNK) {
                let mut sum = 0.0f32;
                for k in begin..x.ncols().min(begin + CHUNK) {
                    sum = x[[t, k]].mul_add(weight[[k, n]], sum);
                }
                total += sum;
            }
            total + bias.get(n).copied().unwrap_or(0.0)
        };
        Array2::from_shape_fn((x.nrows(), weight.ncols()), element).into_raw_vec_and_offset().0
    }

    /// Numbers in [-1, 1) whose sums depend on the order of summation.
    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        let mut rng = crate::sampler::SplitMix64::new(seed);
        Array2::from_shape_simple_fn((rows, columns), || (rng.next_unit() * 2.0 - 1.0) as f32)
    }

    fn multiply(team: &Team, x: &Array2<f32>, weight: &Packed, bias: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.nrows() * weight.outputs()];
        linear(team, x.as_slice().unwrap(), weight, bias, Then::Store, &mut out);
        out
    }

    #[test]
    fn every_shape_sums_in_the_stated_order() {
        let team = Team::new(2).unwrap();
        let shapes =
            [(1, 1), (3, 5), (7, 97), (64, 64), (128, 384), (257, 200), (260, 192), (600, 300)];
        for (inputs, outputs) in shapes {
            let weight = random(inputs, outputs, 1);
            let bias = random(1, outputs, 2).into_raw_vec_and_offset().0;
            let packed = Packed::from_matrix(weight.view(), Layout::InputsByOutputs, Format::F32);
            for tokens in [0, 1, 2, 3, 4, 5, 6, 7, 13, 33, 200] {
                let x = random(tokens, inputs, 3);
                for bias in [&bias[..], &[]] {
                    let got = same_at_every_level(|| multiply(&team, &x, &packed, bias));
                    let same = got == by_definition(&x, &weight, bias);
                    assert!(same, "[{tokens}, {inputs}] [{inputs}, {outputs}]");
                }
            }
        }
    }

    /// In bf16: operands rounded, two inputs at a time, the odd one first.
    fn by_definition_in_bf16(x: &Array2<f32>, weight: &Array2<f32>) -> Vec<f32> {
        let rounded = |a: &Array2<f32>| a.mapv(|x| half::bf16::from_f32(x).to_f32());
        let (x, weight) = (rounded(x), rounded(weight));
        let element = |(t, n): (usize, usize)| {
            let mut total = 0.0f32;
            for begin in (0..x.ncols()).step_by(CHUNK) {
                let mut sum = 0.0f32;
                for even in (begin..x.ncols().min(begin + CHUNK)).step_by(2) {
                    if even + 1 < x.ncols() {
                        sum = x[[t, even + 1]].mul_add(weight[[even + 1, n]], sum);
                    }
                    sum = x[[t, even]].mul_add(weight[[even, n]], sum);
                }
                total += sum;
            }
            total
        };
        Array2::from_shape_fn((x.nrows(), weight.ncols()), element).into_raw_vec_and_offset().0
    }

    /// In int8: whole numbers and scales of 64 inputs each, whose products are summed exactly.
    fn by_definition_in_int8(x: &Array2<f32>, weight: &Array2<f32>) -> Vec<f32> {
        let group = |values: Vec<f32>| {
            let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            let whole = values.iter().map(|x| (x * (127.0 / largest)).round_ties_even() as i64);
            (largest / 127.0, whole.collect::<Vec<_>>())
        };
        let element = |(t, n): (usize, usize)| {
            let mut total = 0.0f32;
            for begin in (0..x.ncols()).step_by(int8::GROUP) {
                let inputs = begin..x.ncols().min(begin + int8::GROUP);
                let (x_scale, x) = group(inputs.clone().map(|k| x[[t, k]]).collect());
                let (w_scale, w) = group(inputs.map(|k| weight[[k, n]]).collect());
                let sum: i64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
                total = (sum as f32).mul_add(x_scale * w_scale, total);
            }
            total
        };
        Array2::from_shape_fn((x.nrows(), weight.ncols()), element).into_raw_vec_and_offset().0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_shape_sums_in_the_stated_order(
            tokens in 0..20usize,
            inputs in 1..900usize,
            outputs in 1..200usize,
            threads in 1..4usize,
            seed: u64,
        ) {
            let (x, weight) = (random(tokens, inputs, seed), random(inputs, outputs, !seed));
            let packed = Packed::from_matrix(weight.t(), Layout::OutputsByInputs, Format::F32);
            let team = Team::new(threads).unwrap();
            let got = same_at_every_level(|| multiply(&team, &x, &packed, &[]));
            prop_assert!(got == by_definition(&x, &weight, &[]));
            let packed = Packed::from_matrix(weight.t(), Layout::OutputsByInputs, Format::Bf16);
            let got = same_at_every_level(|| multiply(&team, &x, &packed, &[]));
            prop_assert!(got == by_definition_in_bf16(&x, &weight));
            let packed = Packed::from_matrix(weight.t(), Layout::OutputsByInputs, Format::Int8);
            let got = same_at_every_level(|| multiply(&team, &x, &packed, &[]));
            prop_assert!(got == by_definition_in_int8(&x, &weight));
        }
    }

    #[test]
    fn a_row_is_the_same_alone_in_a_batch_and_on_any_number_of_threads() {
        let weight =
            Packed::from_matrix(random(768, 2304, 1).view(), Layout::InputsByOutputs, Format::F32);
        let bias = random(1, 2304, 2).into_raw_vec_and_offset().0;
        let x = random(400, 768, 3);
        let with_threads = |n| multiply(&Team::new(n).unwrap(), &x, &weight, &bias);
        let all = with_threads(1);
        assert!(all == with_threads(2) && all == with_threads(3));
        let team = Team::new(2).unwrap();
        for t in [0, 1, 77, 191, 192, 399] {
            let alone = x.row(t).to_owned().into_shape_with_order((1, 768)).unwrap();
            let alone = multiply(&team, &alone, &weight, &bias);
            assert!(alone == all[t * 2304..(t + 1) * 2304], "row {t}");
        }
    }

    #[test]
    fn what_is_finished_in_the_cache_is_what_would_be_made_of_it_after() {
        let team = Team::new(2).unwrap();
        let weight =
            Packed::from_matrix(random(70, 130, 1).view(), Layout::InputsByOutputs, Format::F32);
        let (x, before) = (random(9, 70, 2), random(9, 130, 3));
        let plain = multiply(&team, &x, &weight, &[]);
        let finished = |finish: &dyn Fn(&mut [f32])| {
            let mut out = before.clone().into_raw_vec_and_offset().0;
            finish(&mut out);
            out
        };
        let x = x.as_slice().unwrap();
        let added = finished(&|out| linear(&team, x, &weight, &[], Then::Add, out));
        assert!(added.iter().zip(&plain).zip(&before).all(|((a, y), b)| *a == b + y));
        for activation in [Activation::GeluTanh, Activation::Relu] {
            let got =
                finished(&|out| linear(&team, x, &weight, &[], Then::Activate(activation), out));
            let mut want = plain.clone();
            crate::ops::activation::activate(&team, &mut want, activation);
            assert!(got == want, "{activation:?}");
        }
    }

    /// Another library's product, which sums in an order of its own.
    #[test]
    fn it_agrees_with_faer() {
        let (x, weight) = (random(37, 700, 1), random(700, 150, 2));
        let packed = Packed::from_matrix(weight.view(), Layout::InputsByOutputs, Format::F32);
        let got = multiply(&Team::new(1).unwrap(), &x, &packed, &[]);
        let mat =
            |a: &Array2<f32>| faer::Mat::from_fn(a.nrows(), a.ncols(), |r, c| f64::from(a[[r, c]]));
        let want = mat(&x) * mat(&weight);
        for (i, got) in got.iter().enumerate() {
            // 700 terms below 1: γ₂₅₈ of a chunk and its place among three, times Σ|x·w| ≤ 700.
            let want = want[(i / 150, i % 150)];
            assert!((f64::from(*got) - want).abs() < 260.0 * 6e-8 * 700.0, "{i}: {got}, {want}");
        }
    }
}
