//! Token and position embeddings.

use crate::packed::Packed;

/// `wte[ids] + wpe[position..]`: one rounded addition an element, so every f32 engine agrees.
///
/// - `ids`: `[T]`, each below V; `position` + T ≤ P
/// - `wte`: V outputs of E inputs, `wpe`: `[P, E]` in rows
/// - `out`: `[T, E]` in rows
pub fn embed(ids: &[u32], position: usize, wte: &Packed, wpe: &[f32], out: &mut [f32]) {
    let width = wte.inputs();
    assert_eq!(out.len(), ids.len() * width);
    let positions = wpe[position * width..].chunks_exact(width);
    for ((&id, position), out) in ids.iter().zip(positions).zip(out.chunks_exact_mut(width)) {
        wte.output(id as usize, out);
        out.iter_mut().zip(position).for_each(|(x, position)| *x += position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{Format, Layout};
    use ndarray::array;

    #[test]
    fn adds_the_rows_of_token_and_position() {
        let wte = array![[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]];
        let wte = Packed::from_matrix(wte.view(), Layout::OutputsByInputs, Format::F32);
        let wpe = [0.5, 0.25, 0.125, 0.0, 4.0, 8.0];
        let mut out = [0.0; 4];
        embed(&[2, 0], 1, &wte, &wpe, &mut out);
        assert_eq!(out, [100.125, 200.0, 5.0, 10.0]);
        embed(&[], 0, &wte, &wpe, &mut []);
    }
}
