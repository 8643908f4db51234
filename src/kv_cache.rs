//! The key-value cache of one sequence.
//!
//! Keys and values lie in panels of 64 columns, as weights do ([`packed`](crate::packed)), so that attention is made of the
//! same products: a panel of keys is 64 positions, its rows their D dimensions; a panel of values is up to 64 dimensions, its rows
//! the positions. Old entries never move. Memory for the longest context is reserved at once but touched only as
//! positions are filled.

use ndarray::{Array3, ArrayView3};

use crate::config::Config;
use crate::ops::linear::{halves, pair};
use crate::ops::parallel::for_each_chunk;
use crate::packed::{Format, PANEL, Panel};
use crate::team::Team;

/// Positions in one panel of keys; also the positions whose products are summed before the sum is
/// added to the context.
pub const BLOCK: usize = PANEL;

/// Keys and values of every layer, for the tokens that a sequence has had so far.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

/// One layer's part.
#[derive(Debug, Clone)]
pub struct LayerCache {
    /// `[H, capacity/64, D, 64]` in f32, or `[H, capacity/64, ⌈D/2⌉, 64]` in words of two neighbouring dimensions.
    keys: Vec<u32>,
    /// `[H, ⌈D/64⌉, capacity, 64]` in f32, or `[H, ⌈D/64⌉, capacity/2, 64]` in words of two neighbouring positions; zeros after
    /// the last dimension.
    values: Vec<u32>,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: usize,
    head_dim: usize,
    /// Positions that there is room for: a multiple of [`BLOCK`].
    room: usize,
    /// Numbers in a word: one in f32, two in bf16.
    share: usize,
}

impl KvCache {
    /// An empty cache with room for `n_positions` tokens, for weights in `format`: keys and values are in f32 beside
    /// weights in f32, else in bf16.
    pub fn new(config: &Config, format: Format) -> KvCache {
        let shape = Shape::new(config, format);
        let layer = || LayerCache {
            keys: vec![0; shape.heads * shape.key_words()],
            values: vec![0; shape.heads * shape.value_words()],
            shape,
        };
        let layers = (0..config.n_layer).map(|_| layer()).collect();
        KvCache { layers, len: 0, capacity: config.n_positions }
    }

    /// What such a cache takes in memory.
    pub fn bytes(config: &Config, format: Format) -> usize {
        let shape = Shape::new(config, format);
        let words = shape.heads * (shape.key_words() + shape.value_words());
        config.n_layer * words * size_of::<u32>()
    }

    /// Tokens held: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The longest context, in tokens.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens; the memory is kept.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Holds the first `len` tokens of another cache of the same model.
    ///
    /// # Panics
    /// Where the other holds fewer, or is of another shape.
    pub fn copy_prefix(&mut self, other: &KvCache, len: usize) {
        assert!(len <= other.len && self.layers.len() == other.layers.len());
        for (to, from) in self.layers.iter_mut().zip(&other.layers) {
            to.copy_prefix(from, len);
        }
        self.len = len;
    }

    pub fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Counts `tokens` as held, once every layer has stored them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        debug_assert!(self.len + tokens <= self.capacity);
        self.len += tokens;
    }
}

impl Shape {
    fn new(config: &Config, format: Format) -> Shape {
        Shape {
            heads: config.n_head,
            head_dim: config.head_dim(),
            room: config.n_positions.next_multiple_of(BLOCK),
            share: if format == Format::F32 { 1 } else { 2 },
        }
    }

    /// Words of a head's keys.
    fn key_words(self) -> usize {
        self.room * self.head_dim.div_ceil(self.share)
    }

    /// Words of a head's values.
    fn value_words(self) -> usize {
        self.head_dim.div_ceil(PANEL) * self.room / self.share * PANEL
    }

    /// Where in a head's keys a number is: its word, and its half of that.
    fn key(self, position: usize, d: usize) -> (usize, usize) {
        let rows = self.head_dim.div_ceil(self.share);
        let row = position / BLOCK * rows + d / self.share;
        (row * BLOCK + position % BLOCK, d % self.share)
    }

    /// Where in a head's values a number is.
    fn value(self, position: usize, d: usize) -> (usize, usize) {
        let row = d / PANEL * (self.room / self.share) + position / self.share;
        (row * PANEL + d % PANEL, position % self.share)
    }

    fn get(self, words: &[u32], (word, half): (usize, usize)) -> f32 {
        match (self.share, halves(words[word])) {
            (1, _) => f32::from_bits(words[word]),
            (_, (even, odd)) => [even, odd][half],
        }
    }

    #[inline(always)]
    fn put(self, words: &mut [u32], (word, half): (usize, usize), x: f32) {
        let word = &mut words[word];
        if self.share == 1 {
            *word = x.to_bits();
        } else if half == 0 {
            *word = pair(x, 0.0) | *word & 0xffff_0000;
        } else {
            *word = pair(0.0, x) | *word & 0xffff;
        }
    }
}

impl LayerCache {
    fn copy_prefix(&mut self, other: &LayerCache, len: usize) {
        let shape = self.shape;
        // Whole blocks and words: what lies after the prefix is overwritten before it is read.
        let (keys, values) = (shape.key_words(), shape.room / shape.share * PANEL);
        let key_words = len.div_ceil(BLOCK) * (keys / (shape.room / BLOCK));
        let value_words = len.div_ceil(shape.share) * PANEL;
        let heads = self.keys.chunks_exact_mut(keys).zip(other.keys.chunks_exact(keys));
        heads.for_each(|(to, from)| to[..key_words].copy_from_slice(&from[..key_words]));
        let panels = self.values.chunks_exact_mut(values).zip(other.values.chunks_exact(values));
        panels.for_each(|(to, from)| to[..value_words].copy_from_slice(&from[..value_words]));
    }

    /// Stores `k` and `v`, `[H, T, D]` each, at positions `at..at+T`.
    pub fn store(&mut self, at: usize, k: ArrayView3<'_, f32>, v: ArrayView3<'_, f32>) {
        let shape = self.shape;
        assert_eq!((k.dim().0, k.dim().2, k.dim()), (shape.heads, shape.head_dim, v.dim()));
        self.has_room(at + k.dim().1);
        for ((h, t, d), &k) in k.indexed_iter() {
            let keys = &mut self.keys[h * shape.key_words()..];
            shape.put(keys, shape.key(at + t, d), k);
            let values = &mut self.values[h * shape.value_words()..];
            shape.put(values, shape.value(at + t, d), v[[h, t, d]]);
        }
    }

    /// Stores the keys and values of `qkv`, `[T, 3E]`, at positions `at..at+T`.
    pub fn store_rows(&mut self, team: &Team, at: usize, qkv: &[f32]) {
        let Shape { heads, head_dim, .. } = self.shape;
        let (shape, width) = (self.shape, heads * head_dim);
        let tokens = qkv.len() / (3 * width);
        self.has_room(at + tokens);
        let row = |t: usize, part: usize, h: usize| {
            &qkv[t * 3 * width + part * width + h * head_dim..][..head_dim]
        };
        let work = 8 * tokens * width; // a move in multiply-adds
        for_each_chunk(team, &mut self.keys, shape.key_words(), work, |h, keys| {
            for t in 0..tokens {
                for (d, &k) in row(t, 1, h).iter().enumerate() {
                    shape.put(keys, shape.key(at + t, d), k);
                }
            }
        });
        for_each_chunk(team, &mut self.values, shape.value_words(), work, |h, values| {
            for t in 0..tokens {
                for (d, &v) in row(t, 2, h).iter().enumerate() {
                    shape.put(values, shape.value(at + t, d), v);
                }
            }
        });
    }

    fn has_room(&self, len: usize) {
        assert!(len <= self.shape.room, "{len} positions in a cache of {}", self.shape.room);
    }

    /// The first `len` keys as `[H, S, D]`: a copy, for probes.
    pub fn keys(&self, len: usize) -> Array3<f32> {
        self.copied(&self.keys, self.shape.key_words(), len, Shape::key)
    }

    /// The first `len` values as `[H, S, D]`: a copy, for probes.
    pub fn values(&self, len: usize) -> Array3<f32> {
        self.copied(&self.values, self.shape.value_words(), len, Shape::value)
    }

    /// `[H, S, D]` out of heads of `size` words, in which `at` says where a number is.
    fn copied(
        &self,
        words: &[u32],
        size: usize,
        len: usize,
        at: fn(Shape, usize, usize) -> (usize, usize),
    ) -> Array3<f32> {
        let shape = self.shape;
        let mut values = Vec::with_capacity(shape.heads * len * shape.head_dim);
        for head in words.chunks_exact(size) {
            for s in 0..len {
                values.extend((0..shape.head_dim).map(|d| shape.get(head, at(shape, s, d))));
            }
        }
        let dims = (shape.heads, len, shape.head_dim);
        Array3::from_shape_vec(dims, values).expect("as many as the shape says")
    }

    /// Head `h`'s keys of positions 64·`block` to 64·`block`+63: columns; D inputs.
    pub(crate) fn key_panel(&self, h: usize, block: usize) -> Panel<'_> {
        let rows = self.shape.head_dim.div_ceil(self.shape.share);
        let first = h * self.shape.key_words() + block * rows * BLOCK;
        self.panel(&self.keys[first..][..rows * BLOCK])
    }

    /// Dimensions 64·`part` to 64·`part`+63 of head `h`'s values, at positions 64·`block` to 64·`block`+63: inputs.
    pub(crate) fn value_panel(&self, h: usize, part: usize, block: usize) -> Panel<'_> {
        let Shape { room, share, .. } = self.shape;
        let first = h * self.shape.value_words() + (part * room + block * BLOCK) / share * PANEL;
        self.panel(&self.values[first..][..BLOCK / share * PANEL])
    }

    fn panel<'a>(&self, words: &'a [u32]) -> Panel<'a> {
        match self.format() {
            Format::F32 => Panel::F32(bytemuck::cast_slice(words).as_chunks().0),
            _ => Panel::Bf16(words.as_chunks().0),
        }
    }

    /// What keys and values are kept in, and multiplied by: F32 or Bf16.
    pub fn format(&self) -> Format {
        if self.shape.share == 1 { Format::F32 } else { Format::Bf16 }
    }

    /// H
    pub fn heads(&self) -> usize {
        self.shape.heads
    }

    /// D
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> KvCache {
        KvCache::new(&Config::tiny(), Format::F32)
    }

    #[test]
    fn gives_back_what_was_stored_across_blocks() {
        let team = Team::new(2).unwrap();
        for (format, largest) in [(Format::F32, f32::MAX), (Format::Bf16, 256.0)] {
            let mut cache = KvCache::new(&Config::tiny(), format);
            let (heads, head_dim) = (cache.layer(0).heads(), cache.layer(0).head_dim());
            let (tokens, width) = (71, heads * head_dim);
            let number = |part: usize, h: usize, t: usize, d: usize| {
                ((part * 7000 + h * 1000 + t * 10 + d) as f32) % largest // whole, and so exact in bf16
            };
            let part = |part| {
                Array3::from_shape_fn((heads, tokens, head_dim), |(h, t, d)| number(part, h, t, d))
            };
            let (k, v) = (part(1), part(2));
            // in pieces, the last across the border of a block, from an odd position on
            let split = |a: &Array3<f32>, from: usize, to: usize| {
                a.slice(ndarray::s![.., from..to, ..]).to_owned()
            };
            let rows: Vec<f32> = (61 * 3 * width..tokens * 3 * width)
                .map(|i| (i / (3 * width), i % (3 * width)))
                .map(|(t, c)| number(c / width, c % width / head_dim, t, c % head_dim))
                .collect();
            let layer = cache.layer_mut(1);
            layer.store(0, split(&k, 0, 60).view(), split(&v, 0, 60).view());
            layer.store(60, split(&k, 60, 61).view(), split(&v, 60, 61).view());
            layer.store_rows(&team, 61, &rows);
            assert_eq!(layer.keys(tokens), k);
            assert_eq!(layer.values(tokens), v);
            assert!(cache.layer(0).keys(tokens).iter().all(|&x| x == 0.0), "layers are apart");
        }
    }

    #[test]
    fn truncation_forgets_the_end() {
        let mut cache = cache();
        cache.advance(5);
        cache.truncate(9);
        assert_eq!((cache.len(), cache.is_empty()), (5, false));
        cache.truncate(0);
        assert!(cache.is_empty());
    }
}
