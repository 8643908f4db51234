//! The whole of it on the shipped model: the engine against every live reference, which are installed
//! first where they aren't yet (some 4 GB, once), and engines with known bugs, each found at the right
//! checkpoint.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use run_support::seeded::bug_adapter;
use run_support::{assert_conforms, diff, rows, texts};
use serde_json::Value;

#[test]
fn the_engine_passes_all_13_checkpoints_against_every_reference() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let output =
        diff().args(["run", "--ref", "all", "--format", "json", "--out", out]).output().unwrap();
    let (stdout, stderr) = texts(&output);
    let result: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("result", &result);
    let not_passed: Vec<&Value> = result["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["verdict"] != "PASS" && r["verdict"] != "UNCHECKED")
        .take(5)
        .collect();
    assert!(not_passed.is_empty(), "{not_passed:#?}\n{stderr}");
    assert_eq!(result["verdict"], "PASS", "{:#}\n{stderr}", result["unchecked"]);
    assert_eq!(output.status.code(), Some(0));

    // What nobody could check is a fact about an upstream, never something that went wrong here.
    let by_nature = |u: &&Value| u["kind"] == "unsupported" || u["what"] == "real GPT-2 weights";
    let unchecked = result["unchecked"].as_array().unwrap();
    let other: Vec<&Value> = unchecked.iter().filter(|u| !by_nature(u)).collect();
    assert!(other.is_empty(), "{other:#?}");
    let ran = result["implementations"].as_array().unwrap();
    for name in
        ["ctranslate2", "flax", "onnxruntime", "openvino", "candle:upstream", "tinygrad-upstream"]
    {
        assert!(ran.iter().any(|i| i["name"] == name), "{name} isn't among all");
    }

    for reference in ["hf", "tinygrad", "candle", "llamacpp"] {
        for checkpoint in 0..13 {
            let pair = rows(&result, &[("kind", "pair"), ("a", "llorch-cpud"), ("b", reference)]);
            let checked =
                pair.iter().filter(|r| r["checkpoint"] == checkpoint && r["verdict"] == "PASS");
            assert!(checked.count() > 0, "{reference} checks nothing at checkpoint {checkpoint}");
        }
    }
    // Every layer, decode steps, and the daemon.
    let layers = result["model"]["config"]["n_layer"].as_u64().unwrap();
    for layer in 0..layers {
        let rows = rows(&result, &[("kind", "pair"), ("case", "hello"), ("b", "hf")]);
        let decoded = rows.iter().filter(|r| r["layer"] == layer && r["step"] == 9);
        assert!(decoded.count() >= 16, "layer {layer}");
    }
    for point in ["tokens", "generated"] {
        let own = rows(&result, &[("kind", "self"), ("a", "llorch-cpud"), ("point", point)]);
        assert!(
            own.iter().any(|r| r["reason"].as_str().unwrap().contains("over HTTP")),
            "{point}: no daemon"
        );
    }
    let unchecked = result["unchecked"].as_array().unwrap();
    assert!(unchecked.iter().any(|u| u["what"] == "real GPT-2 weights"), "nano is not GPT-2");

    let bisect = diff().args(["bisect", "--from", out]).output().unwrap();
    let found = texts(&bisect).0;
    assert_eq!(bisect.status.code(), Some(0), "{found}");
    let named = found.strip_prefix("NO DIVERGENCE\nllorch-cpud agrees with ").expect(&found);
    let named = named.lines().next().unwrap();
    for reference in ["ctranslate2", "hf", "llamacpp", "candle", "onnxruntime", "tinygrad"] {
        assert!(named.contains(reference), "{reference} isn't among those that agree: {named}");
    }
}

#[test]
fn llama_cpp_is_off_at_its_gelu_as_declared_and_nowhere_else() {
    let output = diff()
        .args(["run", "--ref", "llamacpp", "--ref", "llamacpp:exact-gelu", "--format", "json"])
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    let result: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    let found = rows(&result, &[("verdict", "FAIL")]);
    assert!(found.is_empty(), "{:#?}", &found[..found.len().min(3)]);
    assert_eq!((&result["verdict"], output.status.code()), (&"PASS".into(), Some(0)), "{stderr}");
    assert!(
        !stderr.contains("FAIL"),
        "what follows from a deviation is no FAIL meanwhile: {stderr}"
    );

    let point = |row: &Value| row["point"].as_str().unwrap().to_owned();
    let reason = |row: &Value| row["reason"].as_str().unwrap_or_default().to_owned();
    let own = rows(&result, &[("kind", "oracle"), ("a", "llamacpp")]);
    assert!(own.len() > 1000, "{}", own.len());
    let off: Vec<_> = own.iter().filter(|r| r["local"]["verdict"] != "PASS").collect();
    for row in &off {
        assert!(point(row).ends_with(".mlp.act"), "{row:#}");
        assert!(reason(row).contains("llamacpp declares a deviation within 1.1e-3"), "{row:#}");
    }
    let layers = result["model"]["config"]["n_layer"].as_u64().unwrap();
    for layer in 0..layers {
        assert!(off.iter().any(|row| row["layer"] == layer), "layer {layer} is exact");
    }
    let handed_down = own.iter().filter(|r| reason(r).contains("inherited from a declared"));
    assert!(handed_down.count() > 0, "nothing follows from it");

    // With that one node overwritten all of it is rounding.
    let exact = rows(&result, &[("kind", "oracle"), ("a", "llamacpp:exact-gelu")]);
    assert_eq!(exact.len(), own.len());
    let pairs =
        rows(&result, &[("kind", "pair"), ("a", "llorch-cpud"), ("b", "llamacpp:exact-gelu")]);
    for row in exact.iter().chain(&pairs) {
        assert!(!reason(row).contains("deviation"), "{row:#}");
    }
    assert!(exact.iter().all(|row| row["local"]["verdict"] == "PASS"));
    for checkpoint in 0..13 {
        for reference in ["llamacpp", "llamacpp:exact-gelu"] {
            let rows = rows(&result, &[("kind", "pair"), ("a", "llorch-cpud"), ("b", reference)]);
            let passed = |r: &&&Value| r["checkpoint"] == checkpoint && r["verdict"] == "PASS";
            assert!(rows.iter().any(|r| passed(&r)), "{reference} checks nothing at {checkpoint}");
        }
    }
}

#[test]
fn each_known_bug_fails_at_its_checkpoint() {
    let bugs = [
        ("transposed", "h.0.attn.out", 5),
        ("eps:value=1e-3", "h.0.ln_1", 1),
        ("dropped_bias", "h.0.attn.q", 2),
        ("dropped_bias:which=mlp.c_proj:layer=2", "h.2.mlp.out", 6),
        ("swapped_qkv", "h.0.attn.q", 2),
        ("position_shift", "embeddings", 0),
    ];
    let adapter = bug_adapter();
    let dir = tempfile::tempdir().unwrap();
    for (bug, point, checkpoint) in bugs {
        let out = dir.path().join("out");
        let subject = format!("{adapter} --bug {bug}");
        let run = diff()
            .args(["run", "--ref", "candle", "--prompt", "Hello.", "--format", "json"])
            .args(["--subject", &subject, "--out", out.to_str().unwrap()])
            .output()
            .unwrap();
        let (stdout, stderr) = texts(&run);
        let result: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{bug}: {e}\n{stderr}"));
        assert_eq!(
            (run.status.code(), &result["verdict"]),
            (Some(1), &"FAIL".into()),
            "{bug}\n{stderr}"
        );
        let failed = rows(&result, &[("kind", "pair"), ("verdict", "FAIL"), ("b", "candle")]);
        assert!(failed.iter().any(|r| r["checkpoint"] == checkpoint), "{bug}");
        // What comes before it, as data flows, passes.
        let bisect =
            diff().args(["bisect", "--format", "json", "--from", out.to_str().unwrap()]).output();
        let found: Value = serde_json::from_str(&texts(&bisect.unwrap()).0).unwrap();
        assert_conforms("bisect", &found);
        let cause = &found["causes"][0];
        assert_eq!(
            (&cause["point"], &cause["checkpoint"]),
            (&point.into(), &checkpoint.into()),
            "{bug}"
        );
        assert_eq!(found["between"], Value::Null, "{bug}");
    }
}

#[test]
fn without_a_bug_the_same_adapter_passes() {
    let subject = bug_adapter();
    let output = diff()
        .args([
            "run",
            "--ref",
            "candle",
            "--prompt",
            "Hello.",
            "--format",
            "json",
            "--subject",
            subject,
        ])
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let result: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["verdict"], "PASS", "{stderr}");
}
