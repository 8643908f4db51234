//! Weights: one `model.safetensors`, with or without the `transformer.` prefix, under GPT-2's names and
//! with linear layers as mistral.rs wants them, [out,in].

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, safetensors};
use mistralrs_quant::{ShardedSafeTensors, ShardedVarBuilder};

use crate::failure::{Failure, Result, first_line};

/// GPT-2's Conv1D keeps these as [in,out].
const CONV1D: [&str; 4] =
    ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];

/// F16 storage is widened, exactly.
pub fn open(path: &Path) -> Result<ShardedVarBuilder> {
    let failed = |e: &dyn std::fmt::Display| {
        let path = path.display();
        Failure::input(format!("failed to read weights from {path}: {}", first_line(e)))
    };
    let stored = safetensors::load(path, &Device::Cpu).map_err(|e| failed(&e))?;
    let mut named: HashMap<String, Tensor> = HashMap::new();
    for (name, tensor) in stored {
        let bare = name.strip_prefix("transformer.").unwrap_or(&name).to_string();
        let turned = CONV1D.iter().any(|end| bare.ends_with(end)) && tensor.rank() == 2;
        let widened = tensor.to_dtype(DType::F32);
        let ready =
            if turned { widened.and_then(|w| w.t()).and_then(|w| w.contiguous()) } else { widened };
        named.insert(bare, ready.map_err(|e| failed(&e))?);
    }
    if !named.contains_key("wte.weight") {
        return Err(failed(&"neither wte.weight nor transformer.wte.weight is in it"));
    }
    Ok(ShardedSafeTensors::wrap(Box::new(named), DType::F32, Device::Cpu))
}

/// A missing tensor or one of another shape: the message names it.
pub fn bad_weights(path: &Path) -> impl Fn(candle_core::Error) -> Failure {
    move |e| {
        let path = path.display();
        Failure::input(format!("failed to load weights from {path}: {}", first_line(&e)))
    }
}
