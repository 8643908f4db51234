//! Bounded reading of what `torch.save` writes: a zip of a pickle and of the tensors' bytes.
//!
//! The pickle is read as data ([`machine`]), never run. Nothing is allocated by a claim: a tensor may
//! not be larger than the storage that it is a window on, nor a storage than its entry.
//! Format: <https://docs.pytorch.org/docs/stable/notes/serialization.html>

mod contents;
mod machine;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use llorch_trace::{Dtype, Tensor, TensorData};
use zip::ZipArchive;

use super::zipped;
use contents::{TorchDtype, Window};

/// A description of tensors; the largest models have some thousand of them.
const PICKLE_CAP: u64 = 64 << 20;

/// The first bytes of what `torch.save` wrote before 1.6, and writes with
/// `_use_new_zipfile_serialization=False`.
const LEGACY: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";

#[derive(Debug, thiserror::Error)]
#[error("failed to read {}: {what}", path.display())]
pub struct TorchError {
    path: PathBuf,
    what: String,
}

/// A tensor that can be loaded.
#[derive(Debug, Clone)]
pub struct TorchTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    window: Checked,
}

/// A window that lies within its storage.
#[derive(Debug, Clone)]
struct Checked {
    entry: String,
    dtype: TorchDtype,
    width: usize,
    offset: usize,
    stride: Vec<usize>,
}

/// The tensors of a file in its order, and the names of those that can't be used, with the reason.
#[derive(Debug, Default)]
pub struct Listed {
    pub tensors: Vec<TorchTensor>,
    pub unusable: Vec<(String, String)>,
}

pub fn list(path: &Path) -> Result<Listed, TorchError> {
    let mut archive = open(path)?;
    let pickle = archive
        .file_names()
        .find(|name| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl"))
        .map(str::to_string)
        .ok_or_else(|| refuse(path, "a zip without data.pkl; torch.save did not write it"))?;
    let root = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
    if archive.index_for_name(&format!("{root}constants.pkl")).is_some() {
        return Err(refuse(path, "a TorchScript program; expected tensors saved by torch.save"));
    }
    let order = format!("{root}byteorder");
    if archive.index_for_name(&order).is_some()
        && entry(&mut archive, path, &order, 16)? != b"little"
    {
        return Err(refuse(path, "big-endian; expected little-endian"));
    }
    let bytes = entry(&mut archive, path, &pickle, PICKLE_CAP)?;
    let pickle = machine::read(&bytes).map_err(|what| refuse(path, what))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let found = contents::contents(&pickle, &stem).map_err(|what| refuse(path, what))?;
    let mut listed = Listed::default();
    for (name, window) in found {
        match window.and_then(|window| check(&mut archive, &root, &window)) {
            Ok((dtype, shape, window)) => {
                listed.tensors.push(TorchTensor { name, dtype, shape, window });
            }
            Err(why) => listed.unusable.push((name, why)),
        }
    }
    Ok(listed)
}

pub fn read(path: &Path, tensor: &TorchTensor) -> Result<Tensor, TorchError> {
    let Checked { entry: name, dtype, width, offset, stride } = &tensor.window;
    let mut archive = open(path)?;
    let bytes = entry(&mut archive, path, name, zipped::ENTRY_CAP)?;
    let elements: usize = tensor.shape.iter().product();
    let mut picked = Vec::new();
    let mut index = vec![0; tensor.shape.len()];
    for _ in 0..elements {
        let at: usize = offset + index.iter().zip(stride).map(|(i, s)| i * s).sum::<usize>();
        // `check` held this to the entry's size; another process may have rewritten the file since.
        let one = bytes.get(at * width..(at + 1) * width);
        picked.extend_from_slice(one.ok_or_else(|| refuse(path, "it changed while it was read"))?);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < tensor.shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(Tensor::new(tensor.shape.clone(), widen(dtype, tensor.dtype, &picked)))
}

/// Whole numbers of every width become i64.
fn widen(dtype: TorchDtype, ours: Dtype, bytes: &[u8]) -> TensorData {
    let (pairs, _) = bytes.as_chunks::<2>();
    let (quads, _) = bytes.as_chunks::<4>();
    match dtype {
        "int32" => TensorData::I64(quads.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
        "int16" => TensorData::I64(pairs.iter().map(|b| i16::from_le_bytes(*b).into()).collect()),
        "int8" => TensorData::I64(bytes.iter().map(|b| (*b as i8).into()).collect()),
        "uint8" | "bool" => TensorData::I64(bytes.iter().map(|b| (*b).into()).collect()),
        _ => TensorData::from_le_bytes(ours, bytes),
    }
}

/// Holds a window to its storage.
fn check(
    archive: &mut ZipArchive<BufReader<File>>,
    root: &str,
    window: &Window,
) -> Result<(Dtype, Vec<usize>, Checked), String> {
    let (dtype, width) = match window.dtype {
        "float32" => (Dtype::F32, 4),
        "float64" => (Dtype::F64, 8),
        "float16" => (Dtype::F16, 2),
        "bfloat16" => (Dtype::BF16, 2),
        "int64" => (Dtype::I64, 8),
        "int32" => (Dtype::I64, 4),
        "int16" => (Dtype::I64, 2),
        "int8" | "uint8" | "bool" => (Dtype::I64, 1),
        other => return Err(format!("{other} is no dtype that is compared")),
    };
    let size = |n: &i64| usize::try_from(*n).map_err(|_| format!("a size or stride of {n}"));
    let shape: Vec<usize> = window.shape.iter().map(size).collect::<Result<_, _>>()?;
    let stride: Vec<usize> = window.stride.iter().map(size).collect::<Result<_, _>>()?;
    let offset = size(&window.offset)?;
    if shape.len() != stride.len() || shape.len() > 16 {
        return Err(format!("{} sizes and {} strides", shape.len(), stride.len()));
    }
    let entry = format!("{root}data/{}", window.storage);
    let held = match archive.by_name(&entry) {
        Ok(file) => zipped::plausible(&entry, file.size(), file.compressed_size())? / width as u64,
        Err(_) => return Err(format!("the file has no storage {entry:?}")),
    };
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let elements = elements.filter(|n| *n as u64 <= held).ok_or_else(|| {
        format!(
            "shape {shape:?} on a storage of {held} elements (an expanded view is saved whole with \
             .clone())"
        )
    })?;
    let steps = || shape.iter().zip(&stride);
    let last =
        steps().try_fold(offset, |at, (n, s)| at.checked_add(n.saturating_sub(1).checked_mul(*s)?));
    if elements > 0 && last.is_none_or(|last| last as u64 >= held) {
        return Err(format!(
            "shape {shape:?} with strides {stride:?} from element {offset} reaches beyond its storage \
             of {held}"
        ));
    }
    Ok((dtype, shape, Checked { entry, dtype: window.dtype, width, offset, stride }))
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, TorchError> {
    let file = File::open(path).map_err(|e| refuse(path, e))?;
    let mut front = Vec::new();
    (&file).take(LEGACY.len() as u64).read_to_end(&mut front).map_err(|e| refuse(path, e))?;
    if front == LEGACY {
        let what = format!(
            "torch.save's form before torch 1.6; convert it: python -c 'import torch; \
             torch.save(torch.load(\"{}\", weights_only=True), \"dump.pt\")'",
            path.display()
        );
        return Err(refuse(path, what));
    }
    if front.first() == Some(&0x80) {
        let what = "a pickle that torch.save did not write: reading it may run code; save tensors \
                    with torch.save, or arrays with numpy.savez";
        return Err(refuse(path, what));
    }
    if front.is_empty() {
        return Err(refuse(path, "the file is empty"));
    }
    // An archive's directory is at its end: a file that was cut has none.
    let kind =
        if front.starts_with(b"PK") { "a zip archive that is cut" } else { "no zip archive" };
    let expected = format!("{kind}; expected a file that torch.save wrote, whole");
    zipped::open(path).map_err(|what| refuse(path, format!("{expected}: {what}")))
}

fn entry(
    archive: &mut ZipArchive<BufReader<File>>,
    path: &Path,
    name: &str,
    cap: u64,
) -> Result<Vec<u8>, TorchError> {
    let file = archive.by_name(name).map_err(|e| refuse(path, format!("{name}: {e}")))?;
    zipped::whole(file, name, cap).map_err(|what| refuse(path, what))
}

fn refuse(path: &Path, what: impl ToString) -> TorchError {
    TorchError { path: path.to_path_buf(), what: what.to_string() }
}
