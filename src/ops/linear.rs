//! The linear layer: `x · W + b`, with W stored `[in, out]` as Hugging Face's Conv1D has it.
//!
//! Every output element is summed in this order, whoever computes it:
//! over chunks of `CHUNK` inputs in order; inside a chunk, fused multiply-adds from 0 in the order
//! of the inputs; the chunks' sums added in order; the bias last.
//!
//! Two routines compute it, by shape:
//! - `Product::tiles`: faer, for whole tiles of 4 tokens by 96 outputs. That is where the arithmetic of a
//!   prefill is. In a whole tile faer keeps one accumulator an element and adds in the order above;
//!   in partial tiles and with a single token it does not promise to, so it gets none. Should it ever
//!   add otherwise (another version, another CPU), `faer_keeps_the_order` notices and it gets no work.
//! - `thin`: what is left: the single token of a decode step, whose weights it streams through
//!   once, in the order in which they lie in memory; and the edges of a prefill.

use std::ops::Range;
use std::sync::OnceLock;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::parallel::worth_it;
use super::simd::{self, dispatched};

/// Inputs summed before the sum is added to the output: bounds the rounding error of long sums.
const CHUNK: usize = 256;
/// A whole tile of faer's, in tokens and in outputs: 4 · 96 with AVX-512, of which AVX2's 4 · 24 is a part.
const TILE_TOKENS: usize = 4;
const TILE_OUTPUTS: usize = 96;
/// Outputs and tokens of one call to faer: small enough that it cuts the block into nothing but whole
/// tiles on every CPU (it cuts larger ones by cache size first), large enough to pay for its packing.
const BLOCK_OUTPUTS: usize = 2 * TILE_OUTPUTS;
const BLOCK_TOKENS: usize = 128;
/// Fewer tokens than this are bound by memory, which `thin` reads in long runs; faer does not.
const FEW_TOKENS: usize = 8;
/// Rows of weights that `thin` reads side by side.
const STRIP: usize = 16;

/// `x · weight + bias`.
///
/// - `x`: `[T, K]`, `weight`: `[K, N]`, `bias`: `[N]`, all in standard layout
/// - result: `[T, N]`
pub fn linear(x: ArrayView2<'_, f32>, weight: ArrayView2<'_, f32>, bias: &[f32]) -> Array2<f32> {
    let (tokens, inputs) = x.dim();
    let outputs = weight.ncols();
    assert_eq!(
        (inputs, outputs),
        (weight.nrows(), bias.len()),
        "x {:?}, weight {:?}",
        x.dim(),
        weight.dim()
    );
    let mut out = Array2::zeros((tokens, outputs)); // [T, N]
    if tokens == 0 || outputs == 0 {
        return out;
    }
    let product = Product {
        x: x.to_slice().expect("activations are in standard layout"),
        weight: weight.to_slice().expect("weights are in standard layout"),
        inputs,
        outputs,
    };

    // Each thread owns whole columns of the output, all tokens of them, so that a weight is read by
    // one thread only. Few tokens: a few wide panels, read in long runs. More: panels to share out.
    let threads =
        if worth_it(tokens * inputs * outputs) { rayon::current_num_threads() } else { 1 };
    let panel = if tokens < FEW_TOKENS {
        outputs.div_ceil(threads).next_multiple_of(64)
    } else {
        BLOCK_OUTPUTS
    };
    // A last chunk of a few inputs would make products so small that faer computes them differently.
    let regular = inputs % CHUNK == 0 || inputs % CHUNK >= 16;
    let by_faer = regular && tokens >= FEW_TOKENS && faer_keeps_the_order();

    // faer thinks in columns: [T, N] in rows is [N, T] in columns.
    let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
    let columns = MatMut::from_column_major_slice_with_stride_mut(values, outputs, tokens, outputs);
    let panels = columns.par_row_chunks_mut(panel).enumerate();
    let min_len = if threads == 1 { outputs.div_ceil(panel) } else { 1 };
    panels.with_min_len(min_len).for_each(|(p, mut out)| {
        let (first, width) = (p * panel, out.nrows());
        let whole = |n: usize, tile: usize| if by_faer { n / tile * tile } else { 0 };
        let tiled_tokens = whole(tokens, TILE_TOKENS);
        let tiled_outputs = whole(width, TILE_OUTPUTS);
        product.tiles(first, out.as_mut().submatrix_mut(0, 0, tiled_outputs, tiled_tokens));
        product.edges(first, tiled_outputs, 0..tiled_tokens, out.as_mut());
        product.edges(first, 0, tiled_tokens..tokens, out.as_mut());
        for t in 0..tokens {
            for (y, b) in column(&mut out, t).iter_mut().zip(&bias[first..]) {
                *y += b;
            }
        }
    });
    out
}

/// Token `t`'s outputs inside a panel, a panel being `[n, T]` in columns: n neighbouring outputs.
fn column<'a>(panel: &'a mut MatMut<'_, f32>, t: usize) -> &'a mut [f32] {
    let column = panel.as_mut().col_mut(t).try_as_col_major_mut();
    column.expect("a token's outputs lie together").as_slice_mut()
}

/// What is to be multiplied: `x`, `[T, K]`, by `weight`, `[K, N]`, both in rows.
struct Product<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    /// K
    inputs: usize,
    /// N
    outputs: usize,
}

impl Product<'_> {
    /// Adds the products for outputs from `first` on to `out`, `[n, T]` in columns and all zeros, by
    /// faer: block by block, chunk by chunk.
    fn tiles(&self, first: usize, mut out: MatMut<'_, f32>) {
        let (width, tokens) = (out.nrows(), out.ncols());
        if width == 0 || tokens == 0 {
            return;
        }
        let (inputs, outputs) = (self.inputs, self.outputs);
        let x = &self.x[..tokens * inputs];
        let x = MatRef::from_row_major_slice_with_stride(x, tokens, inputs, inputs); // [T, K]
        for begin in (0..tokens).step_by(BLOCK_TOKENS) {
            let t = BLOCK_TOKENS.min(tokens - begin);
            for k in (0..inputs).step_by(CHUNK) {
                let depth = CHUNK.min(inputs - k);
                let w =
                    &self.weight[k * outputs + first..(k + depth - 1) * outputs + first + width];
                let w = MatRef::from_row_major_slice_with_stride(w, depth, width, outputs); // [k, n]
                let x = x.submatrix(begin, k, t, depth); // [t, k]
                let out = out.as_mut().submatrix_mut(0, begin, width, t); // [n, t]
                matmul(out, Accum::Add, w.transpose(), x.transpose(), 1.0, Par::Seq);
            }
        }
    }

    /// The same for `tokens`, and for what lies from row `from` on in `out`: whatever is no whole tile.
    fn edges(&self, first: usize, from: usize, tokens: Range<usize>, mut out: MatMut<'_, f32>) {
        let width = out.nrows() - from;
        if width == 0 {
            return;
        }
        // A few tokens at a time, so that each weight is read once for all of them.
        for t in tokens.clone().step_by(FEW_TOKENS) {
            let rows = FEW_TOKENS.min(tokens.end - t);
            let x = &self.x[t * self.inputs..(t + rows) * self.inputs];
            let mut sums = vec![0.0; rows * width]; // [t, n]
            thin(x, &self.weight[first + from..], self.inputs, self.outputs, &mut sums);
            for (r, sums) in sums.chunks_exact(width).enumerate() {
                column(&mut out, t + r)[from..].copy_from_slice(sums);
            }
        }
    }
}

dispatched! {
    /// `out = x · weight` for a few rows, weights streamed in memory order.
    ///
    /// - `x`: `[R, K]`, `out`: `[R, n]` (zeros), `weight`: `[K, N]` from the panel's first column on;
    ///   n = out.len() / R
    fn thin(x: &[f32], weight: &[f32], inputs: usize, stride: usize, out: &mut [f32]) {
        let rows = x.len() / inputs.max(1);
        if rows == 0 {
            return;
        }
        let width = out.len() / rows;
        let mut partial = vec![0.0; out.len()]; // one chunk's sums, [R, n]
        for begin in (0..inputs).step_by(CHUNK) {
            let end = inputs.min(begin + CHUNK);
            // A strip of weights at a time, used for every token while it is in the cache.
            for k in (begin..end).step_by(STRIP) {
                let depth = STRIP.min(end - k);
                let w = &weight[k * stride..(k + depth - 1) * stride + width];
                for (r, sums) in partial.chunks_exact_mut(width).enumerate() {
                    let x = &x[r * inputs + k..][..depth];
                    match x.try_into() {
                        Ok(x) => add_strip::<STRIP>(x, w, stride, sums),
                        Err(_) => {
                            for (x, w) in x.iter().zip(w.chunks(stride)) {
                                add_strip::<1>(&[*x], w, stride, sums);
                            }
                        }
                    }
                }
            }
            for (y, sum) in out.iter_mut().zip(&mut partial) {
                *y += *sum;
                *sum = 0.0;
            }
        }
    }
}

/// `sums[n] += x[k] · w[k, n]` for `DEPTH` rows of weights, k in order: one load and store of a sum
/// for many multiply-adds.
#[inline(always)]
fn add_strip<const DEPTH: usize>(x: &[f32; DEPTH], w: &[f32], stride: usize, sums: &mut [f32]) {
    let n = sums.len();
    let w: [&[f32]; DEPTH] = std::array::from_fn(|k| &w[k * stride..][..n]);
    for i in 0..n {
        let mut sum = sums[i];
        for k in 0..DEPTH {
            sum = x[k].mul_add(w[k][i], sum);
        }
        sums[i] = sum;
    }
}

/// Whether this faer on this CPU sums whole tiles in the order that this file promises; tried once
/// per process on small products, and not at all without AVX2, whose other routes are unknown.
pub fn faer_keeps_the_order() -> bool {
    static KEEPS: OnceLock<bool> = OnceLock::new();
    if simd::level() == simd::Level::Portable {
        return false;
    }
    *KEEPS.get_or_init(|| {
        let depths = [CHUNK, 2 * CHUNK + 65, 32];
        let shapes =
            [(TILE_TOKENS, TILE_OUTPUTS), (BLOCK_TOKENS, TILE_OUTPUTS), (36, BLOCK_OUTPUTS)];
        shapes.into_iter().zip(depths).all(|((tokens, outputs), inputs)| {
            let x = noise(tokens * inputs, 1);
            let weight = noise(inputs * outputs, 2);
            let mut by_faer = vec![0.0; tokens * outputs];
            let columns = MatMut::from_column_major_slice_mut(&mut by_faer, outputs, tokens);
            Product { x: &x, weight: &weight, inputs, outputs }.tiles(0, columns);
            let mut expected = vec![0.0; tokens * outputs];
            thin(&x, &weight, inputs, outputs, &mut expected);
            by_faer == expected
        })
    })
}

/// Numbers in [-1, 1) whose sums depend on the order of summation.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = crate::sampler::SplitMix64::new(seed);
    (0..n).map(|_| (rng.next_unit() * 2.0 - 1.0) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::same_at_every_level;
    use ndarray::{array, s};

    /// The order of summation, element by element, as the head of this file states it.
    fn by_definition(x: &Array2<f32>, weight: &Array2<f32>, bias: &[f32]) -> Array2<f32> {
        Array2::from_shape_fn((x.nrows(), weight.ncols()), |(t, n)| {
            let mut total = 0.0f32;
            for begin in (0..x.ncols()).step_by(CHUNK) {
                let mut sum = 0.0f32;
                for k in begin..x.ncols().min(begin + CHUNK) {
                    sum = x[[t, k]].mul_add(weight[[k, n]], sum);
                }
                total += sum;
            }
            total + bias[n]
        })
    }

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        Array2::from_shape_vec((rows, columns), noise(rows * columns, seed)).unwrap()
    }

    #[test]
    fn by_hand() {
        let x = array![[1.0, 2.0], [3.0, 4.0]];
        let w = array![[1.0, 0.0, -1.0], [10.0, 0.5, 0.0]];
        let out = linear(x.view(), w.view(), &[0.25, 0.0, 1.0]);
        assert_eq!(out, array![[21.25, 1.0, 0.0], [43.25, 2.0, -2.0]]);
        assert_eq!(linear(Array2::zeros((0, 2)).view(), w.view(), &[0.0; 3]).dim(), (0, 3));
    }

    #[test]
    fn every_shape_sums_in_the_stated_order() {
        let shapes =
            [(1, 1), (3, 5), (7, 97), (64, 96), (128, 384), (257, 200), (260, 192), (600, 300)];
        for (inputs, outputs) in shapes {
            let weight = random(inputs, outputs, 1);
            let bias = noise(outputs, 2);
            for tokens in [1, 2, 3, 7, 8, 9, 14, 33] {
                let x = random(tokens, inputs, 3);
                let got = same_at_every_level(|| linear(x.view(), weight.view(), &bias));
                assert!(
                    got == by_definition(&x, &weight, &bias),
                    "[{tokens}, {inputs}] [{inputs}, {outputs}]"
                );
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_in_a_batch_and_on_any_number_of_threads() {
        let weight = random(768, 2304, 1);
        let bias = noise(2304, 2);
        let x = random(150, 768, 3);
        let with_threads = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| linear(x.view(), weight.view(), &bias))
        };
        let all = with_threads(1);
        assert!(all == with_threads(2) && all == with_threads(3));
        for t in [0, 1, 77, 127, 128, 149] {
            let alone = linear(x.slice(s![t..t + 1, ..]), weight.view(), &bias);
            assert!(alone.row(0) == all.row(t), "row {t}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn faer_takes_part_where_the_cpu_allows_it() {
        let able = simd::best() >= simd::Level::Avx2;
        assert!(!able || simd::level() == simd::Level::Portable || faer_keeps_the_order());
    }
}
