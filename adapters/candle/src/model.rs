//! What a run needs of a model, whichever of the two it is.

use std::path::Path;

use candle_core::{DType, Tensor};
use llorch_trace::{Dims, Dtype, Point};

use crate::config::Config;
use crate::failure::{Failure, Result};
use crate::graph::Gpt2;
use crate::tap::Tap;
use crate::upstream::WhisperGpt2;
use crate::variant::Variant;

pub trait Model: Send {
    fn dims(&self) -> &Dims;

    fn dtype(&self) -> DType;

    /// Whether this point can be captured and replaced.
    fn exposes(&self, point: Point) -> bool;

    /// Forgets everything; the sequence to come has at most `positions` tokens.
    fn begin(&mut self, positions: usize);

    /// Reads the next `ids` of the sequence and gives the last one's logits, [V].
    fn step(&mut self, ids: &[u32], tap: &mut dyn Tap) -> Result<Tensor>;
}

/// Loads the folder that the harness names.
pub fn load(variant: Variant, model_dir: &Path, dtype: Dtype) -> Result<Box<dyn Model>> {
    let dtype = match (variant, dtype) {
        (Variant::GraphF64, Dtype::F32 | Dtype::F64) | (Variant::Graph, Dtype::F64) => DType::F64,
        (Variant::Graph | Variant::Upstream, Dtype::F32) => DType::F32,
        (Variant::Upstream, other) => {
            return Err(Failure::unsupported(format!(
                "dtype {other}: candle-transformers' Whisper decoder masks in f32, so it runs in f32"
            )));
        }
        (_, other) => {
            return Err(Failure::unsupported(format!(
                "dtype {other}: this adapter computes in f32 or f64"
            )));
        }
    };
    let config = Config::from_file(&model_dir.join("config.json"))?;
    let weights = model_dir.join("model.safetensors");
    Ok(match variant {
        Variant::Graph | Variant::GraphF64 => Box::new(Gpt2::load(config, &weights, dtype)?),
        Variant::Upstream => Box::new(WhisperGpt2::load(config, &weights)?),
    })
}
