//! Small synthetic dumps in every form that `compare` reads.
#![allow(dead_code)] // each test program uses a part of it

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llorch_diff::dumps::compare::{Args, CompareError, Compared, compare};
use llorch_diff::report::Format;
use llorch_diff::result::Verdict;
use llorch_trace::bundle::{CaseRecord, Manifest};
use llorch_trace::files::write_npy;
use llorch_trace::{BundleWriter, Dims, Tensor, all_points};

/// No two sizes are equal, so that no shape fits by accident.
pub const DIMS: Dims =
    Dims { n_layer: 2, n_head: 3, n_embd: 12, n_inner: 48, vocab_size: 29, n_positions: 16 };
pub const TOKENS: usize = 5;

/// Our tensors by point: different numbers in each, the same for the same seed.
pub fn tensors(seed: u64) -> BTreeMap<String, Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut all = BTreeMap::new();
    for point in all_points(DIMS.n_layer) {
        let shape = point.shape(&DIMS, TOKENS, TOKENS);
        let n: usize = shape.iter().product();
        let tensor = match point.is_integer() {
            true => Tensor::i64(shape, (0..n as i64).map(|i| i % 7).collect()),
            false => Tensor::f32(shape, (0..n).map(|_| random()).collect()),
        };
        all.insert(point.to_string(), tensor);
    }
    all
}

/// Every float moved by at most `by`.
pub fn nudged(tensor: &Tensor, by: f32) -> Tensor {
    if tensor.to_f64().is_empty() || matches!(tensor.data, llorch_trace::TensorData::I64(_)) {
        return tensor.clone();
    }
    let sign = |i: usize| if i.is_multiple_of(2) { by } else { -by };
    let values = tensor.to_f64().iter().enumerate().map(|(i, x)| *x as f32 + sign(i)).collect();
    Tensor::f32(tensor.shape.clone(), values)
}

/// Reorders axes: `axes[i]` is the old axis that becomes axis i.
pub fn permuted(tensor: &Tensor, axes: &[usize]) -> Tensor {
    let shape: Vec<usize> = axes.iter().map(|a| tensor.shape[*a]).collect();
    let n = tensor.len();
    let blank = Tensor::f32(shape.clone(), vec![0.0; n]);
    let values = (0..n)
        .map(|i| {
            let index = blank.unravel(i);
            let mut old = vec![0; axes.len()];
            axes.iter().zip(&index).for_each(|(axis, at)| old[*axis] = *at);
            let flat = old.iter().zip(&tensor.shape).fold(0, |flat, (at, n)| flat * n + at);
            tensor.get(flat) as f32
        })
        .collect();
    Tensor::f32(shape, values)
}

pub fn reshaped(tensor: &Tensor, shape: &[usize]) -> Tensor {
    Tensor::new(shape.to_vec(), tensor.data.clone())
}

/// With a batch axis of one in front.
pub fn batched(tensor: &Tensor) -> Tensor {
    let shape: Vec<usize> = [1].into_iter().chain(tensor.shape.iter().copied()).collect();
    reshaped(tensor, &shape)
}

/// `[H,T,D]` → `[T,H·D]`.
pub fn merged(tensor: &Tensor) -> Tensor {
    let by_token = permuted(tensor, &[1, 0, 2]);
    let shape = [by_token.shape[0], by_token.shape[1] * by_token.shape[2]];
    reshaped(&by_token, &shape)
}

/// Query, key and value side by side, as Hugging Face's c_attn gives them.
pub fn merged_qkv(all: &BTreeMap<String, Tensor>, layer: usize) -> Tensor {
    let rows: Vec<Tensor> =
        ["q", "k", "v"].map(|x| merged(&all[&format!("h.{layer}.attn.{x}")])).into();
    let (t, e) = (rows[0].shape[0], rows[0].shape[1]);
    let mut values = Vec::new();
    for token in 0..t {
        for third in &rows {
            values.extend((0..e).map(|i| third.get(token * e + i) as f32));
        }
    }
    Tensor::f32(vec![t, 3 * e], values)
}

pub fn write_folder(dir: &Path, files: &[(&str, Tensor)]) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    for (name, tensor) in files {
        write_npy(&dir.join(format!("{name}.npy")), tensor).unwrap();
    }
    dir.to_path_buf()
}

pub fn write_safetensors(path: &Path, files: &[(&str, Tensor)]) -> PathBuf {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = files
        .iter()
        .map(|(name, t)| (name.to_string(), t.shape.clone(), t.data.to_le_bytes()))
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.clone(), view.unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    path.to_path_buf()
}

/// All points at `steps` steps of a case, the later ones with one token.
pub fn write_bundle(
    dir: &Path,
    name: &str,
    all: &BTreeMap<String, Tensor>,
    steps: usize,
) -> PathBuf {
    let mut writer = BundleWriter::create(dir).unwrap();
    for step in 0..steps {
        for (point, tensor) in all {
            writer.add("hello", step, point, &nudged(tensor, step as f32)).unwrap();
        }
    }
    let record = CaseRecord { ids: vec![15496, 13], generated: Some(vec![1, 2]), text: None };
    let cases = [("hello".to_string(), record)].into();
    let manifest = Manifest { implementation: name.into(), cases, ..Manifest::default() };
    writer.finish(manifest).unwrap();
    dir.to_path_buf()
}

pub fn args(sources: &[&Path]) -> Args {
    Args {
        sources: sources.iter().map(|p| p.to_path_buf()).collect(),
        format: Format::Table,
        tolerance: None,
        reference: None,
        values: 0,
        config: None,
        heads: None,
        case: None,
        all: false,
    }
}

pub fn compared(sources: &[&Path]) -> Compared {
    compare(&args(sources)).unwrap_or_else(|e| panic!("{e}"))
}

pub fn refused(sources: &[&Path]) -> String {
    match compare(&args(sources)) {
        Err(CompareError::Source(e)) => e.to_string(),
        Err(e) => e.to_string(),
        Ok(c) => panic!("{:?} with {} rows", c.verdict, c.rows.len()),
    }
}

/// Point names of all rows with that verdict.
pub fn points(c: &Compared, verdict: Verdict) -> Vec<String> {
    c.rows.iter().filter(|r| r.verdict == verdict).map(|r| r.point.to_string()).collect()
}
