//! Writes the eight loose files of a Candle reference generator: layer 0 of one prefill.
//!
//! `cargo run --release --example eight_files -- MODEL_FOLDER OUT_FOLDER ID... [--batch-axis]`

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use llorch_adapter_candle::config::Config;
use llorch_adapter_candle::failure::{Failure, Result};
use llorch_adapter_candle::graph::Gpt2;
use llorch_adapter_candle::model::Model;
use llorch_adapter_candle::tap::Tap;
use llorch_trace::Point;

/// Points and the names under which such generators keep them.
const FILES: [(&str, &str); 8] = [
    ("embeddings", "00_embeddings"),
    ("h.0.ln_1", "01_ln1_output"),
    ("h.0.attn.q", "02_q"),
    ("h.0.attn.k", "02_k"),
    ("h.0.attn.v", "02_v"),
    ("h.0.attn.scores", "04_scores"),
    ("h.0.attn.out", "05_output"),
    ("h.0.mlp.out", "06_ffn"),
];

/// Writes what passes, as Candle itself writes `.npy`.
struct Writer {
    folder: PathBuf,
    batch_axis: bool,
}

impl Tap for Writer {
    fn pass(&mut self, point: Point, value: Tensor) -> Result<Tensor> {
        let name = point.to_string();
        if let Some((_, file)) = FILES.iter().find(|(point, _)| *point == name) {
            let path = self.folder.join(format!("checkpoint_{file}_candle.npy"));
            let tensor = if self.batch_axis { value.unsqueeze(0)? } else { value.clone() };
            tensor.contiguous()?.write_npy(&path)?;
            println!("{} {:?}", path.display(), tensor.dims());
        }
        Ok(value)
    }

    fn wants(&self, point: Point) -> bool {
        FILES.iter().any(|(name, _)| *name == point.to_string())
    }

    fn replaces(&self, _: Point) -> bool {
        false
    }
}

fn generate(model: &Path, out: &Path, ids: &[u32], batch_axis: bool) -> Result<()> {
    let config = Config::from_file(&model.join("config.json"))?;
    let vocab_size = config.dims.vocab_size;
    if ids.is_empty()
        || ids.len() > config.dims.n_positions
        || ids.iter().any(|id| *id as usize >= vocab_size)
    {
        return Err(Failure::input(format!(
            "expected 1 to {} ids below {vocab_size}",
            config.dims.n_positions
        )));
    }
    let mut gpt2 = Gpt2::load(config, &model.join("model.safetensors"), DType::F32)?;
    std::fs::create_dir_all(out)
        .map_err(|e| Failure::resource(format!("{}: {e}", out.display())))?;
    gpt2.begin(ids.len());
    gpt2.step(ids, &mut Writer { folder: out.to_path_buf(), batch_axis })?;
    Ok(())
}

fn main() -> std::process::ExitCode {
    let (flags, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let ids: Option<Vec<u32>> = words.iter().skip(2).map(|word| word.parse().ok()).collect();
    let result = match (ids, words.as_slice()) {
        (Some(ids), [model, out, _, ..]) if flags.iter().all(|flag| flag == "--batch-axis") => {
            generate(Path::new(model), Path::new(out), &ids, !flags.is_empty())
        }
        _ => Err(Failure::input("usage: eight_files MODEL_FOLDER OUT_FOLDER ID... [--batch-axis]")),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("eight_files: {failure}");
            std::process::ExitCode::FAILURE
        }
    }
}
