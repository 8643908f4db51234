use super::*;
use safetensors::SafeTensors;
use std::collections::HashMap;

/// The same on every platform, or the recipe's number must change.
const TINY_SHA256: &str = "da8172f26e71e843daccd2bb7e990a486b4c9d0f8fbe799d3ed2ed741a663c60";

const GPT2_SHA256: &str = "8ae04a42adf7957cf04d70a7f7c1197df09be8b2ec009ee59d38ed688c52cb42";

fn tiny(cache: &Path) -> ResolvedModel {
    let options = ResolveOptions { quiet: true, ..ResolveOptions::default() };
    resolve("synth:tiny", "tiny", 0, &options, cache).unwrap()
}

#[test]
fn tiny_has_the_pinned_bytes() {
    let cache = tempfile::tempdir().unwrap();
    let model = tiny(cache.path());
    assert_eq!(model.kind, ModelKind::Synthetic);
    assert_eq!(model.source, "computed: tiny, seed 0, recipe 1");
    assert_eq!(model.weights_sha256(), TINY_SHA256);
}

#[test]
#[ignore = "writes 548 MB and takes some seconds; run it after any change of the recipe"]
fn gpt2_has_the_pinned_bytes() {
    let cache = tempfile::tempdir().unwrap();
    let options = ResolveOptions { quiet: true, ..ResolveOptions::default() };
    let model = resolve("synth:gpt2", "gpt2", 0, &options, cache.path()).unwrap();
    assert_eq!(model.weights_sha256(), GPT2_SHA256);
}

#[test]
fn damage_is_noticed_and_mended_and_a_plain_path_still_says_synthetic() {
    let cache = tempfile::tempdir().unwrap();
    let model = tiny(cache.path());
    let weights = model.dir.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    assert_eq!(tiny(cache.path()), model);
    bytes[last] ^= 1;
    assert!(fs::read(&weights).unwrap() == bytes, "not computed again");

    let by_path = folder::resolve("./x", &model.dir, cache.path()).unwrap();
    assert_eq!(by_path.kind, ModelKind::Synthetic);
    assert!(by_path.source.contains("tiny, seed 0, recipe 1"), "{}", by_path.source);
}

#[test]
fn an_unknown_size_lists_the_known_ones() {
    let error = resolve("synth:gpt3", "gpt3", 0, &ResolveOptions::default(), Path::new("/nowhere"))
        .unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("gpt2-xl, distilgpt2, tiny"), "{error}");
}

#[test]
fn a_full_size_file_is_as_large_as_the_published_one() {
    // model.safetensors of the hub's gpt2 has 548,105,171 bytes, 14.3 kB of them header.
    let bytes = file::data_bytes(&layout(SIZES[0]));
    assert_eq!(bytes, 548_090_880);
}

#[test]
fn what_makes_gpt2_hard_is_there() {
    let cache = tempfile::tempdir().unwrap();
    let model = Gpt2::load(&tiny(cache.path()).dir);
    let mut ids = vec![15496, 13];
    for _ in 0..16 {
        let run = model.run(&ids);
        ids.push(run.next);
    }
    let run = model.run(&ids);
    for (layer, residual) in run.residuals.iter().enumerate() {
        let largest = residual[0].iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        assert_eq!(largest > 2000.0, layer >= 2, "block {layer} reaches {largest} at position 0");
        let elsewhere = residual[1..].iter().flatten().fold(0.0_f64, |max, x| max.max(x.abs()));
        assert!(elsewhere < 500.0, "block {layer} reaches {elsewhere} after position 0");
    }
    let distinct: std::collections::HashSet<_> = ids[2..].iter().collect();
    assert!(distinct.len() >= 8, "greedy output repeats itself: {:?}", &ids[2..]);
    // Uniform attention of the last token would be 1/18 everywhere.
    let sharp = run.last_attention.iter().filter(|probs| probs.iter().any(|p| *p > 0.5)).count();
    let sinks = run.last_attention.iter().filter(|probs| probs[0] > 0.5).count();
    assert!(sharp >= 6 && sinks >= 2 && sinks < sharp, "{sharp} sharp heads, {sinks} sinks");
}

/// GPT-2 in float64, as plain as can be.
struct Gpt2 {
    tensors: HashMap<String, Vec<f64>>,
}

struct Run {
    /// After each block, at each position.
    residuals: Vec<Vec<Vec<f64>>>,
    /// The last query's probabilities, per layer and head.
    last_attention: Vec<Vec<f64>>,
    next: usize,
}

const SIZE: Size = SIZES[5];

impl Gpt2 {
    fn load(dir: &Path) -> Gpt2 {
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let widen = |data: &[u8]| {
            data.chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect()
        };
        Gpt2 {
            tensors: file.tensors().into_iter().map(|(name, t)| (name, widen(t.data()))).collect(),
        }
    }

    fn layer_norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let (weight, bias) =
            (&self.tensors[&format!("{name}.weight")], &self.tensors[&format!("{name}.bias")]);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let std = (variance + 1e-5).sqrt();
        (0..x.len()).map(|c| (x[c] - mean) / std * weight[c] + bias[c]).collect()
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let (weight, mut out) = (
            &self.tensors[&format!("{name}.weight")],
            self.tensors[&format!("{name}.bias")].clone(),
        );
        let columns = out.len();
        for (row, value) in x.iter().enumerate() {
            (0..columns).for_each(|c| out[c] += value * weight[row * columns + c]);
        }
        out
    }

    fn run(&self, ids: &[usize]) -> Run {
        let (e, d) = (SIZE.n_embd, SIZE.head_width());
        let (wte, wpe) = (&self.tensors["wte.weight"], &self.tensors["wpe.weight"]);
        let embed =
            |(t, id): (usize, &usize)| (0..e).map(|c| wte[id * e + c] + wpe[t * e + c]).collect();
        let mut x: Vec<Vec<f64>> = ids.iter().enumerate().map(embed).collect();
        let (mut residuals, mut last_attention) = (Vec::new(), Vec::new());
        for layer in 0..SIZE.n_layer {
            let at = |name: &str| format!("h.{layer}.{name}");
            let qkv: Vec<Vec<f64>> = x
                .iter()
                .map(|row| self.linear(&self.layer_norm(row, &at("ln_1")), &at("attn.c_attn")))
                .collect();
            for t in 0..ids.len() {
                let mut context = vec![0.0; e];
                for h in 0..SIZE.n_head {
                    let dot = |j: usize| {
                        (h * d..(h + 1) * d).map(|c| qkv[t][c] * qkv[j][e + c]).sum::<f64>()
                    };
                    let scores: Vec<f64> =
                        (0..=t).map(|j| (dot(j) / (d as f64).sqrt()).exp()).collect();
                    let total: f64 = scores.iter().sum();
                    let probs: Vec<f64> = scores.iter().map(|s| s / total).collect();
                    for (j, p) in probs.iter().enumerate() {
                        (h * d..(h + 1) * d).for_each(|c| context[c] += p * qkv[j][2 * e + c]);
                    }
                    if t + 1 == ids.len() {
                        last_attention.push(probs);
                    }
                }
                let out = self.linear(&context, &at("attn.c_proj"));
                (0..e).for_each(|c| x[t][c] += out[c]);
            }
            for row in &mut x {
                let act: Vec<f64> = self
                    .linear(&self.layer_norm(row, &at("ln_2")), &at("mlp.c_fc"))
                    .into_iter()
                    .map(gelu)
                    .collect();
                let out = self.linear(&act, &at("mlp.c_proj"));
                (0..e).for_each(|c| row[c] += out[c]);
            }
            residuals.push(x.clone());
        }
        let last = self.layer_norm(&x[ids.len() - 1], "ln_f");
        let logit = |row: &[f64]| row.iter().zip(&last).map(|(w, v)| w * v).sum::<f64>();
        let best =
            wte.chunks_exact(e).map(logit).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        Run { residuals, last_attention, next: best.0 }
    }
}

fn gelu(z: f64) -> f64 {
    0.5 * z * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3))).tanh())
}
