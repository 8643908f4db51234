//! GPT-2's operations in float64, each as the paper or Hugging Face's module writes it. Pure; shared
//! by the oracle's own pass and by the replay of a stage from somebody's captured inputs.
//!
//! Sizes: T tokens of this step, S visible keys, E width, H heads, D = E/H, F inner width.

use ndarray::{Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis, Zip, s};

/// (x − mean) / √(variance + eps) · weight + bias over each row of `x` [T, E], the variance biased.
pub fn layer_norm(
    x: ArrayView2<'_, f64>,
    weight: ArrayView1<'_, f64>,
    bias: ArrayView1<'_, f64>,
    eps: f64,
) -> Array2<f64> {
    let mut y = x.to_owned();
    for mut row in y.rows_mut() {
        let mean = row.mean().unwrap_or(0.0);
        let variance = row.mapv(|v| (v - mean).powi(2)).mean().unwrap_or(0.0);
        let inverse = 1.0 / (variance + eps).sqrt();
        Zip::from(&mut row)
            .and(weight)
            .and(bias)
            .for_each(|v, w, b| *v = (*v - mean) * inverse * w + b);
    }
    y
}

/// Hugging Face's Conv1D: x · W + b with `x` [T, K], W [K, N].
pub fn linear(
    x: ArrayView2<'_, f64>,
    weight: ArrayView2<'_, f64>,
    bias: ArrayView1<'_, f64>,
) -> Array2<f64> {
    x.dot(&weight) + bias
}

/// [T, E] with heads side by side as [H, T, D].
pub fn split_heads(x: ArrayView2<'_, f64>, heads: usize) -> Array3<f64> {
    let (t, e) = x.dim();
    let mut y = Array3::zeros((heads, t, e / heads));
    for (h, mut head) in y.outer_iter_mut().enumerate() {
        head.assign(&x.slice(s![.., h * (e / heads)..(h + 1) * (e / heads)]));
    }
    y
}

/// [H, T, D] as [T, E], heads side by side.
pub fn merge_heads(x: ArrayView3<'_, f64>) -> Array2<f64> {
    let (heads, t, d) = x.dim();
    let mut y = Array2::zeros((t, heads * d));
    for (h, head) in x.outer_iter().enumerate() {
        y.slice_mut(s![.., h * d..(h + 1) * d]).assign(&head);
    }
    y
}

/// How many keys query `t` of `queries` sees when there are `keys`: those up to itself.
pub fn visible(t: usize, queries: usize, keys: usize) -> usize {
    (keys + t + 1).saturating_sub(queries)
}

/// q · kᵀ · scale, [H, T, S]; the keys behind a query are −∞.
pub fn scores(q: ArrayView3<'_, f64>, k: ArrayView3<'_, f64>, scale: f64) -> Array3<f64> {
    let ((heads, t, _), s) = (q.dim(), k.dim().1);
    let mut y = Array3::zeros((heads, t, s));
    for h in 0..heads {
        let (q, k) = (q.index_axis(Axis(0), h), k.index_axis(Axis(0), h));
        let mut cells = q.dot(&k.t()) * scale;
        for (row, mut cells) in cells.rows_mut().into_iter().enumerate() {
            cells.slice_mut(s![visible(row, t, s).min(s)..]).fill(f64::NEG_INFINITY);
        }
        y.index_axis_mut(Axis(0), h).assign(&cells);
    }
    y
}

/// The softmax of the visible cells of each row, the others exactly 0, [H, T, S].
pub fn causal_softmax(scores: ArrayView3<'_, f64>) -> Array3<f64> {
    let (_, t, s) = scores.dim();
    let mut y = Array3::zeros(scores.dim());
    for (head, mut out) in scores.outer_iter().zip(y.outer_iter_mut()) {
        for row in 0..t {
            let seen = visible(row, t, s).min(s);
            let probs = softmax(&head.slice(s![row, ..seen]).to_vec());
            out.slice_mut(s![row, ..seen]).assign(&ArrayView1::from(&probs));
        }
    }
    y
}

/// probs · v with heads merged, [T, E]. The mask is in the probabilities: beyond it they are 0.
pub fn context(probs: ArrayView3<'_, f64>, v: ArrayView3<'_, f64>) -> Array2<f64> {
    let ((heads, t, _), d) = (probs.dim(), v.dim().2);
    let mut y = Array3::zeros((heads, t, d));
    for h in 0..heads {
        let (probs, v) = (probs.index_axis(Axis(0), h), v.index_axis(Axis(0), h));
        y.index_axis_mut(Axis(0), h).assign(&probs.dot(&v));
    }
    merge_heads(y.view())
}

/// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): Hendrycks and Gimpel 2016, arXiv:1606.08415.
pub fn gelu_new(x: f64) -> f64 {
    0.5 * x * (1.0 + gelu_inner(x).tanh())
}

/// What the tanh of [`gelu_new`] is taken of.
pub fn gelu_inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

/// exp(x − max) over its sum; −∞ becomes exactly 0.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|v| v / sum).collect()
}

/// The lowest index of the largest value.
pub fn argmax(x: &[f64]) -> u32 {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best as u32
}
