//! The key-value cache of one sequence.
//!
//! Keys lie transposed in blocks of [`BLOCK`] positions, values in rows by position: in both, the
//! attention kernels then run along memory, and old entries never move. Memory for the longest
//! context is reserved at once but touched only as positions are filled.

use ndarray::{Array3, ArrayView3};

use crate::config::Config;

/// Positions in one block of keys; also the positions whose products are summed before the sum is
/// added to the context.
pub const BLOCK: usize = 64;

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
    /// `[H, capacity/64, D, 64]`
    keys: Vec<f32>,
    /// `[H, capacity, D]`
    values: Vec<f32>,
    heads: usize,
    head_dim: usize,
    /// Positions that there is room for: a multiple of [`BLOCK`].
    room: usize,
}

impl KvCache {
    /// An empty cache with room for `n_positions` tokens.
    pub fn new(config: &Config) -> KvCache {
        let (heads, head_dim) = (config.n_head, config.head_dim());
        let room = config.n_positions.next_multiple_of(BLOCK);
        let layer = || LayerCache {
            keys: vec![0.0; heads * room * head_dim],
            values: vec![0.0; heads * room * head_dim],
            heads,
            head_dim,
            room,
        };
        let layers = (0..config.n_layer).map(|_| layer()).collect();
        KvCache { layers, len: 0, capacity: config.n_positions }
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

impl LayerCache {
    /// Stores `k` and `v`, `[H, T, D]` each, at positions `at..at+T`.
    pub fn store(&mut self, at: usize, k: ArrayView3<'_, f32>, v: ArrayView3<'_, f32>) {
        let (heads, tokens, head_dim) = k.dim();
        assert_eq!((heads, head_dim, k.dim()), (self.heads, self.head_dim, v.dim()));
        assert!(at + tokens <= self.room, "{at} + {tokens} positions in a cache of {}", self.room);
        for h in 0..heads {
            for t in 0..tokens {
                self.put(h, at + t, |d| k[[h, t, d]], |d| v[[h, t, d]]);
            }
        }
    }

    /// Stores the keys and values of `qkv`, `[T, 3E]`, at positions `at..at+T`.
    pub fn store_rows(&mut self, at: usize, qkv: &[f32]) {
        let (heads, head_dim) = (self.heads, self.head_dim);
        let width = heads * head_dim;
        let tokens = qkv.len() / (3 * width);
        assert!(at + tokens <= self.room, "{at} + {tokens} positions in a cache of {}", self.room);
        for (t, row) in qkv.chunks_exact(3 * width).enumerate() {
            let (k, v) = row[width..].split_at(width);
            for h in 0..heads {
                let (k, v) = (&k[h * head_dim..][..head_dim], &v[h * head_dim..][..head_dim]);
                self.put(h, at + t, |d| k[d], |d| v[d]);
            }
        }
    }

    /// Stores one key and one value, element by element.
    fn put(
        &mut self,
        h: usize,
        position: usize,
        k: impl Fn(usize) -> f32,
        v: impl Fn(usize) -> f32,
    ) {
        let (key, value) =
            (self.key_index(h, position, 0), (h * self.room + position) * self.head_dim);
        for d in 0..self.head_dim {
            self.keys[key + d * BLOCK] = k(d);
            self.values[value + d] = v(d);
        }
    }

    /// The first `len` keys as `[H, S, D]`: a copy, for probes.
    pub fn keys(&self, len: usize) -> Array3<f32> {
        Array3::from_shape_fn((self.heads, len, self.head_dim), |(h, s, d)| {
            self.keys[self.key_index(h, s, d)]
        })
    }

    /// The first `len` values as `[H, S, D]`: a copy, for probes.
    pub fn values(&self, len: usize) -> Array3<f32> {
        Array3::from_shape_fn((self.heads, len, self.head_dim), |(h, s, d)| {
            self.values[(h * self.room + s) * self.head_dim + d]
        })
    }

    /// Head `h`'s keys of positions 64·`block` to 64·`block`+63, transposed: `[D, 64]`.
    pub(crate) fn key_block(&self, h: usize, block: usize) -> &[f32] {
        let size = self.head_dim * BLOCK;
        &self.keys[h * self.room * self.head_dim + block * size..][..size]
    }

    /// Head `h`'s values: `[capacity, D]`.
    pub(crate) fn head_values(&self, h: usize) -> &[f32] {
        let size = self.room * self.head_dim;
        &self.values[h * size..][..size]
    }

    /// H
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// D
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn key_index(&self, h: usize, position: usize, d: usize) -> usize {
        let (block, column) = (position / BLOCK, position % BLOCK);
        h * self.room * self.head_dim + (block * self.head_dim + d) * BLOCK + column
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> KvCache {
        KvCache::new(&Config::tiny())
    }

    #[test]
    fn gives_back_what_was_stored_across_blocks() {
        let mut cache = cache();
        let (heads, head_dim) = (cache.layer(0).heads, cache.layer(0).head_dim);
        let tokens = 70;
        let k = Array3::from_shape_fn((heads, tokens, head_dim), |(h, t, d)| {
            (h * 1000 + t * 10 + d) as f32
        });
        let v = k.mapv(|x| -x);
        // in two pieces, the second across the border of a block
        let split = |a: &Array3<f32>, from: usize, to: usize| {
            a.slice(ndarray::s![.., from..to, ..]).to_owned()
        };
        cache.layer_mut(1).store(0, split(&k, 0, 60).view(), split(&v, 0, 60).view());
        cache.layer_mut(1).store(60, split(&k, 60, 70).view(), split(&v, 60, 70).view());
        assert_eq!(cache.layer(1).keys(tokens), k);
        assert_eq!(cache.layer(1).values(tokens), v);
        assert_eq!(cache.layer(1).key_block(1, 1)[3], k[[1, 67, 0]]);
        assert_eq!(cache.layer(1).head_values(1)[67 * head_dim], v[[1, 67, 0]]);
        assert!(cache.layer(0).keys(tokens).iter().all(|&x| x == 0.0), "layers are apart");
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
