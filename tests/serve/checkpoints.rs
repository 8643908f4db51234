//! The hooks, live: what `/v1/checkpoints` gives is what the engine computes, also while it serves others.

use std::collections::HashMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use llorch_cpud::Model;
use llorch_cpud::generate::{Options, generate};
use llorch_cpud::packed::Format;
use llorch_cpud::probe::Recorder;
use llorch_trace::bundle::Bundle;
use llorch_trace::{PointSet, Tensor};
use serde_json::{Value, json};

use crate::daemon::{Daemon, agent};

/// Asks for a bundle and unpacks it, as `curl … | tar x` does.
fn bundle(daemon: &Daemon, ask: &Value, dir: &Path) -> Bundle {
    let response = agent().post(format!("{}/v1/checkpoints", daemon.url)).send_json(ask).unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-tar");
    let mut archive = Vec::new();
    response.into_body().into_reader().read_to_end(&mut archive).unwrap();
    tar::Archive::new(&archive[..]).unpack(dir).unwrap();
    let bundle = Bundle::open(dir).unwrap();
    bundle.verify().unwrap();
    bundle
}

/// What the engine gives by itself.
fn alone(ids: &[u32], n: usize) -> HashMap<(usize, String), Tensor> {
    let nano = llorch_models::resolve("nano", &Default::default()).unwrap();
    let model = Model::load(&nano.dir, Format::F32, 1).unwrap();
    let mut found = HashMap::new();
    let mut recorder = Recorder::new(PointSet::new(&["*"]), |step, point, tensor| {
        found.insert((step, point.to_string()), tensor);
        Ok(())
    });
    let options = Options { max_new_tokens: n, ..Options::default() };
    let mut cache = model.new_cache();
    generate(&model, &mut cache, ids, &options, &mut recorder, |_| ControlFlow::Continue(()))
        .unwrap();
    drop(recorder);
    found
}

#[test]
fn a_bundle_has_every_point_of_every_step_bit_for_bit_also_under_load() {
    let daemon = Daemon::start(&["--max-batch", "4"]);
    let ids: Vec<u32> = vec![15496, 13, 317, 1573, 286, 262];
    let expected = alone(&ids, 4);
    assert!(expected.len() > 100);
    let ask = json!({"prompt": ids, "points": ["*"], "max_new_tokens": 4, "case": "six"});
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for round in 0..3 {
            if round == 1 {
                for _ in 0..4 {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            daemon.complete(json!({"prompt": "And the", "max_tokens": 60, "n": 2, "ignore_eos": true}));
                        }
                    });
                }
            }
            let dir = tempfile::tempdir().unwrap();
            let found = bundle(&daemon, &ask, dir.path());
            assert_eq!(found.manifest.tensors.len(), expected.len());
            for ((step, point), tensor) in &expected {
                let found = found.get("six", *step, point).unwrap();
                // By their bits: masked scores are infinite.
                assert_eq!(found.shape, tensor.shape);
                assert!(
                    found.data.to_le_bytes() == tensor.data.to_le_bytes(),
                    "{point}, step {step}, round {round}"
                );
            }
            let case = &found.manifest.cases["six"];
            assert_eq!((&case.ids, case.generated.as_ref().unwrap().len()), (&ids, 4));
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn json_has_the_same_numbers_and_the_logprobs_of_a_completion_are_those_of_its_logits() {
    let daemon = Daemon::start(&[]);
    let ask =
        json!({"prompt": "Hello.", "points": ["logits.last", "h.1.attn.scores"], "format": "json"});
    let (status, answer) = daemon.post("/v1/checkpoints", &ask);
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["ids"], &answer["case"]), (&json!([15496, 13]), &json!("prompt")));
    let tensor = |point: &str| {
        let all = answer["tensors"].as_array().unwrap();
        all.iter().find(|t| t["point"] == point).unwrap().clone()
    };
    let scores = tensor("h.1.attn.scores");
    assert_eq!(scores["shape"], json!([4, 2, 2]));
    assert_eq!(scores["data"][1], Value::Null, "a masked cell");
    let logits: Vec<f64> = tensor("logits.last")["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect();
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = highest + logits.iter().map(|x| (x - highest).exp()).sum::<f64>().ln();
    let completion = daemon
        .complete(json!({"prompt": "Hello.", "max_tokens": 1, "temperature": 0, "logprobs": 5}));
    let top = completion["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap();
    let mut sorted: Vec<f64> = logits.iter().map(|x| x - log_sum).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let given: Vec<f64> = top.values().map(|p| p.as_f64().unwrap()).collect();
    // Both are sums in f64 of the same f32 numbers.
    assert!(
        given.iter().zip(&sorted).all(|(a, b)| (a - b).abs() < 1e-12),
        "{given:?} {:?}",
        &sorted[..5]
    );
}

#[test]
fn forced_tokens_are_fed_and_bundles_are_kept_where_that_is_allowed() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&["--store", store.path().to_str().unwrap()]);
    let ask = json!({"prompt": "Hello.", "points": ["h.0", "argmax"], "max_new_tokens": 3, "forced_ids": [11, 12, 13], "store": "one"});
    let (status, answer) = daemon.post("/v1/checkpoints", &ask);
    assert_eq!(
        (status, &answer["generated"], &answer["tensors"]),
        (200, &json!([11, 12, 13]), &json!(6)),
        "{answer}"
    );
    let kept = Bundle::open(&store.path().join("one")).unwrap();
    kept.verify().unwrap();
    assert_eq!(kept.get("prompt", 2, "h.0").unwrap().shape, [1, 128]);
    let (status, answer) = daemon.post("/v1/checkpoints", &ask);
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("exists")), "{answer}");
    Bundle::open(&store.path().join("one")).unwrap().verify().unwrap();
}

#[test]
fn what_cannot_be_captured_is_refused_by_name_and_leaves_nothing() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&["--max-capture", "1", "--store", store.path().to_str().unwrap()]);
    let cases = [
        (json!({"prompt": "a"}), 400, "points", "points is missing"),
        (json!({"prompt": "a", "points": []}), 400, "points", "1 to 1024"),
        (json!({"prompt": "a", "points": ["h.9.attn.q"]}), 400, "points", "h.9.attn.q"),
        (json!({"prompt": "", "points": ["*"]}), 400, "prompt", "no tokens"),
        (json!({"prompt": ["a"], "points": ["*"]}), 400, "prompt", "expected a text"),
        (
            json!({"prompt": "a", "points": ["*"], "max_new_tokens": 2, "forced_ids": [1]}),
            400,
            "forced_ids",
            "expected max_new_tokens",
        ),
        (
            json!({"prompt": "a", "points": ["*"], "max_new_tokens": 1000}),
            400,
            "max_new_tokens",
            "context",
        ),
        (json!({"prompt": "a", "points": ["*"], "store": "../x"}), 400, "store", "../x"),
        (json!({"prompt": "a", "points": ["*"], "store": ".x"}), 400, "store", ".x"),
        (json!({"prompt": "a", "points": ["*"], "case": "a/b"}), 400, "case", "a/b"),
        (json!({"prompt": "a", "points": ["*"], "format": "zip"}), 400, "format", "zip"),
        (json!({"prompt": "a b ".repeat(40), "points": ["*"]}), 422, "points", "--max-capture"),
        (
            json!({"prompt": "a b ".repeat(40), "points": ["*"], "store": "big"}),
            422,
            "points",
            "--max-capture",
        ),
        (
            json!({"prompt": "a", "points": ["*"], "repetition_penalty": 1e-38}),
            400,
            "repetition_penalty",
            "0.01",
        ),
    ];
    for (ask, code, param, says) in cases {
        let (status, answer) = daemon.post("/v1/checkpoints", &ask);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (code, Some(param)),
            "{ask}: {answer}"
        );
        assert!(message.contains(says), "{ask}: {message}");
    }
    assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 0);
    let daemon = Daemon::start(&[]);
    let long = json!({"prompt": "a b ".repeat(100), "points": ["*"], "format": "json"});
    let (status, answer) = daemon.post("/v1/checkpoints", &long);
    assert_eq!(status, 422, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("ask for tar"), "{answer}");
    let (status, answer) =
        daemon.post("/v1/checkpoints", &json!({"prompt": "a", "points": ["*"], "store": "x"}));
    assert_eq!(status, 422, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("--store"), "{answer}");
}
