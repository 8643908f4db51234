//! x · W for rows in float64 and weights that stay in their file: they are widened a block at a time, into the caches
//! and never into memory.

use std::ops::Range;

use llorch_trace::MappedTensor;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use ndarray::{Array2, ArrayView2};

use crate::parallel;

/// Outputs that are computed side by side, in a register or two.
const LANES: usize = 8;
/// The most inputs whose weights are widened at a time.
const INPUTS: usize = 1024;
/// Weights that are widened at a time: 256 kB.
const PIECE: usize = 32 << 10;
/// Rows that are multiplied by a weight each time it is read.
const ROWS: usize = 6;
/// Multiply-adds from which on more threads are worth starting.
const MANY: usize = 1 << 20;

/// How a matrix of K inputs and N outputs lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// [K, N]: Hugging Face's Conv1D.
    ByInput,
    /// [N, K]: embeddings that serve as the head.
    ByOutput,
}

/// A matrix in its file.
#[derive(Debug)]
pub struct Matrix {
    stored: MappedTensor,
    layout: Layout,
    /// K and N.
    size: [usize; 2],
}

impl Matrix {
    /// None where that is no matrix.
    pub fn new(stored: MappedTensor, layout: Layout) -> Option<Matrix> {
        let size = match (layout, stored.shape()) {
            (Layout::ByInput, &[k, n]) | (Layout::ByOutput, &[n, k]) => [k, n],
            _ => return None,
        };
        Some(Matrix { stored, layout, size })
    }

    pub fn inputs(&self) -> usize {
        self.size[0]
    }

    pub fn outputs(&self) -> usize {
        self.size[1]
    }

    /// x · W, [T, K] to the asked of N outputs.
    ///
    /// # Panics
    /// Where x has another width, or there are no such outputs.
    pub fn times(&self, x: ArrayView2<'_, f64>, outputs: Range<usize>) -> Array2<f64> {
        self.product(x, outputs, false).0
    }

    /// The same, and |x| · |W|, which bounds its rounding.
    pub fn times_with_magnitude(
        &self,
        x: ArrayView2<'_, f64>,
        outputs: Range<usize>,
    ) -> (Array2<f64>, Array2<f64>) {
        self.product(x, outputs, true)
    }

    fn product(
        &self,
        x: ArrayView2<'_, f64>,
        outputs: Range<usize>,
        magnitude: bool,
    ) -> (Array2<f64>, Array2<f64>) {
        let (t, k, n) = (x.nrows(), self.inputs(), outputs.len());
        assert!(x.ncols() == k && outputs.end <= self.outputs(), "{:?} · {:?}", x.dim(), self.size);
        let x = x.as_standard_layout();
        let rows = x.as_slice().expect("just made so");
        let wide = self.piece().1;
        let starts: Vec<usize> = outputs.clone().step_by(wide).collect();
        let block =
            |first: &usize| self.block(rows, t, *first..outputs.end.min(first + wide), magnitude);
        let blocks: Vec<Block> = match t * k * n < MANY {
            true => starts.iter().map(block).collect(),
            false => parallel::map(&starts, block),
        };
        let gather = |part: fn(&Block) -> &[f64]| {
            let mut all = Vec::with_capacity(t * n);
            for row in 0..t {
                for block in &blocks {
                    let wide = part(block).len() / t;
                    let held = (n - all.len() % n).min(wide);
                    all.extend_from_slice(&part(block)[row * wide..][..held]);
                }
            }
            Array2::from_shape_vec((t, n), all).expect("blocks hold all outputs of all rows")
        };
        let value = gather(|block| &block.value);
        (value, if magnitude { gather(|block| &block.magnitude) } else { Array2::zeros((0, 0)) })
    }

    /// Inputs whose weights are widened at a time, and outputs of a block, which a thread computes from beginning to
    /// end: what lies side by side in the file is read in long runs, and there is a block for each of two threads.
    fn piece(&self) -> (usize, usize) {
        let [k, n] = self.size;
        let (most, lanes) =
            (INPUTS.min(PIECE / LANES), |n: usize| n.max(1).next_multiple_of(LANES));
        match self.layout {
            Layout::ByInput => {
                let wide = lanes(n.div_ceil(2)).min(1024);
                ((PIECE / wide).min(most), wide)
            }
            Layout::ByOutput => {
                let at_once = k.clamp(1, most);
                (at_once, lanes(PIECE / at_once))
            }
        }
    }

    fn block(&self, x: &[f64], rows: usize, outputs: Range<usize>, magnitude: bool) -> Block {
        let k = self.inputs();
        let panels = outputs.len().div_ceil(LANES);
        let wide = panels * LANES;
        let zeros = |rows: usize| vec![0.0; rows * wide];
        let mut block =
            Block { value: zeros(rows), magnitude: zeros(if magnitude { rows } else { 0 }) };
        let at_once = self.piece().0;
        let mut weights = vec![[0.0; LANES]; panels * at_once];
        let mut side_by_side = vec![0.0; ROWS * at_once];
        for begin in (0..k).step_by(at_once) {
            let inputs = begin..k.min(begin + at_once);
            let weights = &mut weights[..panels * inputs.len()];
            self.widen(inputs.clone(), outputs.clone(), weights);
            for first in (0..rows).step_by(ROWS) {
                let group = first * wide..rows.min(first + ROWS) * wide;
                let inputs = Inputs { x: &x[first * k + begin..], stride: k, count: inputs.len() };
                let magnitude = match magnitude {
                    true => &mut block.magnitude[group.clone()],
                    false => &mut [],
                };
                let sums = [&mut block.value[group], magnitude];
                accumulate(inputs, &mut side_by_side, weights, sums, wide);
            }
        }
        block
    }

    /// Weights by eight outputs, then by input; what lies beyond the last output means nothing.
    fn widen(&self, inputs: Range<usize>, outputs: Range<usize>, to: &mut [[f64; LANES]]) {
        let [k, n] = self.size;
        let count = inputs.len();
        match self.layout {
            Layout::ByInput => {
                let mut row = vec![0.0; outputs.len().next_multiple_of(LANES)];
                for (i, input) in inputs.enumerate() {
                    self.stored.read(input * n + outputs.start, &mut row[..outputs.len()]);
                    for (p, weights) in row.as_chunks().0.iter().enumerate() {
                        to[p * count + i] = *weights;
                    }
                }
            }
            Layout::ByOutput => {
                let mut column = vec![0.0; count];
                for (o, output) in outputs.enumerate() {
                    self.stored.read(output * k + inputs.start, &mut column);
                    let panel = &mut to[o / LANES * count..][..count];
                    for (weights, weight) in panel.iter_mut().zip(&column) {
                        weights[o % LANES] = *weight;
                    }
                }
            }
        }
    }
}

/// Rows of some outputs, a multiple of eight; those beyond the last mean nothing.
struct Block {
    value: Vec<f64>,
    magnitude: Vec<f64>,
}

/// Some inputs of rows that lie `stride` apart.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    x: &'a [f64],
    stride: usize,
    count: usize,
}

/// Adds to sums, rows of `wide` outputs, their inputs' products. Those of absolute values are empty where they aren't
/// wanted; `side_by_side` has room for the rows' inputs.
#[allow(clippy::needless_lifetimes, reason = "the macro can't do without")]
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn accumulate<'a>(
    inputs: Inputs<'a>,
    side_by_side: &mut [f64],
    weights: &[[f64; LANES]],
    sums: [&mut [f64]; 2],
    wide: usize,
) {
    // Without the instruction a fused multiply-add is a function call.
    let fused = target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64"));
    let scratch = side_by_side;
    match sums[0].len() / wide {
        1 => tiles::<1>(inputs, scratch, weights, sums, fused),
        2 => tiles::<2>(inputs, scratch, weights, sums, fused),
        3 => tiles::<3>(inputs, scratch, weights, sums, fused),
        4 => tiles::<4>(inputs, scratch, weights, sums, fused),
        5 => tiles::<5>(inputs, scratch, weights, sums, fused),
        _ => tiles::<ROWS>(inputs, scratch, weights, sums, fused),
    }
}

#[inline(always)]
fn tiles<const R: usize>(
    Inputs { x, stride, count }: Inputs<'_>,
    side_by_side: &mut [f64],
    weights: &[[f64; LANES]],
    [value, magnitude]: [&mut [f64]; 2],
    fused: bool,
) {
    let by_input = &mut side_by_side.as_chunks_mut::<R>().0[..count];
    for r in 0..R {
        for (of_all, x) in by_input.iter_mut().zip(&x[r * stride..][..count]) {
            of_all[r] = *x;
        }
    }
    for (p, panel) in weights.chunks_exact(count).enumerate() {
        add(value, p, &tile::<R>(by_input, panel, |w| w, fused));
    }
    if magnitude.is_empty() {
        return;
    }
    by_input.as_flattened_mut().iter_mut().for_each(|x| *x = x.abs());
    for (p, panel) in weights.chunks_exact(count).enumerate() {
        add(magnitude, p, &tile::<R>(by_input, panel, f64::abs, fused));
    }
}

/// Sums of the products of R rows with eight outputs' weights, of which `of` is taken.
#[inline(always)]
fn tile<const R: usize>(
    by_input: &[[f64; R]],
    panel: &[[f64; LANES]],
    of: fn(f64) -> f64,
    fused: bool,
) -> [[f64; LANES]; R] {
    let mut sums = [[0.0; LANES]; R];
    for (x, w) in by_input.iter().zip(panel) {
        for r in 0..R {
            for l in 0..LANES {
                let (x, w, sum) = (x[r], of(w[l]), sums[r][l]);
                sums[r][l] = if fused { x.mul_add(w, sum) } else { x * w + sum };
            }
        }
    }
    sums
}

#[inline(always)]
fn add<const R: usize>(to: &mut [f64], panel: usize, sums: &[[f64; LANES]; R]) {
    let wide = to.len() / R;
    for (to, sums) in to.chunks_exact_mut(wide).zip(sums) {
        for (to, sum) in to[panel * LANES..][..LANES].iter_mut().zip(sums) {
            *to += sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llorch_trace::files::{map_npy, write_npy};
    use llorch_trace::{Dtype, Tensor};
    use ndarray::s;
    use proptest::prelude::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// As ndarray's product of the same in float64, in both layouts and for any part of the outputs.
        #[test]
        fn a_product_is_that_of_the_widened_matrix(
            (t, k, n) in (0usize..15, 1usize..600, 1usize..200),
            part in (0usize..200, 0usize..200),
            by_output in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("w.npy");
            let shape = if by_output { vec![n, k] } else { vec![k, n] };
            let stored = Tensor::f32(shape, numbers(k * n, seed));
            write_npy(&path, &stored).unwrap();
            let layout = if by_output { Layout::ByOutput } else { Layout::ByInput };
            let matrix = Matrix::new(map_npy(&path).unwrap().unwrap(), layout).unwrap();
            prop_assert_eq!((matrix.inputs(), matrix.outputs()), (k, n));
            let w = Array2::from_shape_vec((stored.shape[0], stored.shape[1]), stored.to_f64());
            let w = if by_output { w.unwrap().reversed_axes() } else { w.unwrap() };
            let x = numbers(t * k, seed ^ 7).into_iter().map(f64::from).collect();
            let x = Array2::from_shape_vec((t, k), x).unwrap();

            let outputs = part.0.min(part.1).min(n)..part.0.max(part.1).min(n);
            let some = w.slice(s![.., outputs.clone()]);
            let (value, magnitude) = matrix.times_with_magnitude(x.view(), outputs.clone());
            let expected = x.mapv(f64::abs).dot(&some.mapv(f64::abs));
            let off = |a: &Array2<f64>, b: &Array2<f64>| {
                let off = a.iter().zip(b).zip(&expected).map(|((a, b), m)| (a - b).abs() / m);
                off.fold(0.0, f64::max)
            };
            let most = 2.0 * k as f64 * Dtype::F64.unit_roundoff();
            prop_assert!(off(&value, &x.dot(&some)) <= most);
            prop_assert!(off(&magnitude, &expected) <= most);
            prop_assert_eq!(&matrix.times(x.view(), outputs), &value);
        }
    }
}
