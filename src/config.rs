//! Hugging Face's `config.json` for GPT-2: every key that changes the mathematics is honoured or
//! refused by name; the rest (dropout, training, bookkeeping) is not read.

use std::path::Path;

use llorch_trace::Dims;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::activation::Activation;

/// What a forward pass needs to know. Names are those of Hugging Face's `GPT2Config`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub n_layer: usize,
    /// H
    pub n_head: usize,
    /// E
    pub n_embd: usize,
    /// Width of the MLP; 4E unless given.
    pub n_inner: usize,
    /// V
    pub vocab_size: usize,
    /// The longest context.
    pub n_positions: usize,
    pub layer_norm_epsilon: f64,
    pub activation: Activation,
    /// Scores are divided by √D.
    pub scale_attn_weights: bool,
    /// Scores are divided by the layer's number, counted from 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// The head is `wte`; else it is `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// The token after which generation ends.
    pub eos_token_id: Option<u32>,
}

/// Keys that may only be absent, null or empty.
const ABSENT: [&str; 4] = ["quantization_config", "pruned_heads", "rope_scaling", "sliding_window"];

/// Why a configuration is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is damaged or contradicts itself.
    Wrong(String),
    /// It is another model than this engine computes.
    Unsupported(String),
}

impl From<String> for Refusal {
    fn from(what: String) -> Refusal {
        Refusal::Wrong(what)
    }
}

impl Config {
    pub fn from_file(path: &Path) -> Result<Config> {
        let wrong = |what| Error::Config { path: path.to_owned(), what };
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        Config::from_json(&json).map_err(|refusal| match refusal {
            Refusal::Wrong(what) => wrong(what),
            Refusal::Unsupported(what) => Error::Unsupported { path: path.to_owned(), what },
        })
    }

    /// The error is a sentence that names the key.
    pub fn from_json(json: &Value) -> Result<Config, Refusal> {
        if !json.is_object() {
            return Err("expected a JSON object".to_string().into());
        }
        match json.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => {}
            Some(other) => {
                return Err(Refusal::Unsupported(format!(
                    "model_type is {other:?}; expected \"gpt2\""
                )));
            }
            None => {
                return Err("key \"model_type\" is missing; expected \"gpt2\"".to_string().into());
            }
        }
        if flag(json, "add_cross_attention", false)? {
            let what = "add_cross_attention is true; this engine has no cross-attention";
            return Err(Refusal::Unsupported(what.into()));
        }
        for key in ABSENT {
            let value = json.get(key).unwrap_or(&Value::Null);
            let empty = value.as_object().is_some_and(|o| o.is_empty());
            if !value.is_null() && !empty {
                let what = format!("{key} is {value}; this engine runs GPT-2 without it");
                return Err(Refusal::Unsupported(what));
            }
        }
        if let (Some(ctx), Some(positions)) = (json.get("n_ctx"), json.get("n_positions"))
            && ctx != positions
        {
            return Err(
                format!("n_ctx is {ctx} and n_positions {positions}; expected one size").into()
            );
        }
        // Upcasting to f32 before the softmax, and reordering for it, is what f32 does anyway.
        flag(json, "reorder_and_upcast_attn", false)?;
        let dims = Dims::from_config(json)?;
        Ok(Config {
            n_layer: dims.n_layer,
            n_head: dims.n_head,
            n_embd: dims.n_embd,
            n_inner: dims.n_inner,
            vocab_size: dims.vocab_size,
            n_positions: dims.n_positions,
            layer_norm_epsilon: epsilon(json)?,
            activation: activation(json)?,
            scale_attn_weights: flag(json, "scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: flag(json, "scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: flag(json, "tie_word_embeddings", true)?,
            eos_token_id: json
                .get("eos_token_id")
                .and_then(Value::as_u64)
                .and_then(|id| id.try_into().ok()),
        })
    }

    /// D = E / H.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What attention scores of a layer are multiplied by.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let mut divisor = 1.0;
        if self.scale_attn_weights {
            divisor *= (self.head_dim() as f64).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            divisor *= (layer + 1) as f64;
        }
        (1.0 / divisor) as f32
    }

    /// The number of parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        let (e, i, v) = (self.n_embd, self.n_inner, self.vocab_size);
        let block = 4 * e + (3 * e * e + 3 * e) + (e * e + e) + (e * i + i) + (i * e + e);
        let head = if self.tie_word_embeddings { 0 } else { v * e };
        v * e + self.n_positions * e + self.n_layer * block + 2 * e + head
    }

    #[cfg(test)]
    pub(crate) fn tiny() -> Config {
        let json = r#"{"model_type":"gpt2","n_layer":2,"n_head":2,"n_embd":8,"vocab_size":11,"n_positions":80}"#;
        Config::from_json(&serde_json::from_str(json).unwrap()).unwrap()
    }
}

fn flag(json: &Value, key: &str, default: bool) -> Result<bool, String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(format!("{key} is {other}; expected true or false")),
    }
}

fn epsilon(json: &Value) -> Result<f64, String> {
    match json.get("layer_norm_epsilon") {
        None | Some(Value::Null) => Ok(1e-5),
        Some(value) => match value.as_f64() {
            Some(eps) if eps >= 0.0 && eps.is_finite() => Ok(eps),
            _ => Err(format!("layer_norm_epsilon is {value}; expected a number of 0 or more")),
        },
    }
}

fn activation(json: &Value) -> Result<Activation, Refusal> {
    let name = match json.get("activation_function") {
        None | Some(Value::Null) => "gelu_new",
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(format!("activation_function is {other}; expected a name").into());
        }
    };
    match name {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(Refusal::Unsupported(format!(
            "activation_function is {other:?}; this engine has gelu_new, gelu_pytorch_tanh, gelu_fast and relu"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: Value) -> Result<Config, Refusal> {
        let mut json = serde_json::json!({
            "model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768,
            "vocab_size": 50257, "n_positions": 1024,
        });
        json[key] = value;
        Config::from_json(&json)
    }

    #[test]
    fn the_published_sizes_have_their_published_parameters() {
        assert_eq!(with("n_ctx", 1024.into()).unwrap().parameters(), 124_439_808);
        let mut xl = with("n_layer", 48.into()).unwrap();
        (xl.n_embd, xl.n_head, xl.n_inner) = (1600, 25, 6400);
        assert_eq!(xl.parameters(), 1_557_611_200);
    }

    #[test]
    fn defaults_are_hugging_faces() {
        let config = with("n_inner", Value::Null).unwrap();
        assert_eq!((config.n_inner, config.layer_norm_epsilon), (3072, 1e-5));
        assert_eq!(config.activation, Activation::GeluTanh);
        assert!(config.scale_attn_weights && config.tie_word_embeddings);
        assert_eq!(config.attention_scale(3), 0.125);
    }

    #[test]
    fn keys_that_change_the_mathematics_are_honoured() {
        assert_eq!(with("n_inner", 100.into()).unwrap().n_inner, 100);
        assert_eq!(with("layer_norm_epsilon", 1e-3.into()).unwrap().layer_norm_epsilon, 1e-3);
        assert_eq!(
            with("activation_function", "relu".into()).unwrap().activation,
            Activation::Relu
        );
        assert_eq!(with("scale_attn_weights", false.into()).unwrap().attention_scale(3), 1.0);
        let inverse = with("scale_attn_by_inverse_layer_idx", true.into()).unwrap();
        assert_eq!(inverse.attention_scale(3), 0.125 / 4.0);
        assert!(!with("tie_word_embeddings", false.into()).unwrap().tie_word_embeddings);
        assert!(with("reorder_and_upcast_attn", true.into()).is_ok());
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let refused: [(&str, Value); 14] = [
            ("activation_function", "gelu".into()),
            ("activation_function", 3.into()),
            ("model_type", "gpt_neo".into()),
            ("model_type", Value::Null),
            ("add_cross_attention", true.into()),
            ("quantization_config", serde_json::json!({"bits": 4})),
            ("pruned_heads", serde_json::json!({"0": [1]})),
            ("n_embd", 770.into()),
            ("n_layer", 0.into()),
            ("vocab_size", (-1).into()),
            ("layer_norm_epsilon", "small".into()),
            ("scale_attn_weights", "yes".into()),
            ("n_ctx", 512.into()),
            ("reorder_and_upcast_attn", 1.into()),
        ];
        for (key, value) in refused {
            let (Refusal::Wrong(what) | Refusal::Unsupported(what)) =
                with(key, value.clone()).expect_err(key);
            assert!(what.contains(key), "{key} = {value}: {what}");
        }
        let gelu = with("activation_function", "gelu".into());
        assert!(matches!(gelu, Err(Refusal::Unsupported(_))), "{gelu:?}");
        assert!(Config::from_json(&Value::Null).is_err());
        let error = Config::from_file(Path::new("/nowhere/config.json")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/config.json"));
    }
}
