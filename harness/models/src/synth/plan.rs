//! What a synthetic GPT-2 is made of before any tensor is written.
//!
//! Plain N(0, 0.02) weights make a model that is too easy: small residuals, uniform attention, one
//! repeated token. These are laid out so that what makes the real GPT-2 hard is there on purpose:
//!
//! - **Massive activations.** Three channels hold thousands at position 0 from the third block on.
//!   Position 0 alone carries a mark in the `start` channels; four hidden units of block 2's MLP fire
//!   on it and write the massive values. (In GPT-2 small these are channels 138, 378 and 447.)
//! - **Attention sinks.** Queries have a constant part along a direction of their head that the
//!   key of position 0 has too, by its mark in the first three blocks, by its massive channels after.
//! - **Positional heads.** The `sin` and `cos` channels carry the position; some heads turn the
//!   query's by a fixed distance and so look 1 to 4 tokens back. The rest attend by content.
//! - **Outlier channels.** Offsets in wte, residuals of some tens at every position, small LN gains
//!   in the blocks and a large one in ln_f; together they shift all logits by about −60.
//! - **A growing residual** of which the token's own embedding is soon a small part, and MLPs whose
//!   mean is taken out by their bias: so the next token depends on the text and is rarely the same.
//!
//! Reserved channels stay legible because blocks write little into them.

use super::Size;
use super::random::Stream;

/// Version of the recipe: part of the cache key. Any change of the bytes must raise it.
pub(super) const RECIPE: u32 = 1;

/// Values of the massive channels at position 0, before they are scaled by how strongly the units fire.
pub(super) const MASSIVE: [f64; 3] = [3400.0, -0.87 * 3400.0, 0.79 * 3400.0];
/// The preactivation of a massive unit that the output weights are made for.
pub(super) const MASSIVE_PREACTIVATION: f64 = 30.0;
/// Size of the mark of position 0, in each `start` channel of wpe.
pub(super) const START: f64 = 1.5;
/// Amplitude of the position features in wpe.
pub(super) const POSITION_AMPLITUDE: f64 = 0.35;
/// Standard deviation of wte in ordinary channels, as in the real GPT-2.
pub(super) const WTE_STD: f64 = 0.14;
/// What every token's embedding holds in the outlier channels.
pub(super) const OUTLIER_OFFSETS: [f32; 4] = [0.8, -0.6, 0.5, -0.7];
/// The block whose MLP writes the outlier residuals, and their size at width 768.
pub(super) const OUTLIER_BLOCK: usize = 3;
pub(super) const OUTLIER_RESIDUAL: f64 = 25.0;
/// Block whose MLP writes the massive activations.
pub(super) const MASSIVE_BLOCK: usize = 2;

/// LN gains of the reserved channels, the same in every block.
pub(super) const MASSIVE_GAIN: f64 = 0.05;
pub(super) const OUTLIER_GAIN: f64 = 0.1;
/// What LN makes of the position features and of the start mark, whatever the residual's size.
pub(super) const POSITION_LEVEL: f64 = 0.9;
pub(super) const START_LEVEL: f64 = 0.6;

/// Which residual channel does what, and how large the residual is where.
#[derive(Debug)]
pub(super) struct Plan {
    pub size: Size,
    pub seed: u64,
    pub massive: Vec<usize>,
    pub sin: Vec<usize>,
    pub cos: Vec<usize>,
    pub start: Vec<usize>,
    pub outlier: Vec<usize>,
    /// tan(θ/2) of each position feature's angle per token, fastest first.
    pub half_tangents: Vec<f64>,
    /// Standard deviation of ordinary channels before each block, and after the last: [L + 1].
    pub residual_std: Vec<f64>,
    /// The same between attention and MLP of each block: [L].
    pub mid_std: Vec<f64>,
}

impl Plan {
    pub fn new(size: Size, seed: u64) -> Plan {
        let width = size.n_embd;
        let mut channels: Vec<usize> = (0..width).collect();
        let stream = Stream::new(seed, "channels");
        for i in (1..width).rev() {
            channels.swap(i, (stream.word(i) % (i as u64 + 1)) as usize);
        }
        let features = (width / 48).clamp(4, 16);
        let mut channels = channels.into_iter();
        let mut take = |n: usize| channels.by_ref().take(n).collect::<Vec<usize>>();
        let (massive, sin, cos, start) = (take(3), take(features), take(features), take(features));
        let outlier = take(if width < 256 { 2 } else { 4 });

        // Angles from 2.2 down to 0.002 radians a token (0.25 where there are only four).
        let ratio = if features >= 12 { 0.6 } else { 0.4 };
        let mut half_tangents = vec![1.96];
        for f in 1..features {
            half_tangents.push(half_tangents[f - 1] * ratio);
        }

        let mut plan = Plan {
            size,
            seed,
            massive,
            sin,
            cos,
            start,
            outlier,
            half_tangents,
            residual_std: vec![0.16],
            mid_std: Vec::new(),
        };
        for layer in 0..size.n_layer {
            let (before, attention, mlp) =
                (plan.residual_std[layer], plan.attention_std(layer), plan.mlp_std(layer));
            let mid = before * before + attention * attention;
            let outliers = if layer == OUTLIER_BLOCK {
                2.0 * OUTLIER_RESIDUAL * OUTLIER_RESIDUAL / 768.0
            } else {
                0.0
            };
            plan.mid_std.push(mid.sqrt());
            plan.residual_std.push((mid + mlp * mlp + outliers).sqrt());
        }
        plan
    }

    /// What block `layer`'s MLP adds to each ordinary channel, as a standard deviation.
    pub fn mlp_std(&self, layer: usize) -> f64 {
        1.0 + 2.0 * layer as f64 / self.size.n_layer as f64
    }

    /// The same of its attention. Little in block 0, which would otherwise bury the tokens.
    pub fn attention_std(&self, layer: usize) -> f64 {
        if layer == 0 { 0.07 } else { 0.35 * self.mlp_std(layer) }
    }

    /// Gain of ln_1 in ordinary channels.
    pub fn attention_gain(&self, layer: usize) -> f64 {
        0.25 + 0.25 * layer as f64 / self.size.n_layer as f64
    }

    /// Gain of ln_2 in ordinary channels.
    pub fn mlp_gain(&self, layer: usize) -> f64 {
        0.3 + 0.4 * layer as f64 / self.size.n_layer as f64
    }

    /// What LN makes of the start mark at position 0, summed over its channels, where other channels
    /// have standard deviation `std`.
    pub fn start_after_ln(&self, std: f64) -> f64 {
        let channels = self.start.len() as f64;
        let with_mark = (std * std + channels * START * START / self.size.n_embd as f64).sqrt();
        channels * START / with_mark * START_LEVEL * std / START
    }

    /// What LN makes of the massive channels at position 0, summed over them.
    pub fn massive_after_ln(&self) -> f64 {
        let power = MASSIVE.iter().fold(0.0, |sum, m| sum + m * m);
        let std = (power / self.size.n_embd as f64).sqrt();
        MASSIVE.iter().fold(0.0, |sum, m| sum + m.abs() / std * MASSIVE_GAIN)
    }

    /// How strongly blocks write into each channel, relative to an ordinary one: [E].
    pub fn write_scale(&self) -> Vec<f64> {
        let mut scale = vec![1.0; self.size.n_embd];
        for &c in self.sin.iter().chain(&self.cos).chain(&self.start) {
            scale[c] = 0.02;
        }
        for &c in &self.massive {
            scale[c] = 0.3;
        }
        scale
    }

    pub fn position_channels(&self) -> impl Iterator<Item = usize> {
        self.sin.iter().chain(&self.cos).copied()
    }

    /// Channels that hold the same at position 0 whatever the token is.
    pub fn constant_channels(&self) -> impl Iterator<Item = usize> {
        self.massive.iter().chain(&self.start).copied()
    }

    /// The sign that outlier residuals have, per outlier: against wte's offset, so that logits shift down.
    pub fn outlier_sign(index: usize) -> f64 {
        if OUTLIER_OFFSETS[index] > 0.0 { 1.0 } else { -1.0 }
    }
}
