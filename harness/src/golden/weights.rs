//! Rows of a model's weights, read from the file that the subject loads.

use std::path::Path;

use llorch_trace::files::SafetensorsFile;
use llorch_trace::{Error, Result, Tensor};

#[derive(Debug)]
pub struct Weights {
    file: SafetensorsFile,
}

impl Weights {
    pub fn open(model_dir: &Path) -> Result<Weights> {
        Ok(Weights { file: SafetensorsFile::open(&model_dir.join("model.safetensors"))? })
    }

    /// By its name without `transformer.`, which some files have in front.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let prefixed = format!("transformer.{name}");
        self.file.get(if self.file.contains(&prefixed) { &prefixed } else { name })
    }

    /// The first values of a row, or of a tensor with one axis.
    pub fn row(&self, name: &str, row: Option<usize>) -> Result<Vec<f64>> {
        let tensor = self.tensor(name)?;
        let (begin, n) = match (row, tensor.shape.as_slice()) {
            (None, [n]) => (0, *n),
            (Some(row), [rows, n]) if row < *rows => (row * n, *n),
            (row, shape) => {
                let row = row.map_or("no row".into(), |r| format!("row {r}"));
                return Err(Error::Name(format!(
                    "{name} has shape {shape:?}, and {row} was asked for"
                )));
            }
        };
        Ok((begin..begin + n).map(|i| tensor.get(i)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_with_and_without_the_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|x| x.to_le_bytes()).collect();
        let matrix =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 2], &bytes);
        let vector = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], &bytes);
        let tensors =
            [("transformer.wte.weight", matrix.unwrap()), ("ln_f.weight", vector.unwrap())];
        let file = safetensors::serialize(tensors, None).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.row("wte.weight", Some(1)).unwrap(), [3.0, 4.0]);
        assert_eq!(weights.row("ln_f.weight", None).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert!(weights.row("wte.weight", Some(2)).unwrap_err().to_string().contains("row 2"));
        assert!(weights.row("wpe.weight", Some(0)).is_err());
    }
}
