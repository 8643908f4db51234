//! One layer of mistral.rs for each stage that it has one for.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Module, Result as CandleResult, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, ops};
use llorch_trace::{Dims, Dtype, Point, Stage};
use mistralrs_core::layers::{self, Activation, CausalMasker};
use mistralrs_quant::{QuantMethod, ShardedVarBuilder};

use crate::config::Config;
use crate::failure::{Failure, Result};
use crate::variant::Variant;
use crate::weights;

/// What is said of a run that asks for more than stages with their inputs put in place.
pub const NO_GPT2: &str = "mistral.rs has no GPT-2";

/// What a run needs of it.
pub trait Model: Send {
    fn dims(&self) -> &Dims;

    fn dtype(&self) -> DType;

    /// Whether something can be put at this point.
    fn exposes(&self, point: Point) -> bool;

    /// What the stage makes of its input, which `given` has if it was injected.
    fn stage(&self, point: Point, given: &dyn Fn(Point) -> Option<Tensor>) -> Result<Tensor>;
}

pub fn load(_: Variant, model_dir: &Path, dtype: Dtype) -> Result<Box<dyn Model>> {
    if dtype != Dtype::F32 {
        return Err(Failure::unsupported(format!("dtype {dtype}: this adapter computes in f32")));
    }
    let config = Config::from_file(&model_dir.join("config.json"))?;
    if !matches!(config.activation, candle_nn::Activation::NewGelu) {
        let what = "activation_function: of mistral.rs's, NewGelu alone is used here";
        return Err(Failure::unsupported(what));
    }
    let path = model_dir.join("model.safetensors");
    let weights = weights::open(&path)?;
    let built = Components::build(config, weights).map_err(weights::bad_weights(&path))?;
    Ok(Box::new(built))
}

struct Components {
    config: Config,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

struct Block {
    ln_1: LayerNorm,
    c_attn: Arc<dyn QuantMethod>,
    attn_proj: Arc<dyn QuantMethod>,
    ln_2: LayerNorm,
    c_fc: Arc<dyn QuantMethod>,
    mlp_proj: Arc<dyn QuantMethod>,
}

impl Block {
    fn build(config: &Config, vb: &ShardedVarBuilder) -> CandleResult<Block> {
        let Dims { n_embd: e, n_inner, .. } = config.dims;
        let norm = |name: &str| layers::layer_norm(e, config.layer_norm_epsilon, vb.pp(name));
        let linear = |from: usize, to: usize, name: &str| {
            mistralrs_quant::linear_b(from, to, true, &None, vb.pp(name))
        };
        Ok(Block {
            ln_1: norm("ln_1")?,
            c_attn: linear(e, 3 * e, "attn.c_attn")?,
            attn_proj: linear(e, e, "attn.c_proj")?,
            ln_2: norm("ln_2")?,
            c_fc: linear(e, n_inner, "mlp.c_fc")?,
            mlp_proj: linear(n_inner, e, "mlp.c_proj")?,
        })
    }
}

impl Components {
    fn build(config: Config, vb: ShardedVarBuilder) -> CandleResult<Components> {
        let Dims { n_layer, n_embd: e, vocab_size, .. } = config.dims;
        let block = |i: usize| Block::build(&config, &vb.pp("h").pp(i));
        let wte: Embedding = layers::embedding(vocab_size, e, vb.pp("wte"), &None)?;
        let lm_head = match config.tie_word_embeddings {
            true => Linear::new(wte.embeddings().clone(), None),
            false => layers::linear_no_bias(e, vocab_size, vb.pp("lm_head"))?,
        };
        Ok(Components {
            blocks: (0..n_layer).map(block).collect::<CandleResult<_>>()?,
            ln_f: layers::layer_norm(e, config.layer_norm_epsilon, vb.pp("ln_f"))?,
            lm_head,
            config,
        })
    }

    /// A third of the merged projection, [T,E] → [H,T,D].
    fn third(&self, block: &Block, x: &Tensor, which: usize) -> CandleResult<Tensor> {
        let (t, e) = x.dims2()?;
        let heads = self.config.dims.n_head;
        let merged = block.c_attn.forward(x)?.reshape((t, 3, heads, e / heads))?;
        merged.narrow(1, which, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous()
    }
}

/// Softmax under mistral.rs's causal mask, as its own attention on the CPU has it.
fn probabilities(scores: &Tensor) -> CandleResult<Tensor> {
    let (_, t, s) = scores.dims3()?;
    let ids = Tensor::zeros((1, t), DType::U32, &Device::Cpu)?;
    let past: &[usize] = &[s - t];
    let mask = CausalMasker.make_causal_mask_as_attn_bias(&ids, &past, scores.dtype())?;
    let masked = match mask {
        None => scores.clone(),
        Some(mask) => scores.broadcast_add(&mask)?,
    };
    ops::softmax_last_dim(&masked)
}

impl Model for Components {
    fn dims(&self) -> &Dims {
        &self.config.dims
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn exposes(&self, point: Point) -> bool {
        !matches!(
            point.stage,
            Stage::Tokens
                | Stage::CacheK
                | Stage::CacheV
                | Stage::LogitsLast
                | Stage::Argmax
                | Stage::NextProbs
                | Stage::Generated
        )
    }

    fn stage(&self, point: Point, given: &dyn Fn(Point) -> Option<Tensor>) -> Result<Tensor> {
        let layer = point.layer.unwrap_or(0);
        let at = |stage: Stage| Point::of_layer(stage, layer);
        let input = match point.stage {
            Stage::Ln1 if layer == 0 => Point::new(Stage::Embeddings),
            Stage::Ln1 => Point::of_layer(Stage::Block, layer - 1),
            Stage::Q | Stage::K | Stage::V => at(Stage::Ln1),
            Stage::Probs => at(Stage::Scores),
            Stage::AttnOut => at(Stage::Context),
            Stage::Ln2 => at(Stage::ResidMid),
            Stage::Fc => at(Stage::Ln2),
            Stage::Act => at(Stage::Fc),
            Stage::MlpOut => at(Stage::Act),
            Stage::LnF => Point::of_layer(Stage::Block, self.config.dims.n_layer - 1),
            Stage::Logits => Point::new(Stage::LnF),
            other => return Err(Failure::unsupported(format!("{point}: {}", obstacle(other)))),
        };
        let x = given(input).ok_or_else(|| {
            Failure::unsupported(format!(
                "{NO_GPT2}: {point} is computed where {input} was put in place"
            ))
        })?;
        let block = self.blocks.get(layer);
        let block = block.ok_or_else(|| Failure::internal(format!("{point}: no such layer")))?;
        Ok(match point.stage {
            Stage::Ln1 => block.ln_1.forward(&x)?,
            Stage::Q => self.third(block, &x, 0)?,
            Stage::K => self.third(block, &x, 1)?,
            Stage::V => self.third(block, &x, 2)?,
            Stage::Probs => probabilities(&x)?,
            Stage::AttnOut => block.attn_proj.forward(&x)?,
            Stage::Ln2 => block.ln_2.forward(&x)?,
            Stage::Fc => block.c_fc.forward(&x)?,
            Stage::Act => Activation::NewGelu.forward(&x)?,
            Stage::MlpOut => block.mlp_proj.forward(&x)?,
            Stage::LnF => self.ln_f.forward(&x)?,
            _ => self.lm_head.forward(&x)?,
        })
    }
}

/// Why mistral.rs has nothing for a stage.
fn obstacle(stage: Stage) -> &'static str {
    match stage {
        Stage::Scores | Stage::Context => {
            "mistral.rs's attention can't be called from outside: its SdpaParams can't be built, and its \
             MatMul rounds to f16 on the CPU"
        }
        Stage::ResidMid | Stage::Block => "a sum of two tensors, for which mistral.rs has no layer",
        _ => NO_GPT2,
    }
}
