//! For the tests of signatures: a small model of random weights, and an honest fp32 capture of a pass
//! through it.

use std::collections::BTreeMap;
use std::path::Path;

use llorch_trace::{Dtype, Point};
use ndarray::{Array1, Array2, Array3};

use super::{Site, explanations};
use crate::compare::Numbers;
use crate::oracle::replay::array;
use crate::oracle::{Inputs, Job, Oracle};

pub const LAYERS: usize = 3;
pub const H: usize = 4;
pub const D: usize = 8;
pub const E: usize = H * D;
pub const F: usize = 4 * E;
pub const V: usize = 50;
pub const P: usize = 32;
pub const IDS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];
pub const FED: [u32; 3] = [6, 5, 3];
pub const U: f64 = 1.0 / (1u32 << 24) as f64;

#[derive(Debug)]
pub struct Model {
    pub oracle: Oracle,
    pub captured: Captured,
    _dir: tempfile::TempDir,
}

#[derive(Debug, Default)]
pub struct Captured(pub BTreeMap<(usize, Point), Numbers>);

impl Inputs for Captured {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        self.0.get(&(step, point)).cloned()
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        if step == 0 { IDS.to_vec() } else { vec![FED[step - 1]] }
    }

    fn past(&self, step: usize) -> usize {
        if step == 0 { 0 } else { IDS.len() + step - 1 }
    }
}

fn point(name: &str) -> Point {
    name.parse().unwrap()
}

fn single(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    values.into_iter().map(|v| f64::from(v as f32)).collect()
}

impl Model {
    pub fn new() -> Model {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"model_type":"gpt2","n_layer":{LAYERS},"n_head":{H},"n_embd":{E},"vocab_size":{V},"n_positions":{P}}}"#
        );
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        write_weights(&dir.path().join("model.safetensors"));
        let oracle = Oracle::open(dir.path()).unwrap();
        // Each stage from what is captured before it, rounded once: an honest fp32 engine.
        let mut captured = Captured::default();
        for step in 0..=FED.len() {
            for point in llorch_trace::all_points(LAYERS) {
                let job = Job { step, inputs: &captured, u: U };
                let Some(replayed) = oracle.replay(point, job).unwrap() else { continue };
                let value = single(replayed.value.values);
                let shape = replayed.value.shape;
                let numbers = Numbers { shape, dtype: Dtype::F32, values: value };
                captured.0.insert((step, point), numbers);
            }
        }
        Model { oracle, captured, _dir: dir }
    }

    /// The likeliest signature of a stage that gives these values.
    pub fn signature(
        &self,
        step: usize,
        name: &str,
        values: Vec<f64>,
    ) -> (Option<&'static str>, String) {
        let point = point(name);
        let job = Job { step, inputs: &self.captured, u: U };
        let honest = self.oracle.replay(point, job).unwrap().unwrap();
        let given = Numbers {
            shape: honest.value.shape.clone(),
            dtype: Dtype::F32,
            values: single(values),
        };
        let sizes = if step == 0 { (IDS.len(), IDS.len()) } else { (1, IDS.len() + step) };
        let site = Site::new(&self.oracle, &self.captured, (step, point), sizes, given, honest);
        let site = site.unwrap_or_else(|| panic!("{name}: nothing is beyond rounding"));
        match explanations(&site, None).into_iter().next() {
            Some(found) => (found.slug, found.text),
            None => (None, String::new()),
        }
    }

    pub fn expect(
        &self,
        step: usize,
        name: &str,
        values: impl IntoIterator<Item = f64>,
        slug: &str,
    ) {
        let found = self.signature(step, name, values.into_iter().collect());
        assert_eq!(found.0, Some(slug), "{name}: {found:?}");
    }

    /// Nothing with a word of its own.
    pub fn expect_none(&self, step: usize, name: &str, values: impl IntoIterator<Item = f64>) {
        let found = self.signature(step, name, values.into_iter().collect());
        assert_eq!(found.0, None, "{name}: {found:?}");
    }

    pub fn honest(&self, step: usize, name: &str) -> Vec<f64> {
        self.captured.0[&(step, point(name))].values.clone()
    }

    pub fn rows(&self, step: usize, name: &str) -> Array2<f64> {
        let numbers = self.captured.0[&(step, point(name))].clone();
        array(numbers).unwrap().into_dimensionality().unwrap()
    }

    pub fn heads(&self, step: usize, name: &str) -> Array3<f64> {
        let numbers = self.captured.0[&(step, point(name))].clone();
        array(numbers).unwrap().into_dimensionality().unwrap()
    }

    pub fn weight(&self, name: &str) -> Array2<f64> {
        self.oracle.weights.matrix(name).unwrap().as_ref().clone()
    }

    pub fn vector(&self, name: &str) -> Array1<f64> {
        self.oracle.weights.vector(name).unwrap()
    }
}

fn write_weights(path: &Path) {
    let mut tensors: Vec<(String, Vec<usize>, f64)> =
        vec![("wte.weight".into(), vec![V, E], 0.3), ("wpe.weight".into(), vec![P, E], 0.1)];
    for i in 0..LAYERS {
        let parts: [(&str, Vec<usize>, f64); 12] = [
            ("ln_1.weight", vec![E], 1.0),
            ("ln_1.bias", vec![E], 0.2),
            ("attn.c_attn.weight", vec![E, 3 * E], 0.4),
            ("attn.c_attn.bias", vec![3 * E], 0.2),
            ("attn.c_proj.weight", vec![E, E], 0.4),
            ("attn.c_proj.bias", vec![E], 0.2),
            ("ln_2.weight", vec![E], 1.0),
            ("ln_2.bias", vec![E], 0.2),
            ("mlp.c_fc.weight", vec![E, F], 0.4),
            ("mlp.c_fc.bias", vec![F], 0.2),
            ("mlp.c_proj.weight", vec![F, E], 0.4),
            ("mlp.c_proj.bias", vec![E], 0.2),
        ];
        tensors.extend(parts.map(|(name, shape, size)| (format!("h.{i}.{name}"), shape, size)));
    }
    tensors.push(("ln_f.weight".into(), vec![E], 1.0));
    tensors.push(("ln_f.bias".into(), vec![E], 0.2));
    let mut state = 1u32;
    let mut next = |size: f64| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (size * 2.0 * (f64::from(state >> 8) / f64::from(1u32 << 24) - 0.5)) as f32
    };
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, size)| {
            let n = shape.iter().product();
            let bytes = (0..n).flat_map(|_| next(size).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
