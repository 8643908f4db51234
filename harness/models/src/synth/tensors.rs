//! The tensors outside the blocks, and the pieces that all tensors are made of.

use super::plan::{self, Plan};
use super::random::{HeavyTails, Stream, rotations};
use super::{END_OF_TEXT, VOCAB};

/// Makes the tensors of one plan. Shapes as in the checkpoint, row-major: L layers, E width, H heads,
/// D = E/H, N positions, V vocabulary.
#[derive(Debug)]
pub(super) struct Maker {
    pub plan: Plan,
    pub tails: HeavyTails,
    /// [`Plan::write_scale`], used by every block: [E].
    pub write_scale: Vec<f64>,
}

impl Maker {
    pub fn new(plan: Plan) -> Maker {
        let write_scale = plan.write_scale();
        Maker { plan, tails: HeavyTails::new(), write_scale }
    }

    pub fn stream(&self, label: &str) -> Stream {
        Stream::new(self.plan.seed, label)
    }

    /// Noise whose column `c` has standard deviation `column_std[c]`: [rows, columns].
    pub fn matrix(&self, label: &str, rows: usize, column_std: &[f32]) -> Vec<f32> {
        let stream = self.stream(label);
        let columns = column_std.len();
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            values.extend(
                column_std
                    .iter()
                    .enumerate()
                    .map(|(c, std)| self.tails.value(stream, row * columns + c) * std),
            );
        }
        values
    }

    /// Noise of one standard deviation: [len].
    pub fn vector(&self, label: &str, len: usize, std: f32) -> Vec<f32> {
        let stream = self.stream(label);
        (0..len).map(|i| self.tails.value(stream, i) * std).collect()
    }

    /// Rows `rows` of wte, [V, E].
    pub fn token_embeddings(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let (plan, width) = (&self.plan, self.plan.size.n_embd);
        let (stream, norms) = (self.stream("wte"), self.stream("wte.norm"));
        let mut column_std = vec![plan::WTE_STD as f32; width];
        for c in plan
            .constant_channels()
            .chain(plan.position_channels())
            .chain(plan.outlier.iter().copied())
        {
            column_std[c] = 0.02;
        }
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let mut norm = (0.85 + 0.3 * norms.uniform(row)) as f32;
            if row == END_OF_TEXT {
                // Generation should rarely end by itself.
                norm *= 0.3;
            }
            let start = values.len();
            values.extend(
                (0..width)
                    .map(|c| self.tails.value(stream, row * width + c) * column_std[c] * norm),
            );
            for (&c, offset) in plan.outlier.iter().zip(plan::OUTLIER_OFFSETS) {
                values[start + c] += offset;
            }
        }
        values
    }

    /// wpe, [N, E]: noise, the position features, and the mark of position 0.
    pub fn position_embeddings(&self) -> Vec<f32> {
        let (plan, width, positions) =
            (&self.plan, self.plan.size.n_embd, self.plan.size.n_positions);
        let mut values = self.matrix("wpe", positions, &vec![0.03; width]);
        for (f, &half_tangent) in plan.half_tangents.iter().enumerate() {
            for (position, (cos, sin)) in rotations(half_tangent).take(positions).enumerate() {
                values[position * width + plan.sin[f]] = (plan::POSITION_AMPLITUDE * sin) as f32;
                values[position * width + plan.cos[f]] = (plan::POSITION_AMPLITUDE * cos) as f32;
            }
        }
        for (n, &c) in plan.start.iter().enumerate() {
            values[c] = (plan::START * self.start_sign(n)) as f32;
        }
        values
    }

    /// Sign of the start mark in its `n`-th channel.
    pub fn start_sign(&self, n: usize) -> f64 {
        self.stream("start.sign").sign(n)
    }

    /// ln_f.weight, [E]: about 1.3 as in GPT-2, large in the outlier channels.
    pub fn final_gains(&self) -> Vec<f32> {
        let (plan, stream) = (&self.plan, self.stream("ln_f.weight"));
        let mut gains: Vec<f64> =
            (0..plan.size.n_embd).map(|c| 1.3 * (0.9 + 0.2 * stream.uniform(c))).collect();
        plan.massive.iter().for_each(|&c| gains[c] = 0.01);
        plan.start.iter().copied().chain(plan.position_channels()).for_each(|c| gains[c] = 1.0);
        plan.outlier.iter().for_each(|&c| gains[c] = 6.0);
        gains.into_iter().map(|gain| gain as f32).collect()
    }

    /// Gains of a block's LN, [E]: spread around `base`, where the residual has standard deviation `std`.
    pub fn gains(&self, label: &str, base: f64, std: f64) -> Vec<f32> {
        let (plan, stream) = (&self.plan, self.stream(label));
        let mut gains: Vec<f64> =
            (0..plan.size.n_embd).map(|c| base * (0.8 + 0.4 * stream.uniform(c))).collect();
        plan.position_channels()
            .for_each(|c| gains[c] = plan::POSITION_LEVEL * std / plan::POSITION_AMPLITUDE);
        plan.start.iter().for_each(|&c| gains[c] = plan::START_LEVEL * std / plan::START);
        plan.massive.iter().for_each(|&c| gains[c] = plan::MASSIVE_GAIN);
        plan.outlier.iter().for_each(|&c| gains[c] = plan::OUTLIER_GAIN);
        gains.into_iter().map(|gain| gain as f32).collect()
    }

    /// The causal mask that the published checkpoints store as a buffer and loaders skip: [1, 1, N, N].
    pub fn causal_mask(&self) -> Vec<f32> {
        let n = self.plan.size.n_positions;
        (0..n * n).map(|i| if i % n <= i / n { 1.0 } else { 0.0 }).collect()
    }
}

/// Checked once here, relied upon by the embedding's shape.
const _: () = assert!(END_OF_TEXT < VOCAB);
