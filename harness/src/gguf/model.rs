//! Which tensors and settings llama.cpp's `gpt2` is made of, and where they are in a model folder.

use std::path::Path;

use llorch_trace::files::SafetensorsFile;
use llorch_trace::{Dims, Dtype};
use serde_json::Value as Json;

use super::GgufError;
use super::format::Value;
use super::vocabulary::Vocabulary;

/// Upstream's defaults where config.json says nothing.
const EPSILON: f64 = 1e-5;
const END_OF_TEXT: u64 = 50256;

/// A tensor of the file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Weight {
    /// llama.cpp's name.
    pub name: String,
    /// The key in model.safetensors.
    pub stored: String,
    /// Row-major, as llama.cpp has it.
    pub shape: Vec<usize>,
    /// Stored as `[in, out]`.
    pub transposed: bool,
}

/// All that the file is to hold.
#[derive(Debug)]
pub(super) struct Plan {
    pub values: Vec<(String, Value)>,
    pub weights: Vec<Weight>,
    pub tokens: Option<usize>,
}

impl Plan {
    pub fn of(dir: &Path, name: &str, file: &SafetensorsFile) -> Result<Plan, GgufError> {
        let path = dir.join("config.json");
        let dims = Dims::from_config_file(&path)?;
        let read = std::fs::read(&path).map_err(|e| GgufError::model(&path, e.to_string()))?;
        let config: Json =
            serde_json::from_slice(&read).map_err(|e| GgufError::model(&path, e.to_string()))?;
        let epsilon = check_config(&config).map_err(|what| GgufError::model(&path, what))?;

        let tied = config.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(true);
        let weights = weights(&dims, tied, file.contains("transformer.wte.weight"));
        check_weights(&weights, file)
            .map_err(|what| GgufError::model(&dir.join("model.safetensors"), what))?;

        let special = |key: &str| {
            let id = config.get(key).map_or(Some(END_OF_TEXT), Json::as_u64);
            id.filter(|id| *id < dims.vocab_size as u64).map(|id| id as u32)
        };
        let (bos, eos) = (special("bos_token_id"), special("eos_token_id"));
        let controls: Vec<u32> = bos.into_iter().chain(eos).collect();
        let vocabulary = Vocabulary::read(dir, dims.vocab_size, &controls)?;
        let mut values = settings(&dims, name, epsilon);
        let tokens = vocabulary.as_ref().map(|v| v.tokens.len());
        match vocabulary {
            Some(vocabulary) => values.extend(vocabulary.settings(bos, eos)),
            None => values.push(("tokenizer.ggml.model".into(), Value::Text("no_vocab".into()))),
        }
        Ok(Plan { values, weights, tokens })
    }
}

/// The layer norm's epsilon. llama.cpp's `gpt2` has no setting for other mathematics, so what asks for it
/// is refused.
fn check_config(config: &Json) -> Result<f64, String> {
    let plain = [
        ("model_type", vec!["gpt2".into()]),
        ("activation_function", vec!["gelu_new".into(), "gelu_pytorch_tanh".into()]),
        ("scale_attn_weights", vec![true.into()]),
        ("scale_attn_by_inverse_layer_idx", vec![false.into()]),
        ("add_cross_attention", vec![false.into()]),
    ];
    for (key, allowed) in plain as [(&str, Vec<Json>); 5] {
        if let Some(found) = config.get(key)
            && !allowed.contains(found)
        {
            return Err(format!("`{key}` is {found}; llama.cpp's gpt2 knows {} only", allowed[0]));
        }
    }
    let epsilon = config.get("layer_norm_epsilon").map_or(Some(EPSILON), Json::as_f64);
    epsilon
        .filter(|epsilon| *epsilon > 0.0 && *epsilon < 1.0)
        .ok_or_else(|| format!("`layer_norm_epsilon` is {}", config["layer_norm_epsilon"]))
}

fn settings(dims: &Dims, name: &str, epsilon: f64) -> Vec<(String, Value)> {
    let size = |size: usize| Value::U32(size as u32); // at most 2²⁴, see `Dims`
    let of_gpt2 = |key: &str, value: Value| (format!("gpt2.{key}"), value);
    vec![
        ("general.architecture".into(), Value::Text("gpt2".into())),
        ("general.name".into(), Value::Text(name.into())),
        ("general.file_type".into(), Value::U32(0)), // all F32
        of_gpt2("block_count", size(dims.n_layer)),
        of_gpt2("context_length", size(dims.n_positions)),
        of_gpt2("embedding_length", size(dims.n_embd)),
        of_gpt2("feed_forward_length", size(dims.n_inner)),
        of_gpt2("attention.head_count", size(dims.n_head)),
        of_gpt2("attention.layer_norm_epsilon", Value::F32(epsilon as f32)),
        of_gpt2("vocab_size", size(dims.vocab_size)),
    ]
}

/// Every tensor, in the order of a forward pass.
fn weights(dims: &Dims, tied: bool, prefixed: bool) -> Vec<Weight> {
    let (e, f, v) = (dims.n_embd, dims.n_inner, dims.vocab_size);
    let prefix = if prefixed { "transformer." } else { "" };
    let mut all = Vec::new();
    let mut add = |name: String, stored: String, shape: Vec<usize>, transposed: bool| {
        all.push(Weight { name, stored: format!("{prefix}{stored}"), shape, transposed });
    };
    add("token_embd.weight".into(), "wte.weight".into(), vec![v, e], false);
    add("position_embd.weight".into(), "wpe.weight".into(), vec![dims.n_positions, e], false);
    for i in 0..dims.n_layer {
        for (name, stored, out_in) in [
            ("attn_norm", "ln_1", None),
            ("attn_qkv", "attn.c_attn", Some([3 * e, e])),
            ("attn_output", "attn.c_proj", Some([e, e])),
            ("ffn_norm", "ln_2", None),
            ("ffn_up", "mlp.c_fc", Some([f, e])),
            ("ffn_down", "mlp.c_proj", Some([e, f])),
        ] {
            let weight = out_in.map_or(vec![e], |sizes| sizes.to_vec());
            let bias = vec![weight[0]];
            let names =
                |part: &str| (format!("blk.{i}.{name}.{part}"), format!("h.{i}.{stored}.{part}"));
            let (ours, theirs) = names("weight");
            add(ours, theirs, weight, out_in.is_some());
            let (ours, theirs) = names("bias");
            add(ours, theirs, bias, false);
        }
    }
    add("output_norm.weight".into(), "ln_f.weight".into(), vec![e], false);
    add("output_norm.bias".into(), "ln_f.bias".into(), vec![e], false);
    if !tied {
        // Never below the prefix.
        all.push(Weight {
            name: "output.weight".into(),
            stored: "lm_head.weight".into(),
            shape: vec![v, e],
            transposed: false,
        });
    }
    all
}

/// Everything is there, in its shape, and can be widened to f32 without rounding.
fn check_weights(weights: &[Weight], file: &SafetensorsFile) -> Result<(), String> {
    let listed = file.list().map_err(|e| e.to_string())?;
    for weight in weights {
        let key = &weight.stored;
        let Some((_, dtype, found)) = listed.iter().find(|(name, ..)| name == key) else {
            return Err(format!("no tensor `{key}`"));
        };
        let mut expected = weight.shape.clone();
        if weight.transposed {
            expected.reverse();
        }
        if *found != expected {
            return Err(format!("`{key}` is {found:?}, expected {expected:?}"));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(format!("`{key}` is stored as {dtype}, expected f32, f16 or bf16"));
        }
    }
    Ok(())
}
