//! nano against Hugging Face, point by point: `golden/nano`, one test a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use llorch_cpud::Model;
use llorch_cpud::generate::Options;
use llorch_cpud::packed::Format;
use llorch_cpud::probe::Injector;
use llorch_cpud::sampler::Sampling;
use llorch_trace::{Bundle, Class, Point, Stage, Tensor};

use crate::support::{Captured, capture_with, point, repository};

/// The class of total errors in deeper layers, where those of all before add up.
const DEEP: f64 = 1e-3;
/// HF's f32 softmax over 50,257 logits is itself off by this much.
const HF_F32_PROBS: f64 = 5e-5;

struct Runs {
    /// By case: everything, with HF's choices fed; and what nano chose by itself.
    cases: BTreeMap<String, (Captured, Vec<u32>)>,
    bundles: Vec<Bundle>,
}

fn runs() -> &'static Runs {
    static RUNS: OnceLock<Runs> = OnceLock::new();
    RUNS.get_or_init(|| {
        let golden = repository().join("golden/nano");
        let bundles: Vec<Bundle> =
            ["hf-f32", "hf-f64"].map(|b| Bundle::open(&golden.join(b)).unwrap()).into();
        let dir = repository().join("golden/models/nano");
        check_model(&dir, &bundles);
        let model = Model::load(&dir, Format::F32, 2).unwrap();
        let manifest = &bundles[0].manifest;
        let cases = manifest.cases.iter().map(|(case, record)| {
            let sampling = &manifest.provenance["cases"][case]["sampling"];
            let sampling = Sampling {
                temperature: sampling["temperature"].as_f64().unwrap(),
                top_k: sampling["top_k"].as_u64().unwrap() as usize,
                top_p: sampling["top_p"].as_f64().unwrap(),
                ..Sampling::default()
            };
            let forced = record.generated.clone().unwrap();
            let options = Options { max_new_tokens: forced.len(), sampling, ..Options::default() };
            let forced = Options { forced_ids: Some(forced), ..options.clone() };
            let (captured, _) = capture_with(&model, &record.ids, &forced, Injector::default());
            let greedy = Options { sampling: Sampling::default(), ..options };
            let (_, free) = capture_with(&model, &record.ids, &greedy, Injector::default());
            (case.clone(), (captured, free.ids))
        });
        let cases = cases.collect();
        Runs { cases, bundles }
    })
}

/// The goldens are of these weights.
fn check_model(dir: &Path, bundles: &[Bundle]) {
    for bundle in bundles {
        for (file, sha256) in bundle.manifest.model["files"].as_object().unwrap() {
            let found = llorch_trace::hash::sha256_file(&dir.join(file)).unwrap();
            assert_eq!(Some(found.as_str()), sha256.as_str(), "{file}: record the goldens again");
        }
        bundle.verify().unwrap();
    }
}

/// Compares every golden tensor of a checkpoint; there must be `least`.
fn check(number: u8, least: usize) {
    let runs = runs();
    let mut compared = 0;
    for bundle in &runs.bundles {
        for entry in &bundle.manifest.tensors {
            // `POINT#rows=0,1,15` holds some rows only.
            let (name, rows) = entry.point.split_once("#rows=").unwrap_or((&entry.point, ""));
            let point = point(name);
            if point.checkpoint().number != number {
                continue;
            }
            let rows: Vec<usize> = rows.split(',').filter_map(|r| r.parse().ok()).collect();
            let want = bundle.get(&entry.case, entry.step, &entry.point).unwrap();
            let captured = &runs.cases[&entry.case].0;
            let got = captured.get(&(entry.step, point)).unwrap_or_else(|| panic!("no {point}"));
            let from = &bundle.manifest.implementation;
            let what = format!("{from} {}/{}/{}", entry.case, entry.step, entry.point);
            compare(got, &want, point, &rows, from == "hf", &what);
            compared += 1;
        }
    }
    assert!(compared >= least, "{compared} tensors compared, expected {least} or more");
}

fn compare(got: &Tensor, want: &Tensor, point: Point, rows: &[usize], f32: bool, what: &str) {
    let tolerance = match (point.checkpoint().class, point.stage, point.layer) {
        (_, Stage::NextProbs, _) if f32 => HF_F32_PROBS,
        // One rounded addition: bitwise in f32, half an ulp from f64.
        (Class::Exact, Stage::Embeddings, _) if !f32 => 6e-8,
        (Class::Exact, ..) => 0.0,
        (Class::Mixed(class), _, Some(layer)) if layer > 0 => class.max(DEEP),
        (Class::Mixed(class), ..) => class,
    };
    let token_axis = match point.stage {
        Stage::Q | Stage::K | Stage::V | Stage::CacheK | Stage::CacheV => 1,
        Stage::Scores | Stage::Probs => 1,
        _ => 0,
    };
    let mut shape = got.shape.clone();
    if !rows.is_empty() {
        shape[token_axis] = rows.len();
    }
    assert_eq!(shape, want.shape, "{what}");
    for i in 0..want.len() {
        let mut index = want.unravel(i);
        if !rows.is_empty() {
            index[token_axis] = rows[index[token_axis]];
        }
        if point.stage == Stage::Scores {
            let (queries, keys) = (got.shape[1], got.shape[2]);
            if index[2] > keys - queries + index[1] {
                continue; // masked
            }
        }
        let flat = index.iter().zip(&got.shape).fold(0, |flat, (i, n)| flat * n + i);
        let (a, b) = (got.get(flat), want.get(i));
        let error = (a - b).abs() / a.abs().max(b.abs()).max(1.0);
        assert!(error <= tolerance, "{what}{index:?}: {a}, expected {b}, off by {error:.1e}");
    }
}

#[test]
fn checkpoint_00_foundation() {
    check(0, 20);
}

#[test]
fn checkpoint_01_layer_normalization() {
    check(1, 80);
}

#[test]
fn checkpoint_02_qkv_projection() {
    check(2, 240);
}

#[test]
fn checkpoint_03_kv_cache_state() {
    check(3, 160);
    // Bit for bit, the cache is the k and v of the steps so far.
    for (captured, _) in runs().cases.values() {
        for ((step, at), cache) in captured {
            let own = match at.stage {
                Stage::CacheK => Stage::K,
                Stage::CacheV => Stage::V,
                _ => continue,
            };
            let new = &captured[&(*step, Point { stage: own, ..*at })];
            let (held, added) = (cache.shape[1], new.shape[1]);
            let width = cache.shape[2];
            for i in 0..new.len() {
                let (row, d) = (i / width, i % width);
                let (h, t) = (row / added, row % added);
                let flat = (h * held + held - added + t) * width + d;
                assert_eq!(cache.get(flat), new.get(i), "{at} step {step}");
            }
        }
    }
}

#[test]
fn checkpoint_04_attention_scores() {
    check(4, 160);
}

#[test]
fn checkpoint_05_attention_output() {
    check(5, 240);
}

#[test]
fn checkpoint_06_ffn_output() {
    check(6, 320);
}

#[test]
fn checkpoint_07_first_block() {
    check(7, 20);
}

#[test]
fn checkpoint_08_full_logits() {
    check(8, 80);
}

#[test]
fn checkpoint_09_selected_logits() {
    check(9, 8);
    for (captured, _) in runs().cases.values() {
        for ((step, at), last) in
            captured.iter().filter(|((_, at), _)| at.stage == Stage::LogitsLast)
        {
            let all = &captured[&(*step, point("logits"))];
            let skip = all.len() - last.len();
            assert!((0..last.len()).all(|i| last.get(i) == all.get(skip + i)), "{at} step {step}");
        }
    }
}

#[test]
fn checkpoint_10_argmax() {
    check(10, 20);
}

#[test]
fn checkpoint_11_softmax_probabilities() {
    check(11, 5);
    // 1e-6 from the float64 softmax of the run's own logits, whichever way they are off.
    let (captured, _) = &runs().cases["hello"];
    for ((step, _), probs) in captured.iter().filter(|((_, at), _)| at.stage == Stage::NextProbs) {
        let logits = captured[&(*step, point("logits.last"))].to_f64();
        let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|x| (x - highest).exp()).sum();
        for (i, x) in logits.iter().enumerate() {
            assert!((probs.get(i) - (x - highest).exp() / total).abs() <= 1e-6, "step {step}[{i}]");
        }
    }
}

#[test]
fn checkpoint_12_end_to_end() {
    let runs = runs();
    for (case, record) in &runs.bundles[0].manifest.cases {
        assert_eq!(Some(&runs.cases[case].1), record.generated.as_ref(), "{case}");
    }
}
