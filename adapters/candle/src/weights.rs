//! Weights: one `model.safetensors`, with or without the `transformer.` prefix.

use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::failure::{Failure, Result, first_line};

/// The two places in a checkpoint that GPT-2's tensors are read from.
pub struct Weights {
    /// Holds `wte`, `wpe`, `h.i`, `ln_f`.
    pub transformer: VarBuilder<'static>,
    /// Holds `lm_head`, where the head is not tied.
    pub root: VarBuilder<'static>,
}

impl Weights {
    /// F16 storage is widened, exactly, to `dtype`.
    pub fn open(path: &Path, dtype: DType) -> Result<Weights> {
        let failed = |e: &dyn std::fmt::Display| {
            Failure::input(format!(
                "failed to read weights from {}: {}",
                path.display(),
                first_line(e)
            ))
        };
        std::fs::File::open(path).map_err(|e| failed(&e))?;
        // SAFETY: the file must not shrink or change while it is mapped; model folders are not
        // rewritten while a process that was handed one is loading it.
        let root = unsafe { VarBuilder::from_mmaped_safetensors(&[path], dtype, &Device::Cpu) }
            .map_err(|e| failed(&e))?;
        let transformer = if root.contains_tensor("transformer.wte.weight") {
            root.pp("transformer")
        } else if root.contains_tensor("wte.weight") {
            root.clone()
        } else {
            return Err(failed(&"neither wte.weight nor transformer.wte.weight is in it"));
        };
        Ok(Weights { transformer, root })
    }
}

/// A missing tensor or one of another shape: the message names it.
pub fn bad_weights(path: &Path) -> impl Fn(candle_core::Error) -> Failure {
    move |e| {
        Failure::input(format!(
            "failed to load weights from {}: {}",
            path.display(),
            first_line(&e)
        ))
    }
}
