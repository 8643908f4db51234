//! The sizes of a GPT-2 that shapes are made of, read from a Hugging Face `config.json`.

use std::path::Path;

use crate::error::{Error, Result};

/// Sizes of one model. Names are those of Hugging Face's `GPT2Config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    pub n_layer: usize,
    pub n_head: usize,
    /// E, the width of the residual stream.
    pub n_embd: usize,
    /// Width of the MLP, 4E unless the configuration says otherwise.
    pub n_inner: usize,
    pub vocab_size: usize,
    /// The longest context, in tokens.
    pub n_positions: usize,
}

impl Dims {
    /// D = E / H.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    pub fn from_config_file(path: &Path) -> Result<Dims> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Error::malformed(path, format!("not JSON: {e}")))?;
        Dims::from_config(&json).map_err(|what| Error::malformed(path, what))
    }

    /// The error is a sentence that names the key.
    pub fn from_config(config: &serde_json::Value) -> Result<Dims, String> {
        let size = |key: &str| match config.get(key) {
            None => Err(format!("key {key:?} is missing; expected a whole number")),
            Some(v) => match (v.as_u64(), most(key)) {
                (Some(n), most) if (1..=most).contains(&n) => Ok(n as usize),
                (_, most) => {
                    Err(format!("key {key:?} is {v}; expected a whole number from 1 to {most}"))
                }
            },
        };
        let n_embd = size("n_embd")?;
        let n_inner = match config.get("n_inner") {
            None | Some(serde_json::Value::Null) => 4 * n_embd,
            Some(_) => size("n_inner")?,
        };
        // `n_ctx` is the older name of the same size.
        let n_positions = size("n_positions").or_else(|e| size("n_ctx").map_err(|_| e))?;
        let dims = Dims {
            n_layer: size("n_layer")?,
            n_head: size("n_head")?,
            n_embd,
            n_inner,
            vocab_size: size("vocab_size")?,
            n_positions,
        };
        if !dims.n_embd.is_multiple_of(dims.n_head) {
            return Err(format!(
                "n_embd {} is not a multiple of n_head {}",
                dims.n_embd, dims.n_head
            ));
        }
        Ok(dims)
    }
}

/// What a damaged file may make a reader allocate is bounded: GPT-2 XL has 48 layers, and the largest
/// published vocabularies some 250,000 tokens.
fn most(key: &str) -> u64 {
    if key == "n_layer" { 1 << 12 } else { 1 << 24 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_gpt2_and_defaults_the_inner_width() {
        let dims = Dims::from_config(&json!({"n_layer": 12, "n_head": 12, "n_embd": 768,
            "n_inner": null, "vocab_size": 50257, "n_positions": 1024}))
        .unwrap();
        assert_eq!((dims.n_inner, dims.head_dim()), (3072, 64));
    }

    #[test]
    fn refuses_by_naming_the_key() {
        let missing = Dims::from_config(&json!({"n_embd": 8})).unwrap_err();
        assert!(missing.contains("n_positions"), "{missing}");
        let uneven = Dims::from_config(&json!({"n_layer": 1, "n_head": 3, "n_embd": 8,
            "vocab_size": 5, "n_positions": 4}))
        .unwrap_err();
        assert!(uneven.contains("not a multiple"), "{uneven}");
    }

    #[test]
    fn sizes_beyond_belief_are_refused_with_the_bound() {
        let with = |key: &str, value: serde_json::Value| {
            let mut config = json!({"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 32,
                "n_positions": 24});
            config[key] = value;
            Dims::from_config(&config).unwrap_err()
        };
        assert_eq!(
            with("n_layer", json!(99_999_999_999u64)),
            "key \"n_layer\" is 99999999999; expected a whole number from 1 to 4096"
        );
        for (key, value) in [
            ("n_layer", json!(5000)),
            ("vocab_size", json!(1u64 << 40)),
            ("n_embd", json!(-8)),
            ("n_head", json!(0)),
            ("n_positions", json!("24")),
        ] {
            let error = with(key, value.clone());
            assert!(
                error.contains(&format!("key {key:?} is {value}; expected a whole")),
                "{error}"
            );
        }
    }
}
