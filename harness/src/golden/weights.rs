//! Rows of a model's weights, read from the file that the subject loads.

use std::path::Path;

use llorch_trace::files::SafetensorsFile;
use llorch_trace::{Error, Result, Tensor};

#[derive(Debug)]
pub struct Weights {
    file: SafetensorsFile,
    layer_norm_epsilon: f64,
}

impl Weights {
    pub fn open(model_dir: &Path) -> Result<Weights> {
        let file = SafetensorsFile::open(&model_dir.join("model.safetensors"))?;
        let config = std::fs::read(model_dir.join("config.json")).unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        // Hugging Face's default where the key is absent.
        let layer_norm_epsilon = config["layer_norm_epsilon"].as_f64().unwrap_or(1e-5);
        Ok(Weights { file, layer_norm_epsilon })
    }

    /// Layer normalization of one row `[E]` by the module `name`, in float64.
    pub fn layer_norm(&self, name: &str, x: &[f64]) -> Result<Vec<f64>> {
        let gain = self.row(&format!("{name}.weight"), None)?;
        let bias = self.row(&format!("{name}.bias"), None)?;
        let n = x.len().max(1) as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let deviation = (variance + self.layer_norm_epsilon).sqrt();
        let scaled = x.iter().map(|v| (v - mean) / deviation);
        Ok(scaled.zip(&gain).zip(&bias).map(|((v, g), b)| v * g + b).collect())
    }

    /// One row `[in]` through the Conv1D `name`, whose weight is `[in, out]`, in float64.
    pub fn conv1d(&self, name: &str, x: &[f64]) -> Result<Vec<f64>> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        let mut out = self.row(&format!("{name}.bias"), None)?;
        let n = out.len();
        if weight.shape != [x.len(), n] {
            let what =
                format!("{name}.weight has shape {:?}; expected [{}, {n}]", weight.shape, x.len());
            return Err(Error::Name(what));
        }
        for (i, v) in x.iter().enumerate() {
            for (j, sum) in out.iter_mut().enumerate() {
                *sum += v * weight.get(i * n + j);
            }
        }
        Ok(out)
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
