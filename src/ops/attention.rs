//! Causal self-attention over the cache: scores before the softmax, context after it.
//!
//! Query t of T is token S−T+t of the sequence and sees keys 0 to S−T+t. Masked keys are never
//! multiplied, so nothing in them can reach a sum.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use super::parallel::for_each_chunk;
use super::simd::dispatched;
use crate::kv_cache::{BLOCK, LayerCache};

/// Queries that share one reading of keys or values.
const QUERIES: usize = 4;
/// Accumulators a query: one block of keys, or 64 of a head's dimensions.
const LANES: usize = BLOCK;

/// Splits `[T, PARTS·E]` into its parts, each by heads: `[H, T, D]`.
pub fn split_heads<const PARTS: usize>(
    x: ArrayView2<'_, f32>,
    heads: usize,
) -> [Array3<f32>; PARTS] {
    let (tokens, width) = x.dim();
    let head_dim = width / PARTS / heads;
    let x = x.to_slice().expect("activations are in standard layout");
    std::array::from_fn(|part| {
        let mut out = Array3::zeros((heads, tokens, head_dim)); // [H, T, D]
        let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
        for_each_chunk(values, tokens * head_dim, tokens * width, |h, out| {
            for (t, out) in out.chunks_exact_mut(head_dim).enumerate() {
                out.copy_from_slice(&x[t * width + (part * heads + h) * head_dim..][..head_dim]);
            }
        });
        out
    })
}

/// Puts the heads side by side again: `[H, T, D]` to `[T, E]`.
pub fn merge_heads(x: ArrayView3<'_, f32>) -> Array2<f32> {
    let (heads, tokens, head_dim) = x.dim();
    let mut out = Array2::zeros((tokens, heads * head_dim)); // [T, E]
    let x = x.to_slice().expect("contexts are in standard layout");
    let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(values, heads * head_dim, x.len(), |t, row| {
        for (h, out) in row.chunks_exact_mut(head_dim).enumerate() {
            out.copy_from_slice(&x[(h * tokens + t) * head_dim..][..head_dim]);
        }
    });
    out
}

/// `q · kᵀ · scale`; −∞ where a key comes after the query.
///
/// Each score is summed over D in order, by fused multiply-adds, then scaled.
///
/// - `q`: `[H, T, D]`; `keys`: the first `len` positions of the cache, the T new ones included
/// - result: `[H, T, S]`, S = `len`
pub fn scores(q: ArrayView3<'_, f32>, keys: &LayerCache, len: usize, scale: f32) -> Array3<f32> {
    let (heads, tokens, head_dim) = q.dim();
    let mut out = Array3::from_elem((heads, tokens, len), f32::NEG_INFINITY); // [H, T, S]
    let q = q.to_slice().expect("q is in standard layout");
    let work = heads * tokens * len * head_dim;
    let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(values, tokens * len, work, |h, out| {
        let q = &q[h * tokens * head_dim..][..tokens * head_dim]; // [T, D]
        for begin in (0..tokens).step_by(QUERIES) {
            let end = tokens.min(begin + QUERIES);
            for block in 0..(len - tokens + end).div_ceil(BLOCK) {
                let mut sums = [[0.0; LANES]; QUERIES];
                let k = keys.key_block(h, block); // [D, 64]
                products(
                    &q[begin * head_dim..end * head_dim],
                    head_dim,
                    head_dim,
                    k,
                    BLOCK,
                    &mut sums,
                );
                for t in begin..end {
                    let visible = len - tokens + t + 1;
                    let first = block * BLOCK;
                    let row = &mut out[t * len..][first.min(visible)..visible.min(first + BLOCK)];
                    for (score, sum) in row.iter_mut().zip(&sums[t - begin]) {
                        *score = sum * scale;
                    }
                }
            }
        }
    });
    out
}

/// `probs · v`, over the keys that each query sees.
///
/// Each element is summed over blocks of 64 positions in order, by fused multiply-adds from 0; the
/// blocks' sums are added in order.
///
/// - `probs`: `[H, T, S]`; `values`: the first S positions of the cache
/// - result: `[H, T, D]`
pub fn context(probs: ArrayView3<'_, f32>, values: &LayerCache) -> Array3<f32> {
    let (heads, tokens, len) = probs.dim();
    let head_dim = values.head_dim();
    let mut out = Array3::zeros((heads, tokens, head_dim)); // [H, T, D]
    let probs = probs.to_slice().expect("probs are in standard layout");
    let work = heads * tokens * len * head_dim;
    let rows = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(rows, tokens * head_dim, work, |h, out| {
        let probs = &probs[h * tokens * len..][..tokens * len]; // [T, S]
        let v = values.head_values(h); // [capacity, D]
        for begin in (0..tokens).step_by(QUERIES) {
            let end = tokens.min(begin + QUERIES);
            for first in (0..len - tokens + end).step_by(BLOCK) {
                let v = &v[first * head_dim..];
                if first + BLOCK <= len - tokens + begin + 1 {
                    // Every query of the group sees the whole block.
                    let probs = &probs[begin * len + first..(end - 1) * len + first + BLOCK];
                    add_block(
                        probs,
                        len,
                        BLOCK,
                        v,
                        head_dim,
                        &mut out[begin * head_dim..end * head_dim],
                    );
                    continue;
                }
                for t in begin..end {
                    let seen = (len - tokens + t + 1).saturating_sub(first).min(BLOCK);
                    let probs = &probs[t * len + first..][..seen];
                    add_block(probs, len, seen, v, head_dim, &mut out[t * head_dim..][..head_dim]);
                }
            }
        }
    });
    out
}

/// `out[r] += Σ_s probs[r, s] · v[s]` over one block's `seen` positions; `out`: `[R, D]`.
fn add_block(
    probs: &[f32],
    stride: usize,
    seen: usize,
    v: &[f32],
    head_dim: usize,
    out: &mut [f32],
) {
    if seen == 0 {
        return;
    }
    for lane in (0..head_dim).step_by(LANES) {
        let width = LANES.min(head_dim - lane);
        let mut sums = [[0.0; LANES]; QUERIES];
        let v = &v[lane..(seen - 1) * head_dim + lane + width];
        products(probs, stride, seen, v, head_dim, &mut sums);
        for (out, sums) in out.chunks_exact_mut(head_dim).zip(&sums) {
            for (y, sum) in out[lane..][..width].iter_mut().zip(sums) {
                *y += sum;
            }
        }
    }
}

dispatched! {
    /// `sums[r][l] = Σ_k x[r, k] · w[k, l]`, k in order, for up to four rows and 64 columns.
    ///
    /// `x`: rows of `depth` numbers, `x_stride` apart; `w`: rows `w_stride` apart, of which the last
    /// may be shorter than 64: what it lacks stays 0.
    fn products(x: &[f32], x_stride: usize, depth: usize, w: &[f32], w_stride: usize, sums: &mut [[f32; LANES]; QUERIES]) {
        let rows = (x.len() - depth) / x_stride + 1;
        let width = w.len() - (depth - 1) * w_stride;
        if width < LANES {
            narrow(x, x_stride, rows, depth, w, w_stride, width, sums);
        } else if rows == QUERIES {
            *sums = wide::<QUERIES>(x, x_stride, depth, w, w_stride);
        } else {
            for (r, sums) in sums[..rows].iter_mut().enumerate() {
                [*sums] = wide::<1>(&x[r * x_stride..], x_stride, depth, w, w_stride);
            }
        }
    }
}

#[inline(always)]
fn wide<const R: usize>(
    x: &[f32],
    x_stride: usize,
    depth: usize,
    w: &[f32],
    w_stride: usize,
) -> [[f32; LANES]; R] {
    let mut sums = [[0.0f32; LANES]; R];
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r * x_stride..][..depth]);
    for k in 0..depth {
        let w: &[f32; LANES] = w[k * w_stride..][..LANES].try_into().expect("64 columns");
        for r in 0..R {
            for lane in 0..LANES {
                sums[r][lane] = x[r][k].mul_add(w[lane], sums[r][lane]);
            }
        }
    }
    sums
}

/// The same for heads that are not a multiple of 64 wide.
#[inline(always)]
fn narrow(
    x: &[f32],
    x_stride: usize,
    rows: usize,
    depth: usize,
    w: &[f32],
    w_stride: usize,
    width: usize,
    sums: &mut [[f32; LANES]; QUERIES],
) {
    for (r, sums) in sums[..rows].iter_mut().enumerate() {
        for k in 0..depth {
            let x = x[r * x_stride + k];
            for (sum, &w) in sums[..width].iter_mut().zip(&w[k * w_stride..][..width]) {
                *sum = x.mul_add(w, *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::kv_cache::KvCache;
    use crate::ops::simd::same_at_every_level;
    use crate::ops::softmax::causal_softmax;
    use ndarray::{Axis, s};

    fn wave(heads: usize, tokens: usize, head_dim: usize, seed: usize) -> Array3<f32> {
        Array3::from_shape_fn((heads, tokens, head_dim), |(h, t, d)| {
            ((h * 131 + t * 71 + d * 13 + seed * 7) as f32).sin()
        })
    }

    fn config(heads: usize, head_dim: usize) -> Config {
        Config { n_head: heads, n_embd: heads * head_dim, n_positions: 200, ..Config::tiny() }
    }

    /// Attention of `tokens` new tokens after `past` cached ones, and the same by plain loops in f64.
    fn compare(heads: usize, head_dim: usize, past: usize, tokens: usize) {
        let len = past + tokens;
        let (k, v) = (wave(heads, len, head_dim, 1), wave(heads, len, head_dim, 2));
        let q = wave(heads, tokens, head_dim, 3);
        let mut cache = KvCache::new(&config(heads, head_dim));
        cache.layer_mut(0).store(0, k.view(), v.view());
        let (scores, out) = same_at_every_level(|| {
            let scores = scores(q.view(), cache.layer(0), len, 0.125);
            let mut probs = scores.clone();
            causal_softmax(&mut probs);
            (scores, context(probs.view(), cache.layer(0)))
        });
        for h in 0..heads {
            for t in 0..tokens {
                let dot = |s: usize| {
                    (0..head_dim).map(|d| q[[h, t, d]] as f64 * k[[h, s, d]] as f64).sum::<f64>()
                };
                let want: Vec<f64> = (0..=past + t).map(|s| dot(s) * 0.125).collect();
                let total: f64 = want.iter().map(|x| x.exp()).sum();
                for s in 0..len {
                    let got = scores[[h, t, s]];
                    match want.get(s) {
                        Some(want) => {
                            assert!((got as f64 - want).abs() < 1e-5, "score {h} {t} {s}")
                        }
                        None => assert_eq!(got, f32::NEG_INFINITY),
                    }
                }
                for d in 0..head_dim {
                    let want: f64 =
                        (0..=past + t).map(|s| want[s].exp() / total * v[[h, s, d]] as f64).sum();
                    assert!((out[[h, t, d]] as f64 - want).abs() < 1e-5, "context {h} {t} {d}");
                }
            }
        }
    }

    #[test]
    fn agrees_with_float64_at_edge_shapes() {
        for (heads, head_dim, past, tokens) in [
            (1, 1, 0, 1),
            (2, 32, 0, 2),
            (3, 64, 0, 130),
            (2, 64, 63, 1),
            (2, 64, 64, 5),
            (1, 80, 60, 9),
            (2, 128, 0, 65),
        ] {
            compare(heads, head_dim, past, tokens);
        }
    }

    #[test]
    fn one_token_at_a_time_gives_the_same_bits_as_all_at_once() {
        let (heads, head_dim, len) = (2, 64, 150);
        let (q, k, v) = (
            wave(heads, len, head_dim, 3),
            wave(heads, len, head_dim, 1),
            wave(heads, len, head_dim, 2),
        );
        let mut cache = KvCache::new(&config(heads, head_dim));
        cache.layer_mut(0).store(0, k.view(), v.view());
        let run = |q: ArrayView3<'_, f32>, len: usize| {
            let mut probs = scores(q, cache.layer(0), len, 0.125);
            causal_softmax(&mut probs);
            context(probs.view(), cache.layer(0))
        };
        let whole = run(q.view(), len);
        for t in 0..len {
            let one = q.slice(s![.., t..t + 1, ..]).as_standard_layout().into_owned();
            assert!(
                run(one.view(), t + 1).index_axis(Axis(1), 0) == whole.index_axis(Axis(1), t),
                "token {t}"
            );
        }
    }

    #[test]
    fn what_stands_in_masked_positions_does_not_matter() {
        let (k, v, q) = (wave(1, 70, 64, 1), wave(1, 70, 64, 2), wave(1, 70, 64, 3));
        let run = |poison: f32| {
            let (mut k, mut v) = (k.clone(), v.clone());
            k.slice_mut(s![.., 66.., ..]).fill(poison);
            v.slice_mut(s![.., 66.., ..]).fill(poison);
            let mut cache = KvCache::new(&config(1, 64));
            cache.layer_mut(0).store(0, k.view(), v.view());
            let mut probs = scores(q.view(), cache.layer(0), 70, 0.125);
            causal_softmax(&mut probs);
            context(probs.view(), cache.layer(0)).slice(s![.., ..66, ..]).to_owned()
        };
        assert!(run(0.0) == run(f32::NAN));
    }

    #[test]
    fn heads_split_and_merge() {
        let x = Array2::from_shape_fn((3, 12), |(t, e)| (t * 100 + e) as f32); // [T, 3E], E = 4
        let [q, k, v] = split_heads::<3>(x.view(), 2);
        assert_eq!((q[[1, 2, 0]], k[[0, 1, 1]], v[[1, 0, 1]]), (202.0, 105.0, 11.0));
        assert!(merge_heads(q.view()) == x.slice(s![.., ..4]));
        assert!(merge_heads(v.view()) == x.slice(s![.., 8..]));
    }
}
