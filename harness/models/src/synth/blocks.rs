//! The tensors of one block. Conv1D weights are [in, out].

use super::plan::{self, Plan};
use super::random::rotations;
use super::tensors::Maker;

/// Weight and bias of one Conv1D.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// How much a sink adds to the scores of position 0, before each head's own factor of 0.6 to 1.4.
const SINKS: [f64; 4] = [4.0, 9.0, 2.0, 6.0];
/// Standard deviation of the MLP's preactivations.
const PREACTIVATION_STD: f64 = 1.5;

impl Maker {
    /// c_attn: weight [E, 3E], bias [3E]; q, k and v side by side, heads side by side within each.
    pub fn qkv(&self, layer: usize) -> Linear {
        let (plan, size) = (&self.plan, self.plan.size);
        let (width, head) = (size.n_embd, size.head_width());
        let label = format!("h.{layer}.attn");
        let styles: Vec<HeadStyle> =
            (0..size.n_head).map(|h| HeadStyle::new(self, &label, h)).collect();

        // Inputs have a standard deviation of ln_1's gain, so outputs have that of the factors here.
        let unit = 1.0 / (plan.attention_gain(layer) * (width as f64).sqrt());
        let mut column_std = vec![(unit * 0.9) as f32; 3 * width];
        for (h, style) in styles.iter().enumerate() {
            column_std[h * head..(h + 1) * head].fill((unit * style.query * 1.3) as f32);
            column_std[width + h * head..width + (h + 1) * head].fill((unit * 1.3) as f32);
        }
        let mut weight = self.matrix(&format!("{label}.c_attn.weight"), width, &column_std);
        let mut bias = self.vector(&format!("{label}.c_attn.bias"), 3 * width, 0.1);
        let scale =
            |weight: &mut [f32], row: usize, columns: std::ops::Range<usize>, factor: f32| {
                weight[row * 3 * width..][columns].iter_mut().for_each(|w| *w *= factor);
            };
        for c in plan.constant_channels() {
            // What is constant at position 0 carries no value, else every sink would add one vector
            // to all positions and the same token would win everywhere.
            scale(&mut weight, c, 2 * width..3 * width, 0.02);
            scale(&mut weight, c, 0..2 * width, 0.1);
        }
        for c in plan.position_channels() {
            scale(&mut weight, c, 0..2 * width, 0.3);
        }
        for (h, style) in styles.iter().enumerate() {
            self.add_sink(layer, h, style, &mut weight, &mut bias);
            if let Some((distance, strength)) = style.looks_back {
                self.add_look_back(h, distance, strength, &mut weight);
            }
        }
        Linear { weight, bias }
    }

    /// Gives queries a constant part along a direction of the head, and the key of position 0 the same.
    fn add_sink(
        &self,
        layer: usize,
        h: usize,
        style: &HeadStyle,
        weight: &mut [f32],
        bias: &mut [f32],
    ) {
        let (plan, width, head) = (&self.plan, self.plan.size.n_embd, self.plan.size.head_width());
        let signs = self.stream(&format!("h.{layer}.attn.sink.{h}"));
        let root = (head as f64).sqrt();
        // The rows that tell position 0 from all others, with their signs there.
        let (marks, level): (Vec<(usize, f64)>, f64) = if layer > plan::MASSIVE_BLOCK {
            let marks =
                plan.massive.iter().zip(plan::MASSIVE).map(|(&c, value)| (c, value.signum()));
            (marks.collect(), plan.massive_after_ln())
        } else {
            let marks = plan.start.iter().enumerate().map(|(n, &c)| (c, self.start_sign(n)));
            (marks.collect(), plan.start_after_ln(plan.residual_std[layer]))
        };
        for d in 0..head {
            // |query| = √D along a unit vector: the score is the key's part along it.
            let along = signs.sign(d) / root;
            bias[h * head + d] += (root * along) as f32;
            for &(c, sign) in &marks {
                weight[c * 3 * width + width + h * head + d] +=
                    (sign * style.sink / level * along) as f32;
            }
        }
    }

    /// Lets a head look `distance` tokens back: keys carry the position features, queries the same turned
    /// by the distance, so that scores are Σ cos(θ·(distance to there − distance)) over the features.
    fn add_look_back(&self, h: usize, distance: usize, strength: f64, weight: &mut [f32]) {
        let (plan, width, head) = (&self.plan, self.plan.size.n_embd, self.plan.size.head_width());
        let features = plan.half_tangents.len();
        let gain =
            ((head as f64).sqrt() * strength / features as f64).sqrt() / plan::POSITION_LEVEL;
        for (f, &half_tangent) in plan.half_tangents.iter().enumerate() {
            let (cos, sin) = rotations(half_tangent).nth(distance).unwrap_or((1.0, 0.0));
            let (sin_row, cos_row) = (plan.sin[f] * 3 * width, plan.cos[f] * 3 * width);
            // Two columns a feature: the first for its sine, the second for its cosine.
            let (sin_query, cos_query) = (h * head + 2 * f, h * head + 2 * f + 1);
            weight[sin_row + width + sin_query] += gain as f32;
            weight[cos_row + width + cos_query] += gain as f32;
            weight[sin_row + sin_query] += (gain * cos) as f32;
            weight[cos_row + sin_query] -= (gain * sin) as f32;
            weight[cos_row + cos_query] += (gain * cos) as f32;
            weight[sin_row + cos_query] += (gain * sin) as f32;
        }
    }

    /// attn.c_proj: weight [E, E], bias [E].
    pub fn attention_out(&self, layer: usize) -> Linear {
        let (plan, width) = (&self.plan, self.plan.size.n_embd);
        let root = (width as f64).sqrt();
        // 1.6 makes up for values that attention averages away.
        let std = |scale: &f64| (scale * plan.attention_std(layer) / root * 1.6) as f32;
        let column_std: Vec<f32> = self.write_scale.iter().map(std).collect();
        let weight = self.matrix(&format!("h.{layer}.attn.c_proj.weight"), width, &column_std);
        let bias_std: Vec<f32> =
            self.write_scale.iter().map(|scale| (0.05 * scale) as f32).collect();
        let bias = self.matrix(&format!("h.{layer}.attn.c_proj.bias"), 1, &bias_std);
        Linear { weight, bias }
    }

    /// mlp.c_fc (weight [E, 4E], bias [4E]) and mlp.c_proj (weight [4E, E], bias [E]).
    pub fn mlp(&self, layer: usize) -> (Linear, Linear) {
        let (plan, width) = (&self.plan, self.plan.size.n_embd);
        let (inner, root) = (4 * width, (width as f64).sqrt());
        let label = format!("h.{layer}.mlp");
        let gain = plan.mlp_gain(layer);
        let std = (PREACTIVATION_STD / (gain * root)) as f32;
        let mut fc = Linear {
            weight: self.matrix(&format!("{label}.c_fc.weight"), width, &vec![std; inner]),
            bias: self.vector(&format!("{label}.c_fc.bias"), inner, 0.1),
        };
        for c in plan.constant_channels() {
            fc.weight[c * inner..(c + 1) * inner].iter_mut().for_each(|w| *w *= 0.1);
        }
        for c in plan.position_channels() {
            fc.weight[c * inner..(c + 1) * inner]
                .iter_mut()
                .for_each(|w| *w *= (0.6 * gain) as f32);
        }
        // 0.9 is about the root mean square of GELU at these preactivations.
        let per_unit = 0.9 * (inner as f64).sqrt();
        let std = |scale: &f64| (scale * plan.mlp_std(layer) / per_unit) as f32;
        let column_std: Vec<f32> = self.write_scale.iter().map(std).collect();
        let mut weight = self.matrix(&format!("{label}.c_proj.weight"), inner, &column_std);
        let units =
            if layer == plan::MASSIVE_BLOCK { self.massive_units(&label) } else { Vec::new() };
        for &unit in &units {
            self.make_massive(unit, &mut fc, &mut weight);
        }
        let bias = self.mlp_out_bias(layer, &units, &fc.bias, &weight);
        (fc, Linear { weight, bias })
    }

    fn massive_units(&self, label: &str) -> Vec<usize> {
        let (stream, width) = (self.stream(&format!("{label}.massive")), self.plan.size.n_embd);
        // One in each quarter of the hidden layer, so never the same twice.
        (0..4).map(|n| (stream.word(n) % width as u64) as usize + n * width).collect()
    }

    /// Makes a hidden unit fire on the mark of position 0, and only there, and write the massive channels.
    fn make_massive(&self, unit: usize, fc: &mut Linear, out_weight: &mut [f32]) {
        let (plan, width) = (&self.plan, self.plan.size.n_embd);
        let inner = 4 * width;
        let mark = plan.start_after_ln(plan.mid_std[plan::MASSIVE_BLOCK]);
        for c in 0..width {
            fc.weight[c * inner + unit] *= 0.05;
        }
        // 6 above what is wanted, and a bias of −6: elsewhere the unit is off.
        for (n, &c) in plan.start.iter().enumerate() {
            fc.weight[c * inner + unit] =
                (self.start_sign(n) * (plan::MASSIVE_PREACTIVATION + 6.0) / mark) as f32;
        }
        fc.bias[unit] = -6.0;
        for (&c, value) in plan.massive.iter().zip(plan::MASSIVE) {
            out_weight[unit * width + c] = (value / 4.0 / plan::MASSIVE_PREACTIVATION) as f32;
        }
    }

    /// Takes the mean of the MLP's output away: GELU's mean is positive, and the sum of its constants would
    /// favour one token everywhere. For z of standard deviation σ and mean b, E[gelu(z)] is about
    /// σ²/√(2π(1+σ²)) + b/2.
    fn mlp_out_bias(
        &self,
        layer: usize,
        massive: &[usize],
        fc_bias: &[f32],
        weight: &[f32],
    ) -> Vec<f32> {
        let (plan, width) = (&self.plan, self.plan.size.n_embd);
        let variance = PREACTIVATION_STD * PREACTIVATION_STD;
        let mean = variance / (2.0 * std::f64::consts::PI * (1.0 + variance)).sqrt();
        let mut sums = vec![0.0; width];
        for (unit, row) in
            weight.chunks_exact(width).enumerate().filter(|(unit, _)| !massive.contains(unit))
        {
            let expected = mean + 0.5 * f64::from(fc_bias[unit]);
            sums.iter_mut().zip(row).for_each(|(sum, &w)| *sum += expected * f64::from(w));
        }
        let stream = self.stream(&format!("h.{layer}.mlp.c_proj.bias"));
        let noise = |c: usize| 0.02 * f64::from(self.tails.value(stream, c)) * self.write_scale[c];
        let mut bias: Vec<f64> = (0..width).map(|c| noise(c) - sums[c]).collect();
        if layer == plan::OUTLIER_BLOCK {
            let size = plan::OUTLIER_RESIDUAL * (width as f64 / 768.0).sqrt();
            plan.outlier
                .iter()
                .take(2)
                .enumerate()
                .for_each(|(n, &c)| bias[c] -= size * Plan::outlier_sign(n));
        }
        if layer + 1 == plan.size.n_layer {
            let size = 2.5 * plan.residual_std[layer + 1];
            plan.outlier
                .iter()
                .enumerate()
                .for_each(|(n, &c)| bias[c] -= size * Plan::outlier_sign(n));
        }
        bias.into_iter().map(|b| b as f32).collect()
    }
}

/// What a head attends to.
#[derive(Debug)]
struct HeadStyle {
    /// Added to the scores of position 0.
    sink: f64,
    /// Scale of the queries' random part: how sharply content decides.
    query: f64,
    /// (distance, strength) of a head that looks a fixed distance back.
    looks_back: Option<(usize, f64)>,
}

impl HeadStyle {
    fn new(maker: &Maker, label: &str, h: usize) -> HeadStyle {
        let class = maker.stream(&format!("{label}.class")).uniform(h);
        let sharp = maker.stream(&format!("{label}.sharp")).uniform(h);
        let distance = 1 + (4.0 * sharp) as usize;
        HeadStyle {
            sink: SINKS[h % 4] * (0.6 + 0.8 * sharp),
            query: if class < 0.6 { 0.7 + sharp } else { 0.35 },
            looks_back: match class {
                c if c < 0.3 => None,
                c if c <= 0.6 => Some((distance, 4.0)),
                _ => Some((distance, 12.0)),
            },
        }
    }
}
