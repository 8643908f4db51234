//! A model folder in Hugging Face's layout: config.json and one model.safetensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{input, Answer, Refusal};

/// What of config.json shapes are made of.
#[derive(Debug, Clone)]
pub struct Sizes {
    pub layers: usize,
    pub heads: usize,
    pub width: usize,
    pub inner: usize,
    pub vocab: usize,
    pub positions: usize,
    pub depth: usize,
    #[allow(dead_code)] // the stub has no norms
    pub epsilon: f64,
    pub tied: bool,
}

impl Sizes {
    pub fn read(path: &Path) -> Answer<Sizes> {
        let failed =
            |what: String| Refusal("input", format!("failed to read {}: {what}", path.display()));
        let text = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
        let size = |key: &str, otherwise: Option<usize>| match (&config[key], otherwise) {
            (Value::Null, Some(otherwise)) => Ok(otherwise),
            (value, _) => match value.as_u64() {
                Some(n) if (1..1 << 24).contains(&n) => Ok(n as usize),
                _ => Err(failed(format!("{key} is {value}, expected a whole number from 1"))),
            },
        };
        let (heads, width) = (size("n_head", None)?, size("n_embd", None)?);
        if width % heads != 0 {
            return Err(failed(format!("n_embd {width} isn't a multiple of n_head {heads}")));
        }
        // Other mathematics is refused, not ignored.
        for (key, known) in [
            ("activation_function", Value::from("gelu_new")),
            ("scale_attn_weights", Value::from(true)),
            ("scale_attn_by_inverse_layer_idx", Value::from(false)),
        ] {
            if config.get(key).is_some_and(|value| *value != known) {
                let what = format!(
                    "{}: {key} is {}, this engine knows {known}",
                    path.display(),
                    config[key]
                );
                return Err(Refusal("unsupported", what));
            }
        }
        Ok(Sizes {
            layers: size("n_layer", None)?,
            heads,
            width,
            inner: size("n_inner", Some(4 * width))?,
            vocab: size("vocab_size", None)?,
            positions: size("n_positions", None)?,
            depth: width / heads,
            epsilon: config["layer_norm_epsilon"].as_f64().unwrap_or(1e-5),
            tied: config["tie_word_embeddings"].as_bool().unwrap_or(true),
        })
    }

    /// Name and shape of every tensor. Weights of linear layers are [in, out].
    fn weights(&self) -> BTreeMap<String, Vec<usize>> {
        let (e, f) = (self.width, self.inner);
        let mut all = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| all.insert(name, shape.to_vec());
        add("wte.weight".into(), &[self.vocab, e]);
        add("wpe.weight".into(), &[self.positions, e]);
        for i in 0..self.layers {
            for norm in ["ln_1", "ln_2"] {
                add(format!("h.{i}.{norm}.weight"), &[e]);
                add(format!("h.{i}.{norm}.bias"), &[e]);
            }
            for (name, shape) in [
                ("attn.c_attn", [e, 3 * e]),
                ("attn.c_proj", [e, e]),
                ("mlp.c_fc", [e, f]),
                ("mlp.c_proj", [f, e]),
            ] {
                add(format!("h.{i}.{name}.weight"), &shape);
                add(format!("h.{i}.{name}.bias"), &shape[1..]);
            }
        }
        add("ln_f.weight".into(), &[e]);
        add("ln_f.bias".into(), &[e]);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocab, e]);
        }
        all
    }
}

/// model.safetensors: a length, a header in JSON, then the data.
pub struct Weights {
    path: PathBuf,
    header: Value,
    #[allow(dead_code)] // the stub reads no weight
    data: Vec<u8>,
}

impl Weights {
    pub fn read(path: &Path, sizes: &Sizes) -> Answer<Weights> {
        let failed =
            |what: String| Refusal("input", format!("failed to read {}: {what}", path.display()));
        let mut bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let length = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length) as usize);
        let header = length
            .and_then(|length| bytes.get(8..length.checked_add(8)?))
            .map(serde_json::from_slice);
        let Some(Ok(header)) = header else {
            return Err(failed("its header can't be read".into()));
        };
        let data = bytes.split_off(8 + length.unwrap_or(0));
        let weights = Weights { path: path.to_path_buf(), header, data };
        for (name, shape) in sizes.weights() {
            let found = &weights.entry(&name)?["shape"];
            if *found != Value::from(shape.clone()) {
                return Err(failed(format!("{name} is {found}, expected {shape:?}")));
            }
        }
        Ok(weights)
    }

    fn entry(&self, name: &str) -> Answer<&Value> {
        let entry =
            self.header.get(name).or_else(|| self.header.get(format!("transformer.{name}")));
        match entry {
            Some(entry) => Ok(entry),
            None => input(format!("failed to read {}: no tensor {name}", self.path.display())),
        }
    }

    /// Widened to float32, which is exact. F32 and F16 are read.
    #[allow(dead_code)] // the stub reads no weight
    pub fn get(&self, name: &str) -> Answer<Vec<f32>> {
        let entry = self.entry(name)?;
        let offset = |i: usize| entry["data_offsets"][i].as_u64().map(|n| n as usize);
        let bytes = offset(0).zip(offset(1)).and_then(|(begin, end)| self.data.get(begin..end));
        match (bytes, entry["dtype"].as_str()) {
            (Some(bytes), Some("F32")) => Ok(bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()),
            (Some(bytes), Some("F16")) => {
                Ok(bytes.chunks_exact(2).map(|b| widen(u16::from_le_bytes([b[0], b[1]]))).collect())
            }
            _ => input(format!("failed to read {}: {name} is {entry}", self.path.display())),
        }
    }
}

#[allow(dead_code)] // the stub reads no weight
fn widen(half: u16) -> f32 {
    let (exponent, fraction) = ((half >> 10 & 31) as i32, (half & 1023) as f32);
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (fraction + 1024.0) * 2f32.powi(exponent - 25),
    };
    if half & 0x8000 == 0 {
        size
    } else {
        -size
    }
}
