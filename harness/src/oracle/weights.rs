//! The model's weights, widened to float64 from the file's f32 or f16.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use llorch_trace::files::SafetensorsFile;
use ndarray::{Array1, Array2};

use super::product::{Layout, Matrix};
use super::{OracleError, Result};

/// Widened matrices are kept up to this size, in the order in which they are first asked for; the
/// rest are read again each time. Holds the whole of GPT-2 124M without its embeddings (680 MB).
const KEPT_BYTES: usize = 1 << 30;

#[derive(Debug)]
pub struct Weights {
    file: SafetensorsFile,
    prefix: &'static str,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    matrices: HashMap<String, Arc<Array2<f64>>>,
    bytes: usize,
}

impl Weights {
    pub fn open(path: &Path) -> Result<Weights> {
        let file = SafetensorsFile::open(path)?;
        let prefix = if file.contains("wte.weight") { "" } else { "transformer." };
        Ok(Weights { file, prefix, kept: Mutex::default() })
    }

    /// A whole matrix: `[in, out]` for Conv1D.
    pub fn matrix(&self, name: &str) -> Result<Arc<Array2<f64>>> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(matrix) = lock().matrices.get(name) {
            return Ok(matrix.clone());
        }
        let shape = self.file.shape(&format!("{}{name}", self.prefix))?;
        let matrix = Arc::new(self.rows(name, 0..shape.first().copied().unwrap_or(0))?);
        let mut kept = lock();
        let bytes = matrix.len() * size_of::<f64>();
        if kept.bytes + bytes <= KEPT_BYTES {
            kept.bytes += bytes;
            kept.matrices.insert(name.to_string(), matrix.clone());
        }
        Ok(matrix)
    }

    /// A matrix where it lies in the file, to be multiplied by.
    pub fn stored(&self, name: &str, layout: Layout) -> Result<Matrix> {
        let mapped = self.file.mapped(&format!("{}{name}", self.prefix))?;
        let shape = mapped.shape().to_vec();
        let refuse = || OracleError::Input(format!("{name} is no matrix: {shape:?}"));
        Matrix::new(mapped, layout).ok_or_else(refuse)
    }

    /// Some rows of a matrix.
    pub fn rows(&self, name: &str, rows: Range<usize>) -> Result<Array2<f64>> {
        let tensor = self.file.get_rows(&format!("{}{name}", self.prefix), rows)?;
        let [rows, columns] = tensor.shape[..] else {
            return Err(OracleError::Input(format!("{name} is no matrix: {:?}", tensor.shape)));
        };
        let matrix = Array2::from_shape_vec((rows, columns), tensor.to_f64());
        matrix.map_err(|e| OracleError::Input(format!("{name}: {e}")))
    }

    pub fn vector(&self, name: &str) -> Result<Array1<f64>> {
        Ok(Array1::from(self.file.get(&format!("{}{name}", self.prefix))?.to_f64()))
    }
}
