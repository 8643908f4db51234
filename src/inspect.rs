//! `llorch-cpud inspect`: what a model is made of.

use std::fmt::Write;

use llorch_models::ResolvedModel;
use serde_json::{Value, json};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{self, TensorInfo};

/// A model's provenance, configuration and tensors.
#[derive(Debug)]
pub struct Report {
    model: ResolvedModel,
    config: Config,
    /// `config.json` as it is.
    raw_config: Value,
    tensors: Vec<TensorInfo>,
}

/// Reads what can be known without running the model. The weights are checked against the
/// configuration, as for a run.
pub fn inspect(model: &ResolvedModel) -> Result<Report> {
    let path = model.dir.join("config.json");
    let config = Config::from_file(&path)?;
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let raw_config = serde_json::from_str(&text)
        .map_err(|e| Error::Config { path: path.clone(), what: format!("not JSON: {e}") })?;
    weights::Weights::check(&model.dir, &config)?;
    let tensors = weights::list(&weights::file_in(&model.dir)?)?;
    Ok(Report { model: model.clone(), config, raw_config, tensors })
}

impl Report {
    pub fn to_json(&self) -> String {
        let tensors: Vec<Value> = self
            .tensors
            .iter()
            .map(|t| json!({"name": t.name, "dtype": format!("{:?}", t.dtype), "shape": t.shape}))
            .collect();
        let report = json!({
            "model": self.model,
            "config": self.raw_config,
            "parameters": self.config.parameters(),
            "tensors": tensors,
        });
        format!("{report:#}\n")
    }

    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing into a String can't fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let model = &self.model;
        writeln!(out, "model       {} ({})", model.name, model.kind)?;
        writeln!(out, "source      {}", model.source)?;
        if let Some(revision) = &model.revision {
            writeln!(out, "revision    {revision}")?;
        }
        writeln!(out, "folder      {}", model.dir.display())?;
        writeln!(out, "parameters  {}", thousands(self.config.parameters()))?;
        writeln!(out, "\nconfig.json")?;
        for (key, value) in self.raw_config.as_object().into_iter().flatten() {
            writeln!(out, "  {key}: {value}")?;
        }
        writeln!(out, "\nfiles (sha256)")?;
        for file in &model.files {
            writeln!(
                out,
                "  {}  {:>13}  {}",
                file.sha256,
                thousands(file.bytes as usize),
                file.name
            )?;
        }
        writeln!(out, "\n{} tensors", self.tensors.len())?;
        let width = self.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
        for tensor in &self.tensors {
            writeln!(
                out,
                "  {:width$}  {:<4}  {:?}",
                tensor.name,
                format!("{:?}", tensor.dtype),
                tensor.shape
            )?;
        }
        Ok(())
    }
}

/// 124439808 as 124,439,808.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 124439808].map(thousands), ["0", "999", "1,000", "124,439,808"]);
    }
}
