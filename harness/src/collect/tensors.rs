//! One announced tensor: is it what was asked for? Nothing that an adapter says or writes is trusted.

use std::fs;
use std::path::{Path, PathBuf};

use crate::compare::is_visible;
use llorch_trace::files::{read_npy, read_safetensors};
use llorch_trace::protocol::{DRAWS, TensorMessage};
use llorch_trace::{Dims, Dtype, Point, Tensor, TensorData};

use crate::evidence::{Case, FaultKind};

/// Why a tensor can't be used, as a kind and a sentence.
pub type Refusal = (FaultKind, String);

/// Reads the file that the message names, having checked that it may be read, and the tensor, having
/// checked dtype, shape and size. Whether its values are finite is asked of [`first_non_finite`].
pub fn read(
    message: &TensorMessage,
    point: Point,
    case: &Case,
    dims: &Dims,
    out_dir: &Path,
) -> Result<Tensor, Refusal> {
    let (t, s) = case.sizes(message.step);
    let expected = point.shape(dims, t, s);
    if message.shape != expected {
        let what = format!("announced with shape {:?}; expected {expected:?}", message.shape);
        return Err((FaultKind::WrongShape, what));
    }
    let integer = message.dtype == Dtype::I64;
    if integer != point.is_integer() {
        let wanted = if point.is_integer() { "i64" } else { "a float dtype" };
        return Err((
            FaultKind::WrongDtype,
            format!("announced as {}; expected {wanted}", message.dtype),
        ));
    }
    let absent = |what: String| (FaultKind::MissingTensor, what);
    let tensor = read_file(message, out_dir).map_err(absent)?;
    if tensor.dtype() != message.dtype {
        let what = format!("announced as {}, the file holds {}", message.dtype, tensor.dtype());
        return Err((FaultKind::WrongDtype, what));
    }
    if tensor.shape != expected {
        let what = format!("the file holds shape {:?}; expected {expected:?}", tensor.shape);
        return Err((FaultKind::WrongShape, what));
    }
    Ok(tensor)
}

/// The `n` token ids that a `draw` was answered with, each below `vocab`.
pub fn read_draws(
    message: &TensorMessage,
    n: usize,
    vocab: usize,
    out_dir: &Path,
) -> Result<Vec<u32>, String> {
    if (message.point.as_str(), message.step) != (DRAWS, 0) {
        return Err(format!("sent {} of step {}; expected {DRAWS}", message.point, message.step));
    }
    let tensor = read_file(message, out_dir)?;
    let TensorData::I64(ids) = &tensor.data else {
        return Err(format!("{DRAWS} is of {}; expected i64", tensor.dtype()));
    };
    if tensor.shape != [n] {
        return Err(format!("{DRAWS} has shape {:?}; expected [{n}]", tensor.shape));
    }
    let id = |&id: &i64| u32::try_from(id).ok().filter(|&id| (id as usize) < vocab).ok_or(id);
    let ids: Result<Vec<u32>, i64> = ids.iter().map(id).collect();
    ids.map_err(|id| format!("{DRAWS} holds the token {id}; expected 0 to {}", vocab - 1))
}

fn read_file(message: &TensorMessage, out_dir: &Path) -> Result<Tensor, String> {
    let path = regular_file_in(&message.file, out_dir)?;
    let tensor = match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => read_npy(&path),
        Some("safetensors") => match &message.key {
            Some(key) => read_safetensors(&path, key),
            None => return Err(format!("{} was named without a key", path.display())),
        },
        _ => return Err(format!("{} is neither .npy nor .safetensors", path.display())),
    };
    tensor.map_err(|error| error.to_string())
}

/// The file's real path: a plain file inside `out_dir` (a pipe would never end, and a link could
/// lead anywhere).
fn regular_file_in(file: &Path, out_dir: &Path) -> Result<PathBuf, String> {
    let path = out_dir.join(file); // `file` itself where it is absolute
    let failed = |error: std::io::Error| format!("failed to open {}: {error}", path.display());
    let real = path.canonicalize().map_err(failed)?;
    let root = out_dir.canonicalize().map_err(failed)?;
    if !real.starts_with(&root) {
        return Err(format!("{} is outside the folder that the run was given", path.display()));
    }
    match fs::metadata(&real).map_err(failed)?.is_file() {
        true => Ok(real),
        false => Err(format!("{} is no plain file", path.display())),
    }
}

/// Frees the disk as tensors come; a `.safetensors` may hold others yet to be announced.
pub fn remove_after_reading(message: &TensorMessage, out_dir: &Path) {
    if message.key.is_none()
        && let Ok(path) = regular_file_in(&message.file, out_dir)
    {
        let _ = fs::remove_file(path);
    }
}

/// The first element that means anything and is NaN or infinite.
pub fn first_non_finite(tensor: &Tensor, point: Point) -> Option<String> {
    let visible = |i: usize| is_visible(point.stage, &tensor.shape, i);
    let at = (0..tensor.len()).find(|&i| !tensor.get(i).is_finite() && visible(i))?;
    Some(format!("{} at {:?}", tensor.get(at), tensor.unravel(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_cells_may_be_infinite_and_causal_ones_may_not() {
        let point: Point = "h.0.attn.scores".parse().unwrap();
        let inf = f32::NEG_INFINITY;
        let fine = Tensor::f32(vec![1, 2, 3], vec![1., 2., inf, 1., 2., 3.]);
        assert_eq!(first_non_finite(&fine, point), None);
        let wrong = Tensor::f32(vec![1, 2, 3], vec![1., 2., inf, 1., 2., inf]);
        assert_eq!(first_non_finite(&wrong, point).unwrap(), "-inf at [0, 1, 2]");
        let elsewhere: Point = "h.0.attn.q".parse().unwrap();
        assert!(first_non_finite(&fine, elsewhere).is_some());
    }
}
