//! GPT-2 on candle-nn's layers, each point of the contract passed through the tap.
//!
//! There is no batch axis: [T,E] activations and [H,T,D] heads, which Candle's matrix products take
//! as well. `T` tokens are new in this step, `S` keys are visible.

use std::path::Path;

use candle_core::{D, DType, Device, Module, Result as CandleResult, Tensor};
use candle_nn::kv_cache::KvCache;
use candle_nn::{Activation, Embedding, LayerNorm, Linear, VarBuilder, ops};
use llorch_trace::{Dims, Point, Stage};

use crate::config::Config;
use crate::failure::Result;
use crate::model::Model;
use crate::tap::{LayerTap, Tap};
use crate::weights::{Weights, bad_weights};

pub struct Gpt2 {
    config: Config,
    dtype: DType,
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
    /// Tokens read so far.
    past: usize,
}

struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    c_fc: Linear,
    activation: Activation,
    c_proj: Linear,
}

struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    n_head: usize,
    scale: f64,
    cache: KvCache,
}

/// GPT-2's Conv1D keeps its weight as [in,out]: candle-nn's Linear gets it as a transposed view.
fn conv1d(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> CandleResult<Linear> {
    let weight = vb.get((in_dim, out_dim), "weight")?;
    Ok(Linear::new(weight.t()?, Some(vb.get(out_dim, "bias")?)))
}

/// candle-nn's LayerNorm, whose kernel knows no f64: there the same from Candle's elementwise ops.
fn normalize(norm: &LayerNorm, x: &Tensor) -> CandleResult<Tensor> {
    if x.dtype() != DType::F64 {
        return norm.forward(x);
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let scaled =
        centred.broadcast_div(&(variance + norm.eps())?.sqrt()?)?.broadcast_mul(norm.weight())?;
    norm.bias().map_or(Ok(scaled.clone()), |bias| scaled.broadcast_add(bias))
}

impl Attention {
    /// `x` is [T,E]; `mask` [T,S], 0 or −∞, absent where every key is visible.
    fn forward(
        &mut self,
        x: &Tensor,
        mask: Option<&Tensor>,
        tap: &mut LayerTap<'_>,
    ) -> Result<Tensor> {
        let (t, e) = x.dims2()?;
        let (h, d) = (self.n_head, e / self.n_head);
        let qkv = self.c_attn.forward(x)?.reshape((t, 3, h, d))?;
        // Views [H,T,D]: Candle's matrix product takes their strides as they are.
        let head = |i: usize| qkv.narrow(1, i, 1)?.squeeze(1)?.transpose(0, 1);
        let q = tap.pass(Stage::Q, head(0)?)?;
        let k = tap.pass(Stage::K, head(1)?)?;
        let v = tap.pass(Stage::V, head(2)?)?;

        let (keys, values) = self.cache.append(&k.contiguous()?, &v.contiguous()?)?;
        let keys = self.pass_cache(Stage::CacheK, keys, tap)?;
        let values = self.pass_cache(Stage::CacheV, values, tap)?;

        let masked = |scores: Tensor| match mask {
            None => Ok(scores),
            Some(mask) => scores.broadcast_add(mask),
        };
        let scores = masked((q.matmul(&keys.t()?)? * self.scale)?)?;
        let replaced = tap.replaces(Stage::Scores);
        let mut scores = tap.pass(Stage::Scores, scores)?;
        if replaced {
            // Of a tensor that came from outside only the causal cells mean anything.
            scores = masked(scores)?;
        }
        let probs = tap.pass(Stage::Probs, ops::softmax_last_dim(&scores)?)?;
        let context = probs.matmul(&values)?.transpose(0, 1)?.reshape((t, e))?;
        let context = tap.pass(Stage::Context, context)?;
        tap.pass(Stage::AttnOut, self.c_proj.forward(&context)?)
    }

    /// A cache that was replaced stays so for the steps to come.
    fn pass_cache(&mut self, stage: Stage, seen: Tensor, tap: &mut LayerTap<'_>) -> Result<Tensor> {
        let replaced = tap.replaces(stage);
        let seen = tap.pass(stage, seen)?;
        if replaced {
            let cache = match stage {
                Stage::CacheK => self.cache.k_cache_mut(),
                _ => self.cache.v_cache_mut(),
            };
            cache.reset();
            cache.append(&seen.contiguous()?)?;
        }
        Ok(seen)
    }
}

impl Block {
    fn load(config: &Config, layer: usize, vb: VarBuilder<'_>) -> CandleResult<Block> {
        let Dims { n_embd: e, n_inner, n_head, .. } = config.dims;
        let norm = |name: &str| candle_nn::layer_norm(e, config.layer_norm_epsilon, vb.pp(name));
        Ok(Block {
            ln_1: norm("ln_1")?,
            attn: Attention {
                c_attn: conv1d(e, 3 * e, vb.pp("attn.c_attn"))?,
                c_proj: conv1d(e, e, vb.pp("attn.c_proj"))?,
                n_head,
                scale: config.score_scale(layer),
                cache: KvCache::new(1, 1),
            },
            ln_2: norm("ln_2")?,
            c_fc: conv1d(e, n_inner, vb.pp("mlp.c_fc"))?,
            activation: config.activation,
            c_proj: conv1d(n_inner, e, vb.pp("mlp.c_proj"))?,
        })
    }

    fn forward(
        &mut self,
        x: Tensor,
        mask: Option<&Tensor>,
        tap: &mut LayerTap<'_>,
    ) -> Result<Tensor> {
        let normed = tap.pass(Stage::Ln1, normalize(&self.ln_1, &x)?)?;
        let attended = self.attn.forward(&normed, mask, tap)?;
        let x = tap.pass(Stage::ResidMid, (x + attended)?)?;
        let normed = tap.pass(Stage::Ln2, normalize(&self.ln_2, &x)?)?;
        let inner = tap.pass(Stage::Fc, self.c_fc.forward(&normed)?)?;
        let inner = tap.pass(Stage::Act, self.activation.forward(&inner)?)?;
        let outer = tap.pass(Stage::MlpOut, self.c_proj.forward(&inner)?)?;
        tap.pass(Stage::Block, (x + outer)?)
    }
}

impl Gpt2 {
    pub fn load(config: Config, path: &Path, dtype: DType) -> Result<Gpt2> {
        let weights = Weights::open(path, dtype)?;
        Gpt2::build(config, &weights, dtype).map_err(bad_weights(path))
    }

    fn build(config: Config, weights: &Weights, dtype: DType) -> CandleResult<Gpt2> {
        let Dims { n_layer, n_embd: e, vocab_size, n_positions, .. } = config.dims;
        let vb = &weights.transformer;
        let wte = candle_nn::embedding(vocab_size, e, vb.pp("wte"))?;
        let head = match config.tie_word_embeddings {
            true => wte.embeddings().clone(),
            false => weights.root.get((vocab_size, e), "lm_head.weight")?,
        };
        Ok(Gpt2 {
            wpe: candle_nn::embedding(n_positions, e, vb.pp("wpe"))?,
            blocks: (0..n_layer)
                .map(|i| Block::load(&config, i, vb.pp(format!("h.{i}"))))
                .collect::<CandleResult<_>>()?,
            ln_f: candle_nn::layer_norm(e, config.layer_norm_epsilon, vb.pp("ln_f"))?,
            lm_head: Linear::new(head, None),
            wte,
            config,
            dtype,
            past: 0,
        })
    }

    /// [T,S]: 0 where the key is the query's own or earlier, −∞ where it is later. None for one token.
    fn causal_mask(&self, t: usize) -> CandleResult<Option<Tensor>> {
        if t == 1 {
            return Ok(None);
        }
        let (past, s) = (self.past, self.past + t);
        let cells: Vec<f32> = (0..t)
            .flat_map(|i| (0..s).map(move |j| if j > past + i { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        Tensor::from_vec(cells, (t, s), &Device::Cpu)?.to_dtype(self.dtype).map(Some)
    }
}

impl Model for Gpt2 {
    fn dims(&self) -> &Dims {
        &self.config.dims
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn exposes(&self, _: Point) -> bool {
        true
    }

    fn begin(&mut self, positions: usize) {
        self.past = 0;
        for block in &mut self.blocks {
            // Of the two caches that candle-nn has, the one that it recommends on a CPU.
            block.attn.cache = KvCache::new(1, positions);
        }
    }

    fn step(&mut self, ids: &[u32], tap: &mut dyn Tap) -> Result<Tensor> {
        let t = ids.len();
        let tokens = Tensor::new(ids, &Device::Cpu)?;
        let positions = Tensor::arange(self.past as u32, (self.past + t) as u32, &Device::Cpu)?;
        let embedded = (self.wte.forward(&tokens)? + self.wpe.forward(&positions)?)?;
        let mut x = tap.pass(Point::new(Stage::Embeddings), embedded)?;

        let mask = self.causal_mask(t)?;
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            x = block.forward(x, mask.as_ref(), &mut LayerTap { tap, layer })?;
        }
        self.past += t;

        // The head is the largest product: all rows of it only for whoever looks at them.
        let (ln_f, logits) = (Point::new(Stage::LnF), Point::new(Stage::Logits));
        if tap.wants(ln_f) || tap.wants(logits) {
            x = tap.pass(ln_f, normalize(&self.ln_f, &x)?)?;
        } else {
            x = normalize(&self.ln_f, &x.narrow(0, t - 1, 1)?)?;
        }
        if tap.wants(logits) {
            let all = tap.pass(logits, self.lm_head.forward(&x)?)?;
            return Ok(all.get(t - 1)?);
        }
        let last = x.narrow(0, x.dim(0)? - 1, 1)?;
        Ok(self.lm_head.forward(&last)?.squeeze(0)?)
    }
}
