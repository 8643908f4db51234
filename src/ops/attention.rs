//! Causal self-attention over the cache: scores before the softmax, context after it.
//!
//! Query t of T is token S−T+t of the sequence and sees keys 0 to S−T+t. Masked keys are never
//! multiplied, so nothing in them can reach a sum.
//!
//! [`attend`] goes from queries to contexts a few queries at a time, and keeps no more than their scores.
//! Where somebody wants to see all scores, [`scores`], the softmax and [`context`] do the same in three
//! steps, with the same bits: both are made of [`score_strip`] and [`context_strip`].

use ndarray::{Array3, ArrayView3};

use super::parallel::{for_each_chunk, for_each_tile};
use super::simd::{ROWS, dispatched, with_rows};
use super::softmax::softmax;
use crate::kv_cache::{BLOCK, LayerCache};
use crate::team::Team;

/// Queries that share one reading of keys or values: a strip.
const QUERIES: usize = ROWS;
/// Accumulators a query: one block of keys, or 64 of a head's dimensions.
const LANES: usize = BLOCK;
/// Queries of one piece of work.
const PIECE: usize = 16 * QUERIES;

/// Takes parts of `qkv`, `[T, 3E]`, out as `[H, T, D]`: q, k and v.
pub fn split_heads(qkv: &[f32], heads: usize, head_dim: usize) -> [Array3<f32>; 3] {
    let width = 3 * heads * head_dim;
    std::array::from_fn(|part| {
        Array3::from_shape_fn((heads, qkv.len() / width, head_dim), |(h, t, d)| {
            qkv[t * width + (part * heads + h) * head_dim + d]
        })
    })
}

/// Puts them back, or the first of them.
pub fn join_heads(parts: &[Array3<f32>], qkv: &mut [f32]) {
    for (part, values) in parts.iter().enumerate() {
        let (heads, tokens, head_dim) = values.dim();
        let width = qkv.len() / tokens.max(1);
        for ((h, t, d), &value) in values.indexed_iter() {
            qkv[t * width + (part * heads + h) * head_dim + d] = value;
        }
    }
}

/// Puts the heads side by side: `[H, T, D]` to `[T, E]`.
pub fn merge_heads(x: ArrayView3<'_, f32>, out: &mut [f32]) {
    let (heads, _, head_dim) = x.dim();
    for ((h, t, d), &value) in x.indexed_iter() {
        out[(t * heads + h) * head_dim + d] = value;
    }
}

/// Contexts of the T newest tokens: `softmax(q · kᵀ · scale) · v`, over the keys that each query sees.
///
/// - `qkv`: `[T, 3E]`, of which the queries are read; `cache`: its first `len` positions, the T new ones
///   included
/// - `out`: `[T, E]`
pub fn attend(
    team: &Team,
    qkv: &[f32],
    cache: &LayerCache,
    len: usize,
    scale: f32,
    out: &mut [f32],
) {
    let (heads, head_dim) = (cache.heads(), cache.head_dim());
    let width = heads * head_dim;
    let tokens = qkv.len() / (3 * width);
    assert_eq!(out.len(), tokens * width);
    let work = 2 * tokens * len * width;
    for_each_tile(team, out, width, (PIECE, head_dim), work, |mut tile| {
        let h = tile.columns.start / head_dim;
        let mut probs = vec![0.0; QUERIES * len]; // [6, S]
        let mut contexts = vec![0.0; QUERIES * head_dim]; // [6, D]
        for begin in tile.rows.clone().step_by(QUERIES) {
            let rows = QUERIES.min(tile.rows.end - begin);
            let strip = Strip { head: h, rows, visible: len - tokens + begin + 1 };
            let q = &qkv[begin * 3 * width + h * head_dim..];
            score_strip(strip, q, 3 * width, cache, scale, &mut probs, len);
            for (r, row) in probs.chunks_exact_mut(len).take(rows).enumerate() {
                softmax(&mut row[..strip.visible + r]);
            }
            contexts.fill(0.0);
            context_strip(strip, &probs, len, cache, &mut contexts);
            for (r, context) in contexts.chunks_exact(head_dim).take(rows).enumerate() {
                tile.row(begin + r).copy_from_slice(context);
            }
        }
    });
}

/// `q · kᵀ · scale`; −∞ where a key comes after the query.
///
/// - `q`: `[H, T, D]`; `keys`: the first `len` positions of the cache, the T new ones included
/// - result: `[H, T, S]`, S = `len`
pub fn scores(
    team: &Team,
    q: ArrayView3<'_, f32>,
    keys: &LayerCache,
    len: usize,
    scale: f32,
) -> Array3<f32> {
    let (heads, tokens, head_dim) = q.dim();
    let mut out = Array3::from_elem((heads, tokens, len), f32::NEG_INFINITY); // [H, T, S]
    let q = q.to_slice().expect("q is in standard layout");
    let work = heads * tokens * len * head_dim;
    let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(team, values, tokens * len, work, |h, out| {
        for begin in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - begin);
            let strip = Strip { head: h, rows, visible: len - tokens + begin + 1 };
            let q = &q[(h * tokens + begin) * head_dim..];
            score_strip(strip, q, head_dim, keys, scale, &mut out[begin * len..], len);
        }
    });
    out
}

/// `probs · v`, over the keys that each query sees.
///
/// - `probs`: `[H, T, S]`; `values`: the first S positions of the cache
/// - result: `[H, T, D]`
pub fn context(team: &Team, probs: ArrayView3<'_, f32>, values: &LayerCache) -> Array3<f32> {
    let (heads, tokens, len) = probs.dim();
    let head_dim = values.head_dim();
    let mut out = Array3::zeros((heads, tokens, head_dim)); // [H, T, D]
    let probs = probs.to_slice().expect("probs are in standard layout");
    let work = heads * tokens * len * head_dim;
    let contexts = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(team, contexts, tokens * head_dim, work, |h, out| {
        for begin in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - begin);
            let strip = Strip { head: h, rows, visible: len - tokens + begin + 1 };
            let probs = &probs[(h * tokens + begin) * len..];
            context_strip(strip, probs, len, values, &mut out[begin * head_dim..]);
        }
    });
    out
}

/// One to six neighbouring queries of a head.
#[derive(Debug, Clone, Copy)]
struct Strip {
    head: usize,
    rows: usize,
    /// Keys that the first one sees; the next sees one more.
    visible: usize,
}

/// Each score is summed over D in order, by fused multiply-adds, then scaled.
///
/// `q`: rows of D, `stride` apart; `out`: rows `out_stride` apart, of which what is visible is written.
fn score_strip(
    strip: Strip,
    q: &[f32],
    stride: usize,
    keys: &LayerCache,
    scale: f32,
    out: &mut [f32],
    out_stride: usize,
) {
    let Strip { head, rows, visible } = strip;
    let head_dim = keys.head_dim();
    let q = &q[..(rows - 1) * stride + head_dim];
    for block in 0..(visible + rows - 1).div_ceil(BLOCK) {
        let mut sums = [[0.0; LANES]; QUERIES];
        products(q, stride, head_dim, keys.key_block(head, block), BLOCK, &mut sums); // [D, 64]
        let first = block * BLOCK;
        for (r, sums) in sums[..rows].iter().enumerate() {
            let end = (visible + r).min(first + BLOCK).max(first);
            for (score, sum) in
                out[r * out_stride + first..r * out_stride + end].iter_mut().zip(sums)
            {
                *score = sum * scale;
            }
        }
    }
}

/// Each element is summed over blocks of 64 positions in order, by fused multiply-adds from 0; the
/// blocks' sums are added in order to `out`, `[R, D]`.
///
/// `probs`: rows `stride` apart.
fn context_strip(strip: Strip, probs: &[f32], stride: usize, values: &LayerCache, out: &mut [f32]) {
    let Strip { head, rows, visible } = strip;
    let head_dim = values.head_dim();
    let out = &mut out[..rows * head_dim];
    let v = values.head_values(head); // [capacity, D]
    for first in (0..visible + rows - 1).step_by(BLOCK) {
        let v = &v[first * head_dim..];
        // What the first query sees of the block, all see; the next sees one more, and so on.
        let common = visible.saturating_sub(first).min(BLOCK);
        let seen = |r: usize| (visible + r).saturating_sub(first).min(BLOCK);
        for lane in (0..head_dim).step_by(LANES) {
            let width = LANES.min(head_dim - lane);
            let v = |from: usize, to: usize| {
                &v[from * head_dim + lane..(to - 1) * head_dim + lane + width]
            };
            let mut sums = [[0.0; LANES]; QUERIES];
            if common > 0 {
                let probs = &probs[first..(rows - 1) * stride + first + common];
                products(probs, stride, common, v(0, common), head_dim, &mut sums);
            }
            for r in 1..rows {
                if seen(r) > common {
                    let probs = &probs[r * stride + first..][common..seen(r)];
                    let more = &mut sums[r..r + 1];
                    products(probs, stride, probs.len(), v(common, seen(r)), head_dim, more);
                }
            }
            for (r, (out, sums)) in out.chunks_exact_mut(head_dim).zip(&sums).enumerate() {
                if seen(r) > 0 {
                    for (y, sum) in out[lane..][..width].iter_mut().zip(sums) {
                        *y += sum;
                    }
                }
            }
        }
    }
}

dispatched! {
    /// Adds `x[r, k] · w[k, l]` to `sums[r][l]`, k in order, for up to six rows and 64 columns.
    ///
    /// `x`: rows of `depth` numbers, `x_stride` apart; `w`: rows `w_stride` apart, of which the last
    /// may be shorter than 64: what it lacks is let be.
    fn products(x: &[f32], x_stride: usize, depth: usize, w: &[f32], w_stride: usize, sums: &mut [[f32; LANES]]) {
        let rows = (x.len() - depth) / x_stride + 1;
        let width = w.len() - (depth - 1) * w_stride;
        if width < LANES {
            narrow(x, x_stride, rows, depth, w, w_stride, width, sums);
        } else {
            with_rows!(rows, R => wide::<R>(x, x_stride, depth, w, w_stride, sums));
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
    out: &mut [[f32; LANES]],
) {
    // A copy, which stays in registers.
    let mut sums: [[f32; LANES]; R] = std::array::from_fn(|r| out[r]);
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r * x_stride..][..depth]);
    for k in 0..depth {
        let w: &[f32; LANES] = w[k * w_stride..][..LANES].try_into().expect("64 columns");
        for r in 0..R {
            for lane in 0..LANES {
                sums[r][lane] = x[r][k].mul_add(w[lane], sums[r][lane]);
            }
        }
    }
    out[..R].copy_from_slice(&sums);
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
    sums: &mut [[f32; LANES]],
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

    /// Queries `[H, T, D]` as a model has them, `[T, 3E]`; what stands beside them is never read.
    fn in_rows(q: ArrayView3<'_, f32>) -> Vec<f32> {
        let mut qkv = vec![f32::NAN; 3 * q.len()];
        join_heads(&[q.to_owned()], &mut qkv);
        qkv
    }

    /// Scores and contexts in three steps, which must be what `attend` does in one.
    fn attention(
        q: ArrayView3<'_, f32>,
        cache: &LayerCache,
        len: usize,
    ) -> (Array3<f32>, Array3<f32>) {
        let team = Team::new(2).unwrap();
        let scores = scores(&team, q, cache, len, 0.125);
        let mut probs = scores.clone();
        causal_softmax(&team, &mut probs);
        let contexts = context(&team, probs.view(), cache);
        let mut merged = vec![0.0; q.len()];
        merge_heads(contexts.view(), &mut merged);
        let mut at_once = vec![f32::NAN; q.len()];
        attend(&team, &in_rows(q), cache, len, 0.125, &mut at_once);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&at_once) == bits(&merged), "{:?} of {len}", q.dim());
        (scores, contexts)
    }

    /// Attention of `tokens` new tokens after `past` cached ones, and the same by plain loops in f64.
    fn compare(heads: usize, head_dim: usize, past: usize, tokens: usize) {
        let len = past + tokens;
        let (k, v) = (wave(heads, len, head_dim, 1), wave(heads, len, head_dim, 2));
        let q = wave(heads, tokens, head_dim, 3);
        let mut cache = KvCache::new(&config(heads, head_dim));
        cache.layer_mut(0).store(0, k.view(), v.view());
        let (scores, out) = same_at_every_level(|| attention(q.view(), cache.layer(0), len));
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
        let run = |q: ArrayView3<'_, f32>, len: usize| attention(q, cache.layer(0), len).1;
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
            attention(q.view(), cache.layer(0), 70).1.slice(s![.., ..66, ..]).to_owned()
        };
        assert!(run(0.0) == run(f32::NAN));
    }

    #[test]
    fn heads_split_and_join_and_merge() {
        let qkv: Vec<f32> = (0..36).map(|i| (i / 12 * 100 + i % 12) as f32).collect(); // [T, 3E], E = 4
        let parts = split_heads(&qkv, 2, 2);
        let [q, k, v] = &parts;
        assert_eq!((q[[1, 2, 0]], k[[0, 1, 1]], v[[1, 0, 1]]), (202.0, 105.0, 11.0));
        let mut joined = vec![0.0; 36];
        join_heads(&parts, &mut joined);
        assert_eq!(joined, qkv);
        let mut merged = vec![0.0; 12];
        merge_heads(v.view(), &mut merged);
        assert!((0..12).all(|i| merged[i] == qkv[i / 4 * 12 + 8 + i % 4]));
    }
}
