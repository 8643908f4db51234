//! Each operation against torch's: `golden/ops`, judged by its f64 column.

use llorch_cpud::Config;
use llorch_cpud::kv_cache::KvCache;
use llorch_cpud::ops::activation::gelu_tanh;
use llorch_cpud::ops::attention::{Span, attend, context, merge_heads, scores, split_heads};
use llorch_cpud::ops::embedding::embed;
use llorch_cpud::ops::layer_norm::layer_norm;
use llorch_cpud::ops::linear::{Then, linear};
use llorch_cpud::ops::softmax::{causal_softmax, softmax};
use llorch_cpud::packed::{Format, Layout, Packed};
use llorch_cpud::sampler::{Sampler, Sampling};
use llorch_cpud::team::Team;
use llorch_trace::files::{list_safetensors, read_safetensors};
use llorch_trace::{Tensor, TensorData};
use ndarray::Array2;

use crate::support::repository;

fn golden(key: &str) -> Tensor {
    read_safetensors(&repository().join("golden/ops/ops.safetensors"), key).unwrap()
}

fn values(key: &str) -> Vec<f32> {
    match golden(key).data {
        TensorData::F32(values) => values,
        other => panic!("{key}: {other:?}"),
    }
}

fn matrix(key: &str) -> Array2<f32> {
    let shape = golden(key).shape;
    Array2::from_shape_vec((shape[0], shape[1]), values(key)).unwrap()
}

fn team() -> Team {
    Team::new(2).unwrap()
}

/// `x · weight + bias`, the weight as it is stored.
fn product(x: &Array2<f32>, weight: &Array2<f32>, layout: Layout, bias: &[f32]) -> Array2<f32> {
    let weight = Packed::from_matrix(weight.view(), layout, Format::F32);
    let mut out = Array2::zeros((x.nrows(), weight.outputs()));
    linear(&team(), x.as_slice().unwrap(), &weight, bias, Then::Store, out.as_slice_mut().unwrap());
    out
}

/// The cases of an operation, of which the golden must hold at least `least`.
fn cases(op: &str, least: usize) -> Vec<String> {
    let list = list_safetensors(&repository().join("golden/ops/ops.safetensors")).unwrap();
    let mut cases: Vec<String> = list
        .iter()
        .filter_map(|(key, _, _)| {
            let (case, _) = key.strip_prefix(&format!("{op}/"))?.split_once('/')?;
            Some(case.to_string())
        })
        .collect();
    cases.dedup();
    assert!(cases.len() >= least, "{op}: {cases:?}");
    cases
}

/// |got − want| ≤ tolerance · max(1, |want|), and infinite where it is infinite.
fn close(got: &[f32], want: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, &got) in got.iter().enumerate() {
        let (got, want) = (f64::from(got), want.get(i));
        // What f64 holds and f32 can't is infinite in f32.
        if want.abs() > f64::from(f32::MAX) {
            assert!(
                got.is_infinite() && got.signum() == want.signum(),
                "{what}[{i}]: {got}, {want}"
            );
            continue;
        }
        let error = (got - want).abs() / want.abs().max(1.0);
        assert!(error <= tolerance, "{what}[{i}]: {got}, expected {want}, off by {error:.1e}");
    }
}

#[test]
fn layer_norm_is_within_its_class_in_every_case() {
    for case in cases("layer_norm", 13) {
        let key = |name: &str| format!("layer_norm/{case}/{name}");
        let (weight, bias) = (values(&key("weight")), values(&key("bias")));
        let x = values(&key("x"));
        let mut out = vec![0.0; x.len()];
        layer_norm(&team(), &x, &weight, &bias, 1e-5, &mut out);
        // Far inside the class of 1e-5: f64 inside, one rounding.
        close(&out, &golden(&key("f64")), 2e-7, &case);
    }
}

#[test]
fn gelu_is_within_3e_7_on_a_grid_and_at_the_extremes() {
    for case in cases("gelu_new", 2) {
        let mut x = values(&format!("gelu_new/{case}/x"));
        gelu_tanh(&mut x);
        close(&x, &golden(&format!("gelu_new/{case}/f64")), 3e-7, &case);
    }
}

#[test]
fn softmax_is_within_2e_7_with_masks_and_without() {
    for case in cases("softmax", 9) {
        let mut x = matrix(&format!("softmax/{case}/x"));
        x.rows_mut().into_iter().for_each(|mut row| softmax(row.as_slice_mut().unwrap()));
        close(x.as_slice().unwrap(), &golden(&format!("softmax/{case}/f64")), 2e-7, &case);
    }
}

#[test]
fn linear_takes_weights_as_conv1d_stores_them() {
    for case in cases("linear", 6) {
        let key = |name: &str| format!("linear/{case}/{name}");
        let (x, weight) = (matrix(&key("x")), matrix(&key("weight")));
        let out = product(&x, &weight, Layout::InputsByOutputs, &values(&key("bias")));
        close(out.as_slice().unwrap(), &golden(&key("f64")), 2e-6, &case);
    }
}

#[test]
fn the_head_is_the_embedding_matrix() {
    let (x, weight) = (matrix("lm_head/tied/x"), matrix("lm_head/tied/weight"));
    let out = product(&x, &weight, Layout::OutputsByInputs, &[]);
    close(out.as_slice().unwrap(), &golden("lm_head/tied/f64"), 2e-6, "tied");
}

#[test]
fn embeddings_equal_torchs_bit_for_bit() {
    let wte =
        Packed::from_matrix(matrix("embedding/wte").view(), Layout::OutputsByInputs, Format::F32);
    let wpe = values("embedding/wpe");
    for case in cases("embedding", 3) {
        let whole = |name: &str| golden(&format!("embedding/{case}/{name}"));
        let ids: Vec<u32> = whole("ids").to_f64().iter().map(|&id| id as u32).collect();
        let mut out = vec![0.0; ids.len() * wte.inputs()];
        embed(&ids, whole("positions").get(0) as usize, &wte, &wpe, &mut out);
        assert_eq!(out, values(&format!("embedding/{case}/f32")), "{case}");
    }
}

#[test]
fn attention_follows_hugging_faces_module_over_three_calls_on_one_cache() {
    const HEADS: usize = 4;
    let config = serde_json::json!({"model_type": "gpt2", "n_layer": 1, "n_head": HEADS,
        "n_embd": 32, "vocab_size": 1, "n_positions": 16});
    let config = Config::from_json(&config).unwrap();
    let (c_attn, c_attn_bias) =
        (matrix("attention/c_attn.weight"), values("attention/c_attn.bias"));
    let (c_proj, c_proj_bias) =
        (matrix("attention/c_proj.weight"), values("attention/c_proj.bias"));
    let (mut cache, team) = (KvCache::new(&config, Format::F32), team());
    let mut past = 0;
    for call in 0..3 {
        let x = matrix(&format!("attention/{call}/x"));
        let check = |got: &[f32], name: &str| {
            let key = format!("attention/{call}/{name}.f64");
            // Errors of the stages before add up: torch's own f32 is 9e-7 from f64 here.
            close(got, &golden(&key), 3e-6, &key);
        };
        let len = past + x.nrows();
        let qkv = product(&x, &c_attn, Layout::InputsByOutputs, &c_attn_bias);
        let qkv = qkv.as_slice().unwrap();
        let [q, k, v] = split_heads(qkv, HEADS, 32 / HEADS);
        check(q.as_slice().unwrap(), "q");
        check(k.as_slice().unwrap(), "k");
        check(v.as_slice().unwrap(), "v");
        cache.layer_mut(0).store_rows(&team, past, qkv);
        check(cache.layer(0).keys(len).as_slice().unwrap(), "cache.k");
        check(cache.layer(0).values(len).as_slice().unwrap(), "cache.v");
        let scale = config.attention_scale(0);
        let mut probs = scores(&team, q.view(), cache.layer(0), len, scale);
        causal_softmax(&team, &mut probs);
        check(probs.as_slice().unwrap(), "probs");
        let contexts = context(&team, probs.view(), cache.layer(0));
        let mut merged = Array2::zeros((x.nrows(), 32));
        merge_heads(contexts.view(), merged.as_slice_mut().unwrap());
        check(merged.as_slice().unwrap(), "context");
        let mut at_once = vec![0.0; merged.len()];
        let spans = [Span { rows: 0..x.nrows(), cache: cache.layer(0), len }];
        attend(&team, qkv, &spans, scale, &mut at_once);
        assert_eq!(at_once, merged.as_slice().unwrap());
        let out = product(&merged, &c_proj, Layout::InputsByOutputs, &c_proj_bias);
        check(out.as_slice().unwrap(), "out");
        past = len;
    }
}

#[test]
fn filtered_probabilities_follow_hugging_faces_warpers() {
    let logits = values("next_probs/logits");
    for case in cases("next_probs", 8) {
        let settings = golden(&format!("next_probs/{case}/settings")).to_f64();
        let sampling = Sampling {
            temperature: settings[0],
            top_k: settings[1] as usize,
            top_p: settings[2],
            ..Sampling::default()
        };
        let got = Sampler::new(sampling).unwrap().probabilities(&logits);
        let want = golden(&format!("next_probs/{case}/f64"));
        close(&got, &want, 1e-7, &case);
        let kept = |p: &dyn Fn(usize) -> f64| (0..logits.len()).filter(|&i| p(i) > 0.0).count();
        assert_eq!(kept(&|i| f64::from(got[i])), kept(&|i| want.get(i)), "{case}: tokens kept");
    }
}
