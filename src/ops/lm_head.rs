//! The language-model head: logits, from the embedding matrix that is stored `[V, E]`.

use faer::MatMut;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::parallel::worth_it;
use super::simd::dispatched;

/// Partial sums of one dot product. Their number is part of the result, so it does not follow the
/// width of the registers.
const LANES: usize = 32;
/// Vocabulary rows that one thread takes at a time.
const PANEL: usize = 256;

/// `x · headᵀ`, without bias.
///
/// The matrix is far larger than any cache and lies in rows of E, so each logit is a dot product over
/// one row: term e goes to partial sum e mod 32, fused, in order; the 32 are added as a tree. A general
/// matrix product would pack or stride through it: for a few tokens that is several times slower.
///
/// - `x`: `[T, E]`, `head`: `[V, E]`, in standard layout
/// - result: `[T, V]`
pub fn logits(x: ArrayView2<'_, f32>, head: ArrayView2<'_, f32>) -> Array2<f32> {
    let ((tokens, width), vocabulary) = (x.dim(), head.nrows());
    assert_eq!(width, head.ncols(), "x {:?}, head {:?}", x.dim(), head.dim());
    let mut out = Array2::zeros((tokens, vocabulary)); // [T, V]
    if tokens == 0 || vocabulary == 0 {
        return out;
    }
    let x = x.to_slice().expect("activations are in standard layout");
    let head = head.to_slice().expect("weights are in standard layout");
    let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
    // [T, V] in rows is [V, T] in columns, which faer splits into panels of rows.
    let columns = MatMut::from_column_major_slice_mut(values, vocabulary, tokens);
    let min_len = if worth_it(tokens * width * vocabulary) { 1 } else { vocabulary };
    columns.par_row_chunks_mut(PANEL).enumerate().with_min_len(min_len).for_each(|(p, mut out)| {
        let rows = &head[p * PANEL * width..][..out.nrows() * width];
        let mut sums = vec![0.0; out.nrows() * tokens]; // [n, T]
        dots(x, rows, width, &mut sums);
        for t in 0..tokens {
            let column = out.as_mut().col_mut(t);
            for (y, sums) in column.iter_mut().zip(sums.chunks_exact(tokens)) {
                *y = sums[t];
            }
        }
    });
    out
}

dispatched! {
    /// `out[v, t] = x[t] · rows[v]`: each row of the matrix is read once, for all tokens.
    fn dots(x: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
        let tokens = x.len() / width;
        for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(tokens)) {
            for (x, y) in x.chunks_exact(width).zip(out) {
                *y = dot(x, row);
            }
        }
    }
}

#[inline(always)]
fn dot(x: &[f32], row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (x_pieces, x_rest) = x.as_chunks::<LANES>();
    let (pieces, rest) = row.as_chunks::<LANES>();
    for (x, piece) in x_pieces.iter().zip(pieces) {
        for lane in 0..LANES {
            lanes[lane] = x[lane].mul_add(piece[lane], lanes[lane]);
        }
    }
    for (lane, (&x, &w)) in x_rest.iter().zip(rest).enumerate() {
        lanes[lane] = x.mul_add(w, lanes[lane]);
    }
    // The upper half onto the lower, until one is left.
    let sixteen: [f32; 16] = std::array::from_fn(|i| lanes[i] + lanes[i + 16]);
    let eight: [f32; 8] = std::array::from_fn(|i| sixteen[i] + sixteen[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::same_at_every_level;
    use ndarray::{array, s};

    fn wave(rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(r, c)| ((r * 31 + c * 17) as f32).sin())
    }

    #[test]
    fn by_hand() {
        let head = array![[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]];
        let out = logits(array![[1.0, 2.0]].view(), head.view());
        assert_eq!(out, array![[1.0, 4.0, 1.0]]);
    }

    #[test]
    fn agrees_with_float64_at_odd_sizes() {
        for (tokens, width, vocabulary) in [(1, 1, 1), (3, 31, 5), (4, 33, 257), (6, 128, 300)] {
            let (x, head) = (wave(tokens, width), wave(vocabulary, width));
            let out = same_at_every_level(|| logits(x.view(), head.view()));
            for ((t, v), &got) in out.indexed_iter() {
                let terms = (0..width).map(|e| x[[t, e]] as f64 * head[[v, e]] as f64);
                assert!((got as f64 - terms.sum::<f64>()).abs() < 1e-5, "[{t}, {v}]");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_a_block() {
        let (x, head) = (wave(7, 100), wave(513, 100));
        let all = logits(x.view(), head.view());
        for t in 0..7 {
            assert!(logits(x.slice(s![t..t + 1, ..]), head.view()).row(0) == all.row(t));
        }
    }
}
