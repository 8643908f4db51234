//! Each layer of mistral.rs against plain arithmetic in f64: what changes its meaning upstream fails
//! here by its name.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, safetensors};
use llorch_adapter_mistralrs::model::{self, Model};
use llorch_adapter_mistralrs::variant::Variant;
use llorch_trace::{Dtype, Point};

const E: usize = 8;
const H: usize = 2;
const INNER: usize = 32;
const V: usize = 11;
const T: usize = 3;
const EPS: f64 = 1e-5;

/// Numbers between −1 and 1, others for each seed.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The model's tensors, by Hugging Face's names and shapes.
fn weights() -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let mut shapes =
        vec![("wte.weight".to_string(), vec![V, E]), ("wpe.weight".into(), vec![6, E])];
    let mut linear = |name: String, from: usize, to: usize| {
        shapes.push((format!("{name}.weight"), vec![from, to]));
        shapes.push((format!("{name}.bias"), vec![to]));
    };
    for i in 0..2 {
        linear(format!("h.{i}.attn.c_attn"), E, 3 * E);
        linear(format!("h.{i}.attn.c_proj"), E, E);
        linear(format!("h.{i}.mlp.c_fc"), E, INNER);
        linear(format!("h.{i}.mlp.c_proj"), INNER, E);
    }
    for norm in ["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f"] {
        shapes.push((format!("{norm}.weight"), vec![E]));
        shapes.push((format!("{norm}.bias"), vec![E]));
    }
    let mut seed = 0;
    shapes
        .into_iter()
        .map(|(name, shape)| {
            seed += 1;
            let values = numbers(seed, shape.iter().product());
            (name, (shape, values))
        })
        .collect()
}

fn written(dir: &Path, keys: &[(&str, &str)]) -> Result<Box<dyn Model>, String> {
    let mut config = serde_json::json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": H, "n_embd": E, "n_inner": INNER,
        "vocab_size": V, "n_positions": 6, "layer_norm_epsilon": EPS, "activation_function": "gelu_new",
    });
    for (key, value) in keys {
        config[key] = serde_json::json!(value);
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors: HashMap<String, Tensor> = weights()
        .into_iter()
        .map(|(name, (shape, values))| (format!("transformer.{name}"), tensor(&shape, values)))
        .collect();
    safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    model::load(Variant, dir, Dtype::F32).map_err(|failure| failure.message)
}

fn loaded() -> Box<dyn Model> {
    written(tempfile::tempdir().unwrap().path(), &[]).unwrap()
}

fn point(name: &str) -> Point {
    name.parse().unwrap()
}

/// What a stage makes of one input.
fn stage(model: &dyn Model, name: &str, input: &str, x: &Tensor) -> Vec<f32> {
    let given = |asked: Point| (asked == point(input)).then(|| x.clone());
    let made =
        model.stage(point(name), &given).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    made.flatten_all().unwrap().to_vec1().unwrap()
}

fn same(name: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*x) - y).abs() <= 1e-5 * y.abs().max(1.0),
            "{name}[{i}]: {x}, expected {y}"
        );
    }
}

fn normed(x: &[f32], name: &str) -> Vec<f64> {
    let all = weights();
    let (gain, bias) = (&all[&format!("{name}.weight")].1, &all[&format!("{name}.bias")].1);
    let mut made = Vec::new();
    for row in x.chunks(E) {
        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let mean = row.iter().sum::<f64>() / E as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / E as f64;
        let scale = 1.0 / (variance + EPS).sqrt();
        made.extend(
            (0..E).map(|i| (row[i] - mean) * scale * f64::from(gain[i]) + f64::from(bias[i])),
        );
    }
    made
}

/// x·W + b with W as GPT-2 keeps it, [in,out].
fn projected(x: &[f32], name: &str) -> Vec<f64> {
    let all = weights();
    let ((shape, weight), bias) =
        (&all[&format!("{name}.weight")], &all[&format!("{name}.bias")].1);
    let (from, to) = (shape[0], shape[1]);
    let mut made = Vec::new();
    for row in x.chunks(from) {
        made.extend((0..to).map(|o| {
            let sum: f64 =
                (0..from).map(|i| f64::from(row[i]) * f64::from(weight[i * to + o])).sum();
            sum + f64::from(bias[o])
        }));
    }
    made
}

#[test]
fn layer_norms_are_after_gain_and_bias_with_the_models_epsilon() {
    let model = loaded();
    // Small rows, in which epsilon shows.
    let values: Vec<f32> = numbers(50, T * E).iter().map(|x| x * 0.01).collect();
    let x = tensor(&[T, E], values.clone());
    for (name, input, norm) in [
        ("h.0.ln_1", "embeddings", "h.0.ln_1"),
        ("h.1.ln_1", "h.0", "h.1.ln_1"),
        ("h.1.ln_2", "h.1.resid_mid", "h.1.ln_2"),
        ("ln_f", "h.1", "ln_f"),
    ] {
        same(name, &stage(model.as_ref(), name, input, &x), &normed(&values, norm));
    }
}

#[test]
fn linear_layers_read_gpt2s_transposed_weights() {
    let model = loaded();
    let (narrow, wide) = (numbers(51, T * E), numbers(52, T * INNER));
    for (name, input, values, weight) in [
        ("h.0.attn.out", "h.0.attn.context", &narrow, "h.0.attn.c_proj"),
        ("h.1.mlp.fc", "h.1.ln_2", &narrow, "h.1.mlp.c_fc"),
        ("h.1.mlp.out", "h.1.mlp.act", &wide, "h.1.mlp.c_proj"),
    ] {
        let x = tensor(&[T, values.len() / T], values.clone());
        same(name, &stage(model.as_ref(), name, input, &x), &projected(values, weight));
    }
}

#[test]
fn query_key_and_value_are_the_thirds_by_heads() {
    let model = loaded();
    let values = numbers(53, T * E);
    let x = tensor(&[T, E], values.clone());
    let merged = projected(&values, "h.1.attn.c_attn");
    let d = E / H;
    for (which, name) in ["h.1.attn.q", "h.1.attn.k", "h.1.attn.v"].into_iter().enumerate() {
        let mut expected = Vec::new();
        for h in 0..H {
            for t in 0..T {
                expected.extend((0..d).map(|i| merged[t * 3 * E + which * E + h * d + i]));
            }
        }
        same(name, &stage(model.as_ref(), name, "h.1.ln_1", &x), &expected);
    }
}

#[test]
fn probabilities_are_causal_whatever_masked_cells_hold() {
    let model = loaded();
    let scores = numbers(54, H * T * T);
    let found = stage(
        model.as_ref(),
        "h.0.attn.probs",
        "h.0.attn.scores",
        &tensor(&[H, T, T], scores.clone()),
    );
    let mut expected = Vec::new();
    for (r, row) in scores.chunks(T).enumerate() {
        let seen = r % T + 1;
        let sum: f64 = row[..seen].iter().map(|x| f64::from(*x).exp()).sum();
        expected.extend((0..T).map(|j| if j < seen { f64::from(row[j]).exp() / sum } else { 0.0 }));
    }
    same("h.0.attn.probs", &found, &expected);
}

#[test]
fn the_activation_is_the_tanh_form_and_the_head_is_the_embedding() {
    let model = loaded();
    let values: Vec<f32> = numbers(55, T * INNER).iter().map(|x| x * 4.0).collect();
    let found =
        stage(model.as_ref(), "h.0.mlp.act", "h.0.mlp.fc", &tensor(&[T, INNER], values.clone()));
    let gelu = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    };
    let expected: Vec<f64> = values.iter().map(|x| gelu(f64::from(*x))).collect();
    same("h.0.mlp.act", &found, &expected);

    let values = numbers(56, T * E);
    let wte = &weights()["wte.weight"].1;
    let mut expected = Vec::new();
    for row in values.chunks(E) {
        expected.extend(
            (0..V).map(|v| {
                (0..E).map(|i| f64::from(row[i]) * f64::from(wte[v * E + i])).sum::<f64>()
            }),
        );
    }
    same("logits", &stage(model.as_ref(), "logits", "ln_f", &tensor(&[T, E], values)), &expected);
}

#[test]
fn what_mistral_rs_has_no_layer_for_is_unsupported_with_the_reason() {
    let model = loaded();
    for (name, expected) in [
        ("h.0.attn.scores", "SdpaParams"),
        ("h.0.attn.context", "SdpaParams"),
        ("h.0.resid_mid", "no layer"),
        ("h.1", "no layer"),
        ("embeddings", "mistral.rs has no GPT-2"),
        (
            "h.0.ln_1",
            "mistral.rs has no GPT-2: h.0.ln_1 is computed where embeddings was put in place",
        ),
    ] {
        let failure = model.stage(point(name), &|_| None).unwrap_err();
        assert!(failure.message.contains(expected), "{name}: {}", failure.message);
        assert_eq!(format!("{:?}", failure.class), "Unsupported");
    }
    let dir = tempfile::tempdir().unwrap();
    let refused = written(dir.path(), &[("activation_function", "relu")]).err().unwrap();
    assert!(refused.contains("activation_function"), "{refused}");
}
