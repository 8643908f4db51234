//! `llorch-diff export --gguf`: a model folder as one GGUF file that llama.cpp's own programs load and run.
//!
//! All tensors are F32: F16 and BF16 storage is widened, which is exact. Conv1D weights are transposed,
//! because llama.cpp keeps matrices as `[out, in]`; a tied head is left out, because it then takes the
//! embeddings. In reading order: [`model`] (which tensors and settings, under which names),
//! [`vocabulary`], [`format`] (how a GGUF file is laid out), and here what writes it.

mod format;
mod model;
mod vocabulary;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use llorch_models::progress::{Bar, Progress};
use llorch_trace::files::SafetensorsFile;
use llorch_trace::{Tensor, TensorData};

use crate::supervise::remove_on_interrupt;
use format::{Header, padding};
use model::{Plan, Weight};

/// Elements that are converted at once where rows may stay in their order.
const CHUNK: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The model can't be written as GGUF.
    #[error("failed to convert {}: {what}", path.display())]
    Model { path: PathBuf, what: String },
    #[error(transparent)]
    Tensor(#[from] llorch_trace::Error),
    #[error("failed to write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

impl GgufError {
    fn model(path: &Path, what: impl Into<String>) -> Self {
        GgufError::Model { path: path.to_owned(), what: what.into() }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            GgufError::Model { .. } | GgufError::Tensor(_) => 2,
            GgufError::Write { .. } => 3,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub tensors: usize,
    pub bytes: u64,
    /// Tokens of the vocabulary; none where the model has no tokenizer files.
    pub tokens: Option<usize>,
}

/// Writes the model in `dir`, called `name`, to `file`, which is replaced whole or not at all.
pub fn write(dir: &Path, name: &str, file: &Path) -> Result<Written, GgufError> {
    let weights = SafetensorsFile::open(&dir.join("model.safetensors"))?;
    let plan = Plan::of(dir, name, &weights)?;
    let shapes = plan.weights.iter().map(|w| (w.name.clone(), w.shape.clone())).collect();
    let header = Header { values: plan.values, tensors: shapes };

    let failed = |source| GgufError::Write { path: file.to_owned(), source };
    if file.is_dir() {
        return Err(failed(std::io::Error::other("it is a folder; expected the name of a file")));
    }
    if std::fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        let what = "it is a device or a pipe; expected the name of a file, which is replaced whole";
        return Err(failed(std::io::Error::other(what)));
    }
    if is_read_from(file, dir) {
        let what = "it is a file of the model that is read; expected another name";
        return Err(GgufError::model(file, what));
    }
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let fresh = tempfile::Builder::new()
        .prefix(".llorch-")
        .suffix(".gguf")
        .permissions(std::fs::Permissions::from_mode(0o666)) // less the umask, as any file
        .tempfile_in(parent)
        .map_err(failed)?;
    let _cleanup = remove_on_interrupt(fresh.path());
    let bar = Progress::new(false).bytes("gguf", header.data_bytes());
    let mut out = BufWriter::with_capacity(1 << 20, fresh.as_file());
    let start = header.to_bytes();
    out.write_all(&start).map_err(failed)?;
    for weight in &plan.weights {
        bar.detail(&weight.name);
        write_weight(&weights, weight, &mut out, &bar, &failed)?;
    }
    out.flush().map_err(failed)?;
    drop(out);
    fresh.as_file().sync_all().map_err(failed)?;
    fresh.persist(file).map_err(|error| failed(error.error))?;
    Ok(Written {
        tensors: plan.weights.len(),
        bytes: start.len() as u64 + header.data_bytes(),
        tokens: plan.tokens,
    })
}

/// Whether `file` is one of the model's own, by whatever path.
fn is_read_from(file: &Path, dir: &Path) -> bool {
    let Ok(target) = file.canonicalize() else { return false };
    let own = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut own = own.filter_map(|entry| entry.path().canonicalize().ok());
    own.any(|path| path == target && target.extension().is_none_or(|e| e != "gguf"))
}

fn write_weight(
    file: &SafetensorsFile,
    weight: &Weight,
    out: &mut BufWriter<&File>,
    bar: &Bar,
    failed: &dyn Fn(std::io::Error) -> GgufError,
) -> Result<(), GgufError> {
    let mut put = |values: &[f32]| {
        for value in values {
            out.write_all(&value.to_le_bytes())?;
        }
        bar.add(4 * values.len() as u64);
        Ok(())
    };
    if weight.transposed {
        let values = transposed(&widened(&file.get(&weight.stored)?), weight.shape[0]);
        put(&values).map_err(failed)?;
    } else {
        let rows = weight.shape[0];
        let width: usize = weight.shape[1..].iter().product();
        let at_once = (CHUNK / width.max(1)).max(1);
        for first in (0..rows).step_by(at_once) {
            let some = file.get_rows(&weight.stored, first..rows.min(first + at_once))?;
            put(&widened(&some)).map_err(failed)?;
        }
    }
    let bytes = 4 * weight.shape.iter().product::<usize>() as u64;
    let zeros = vec![0; padding(bytes)];
    out.write_all(&zeros).map_err(failed)?;
    bar.add(zeros.len() as u64);
    Ok(())
}

/// Exact for what [`Plan`] lets through: f32, f16 and bf16.
fn widened(tensor: &Tensor) -> Vec<f32> {
    match &tensor.data {
        TensorData::F32(values) => values.clone(),
        _ => tensor.to_f64().into_iter().map(|x| x as f32).collect(),
    }
}

/// A matrix `[in, out]`, `out` columns wide, as `[out, in]`.
fn transposed(values: &[f32], out: usize) -> Vec<f32> {
    let mut turned = Vec::with_capacity(values.len());
    for column in 0..out {
        turned.extend(values.iter().skip(column).step_by(out));
    }
    turned
}

#[cfg(test)]
mod tests;
