//! Small random models in temporary folders, and runs of which everything is kept.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llorch_cpud::Model;
use llorch_cpud::generate::{Generation, Options, Step, generate};
use llorch_cpud::packed::Format;
use llorch_cpud::probe::{Injector, Recorder};
use llorch_cpud::sampler::SplitMix64;
use llorch_trace::{Point, PointSet, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A model as data, to be changed before it is written.
pub struct TinyModel {
    pub config: Value,
    /// Shape and values by name, without prefix.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub prefix: &'static str,
    pub dtype: Dtype,
}

impl TinyModel {
    /// Two layers; wide enough that every routine of the linear layer takes part.
    pub fn new(heads: usize, width: usize) -> TinyModel {
        let (vocabulary, positions, inner) = (300, 160, 4 * width);
        let config = json!({
            "model_type": "gpt2", "n_layer": 2, "n_head": heads, "n_embd": width,
            "vocab_size": vocabulary, "n_positions": positions, "eos_token_id": 299,
        });
        let mut shapes = vec![
            ("wte.weight".to_string(), vec![vocabulary, width]),
            ("wpe.weight".to_string(), vec![positions, width]),
            ("ln_f.weight".to_string(), vec![width]),
            ("ln_f.bias".to_string(), vec![width]),
        ];
        for layer in 0..2 {
            for (name, shape) in [
                ("ln_1.weight", vec![width]),
                ("ln_1.bias", vec![width]),
                ("attn.c_attn.weight", vec![width, 3 * width]),
                ("attn.c_attn.bias", vec![3 * width]),
                ("attn.c_proj.weight", vec![width, width]),
                ("attn.c_proj.bias", vec![width]),
                ("ln_2.weight", vec![width]),
                ("ln_2.bias", vec![width]),
                ("mlp.c_fc.weight", vec![width, inner]),
                ("mlp.c_fc.bias", vec![inner]),
                ("mlp.c_proj.weight", vec![inner, width]),
                ("mlp.c_proj.bias", vec![width]),
            ] {
                shapes.push((format!("h.{layer}.{name}"), shape));
            }
        }
        let mut rng = SplitMix64::new(7);
        let mut random = |shape: &[usize], gain: bool| {
            let n = shape.iter().product();
            let values = (0..n).map(|_| (rng.next_unit() * 0.6 - 0.3) as f32);
            values.map(|x| if gain { 1.0 + x } else { x }).collect::<Vec<f32>>()
        };
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let gain = name.contains("ln_") && name.ends_with("weight");
            let values = random(&shape, gain);
            (name, (shape, values))
        });
        let tensors = tensors.collect();
        TinyModel { config, tensors, prefix: "", dtype: Dtype::F32 }
    }

    pub fn write(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(dir.join("model.safetensors"), self.safetensors()).unwrap();
    }

    pub fn safetensors(&self) -> Vec<u8> {
        let encode = |x: f32| match self.dtype {
            Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        let data = self.tensors.iter().map(|(name, (shape, values))| {
            let bytes: Vec<u8> = values.iter().flat_map(|&x| encode(x)).collect();
            (format!("{}{name}", self.prefix), shape.clone(), bytes)
        });
        let data: Vec<_> = data.collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(self.dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    /// Writes and loads it on `threads` threads; the folder goes, the mapped file stays.
    pub fn load(&self, threads: usize) -> Model {
        self.load_as(Format::F32, threads)
    }

    pub fn load_as(&self, format: Format, threads: usize) -> Model {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        Model::load(dir.path(), format, threads).unwrap()
    }

    /// What loading it says.
    pub fn error(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        Model::load(dir.path(), Format::F32, 1).unwrap_err().to_string()
    }
}

/// Every point of every step.
pub type Captured = BTreeMap<(usize, Point), Tensor>;

/// Runs `prompt`, feeds `forced`, and keeps everything; `injector` goes first.
pub fn capture(
    model: &Model,
    prompt: &[u32],
    forced: &[u32],
    injector: Injector,
) -> (Captured, Generation) {
    let options = Options {
        max_new_tokens: forced.len(),
        forced_ids: Some(forced.to_vec()),
        ..Options::default()
    };
    capture_with(model, prompt, &options, injector)
}

pub fn capture_with(
    model: &Model,
    prompt: &[u32],
    options: &Options,
    injector: Injector,
) -> (Captured, Generation) {
    let mut captured = Captured::new();
    let recorder = Recorder::new(PointSet::all(), |step, point, tensor| {
        assert!(captured.insert((step, point), tensor).is_none(), "{point} twice in step {step}");
        Ok(())
    });
    let mut cache = model.new_cache();
    let mut probe = (injector, recorder);
    let on_token = |_: &Step<'_>| ControlFlow::Continue(());
    let generation = generate(model, &mut cache, prompt, options, &mut probe, on_token).unwrap();
    (captured, generation)
}

pub fn point(name: &str) -> Point {
    name.parse().unwrap()
}

/// Bits of a tensor: unlike `==`, tells -0 from 0 and takes a NaN for itself.
pub fn bits(tensor: &Tensor) -> Vec<u64> {
    (0..tensor.len()).map(|i| tensor.get(i).to_bits()).collect()
}

/// Some ids in the tiny vocabulary.
pub fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 97 + 13) % 300).collect()
}
