//! A single file as a source: what it is, by its name and its first bytes.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use llorch_trace::Dtype;
use llorch_trace::files::SafetensorsFile;

use super::raw::{Place, Raw, RawTensor, Result, SourceError};
use super::{npz, printed, torch};

/// One file, with the tensors that it holds.
pub fn open(path: &Path) -> Result<Raw> {
    let refuse = |what: String| Err(SourceError::Refused { path: path.into(), what });
    match path.extension().and_then(|e| e.to_str()).unwrap_or_default() {
        _ if !path.exists() => refuse("there is no such file or folder".into()),
        "npz" => from(path, "npz", npz::list(path)?, |_| Place::Npz(path.into())),
        "safetensors" => {
            let file = Arc::new(SafetensorsFile::open(path)?);
            from(path, "safetensors", file.list()?, |_| Place::Safetensors(file.clone()))
        }
        "npy" => {
            refuse("a single .npy has nothing to go with; give the folder that it is in".into())
        }
        "pt" | "pth" | "bin" | "pkl" | "pickle" | "ckpt" => torch_file(path),
        _ if is_text(path)? => printed_file(path),
        _ => refuse(
            "expected a bundle, a folder of .npy files, a .npz, a .safetensors, a .pt, or what \
             llama-eval-callback printed"
                .into(),
        ),
    }
}

fn from(
    path: &Path,
    form: &'static str,
    rows: Vec<(String, Dtype, Vec<usize>)>,
    place: impl Fn(&str) -> Place,
) -> Result<Raw> {
    let tensors = rows.into_iter().map(|(name, dtype, shape)| {
        let place = place(&name);
        RawTensor { case: String::new(), name, dtype, shape, place }
    });
    Ok(Raw { form, tensors: tensors.collect(), ..Raw::empty(path) })
}

pub fn torch_file(path: &Path) -> Result<Raw> {
    let listed = torch::list(path)?;
    let tensors = listed.tensors.into_iter().map(|tensor| {
        let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
        let place = Place::Torch(path.into(), tensor);
        RawTensor { case: String::new(), name, dtype, shape, place }
    });
    let (tensors, unusable) = (tensors.collect(), listed.unusable);
    Ok(Raw { form: "torch", tensors, unusable, ..Raw::empty(path) })
}

fn printed_file(path: &Path) -> Result<Raw> {
    let listed = printed::read(path)?;
    let tensors = listed.nodes.into_iter().map(|node| RawTensor {
        case: String::new(),
        name: node.name,
        dtype: node.dtype,
        shape: node.cells.ne.to_vec(),
        place: Place::Printed { cells: Arc::new(node.cells), step: node.evaluation },
    });
    let (tensors, unusable) = (tensors.collect(), listed.unusable);
    Ok(Raw { form: "eval-callback", tensors, unusable, ..Raw::empty(path) })
}

/// Whether it begins like text, so that it is worth reading as such.
fn is_text(path: &Path) -> Result<bool> {
    let refuse =
        |e: std::io::Error| SourceError::Refused { path: path.into(), what: e.to_string() };
    let mut front = Vec::new();
    let file = std::fs::File::open(path).map_err(refuse)?;
    file.take(4096).read_to_end(&mut front).map_err(refuse)?;
    Ok(!front.is_empty() && !front.contains(&0))
}
