//! GPT-2 in candle-transformers' Whisper text decoder, unmodified.
//!
//! The decoder is a pre-LN transformer with learned positions, tanh GELU and a tied head: GPT-2, but
//! for three things. It attends to an audio encoder after itself: with weights and bias zero that adds
//! exactly 0. Its key projection has no bias: GPT-2's would add q·b_k, the same number for every key
//! that a query sees, which softmax takes out again. And it scales q and k by D^-¼ each, where GPT-2
//! scales their product by D^-½.
//!
//! Its self-attention keeps no cache and its positions start at 0, so each decode step runs the whole
//! sequence again.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::whisper;
use llorch_trace::{Dims, Point, Stage};

use crate::config::Config;
use crate::failure::Result;
use crate::model::Model;
use crate::tap::Tap;
use crate::weights::{Weights, bad_weights};

pub struct WhisperGpt2 {
    dims: Dims,
    whisper: whisper::model::Whisper,
    /// One frame of silence, [1,1,E], for the cross-attention to look at.
    audio: Tensor,
    /// Every token read so far.
    ids: Vec<u32>,
}

impl WhisperGpt2 {
    pub fn load(config: Config, path: &Path) -> Result<WhisperGpt2> {
        config.require_whisper_form()?;
        let weights = Weights::open(path, DType::F32)?;
        WhisperGpt2::build(config.dims, &weights.transformer).map_err(bad_weights(path))
    }

    fn build(dims: Dims, gpt2: &VarBuilder<'_>) -> CandleResult<WhisperGpt2> {
        let vb = VarBuilder::from_tensors(whisper_tensors(&dims, gpt2)?, DType::F32, &Device::Cpu);
        let config = whisper::Config {
            num_mel_bins: 1,
            max_source_positions: 1,
            d_model: dims.n_embd,
            encoder_attention_heads: dims.n_head,
            encoder_layers: 0,
            vocab_size: dims.vocab_size,
            max_target_positions: dims.n_positions,
            decoder_attention_heads: dims.n_head,
            decoder_layers: dims.n_layer,
            suppress_tokens: Vec::new(),
        };
        Ok(WhisperGpt2 {
            dims,
            whisper: whisper::model::Whisper::load(&vb, config)?,
            audio: Tensor::zeros((1, 1, dims.n_embd), DType::F32, &Device::Cpu)?,
            ids: Vec::new(),
        })
    }
}

/// GPT-2's tensors under Whisper's names.
fn whisper_tensors(dims: &Dims, gpt2: &VarBuilder<'_>) -> CandleResult<HashMap<String, Tensor>> {
    let Dims { n_embd: e, n_inner, vocab_size, n_positions, .. } = *dims;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (vector, matrix) = (zeros(&[e])?, zeros(&[e, e])?);
    let mut tensors = HashMap::new();
    let mut put = |name: String, tensor: Tensor| tensors.insert(name, tensor);

    put("model.decoder.embed_tokens.weight".into(), gpt2.get((vocab_size, e), "wte.weight")?);
    put("model.decoder.embed_positions.weight".into(), gpt2.get((n_positions, e), "wpe.weight")?);
    for part in ["weight", "bias"] {
        put(format!("model.decoder.layer_norm.{part}"), gpt2.get(e, &format!("ln_f.{part}"))?);
    }

    for i in 0..dims.n_layer {
        let from = gpt2.pp(format!("h.{i}"));
        let to = format!("model.decoder.layers.{i}");
        for (ours, theirs) in [("ln_1", "self_attn_layer_norm"), ("ln_2", "final_layer_norm")] {
            for part in ["weight", "bias"] {
                put(format!("{to}.{theirs}.{part}"), from.get(e, &format!("{ours}.{part}"))?);
            }
        }
        // Conv1D [in,out] to Linear [out,in]; c_attn is q, k and v side by side.
        let qkv = from.get((e, 3 * e), "attn.c_attn.weight")?.t()?;
        let qkv_bias = from.get(3 * e, "attn.c_attn.bias")?;
        for (part, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            put(format!("{to}.self_attn.{name}.weight"), qkv.narrow(0, part * e, e)?.contiguous()?);
            if name != "k_proj" {
                put(format!("{to}.self_attn.{name}.bias"), qkv_bias.narrow(0, part * e, e)?);
            }
        }
        for (ours, theirs, n_in, n_out) in [
            ("attn.c_proj", "self_attn.out_proj", e, e),
            ("mlp.c_fc", "fc1", e, n_inner),
            ("mlp.c_proj", "fc2", n_inner, e),
        ] {
            let weight = from.get((n_in, n_out), &format!("{ours}.weight"))?;
            put(format!("{to}.{theirs}.weight"), weight.t()?.contiguous()?);
            put(format!("{to}.{theirs}.bias"), from.get(n_out, &format!("{ours}.bias"))?);
        }
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            put(format!("{to}.encoder_attn.{name}.weight"), matrix.clone());
            put(format!("{to}.encoder_attn.{name}.bias"), vector.clone());
        }
        for part in ["weight", "bias"] {
            put(format!("{to}.encoder_attn_layer_norm.{part}"), vector.clone());
        }
    }

    // The encoder is loaded with the decoder; it never runs.
    put("model.encoder.conv1.weight".into(), zeros(&[e, 1, 3])?);
    put("model.encoder.conv2.weight".into(), zeros(&[e, e, 3])?);
    for name in ["conv1.bias", "conv2.bias", "layer_norm.weight", "layer_norm.bias"] {
        put(format!("model.encoder.{name}"), vector.clone());
    }
    Ok(tensors)
}

impl Model for WhisperGpt2 {
    fn dims(&self) -> &Dims {
        &self.dims
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn exposes(&self, point: Point) -> bool {
        point.layer.is_none() && point.stage != Stage::Embeddings
    }

    fn begin(&mut self, _positions: usize) {
        self.ids.clear();
    }

    fn step(&mut self, ids: &[u32], tap: &mut dyn Tap) -> Result<Tensor> {
        // Only the cross-attention has a cache, of the audio: flushed where a sequence starts.
        let first = self.ids.is_empty();
        self.ids.extend_from_slice(ids);
        let tokens = Tensor::new(self.ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let all = self.whisper.decoder.forward(&tokens, &self.audio, first)?;

        let (ln_f, logits) = (Point::new(Stage::LnF), Point::new(Stage::Logits));
        let last_row = |x: &Tensor| x.narrow(0, x.dim(0)? - 1, 1);
        // Of what was computed again, only the rows of this step's tokens count.
        let mut x = all.squeeze(0)?.narrow(0, self.ids.len() - ids.len(), ids.len())?;
        if tap.wants(ln_f) {
            x = tap.pass(ln_f, x)?;
        }
        if !tap.wants(logits) {
            x = last_row(&x)?;
        }
        let mut rows = self.whisper.decoder.final_linear(&x.unsqueeze(0)?)?.squeeze(0)?;
        if tap.wants(logits) {
            rows = last_row(&tap.pass(logits, rows)?)?;
        }
        Ok(rows.squeeze(0)?)
    }
}
