//! A GPT-2 of a few hundred random weights, written as a model folder.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use llorch_trace::Dims;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

pub const DIMS: Dims =
    Dims { n_layer: 2, n_head: 2, n_embd: 8, n_inner: 32, vocab_size: 23, n_positions: 64 };

/// Name without prefix to shape and values; every value is an exact f16.
pub struct Tiny {
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Tiny {
    pub fn random() -> Tiny {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let mut tensors = BTreeMap::new();
        let mut put = |name: String, shape: Vec<usize>, offset: f64| {
            let values =
                (0..shape.iter().product()).map(|_| f16::from_f64(offset + uniform()).to_f64());
            tensors.insert(name, (shape, values.collect()));
        };
        let Dims { n_embd: e, n_inner, vocab_size, n_positions, n_layer, .. } = DIMS;
        put("wte.weight".into(), vec![vocab_size, e], 0.0);
        put("wpe.weight".into(), vec![n_positions, e], 0.0);
        let norms = (0..n_layer).flat_map(|i| [format!("h.{i}.ln_1"), format!("h.{i}.ln_2")]);
        for norm in norms.chain(["ln_f".into()]) {
            put(format!("{norm}.weight"), vec![e], 1.0);
            put(format!("{norm}.bias"), vec![e], 0.0);
        }
        for i in 0..n_layer {
            for (name, n_in, n_out) in [
                ("attn.c_attn", e, 3 * e),
                ("attn.c_proj", e, e),
                ("mlp.c_fc", e, n_inner),
                ("mlp.c_proj", n_inner, e),
            ] {
                put(format!("h.{i}.{name}.weight"), vec![n_in, n_out], 0.0);
                put(format!("h.{i}.{name}.bias"), vec![n_out], 0.0);
            }
        }
        Tiny { tensors }
    }

    pub fn values(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    pub fn write(&self, folder: &Path, dtype: Dtype, prefix: &str) {
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                let bytes = values.iter().flat_map(|v| match dtype {
                    Dtype::F16 => f16::from_f64(*v).to_le_bytes().to_vec(),
                    _ => (*v as f32).to_le_bytes().to_vec(),
                });
                (format!("{prefix}{name}"), shape.clone(), bytes.collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
        self.write_config(folder, serde_json::json!({}));
    }

    pub fn write_config(&self, folder: &Path, extra: serde_json::Value) {
        let mut config = serde_json::json!({
            "model_type": "gpt2", "n_layer": DIMS.n_layer, "n_head": DIMS.n_head, "n_embd": DIMS.n_embd,
            "vocab_size": DIMS.vocab_size, "n_positions": DIMS.n_positions, "n_inner": null,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    }
}
