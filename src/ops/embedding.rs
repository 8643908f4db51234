//! Token and position embeddings.

use ndarray::{Array2, ArrayView2, Zip};

/// `wte[ids] + wpe[position..]`: one rounded addition an element, so every f32 engine agrees.
///
/// - `ids`: `[T]`, each below V; `position` + T ≤ P
/// - `wte`: `[V, E]`, `wpe`: `[P, E]`
/// - result: `[T, E]`
pub fn embed(
    ids: &[u32],
    position: usize,
    wte: ArrayView2<'_, f32>,
    wpe: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let mut out = Array2::zeros((ids.len(), wte.ncols())); // [T, E]
    for (t, &id) in ids.iter().enumerate() {
        Zip::from(out.row_mut(t))
            .and(wte.row(id as usize))
            .and(wpe.row(position + t))
            .for_each(|out, token, position| *out = token + position);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn adds_the_rows_of_token_and_position() {
        let wte = array![[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]];
        let wpe = array![[0.5, 0.25], [0.125, 0.0], [4.0, 8.0]];
        let out = embed(&[2, 0], 1, wte.view(), wpe.view());
        assert_eq!(out, array![[100.125, 200.0], [5.0, 10.0]]);
        assert_eq!(embed(&[], 0, wte.view(), wpe.view()).dim(), (0, 2));
    }
}
