//! Causal self-attention over the cache: scores before the softmax, context after it.
//!
//! Query t of T is token S−T+t of the sequence and sees keys 0 to S−T+t. Masked keys are never
//! multiplied, so nothing in them can reach a sum.
//!
//! [`attend`] goes from queries to contexts a few queries at a time, and keeps no more than their scores.
//! Where somebody wants to see all scores, [`scores`], the softmax and [`context`] do the same in three
//! steps, with the same bits: both are made of [`score_strip`] and [`context_strip`].

use std::borrow::Cow;
use std::ops::Range;

use ndarray::{Array3, ArrayView3};

use super::linear::{Inputs, accumulate, pairs};
use super::parallel::{for_each_chunk, for_each_tile};
use super::simd::ROWS;
use super::softmax::softmax;
use crate::kv_cache::{BLOCK, LayerCache};
use crate::packed::{Format, PANEL, Panel};
use crate::team::Team;

/// Queries that share one reading of keys or values: a strip.
const QUERIES: usize = ROWS;
/// Queries of one piece of work.
const PIECE: usize = 16 * QUERIES;

/// The rows of one sequence among those of a forward pass.
#[derive(Debug, Clone)]
pub struct Span<'a> {
    pub rows: Range<usize>,
    pub cache: &'a LayerCache,
    /// Positions of the cache that are filled, these rows' own at the end.
    pub len: usize,
}

/// Takes parts of `qkv`, `[T, 3E]`, out as `[H, T, D]`: q, k and v.
pub fn split_heads(qkv: &[f32], heads: usize, head_dim: usize) -> [Array3<f32>; 3] {
    let width = 3 * heads * head_dim;
    std::array::from_fn(|part| {
        let mut values = Vec::with_capacity(qkv.len() / 3);
        for h in 0..heads {
            for row in qkv.chunks_exact(width) {
                values.extend_from_slice(&row[(part * heads + h) * head_dim..][..head_dim]);
            }
        }
        Array3::from_shape_vec((heads, qkv.len() / width, head_dim), values).expect("whole rows")
    })
}

/// Puts them back, or the first of them.
pub fn join_heads(parts: &[Array3<f32>], qkv: &mut [f32]) {
    for (part, values) in parts.iter().enumerate() {
        let (heads, tokens, head_dim) = values.dim();
        let width = qkv.len() / tokens.max(1);
        for ((h, t), row) in rows(values.view()) {
            qkv[t * width + (part * heads + h) * head_dim..][..head_dim].copy_from_slice(row);
        }
    }
}

/// Puts the heads side by side: `[H, T, D]` to `[T, E]`.
pub fn merge_heads(x: ArrayView3<'_, f32>, out: &mut [f32]) {
    let (heads, _, head_dim) = x.dim();
    for ((h, t), row) in rows(x) {
        out[(t * heads + h) * head_dim..][..head_dim].copy_from_slice(row);
    }
}

/// The rows of `[H, T, D]`, which is in standard layout.
fn rows(x: ArrayView3<'_, f32>) -> impl Iterator<Item = ((usize, usize), &[f32])> {
    let (_, tokens, head_dim) = x.dim();
    let values = x.to_slice().expect("heads are in standard layout");
    values.chunks_exact(head_dim).enumerate().map(move |(i, row)| ((i / tokens, i % tokens), row))
}

/// Contexts of the newest tokens of one or more sequences: `softmax(q · kᵀ · scale) · v`, over the keys that each
/// query sees.
///
/// - `qkv`: `[T, 3E]`, of which the queries are read; `spans`: whose they are, all rows in order
/// - `out`: `[T, E]`
pub fn attend(team: &Team, qkv: &[f32], spans: &[Span<'_>], scale: f32, out: &mut [f32]) {
    let Some(Span { cache, .. }) = spans.first() else { return };
    let head_dim = cache.head_dim();
    let width = cache.heads() * head_dim;
    assert_eq!(qkv.len(), 3 * out.len());
    let work = spans.iter().map(|span| 2 * span.rows.len() * span.len * width).sum();
    for_each_tile(team, out, width, (PIECE, head_dim), work, |mut tile| {
        let head = tile.columns.start / head_dim;
        for span in spans {
            let begin = span.rows.start.max(tile.rows.start);
            let end = span.rows.end.min(tile.rows.end);
            let mut probs = vec![0.0; QUERIES * span.len * usize::from(begin < end)]; // [6, S]
            for first in (begin..end).step_by(QUERIES) {
                let rows = QUERIES.min(end - first);
                let visible = span.len - span.rows.end + first + 1;
                let strip = Strip { cache: span.cache, head, rows, visible };
                let q = &qkv[first * 3 * width + head * head_dim..];
                score_strip(strip, q, 3 * width, scale, &mut probs, span.len);
                for (r, row) in probs.chunks_exact_mut(span.len).take(rows).enumerate() {
                    softmax(&mut row[..visible + r]);
                }
                context_strip(strip, &probs, span.len, |r, first_dim, context| {
                    tile.row(first + r)[first_dim..][..context.len()].copy_from_slice(context);
                });
            }
        }
    });
}

/// `q · kᵀ · scale`; −∞ where a key comes after the query.
///
/// - `q`: `[H, T, D]`; `cache`: of which the first `len` positions are read, the T new ones included
/// - result: `[H, T, S]`, S = `len`
pub fn scores(
    team: &Team,
    q: ArrayView3<'_, f32>,
    cache: &LayerCache,
    len: usize,
    scale: f32,
) -> Array3<f32> {
    let (heads, tokens, head_dim) = q.dim();
    let mut out = Array3::from_elem((heads, tokens, len), f32::NEG_INFINITY); // [H, T, S]
    let q = q.to_slice().expect("q is in standard layout");
    let work = heads * tokens * len * head_dim;
    let values = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(team, values, tokens * len, work, |head, out| {
        for begin in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - begin);
            let strip = Strip { cache, head, rows, visible: len - tokens + begin + 1 };
            let q = &q[(head * tokens + begin) * head_dim..];
            score_strip(strip, q, head_dim, scale, &mut out[begin * len..], len);
        }
    });
    out
}

/// `probs · v`, over the keys that each query sees.
///
/// - `probs`: `[H, T, S]`; `cache`: of which the first S positions are read
/// - result: `[H, T, D]`
pub fn context(team: &Team, probs: ArrayView3<'_, f32>, cache: &LayerCache) -> Array3<f32> {
    let (heads, tokens, len) = probs.dim();
    let head_dim = cache.head_dim();
    let mut out = Array3::zeros((heads, tokens, head_dim)); // [H, T, D]
    let probs = probs.to_slice().expect("probs are in standard layout");
    let work = heads * tokens * len * head_dim;
    let contexts = out.as_slice_mut().expect("fresh arrays are in standard layout");
    for_each_chunk(team, contexts, tokens * head_dim, work, |head, out| {
        for begin in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - begin);
            let strip = Strip { cache, head, rows, visible: len - tokens + begin + 1 };
            let probs = &probs[(head * tokens + begin) * len..];
            context_strip(strip, probs, len, |r, first_dim, context| {
                let row = (begin + r) * head_dim + first_dim;
                out[row..row + context.len()].copy_from_slice(context);
            });
        }
    });
    out
}

/// One to six neighbouring queries of a head.
#[derive(Debug, Clone, Copy)]
struct Strip<'a> {
    cache: &'a LayerCache,
    head: usize,
    rows: usize,
    /// Keys that the first one sees; the next sees one more.
    visible: usize,
}

impl Strip<'_> {
    /// Keys that query `r` sees of the block that begins with key `first`.
    fn seen(self, r: usize, first: usize) -> usize {
        (self.visible + r).saturating_sub(first).min(BLOCK)
    }

    /// Blocks that the last one sees.
    fn blocks(self) -> usize {
        (self.visible + self.rows - 1).div_ceil(BLOCK)
    }

    /// The first `width(r)` numbers of each row as keys and values are multiplied by them: as they are, or rounded
    /// to pairs. With their stride.
    fn operands<'x>(
        self,
        x: &'x [f32],
        stride: usize,
        width: impl Fn(usize) -> usize,
    ) -> (Cow<'x, [u32]>, usize) {
        if self.cache.format() == Format::F32 {
            return (Cow::Borrowed(bytemuck::cast_slice(x)), stride);
        }
        let words = width(self.rows - 1).div_ceil(2);
        let mut rounded = vec![0; self.rows * words];
        for (r, out) in rounded.chunks_exact_mut(words).enumerate() {
            let width = width(r);
            pairs(&x[r * stride..][..width], &mut out[..width.div_ceil(2)]);
        }
        (Cow::Owned(rounded), words)
    }
}

/// Each score is summed over D in order, as a linear layer's output is, then scaled.
///
/// `q`: rows of D, `stride` apart; `out`: rows `out_stride` apart, of which what is visible is written.
fn score_strip(
    strip: Strip<'_>,
    q: &[f32],
    stride: usize,
    scale: f32,
    out: &mut [f32],
    out_stride: usize,
) {
    let Strip { cache, head, rows, visible } = strip;
    let (q, stride) = strip.operands(q, stride, |_| cache.head_dim());
    for block in 0..strip.blocks() {
        let mut sums = [[0.0; PANEL]; QUERIES];
        accumulate(Inputs::new(&q, stride), cache.key_panel(head, block), &mut sums[..rows]);
        let first = block * BLOCK;
        for (r, sums) in sums[..rows].iter().enumerate() {
            let out = &mut out[r * out_stride..][..visible + r];
            match out.get_mut(first..first + BLOCK) {
                Some(out) => out.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum * scale),
                None => {
                    let out = out.get_mut(first..).unwrap_or_default();
                    out.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum * scale);
                }
            }
        }
    }
}

/// Each element is summed over blocks of 64 positions in order, by fused multiply-adds from 0; the
/// blocks' sums are added in order.
///
/// `probs`: rows `stride` apart; `store(r, d, context)` gets dimensions from `d` on of query `r`'s context.
fn context_strip(
    strip: Strip<'_>,
    probs: &[f32],
    stride: usize,
    mut store: impl FnMut(usize, usize, &[f32]),
) {
    let Strip { cache, head, rows, visible } = strip;
    let (probs, stride) = strip.operands(probs, stride, |r| visible + r);
    let share = if cache.format() == Format::F32 { 1 } else { 2 };
    for part in 0..cache.head_dim().div_ceil(PANEL) {
        let mut contexts = [[0.0; PANEL]; QUERIES];
        for block in 0..strip.blocks() {
            let first = block * BLOCK;
            let values = cache.value_panel(head, part, block);
            let probs = |r: usize, from: usize| {
                Inputs::new(&probs[r * stride + first / share + from..], stride)
            };
            let mut sums = [[0.0; PANEL]; QUERIES];
            // What the first query sees of the block, all see; the next sees one more, and so on.
            let common = strip.seen(0, first) / share;
            accumulate(probs(0, 0), values.rows(0..common), &mut sums[..rows]);
            for r in 0..rows {
                let sums = &mut sums[r..=r];
                let seen = strip.seen(r, first);
                if seen / share > common {
                    let more = common..seen / share;
                    accumulate(probs(r, common), values.rows(more), sums);
                }
                if let (Panel::Bf16(values), 1) = (values, seen % share) {
                    // Of the last pair the second position isn't seen: whatever stands there, 0 is multiplied.
                    let even = [values[seen / 2].map(|pair| pair & 0xffff)];
                    accumulate(probs(r, seen / 2), Panel::Bf16(&even), sums);
                }
            }
            for (context, sums) in contexts[..rows].iter_mut().zip(&sums) {
                context.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
            }
        }
        let dims = PANEL.min(cache.head_dim() - part * PANEL);
        for (r, context) in contexts[..rows].iter().enumerate() {
            store(r, part * PANEL, &context[..dims]);
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
        let tokens = q.dim().1;
        let spans = [Span { rows: 0..tokens, cache, len }];
        attend(&team, &in_rows(q), &spans, 0.125, &mut at_once);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&at_once) == bits(&merged), "{:?} of {len}", q.dim());
        (scores, contexts)
    }

    /// A cache with these keys and values.
    fn filled(k: &Array3<f32>, v: &Array3<f32>, format: Format) -> KvCache {
        let mut cache = KvCache::new(&config(k.dim().0, k.dim().2), format);
        cache.layer_mut(0).store(0, k.view(), v.view());
        cache
    }

    /// Attention of `tokens` new tokens after `past` cached ones, and the same by plain loops in f64.
    fn compare(heads: usize, head_dim: usize, past: usize, tokens: usize, format: Format) {
        let len = past + tokens;
        let (k, v) = (wave(heads, len, head_dim, 1), wave(heads, len, head_dim, 2));
        let q = wave(heads, tokens, head_dim, 3);
        let cache = filled(&k, &v, format);
        let (scores, out) = same_at_every_level(|| attention(q.view(), cache.layer(0), len));
        // What is multiplied, and how far rounding probabilities may take a context of values of 1 or less.
        let (number, rounding): (fn(f32) -> f64, f64) = match format {
            Format::F32 => (f64::from, 0.0),
            _ => (|x| half::bf16::from_f32(x).to_f64(), 1.0 / 256.0),
        };
        for h in 0..heads {
            for t in 0..tokens {
                let dot = |s: usize| {
                    (0..head_dim).map(|d| number(q[[h, t, d]]) * number(k[[h, s, d]])).sum::<f64>()
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
                        (0..=past + t).map(|s| want[s].exp() / total * number(v[[h, s, d]])).sum();
                    let off = (out[[h, t, d]] as f64 - want).abs();
                    assert!(off < 1e-5 + rounding, "context {h} {t} {d}");
                }
            }
        }
    }

    const FORMATS: [Format; 2] = [Format::F32, Format::Bf16];

    #[test]
    fn agrees_with_float64_at_edge_shapes() {
        for (heads, head_dim, past, tokens) in [
            (1, 1, 0, 1),
            (2, 32, 0, 2),
            (3, 64, 0, 130),
            (2, 64, 63, 1),
            (2, 64, 64, 5),
            (1, 80, 60, 9),
            (1, 33, 61, 8),
            (2, 128, 0, 65),
        ] {
            FORMATS.into_iter().for_each(|f| compare(heads, head_dim, past, tokens, f));
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
        for format in FORMATS {
            let cache = filled(&k, &v, format);
            let run = |q: ArrayView3<'_, f32>, len: usize| attention(q, cache.layer(0), len).1;
            let whole = run(q.view(), len);
            for t in 0..len {
                let one = q.slice(s![.., t..t + 1, ..]).as_standard_layout().into_owned();
                assert!(
                    run(one.view(), t + 1).index_axis(Axis(1), 0) == whole.index_axis(Axis(1), t),
                    "{format:?}: token {t}"
                );
            }
        }
    }

    #[test]
    fn what_stands_in_masked_positions_does_not_matter() {
        let (k, v, q) = (wave(1, 70, 64, 1), wave(1, 70, 64, 2), wave(1, 70, 64, 3));
        for (format, first) in FORMATS.into_iter().flat_map(|f| [(f, 66), (f, 67)]) {
            let run = |poison: f32| {
                let (mut k, mut v) = (k.clone(), v.clone());
                k.slice_mut(s![.., first.., ..]).fill(poison);
                v.slice_mut(s![.., first.., ..]).fill(poison);
                let cache = filled(&k, &v, format);
                attention(q.view(), cache.layer(0), 70).1.slice(s![.., ..first, ..]).to_owned()
            };
            assert!(run(0.0) == run(f32::NAN), "{format:?} from {first} on");
        }
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
