//! `config.json`: sizes, and the keys that change GPT-2's mathematics, each honoured or refused.

use std::path::Path;

use candle_nn::Activation;
use llorch_trace::Dims;
use serde::Deserialize;

use crate::failure::{Failure, Result};

#[derive(Debug, Clone)]
pub struct Config {
    pub dims: Dims,
    pub layer_norm_epsilon: f64,
    pub activation: Activation,
    /// Scores are divided by √D (by default) or left as they are.
    pub scale_attn_weights: bool,
    /// Scores of layer i are further divided by i + 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    pub tie_word_embeddings: bool,
}

#[derive(Deserialize)]
#[serde(default)]
struct Keys {
    model_type: String,
    layer_norm_epsilon: f64,
    activation_function: String,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    add_cross_attention: bool,
    tie_word_embeddings: bool,
    // `reorder_and_upcast_attn` changes only the order of roundings in half precision: in f32 and f64
    // the mathematics are the same, so it needs no field.
}

/// Hugging Face's `GPT2Config` defaults.
impl Default for Keys {
    fn default() -> Keys {
        Keys {
            model_type: "gpt2".into(),
            layer_norm_epsilon: 1e-5,
            activation_function: "gelu_new".into(),
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    pub fn from_file(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::input(format!("failed to read {}: {e}", path.display())))?;
        Config::from_json(&text)
            .map_err(|f| Failure { message: format!("{}: {}", path.display(), f.message), ..f })
    }

    fn from_json(text: &str) -> Result<Config> {
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|e| Failure::input(format!("not JSON: {e}")))?;
        let dims = Dims::from_config(&json).map_err(Failure::input)?;
        let keys = Keys::deserialize(&json).map_err(|e| Failure::input(e.to_string()))?;
        if keys.model_type != "gpt2" {
            return Err(Failure::unsupported(format!(
                "model_type is {:?}; this adapter knows gpt2",
                keys.model_type
            )));
        }
        if keys.add_cross_attention {
            return Err(Failure::unsupported(
                "add_cross_attention: this adapter has no cross-attention",
            ));
        }
        let activation = match keys.activation_function.as_str() {
            "gelu_new" | "gelu_pytorch_tanh" => Activation::NewGelu,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                return Err(Failure::unsupported(format!(
                    "activation_function {other:?}; this adapter knows gelu_new, gelu_pytorch_tanh, gelu, \
                     relu and silu"
                )));
            }
        };
        Ok(Config {
            dims,
            layer_norm_epsilon: keys.layer_norm_epsilon,
            activation,
            scale_attn_weights: keys.scale_attn_weights,
            scale_attn_by_inverse_layer_idx: keys.scale_attn_by_inverse_layer_idx,
            tie_word_embeddings: keys.tie_word_embeddings,
        })
    }

    /// What the scores of `layer` are multiplied by.
    pub fn score_scale(&self, layer: usize) -> f64 {
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale /= (self.dims.head_dim() as f64).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f64;
        }
        scale
    }

    /// Whisper's decoder has these fixed; a model that sets them otherwise is not expressible in it.
    pub fn require_whisper_form(&self) -> Result<()> {
        let refuse = |what: String| {
            Err(Failure::unsupported(format!(
                "{what}: candle-transformers' Whisper decoder fixes it"
            )))
        };
        if self.layer_norm_epsilon != 1e-5 {
            return refuse(format!("layer_norm_epsilon {} is not 1e-5", self.layer_norm_epsilon));
        }
        if self.dims.n_inner != 4 * self.dims.n_embd {
            return refuse(format!("n_inner {} is not 4 × n_embd", self.dims.n_inner));
        }
        if self.activation != Activation::NewGelu {
            return refuse(format!("activation {:?} is not the tanh GELU", self.activation));
        }
        if !self.scale_attn_weights || self.scale_attn_by_inverse_layer_idx {
            return refuse("scale_attn_* is not 1/√D".into());
        }
        if !self.tie_word_embeddings {
            return refuse("tie_word_embeddings is false".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<Config> {
        Config::from_json(&format!(
            r#"{{"n_layer":2,"n_head":2,"n_embd":8,"vocab_size":11,"n_positions":16{extra}}}"#
        ))
    }

    #[test]
    fn defaults_are_gpt2() {
        let config = parse("").unwrap();
        assert_eq!((config.layer_norm_epsilon, config.activation), (1e-5, Activation::NewGelu));
        assert_eq!(config.score_scale(1), 0.5);
        config.require_whisper_form().unwrap();
    }

    #[test]
    fn honours_or_refuses_what_changes_the_mathematics() {
        let config =
            parse(r#","scale_attn_by_inverse_layer_idx":true,"scale_attn_weights":false"#).unwrap();
        assert_eq!(config.score_scale(3), 0.25);
        for (extra, named) in [
            (r#","activation_function":"mish2""#, "mish2"),
            (r#","model_type":"llama""#, "llama"),
            (r#","add_cross_attention":true"#, "add_cross_attention"),
        ] {
            let failure = parse(extra).unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
        }
    }

    #[test]
    fn whisper_form_is_refused_by_name() {
        for (extra, named) in [
            (r#","layer_norm_epsilon":1e-6"#, "layer_norm_epsilon"),
            (r#","n_inner":24"#, "n_inner"),
            (r#","activation_function":"gelu""#, "activation"),
            (r#","scale_attn_by_inverse_layer_idx":true"#, "scale_attn"),
            (r#","tie_word_embeddings":false"#, "tie_word_embeddings"),
        ] {
            let failure = parse(extra).unwrap().require_whisper_form().unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
        }
    }
}
