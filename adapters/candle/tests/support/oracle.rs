//! GPT-2 in float64 by plain loops, nothing of Candle in it: every point of a whole sequence at once.

use std::collections::HashMap;

use llorch_trace::Dims;

use super::tiny::{DIMS, Tiny};

/// Points by name, row-major, for all T tokens as one prefill.
pub fn points(model: &Tiny, ids: &[u32]) -> HashMap<String, Vec<f64>> {
    let Dims { n_embd: e, n_head: h, n_inner, vocab_size, n_layer, .. } = DIMS;
    let (t, d) = (ids.len(), e / h);
    let mut seen = HashMap::new();
    let (wte, wpe) = (model.values("wte.weight"), model.values("wpe.weight"));
    let mut x: Vec<f64> =
        (0..t * e).map(|n| wte[ids[n / e] as usize * e + n % e] + wpe[n]).collect();
    seen.insert("tokens".into(), ids.iter().map(|id| *id as f64).collect());
    seen.insert("embeddings".into(), x.clone());
    for i in 0..n_layer {
        let name = |part: &str| format!("h.{i}.{part}");
        let linear = |x: &[f64], part: &str, n_out: usize| {
            let weight = model.values(&format!("h.{i}.{part}.weight"));
            let bias = model.values(&format!("h.{i}.{part}.bias"));
            product(x, weight, t, n_out)
                .iter()
                .enumerate()
                .map(|(n, v)| v + bias[n % n_out])
                .collect::<Vec<_>>()
        };
        let normed = layer_norm(model, &x, &name("ln_1"));
        let qkv = linear(&normed, "attn.c_attn", 3 * e);
        let head = |part: usize| -> Vec<f64> {
            let at = |n: usize| (n / (t * d), n / d % t, n % d);
            (0..h * t * d).map(at).map(|(h, t, c)| qkv[t * 3 * e + part * e + h * d + c]).collect()
        };
        let (q, k, v) = (head(0), head(1), head(2));
        let mut scores = vec![f64::NEG_INFINITY; h * t * t];
        let mut probs = vec![0.0; h * t * t];
        let mut context = vec![0.0; t * e];
        for head in 0..h {
            for query in 0..t {
                let row = (head * t + query) * t;
                for key in 0..=query {
                    let dot: f64 = (0..d)
                        .map(|c| q[(head * t + query) * d + c] * k[(head * t + key) * d + c])
                        .sum();
                    scores[row + key] = dot / (d as f64).sqrt();
                }
                probs[row..row + t].copy_from_slice(&softmax(&scores[row..row + t]));
                for c in 0..d {
                    context[query * e + head * d + c] =
                        (0..=query).map(|key| probs[row + key] * v[(head * t + key) * d + c]).sum();
                }
            }
        }
        let out = linear(&context, "attn.c_proj", e);
        let mid = add(&x, &out);
        let normed_2 = layer_norm(model, &mid, &name("ln_2"));
        let fc = linear(&normed_2, "mlp.c_fc", n_inner);
        let act: Vec<f64> = fc.iter().map(|v| gelu(*v)).collect();
        let mlp = linear(&act, "mlp.c_proj", e);
        x = add(&mid, &mlp);
        for (part, values) in [
            ("ln_1", normed),
            ("attn.q", q),
            ("attn.k", k.clone()),
            ("attn.v", v.clone()),
            ("attn.cache.k", k),
            ("attn.cache.v", v),
            ("attn.scores", scores),
            ("attn.probs", probs),
            ("attn.context", context),
            ("attn.out", out),
            ("resid_mid", mid),
            ("ln_2", normed_2),
            ("mlp.fc", fc),
            ("mlp.act", act),
            ("mlp.out", mlp),
        ] {
            seen.insert(name(part), values);
        }
        seen.insert(format!("h.{i}"), x.clone());
    }
    let ln_f = layer_norm(model, &x, "ln_f");
    let head: Vec<f64> =
        (0..e * vocab_size).map(|n| wte[n % vocab_size * e + n / vocab_size]).collect();
    let logits = product(&ln_f, &head, t, vocab_size);
    let last = logits[(t - 1) * vocab_size..].to_vec();
    let best = (0..vocab_size).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    seen.insert("ln_f".into(), ln_f);
    seen.insert("logits".into(), logits);
    seen.insert("next.probs".into(), softmax(&last));
    seen.insert("logits.last".into(), last);
    seen.insert("argmax".into(), vec![best as f64]);
    seen
}

/// [T,in] × [in,out].
fn product(x: &[f64], weight: &[f64], t: usize, n_out: usize) -> Vec<f64> {
    let n_in = x.len() / t;
    (0..t * n_out)
        .map(|n| (0..n_in).map(|k| x[n / n_out * n_in + k] * weight[k * n_out + n % n_out]).sum())
        .collect()
}

fn layer_norm(model: &Tiny, x: &[f64], name: &str) -> Vec<f64> {
    let (gain, bias) =
        (model.values(&format!("{name}.weight")), model.values(&format!("{name}.bias")));
    x.chunks(gain.len())
        .flat_map(|row| {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let scaled = row.iter().zip(gain).zip(bias);
            scaled
                .map(move |((v, g), b)| (v - mean) / (variance + 1e-5).sqrt() * g + b)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = row.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|v| v / sum).collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
