//! Writes what was asked for, step by step: a .npy file each, then its message.

use std::path::PathBuf;

use serde_json::json;

use crate::{send, Answer, Refusal, SHOWN};

pub struct Show {
    run: String,
    globs: Vec<String>,
    out_dir: PathBuf,
    pub step: usize,
}

impl Show {
    pub fn new(run: &str, globs: Vec<String>, out_dir: Option<&str>) -> Show {
        Show { run: run.into(), globs, out_dir: out_dir.unwrap_or_default().into(), step: 0 }
    }

    pub fn wants(&self, point: &str) -> bool {
        is_shown(point) && self.globs.iter().any(|glob| matches(glob.as_bytes(), point.as_bytes()))
    }

    pub fn floats(&mut self, point: &str, values: &[f32], shape: &[usize]) -> Answer<()> {
        match self.wants(point) {
            true => self.write(
                point,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                "<f4",
                "f32",
                shape,
            ),
            false => Ok(()),
        }
    }

    pub fn ids(&mut self, point: &str, values: &[i64], shape: &[usize]) -> Answer<()> {
        match self.wants(point) {
            true => self.write(
                point,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                "<i8",
                "i64",
                shape,
            ),
            false => Ok(()),
        }
    }

    fn write(
        &self,
        point: &str,
        data: Vec<u8>,
        descr: &str,
        dtype: &str,
        shape: &[usize],
    ) -> Answer<()> {
        let axes: String = shape.iter().map(|n| format!("{n},")).collect();
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
        header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        let failed =
            |e: std::io::Error| Refusal("resource", format!("failed to write {point}: {e}"));
        let dir = std::path::absolute(&self.out_dir).map_err(failed)?;
        std::fs::create_dir_all(&dir).map_err(failed)?;
        let path = dir.join(format!("{:04}_{point}.npy", self.step));
        std::fs::write(&path, file).map_err(failed)?;
        send(
            &json!({"type": "tensor", "id": self.run, "point": point, "step": self.step, "file": path,
            "key": null, "dtype": dtype, "shape": shape}),
        );
        Ok(())
    }
}

/// Whether `h.3.ln_1` (or `h.*.ln_1`) is among the points that are shown.
pub fn is_shown(point: &str) -> bool {
    let name = match point.strip_prefix("h.") {
        Some(rest) => format!("h.i{}", rest.find('.').map_or("", |dot| &rest[dot..])),
        None => point.to_string(),
    };
    SHOWN.contains(&name.as_str())
}

/// `*` is any run of characters, dots included.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    match (glob.first(), name.first()) {
        (Some(b'*'), _) => {
            matches(&glob[1..], name) || (!name.is_empty() && matches(glob, &name[1..]))
        }
        (Some(a), Some(b)) => a == b && matches(&glob[1..], &name[1..]),
        (None, None) => true,
        _ => false,
    }
}

pub fn softmax(values: &[f32]) -> Vec<f32> {
    let top = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = values.iter().map(|v| f64::from(v - top).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| (e / total) as f32).collect()
}
