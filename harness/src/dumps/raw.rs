//! A source's tensors as they were found: their native names, shapes, and where they lie.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llorch_trace::files::{SafetensorsFile, map_npy, read_npy};
use llorch_trace::{Bundle, Dims, Dtype, MappedTensor, Tensor};

use super::npz;
use super::printed::{Cells, PrintedError};
use super::torch::{self, TorchTensor};

/// A source that can't be used. The message names it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    File(#[from] llorch_trace::Error),
    #[error(transparent)]
    Npz(#[from] npz::NpzError),
    #[error(transparent)]
    Torch(#[from] torch::TorchError),
    #[error(transparent)]
    Printed(#[from] PrintedError),
    #[error("failed to read {}: {what}", path.display())]
    Refused { path: PathBuf, what: String },
}

pub type Result<T> = std::result::Result<T, SourceError>;

/// One implementation's tensors as they were found.
#[derive(Debug)]
pub struct Raw {
    /// The implementation, from a manifest, an `_IMPL` or the file's name.
    pub name: String,
    pub path: PathBuf,
    pub form: &'static str,
    pub tensors: Vec<RawTensor>,
    /// Tensors that can't be used whatever they are called, and why.
    pub unusable: Vec<(String, String)>,
    /// Sizes, where the source says them.
    pub dims: Option<Dims>,
}

#[derive(Debug, Clone)]
pub struct RawTensor {
    /// Empty where the source has no cases.
    pub case: String,
    /// As it is called in the source, without `.npy`.
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub enum Place {
    Npy(PathBuf),
    Npz(PathBuf),
    Safetensors(Arc<SafetensorsFile>),
    Torch(PathBuf, TorchTensor),
    Bundle {
        bundle: Arc<Bundle>,
        step: usize,
    },
    /// Some elements of it, printed as text.
    Printed {
        cells: Arc<Cells>,
        step: usize,
    },
}

impl RawTensor {
    /// All elements; there is no such thing of a tensor that was printed.
    pub fn load(&self) -> Result<Tensor> {
        Ok(match &self.place {
            Place::Npy(path) => read_npy(path)?,
            Place::Npz(path) => npz::read(path, &self.name)?,
            Place::Safetensors(file) => file.get(&self.name)?,
            Place::Torch(path, tensor) => torch::read(path, tensor)?,
            Place::Bundle { bundle, step } => bundle.get(&self.case, *step, &self.name)?,
            Place::Printed { cells, .. } => return Err(cells.are_not_all().into()),
        })
    }

    /// The tensor where it lies, if all its elements lie in a file as they are.
    pub fn mapped(&self) -> Result<Option<MappedTensor>> {
        Ok(match &self.place {
            Place::Npy(path) => map_npy(path)?,
            Place::Safetensors(file) => Some(file.mapped(&self.name)?),
            Place::Bundle { bundle, step } => Some(bundle.mapped(&self.case, *step, &self.name)?),
            Place::Npz(_) | Place::Torch(..) | Place::Printed { .. } => None,
        })
    }

    /// The elements of a tensor of which only some are there.
    pub fn cells(&self) -> Option<&Cells> {
        match &self.place {
            Place::Printed { cells, .. } => Some(cells),
            _ => None,
        }
    }

    /// The step, where the source says it apart from the name.
    pub fn own_step(&self) -> Option<usize> {
        match &self.place {
            Place::Bundle { step, .. } | Place::Printed { step, .. } => Some(*step),
            _ => None,
        }
    }

    /// A list or a tensor alone in a `.pt`.
    pub fn is_named_by_its_file(&self) -> bool {
        let Place::Torch(path, _) = &self.place else { return false };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let rest = self.name.strip_prefix(&*stem);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// From a bundle, whose shapes are ours by contract.
    pub fn is_canonical(&self) -> bool {
        matches!(self.place, Place::Bundle { .. })
    }
}

impl Raw {
    pub fn empty(path: &Path) -> Raw {
        let name = match path.is_dir() {
            true => path.file_name(),
            false => path.file_stem(),
        };
        // `.` and `..` have no name of their own.
        let own = name.map(|n| n.to_string_lossy().into_owned());
        let real = || Some(path.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned());
        let name = own.or_else(real).unwrap_or_else(|| "dump".into());
        let (tensors, unusable) = (Vec::new(), Vec::new());
        Raw { name, path: path.into(), form: "", tensors, unusable, dims: None }
    }
}
