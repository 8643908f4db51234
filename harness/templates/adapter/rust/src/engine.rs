//! STUB: PUT YOUR ENGINE HERE. It has the shapes of a GPT-2 and nothing else of one.
//!
//! Every value depends only on the point, the token and its position, so that caches and steps agree
//! with one another; no weight is read.

use crate::model::{Sizes, Weights};
use crate::show::{softmax, Show};
use crate::Answer;

pub struct Engine {
    sizes: Sizes,
    /// Stands for a key/value cache.
    fed: Vec<i64>,
}

impl Engine {
    /// `weights` has checked that all tensors are there; keep what your forward pass needs.
    pub fn new(sizes: &Sizes, _weights: &Weights, _threads: usize) -> Answer<Engine> {
        Ok(Engine { sizes: sizes.clone(), fed: Vec::new() })
    }

    /// A new sequence: nothing of the last one may be left, its key/value cache least of all.
    pub fn reset(&mut self) {
        self.fed.clear();
    }

    /// Feeds `ids` after what was fed before, shows every point, and returns the last row of logits.
    /// T is `ids.len()`, S all that was fed so far. `show.wants(point)` says whether anybody looks.
    pub fn forward(&mut self, ids: &[i64], show: &mut Show) -> Answer<Vec<f32>> {
        let start = self.fed.len();
        self.fed.extend(ids);
        let (t, s, z) = (ids.len(), self.fed.len(), &self.sizes);
        let rows = |show: &mut Show, point: &str, width: usize| match show.wants(point) {
            true => show.floats(point, &self.noise(point, width, start), &[t, width]),
            false => Ok(()),
        };
        rows(show, "embeddings", z.width)?;
        for i in 0..z.layers {
            rows(show, &format!("h.{i}.ln_1"), z.width)?;
            for part in ["q", "k", "v"] {
                let point = format!("h.{i}.attn.{part}");
                if show.wants(&point) {
                    show.floats(&point, &self.heads(&point, start), &[z.heads, t, z.depth])?;
                }
            }
            for part in ["k", "v"] {
                let point = format!("h.{i}.attn.cache.{part}");
                if show.wants(&point) {
                    let cache = self.heads(&format!("h.{i}.attn.{part}"), 0);
                    show.floats(&point, &cache, &[z.heads, s, z.depth])?;
                }
            }
            for part in ["scores", "probs"] {
                let point = format!("h.{i}.attn.{part}");
                if show.wants(&point) {
                    show.floats(&point, &self.attention(part == "probs", start), &[z.heads, t, s])?;
                }
            }
            for part in ["attn.context", "attn.out", "resid_mid", "ln_2"] {
                rows(show, &format!("h.{i}.{part}"), z.width)?;
            }
            for part in ["mlp.fc", "mlp.act"] {
                rows(show, &format!("h.{i}.{part}"), z.inner)?;
            }
            rows(show, &format!("h.{i}.mlp.out"), z.width)?;
            rows(show, &format!("h.{i}"), z.width)?;
        }
        rows(show, "ln_f", z.width)?;
        rows(show, "logits", z.vocab)?;
        Ok(self.noise("logits", z.vocab, s - 1))
    }

    // The rest is the stub's alone.

    /// [positions from `start` on, width]
    fn noise(&self, name: &str, width: usize, start: usize) -> Vec<f32> {
        let seed =
            name.bytes().fold(7u32, |seed, byte| seed.wrapping_mul(131).wrapping_add(byte.into()));
        let mut out = Vec::with_capacity((self.fed.len() - start) * width);
        for p in start..self.fed.len() {
            let mut state = seed
                .wrapping_add((self.fed[p] as u32).wrapping_mul(7919))
                .wrapping_add((p as u32).wrapping_mul(104_729));
            for _ in 0..width {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                out.push((state >> 8) as f32 / (1 << 24) as f32 - 0.5);
            }
        }
        out
    }

    /// [heads, positions from `start` on, depth]
    fn heads(&self, name: &str, start: usize) -> Vec<f32> {
        let head = |head| self.noise(&format!("{name}/{head}"), self.sizes.depth, start);
        (0..self.sizes.heads).flat_map(head).collect()
    }

    /// [heads, queries, all]: the future is -inf in the scores and 0 in the probabilities.
    fn attention(&self, normalised: bool, start: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for head in 0..self.sizes.heads {
            for q in start..self.fed.len() {
                let seen: Vec<f32> =
                    (0..=q).map(|k| ((head + 5) * (q + k + 7) % 31) as f32 / 31.0).collect();
                let mut row = if normalised { softmax(&seen) } else { seen };
                row.resize(self.fed.len(), if normalised { 0.0 } else { f32::NEG_INFINITY });
                out.extend(row);
            }
        }
        out
    }
}
