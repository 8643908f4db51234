//! `llorch-diff bench`: figures only for right output, every form of the result, and peers that break.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use run_support::{assert_conforms, diff, repository, texts};
use serde_json::Value;

/// Small, and as fast as can be: what is measured is no business of a test.
const SMALL: &[&str] = &[
    "bench",
    "--offline",
    "--dtype",
    "f32",
    "--threads",
    "1",
    "--prompt",
    "2,20",
    "--decode",
    "4",
    "--rounds",
    "1",
];

fn bench(arguments: &[&str]) -> (String, i32, String) {
    let mut command = diff();
    let output = command.args(SMALL).args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    (stdout, output.status.code().unwrap(), stderr)
}

fn in_json(arguments: &[&str]) -> (Value, i32, String) {
    let mut arguments = arguments.to_vec();
    arguments.extend(["--format", "json"]);
    let (stdout, code, stderr) = bench(&arguments);
    let result = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("bench", &result);
    (result, code, stderr)
}

/// `…/llorch-cpud trace`, built first where need be.
fn engine() -> String {
    let output = diff().args(["adapters", "command", "llorch-cpud"]).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
    texts(&output).0.trim().to_string()
}

/// A peer with a fault, as a `--ref`.
fn peer(fault: &str) -> String {
    let script = repository().join("tests/fixtures/bench_peer.py");
    format!("{fault}=python3 -u -B '{}' {fault} {}", script.display(), engine())
}

fn rows<'a>(result: &'a Value, engine: &str) -> Vec<&'a Value> {
    result["rows"].as_array().unwrap().iter().filter(|row| row["engine"] == engine).collect()
}

fn reason<'a>(result: &'a Value, engine: &str) -> (&'a str, &'a str) {
    let left = result["unmeasured"].as_array().unwrap().iter().find(|u| u["engine"] == engine);
    let left = left.unwrap_or_else(|| panic!("{engine} is not among what was left out"));
    (left["why"].as_str().unwrap(), left["reason"].as_str().unwrap())
}

#[test]
fn two_engines_side_by_side_have_every_figure_and_a_ratio() {
    let twin = format!("twin={}", engine());
    let (result, code, stderr) = in_json(&["--ref", &twin]);
    assert_eq!(code, 0, "{stderr}");
    for (name, has_ratio) in [("llorch-cpud", false), ("twin", true)] {
        let rows = rows(&result, name);
        // load, first_token, peak_memory, and prefill, decode and decode of a batch of both prompts.
        assert_eq!(rows.len(), 9, "{rows:?}");
        for row in rows {
            assert_eq!(row["ratio"].is_number(), has_ratio, "{row}");
            // Caches hold this model, and its prompt is short: no limit that could be named.
            assert!(row["of_limit"].is_null(), "{row}");
            let at_once = if row["metric"] == "batch_decode" { 8 } else { 1 };
            assert_eq!(row["batch"], at_once, "{row}");
        }
    }
    let check = &result["engines"][0]["checks"][0];
    assert_eq!((check["same_top"].as_u64(), check["steps"].as_u64()), (Some(8), Some(8)));
    assert!(check["error"].as_f64().unwrap() < 1e-4, "{check}");
    let perplexity = |name: &str| check[name].as_f64().unwrap();
    let ratio = perplexity("perplexity") / perplexity("oracle_perplexity");
    assert!((ratio - 1.0).abs() < 1e-4 && perplexity("perplexity") > 1.0, "{check}");
    assert!(result["machine"]["read_gb_s"]["1"].as_f64().unwrap() > 0.1);
}

#[test]
fn what_is_wrong_or_breaks_is_told_and_has_no_figures() {
    let peers = ["wrong", "clock", "timeless", "int8", "dies", "batch", "few"].map(peer);
    let mut arguments = Vec::new();
    for peer in &peers {
        arguments.extend(["--ref", peer]);
    }
    let (result, code, _) = in_json(&arguments);
    assert_eq!(code, 4);
    for (name, why, part) in [
        ("wrong", "wrong", "its logits are not those of the model"),
        ("clock", "failed", "its clock can't be right"),
        ("timeless", "failed", "it has no clock"),
        ("int8", "unsupported", "int8 alone"),
        ("dies", "failed", "ended"),
        ("batch", "failed", "sequence 2 of 8 at once goes on otherwise than alone"),
        ("few", "failed", "it gave 7 answers to 8 sequences at once"),
    ] {
        let (found, reason) = reason(&result, name);
        assert_eq!(found, why, "{name}: {reason}");
        assert!(reason.contains(part), "{name}: {reason}");
        assert!(rows(&result, name).is_empty(), "{name} has figures");
    }
    assert_eq!(rows(&result, "llorch-cpud").len(), 9);
}

#[test]
fn a_subject_that_is_wrong_is_exit_1_and_one_that_breaks_5() {
    for (fault, expected) in [("wrong", 1), ("dies", 5)] {
        let command = peer(fault);
        let (_, command) = command.split_once('=').unwrap();
        let (result, code, stderr) = in_json(&["--ref", "none", "--subject", command]);
        assert_eq!(code, expected, "{stderr}");
        assert_eq!(result["rows"], Value::Array(vec![]));
    }
}

#[test]
fn a_missing_peer_is_unchecked_with_what_mends_it() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = diff();
    let engine = engine();
    command.args(SMALL).args(["--ref", "numpy", "--subject", &engine]);
    command.env("LLORCH_CACHE", cache.path());
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stdout.contains("numpy: UNCHECKED: numpy isn't installed"), "{stdout}");
    assert!(stdout.contains("llorch-diff adapters setup numpy"), "{stdout}");
}

#[test]
fn every_form_names_the_engines_and_the_figures() {
    let twin = format!("a-twin={}", engine());
    for format in ["table", "md", "svg"] {
        let (stdout, code, stderr) = bench(&["--ref", &twin, "--format", format]);
        assert_eq!(code, 0, "{stderr}");
        for part in ["llorch-cpud", "a-twin", "decode after 2"] {
            assert!(stdout.contains(part), "{format}: {stdout}");
        }
        if format == "svg" {
            assert!(
                stdout.starts_with("<svg") && stdout.trim_end().ends_with("</svg>"),
                "{stdout}"
            );
        } else {
            assert!(stdout.contains("first token") && stdout.contains('×'), "{format}: {stdout}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for (arguments, part) in [
        (
            &["--prompt", "255", "--decode", "4"][..],
            "the model has 256 positions, which leave 252 for the prompt",
        ),
        (&["--decode", "300"], "failed to decode 300 tokens: the model has 256 positions"),
        (&["--subject", "http://127.0.0.1:1"], "failed to bench a daemon"),
        (&["--ref", "none", "--ref", "candle"], "--ref none"),
        (&["--ref", "no-such-engine"], "failed to find reference `no-such-engine`"),
    ] {
        let output = diff().args(["bench", "--offline"]).args(arguments).output().unwrap();
        let (stdout, stderr) = texts(&output);
        let found = (output.status.code(), stdout.as_str());
        assert_eq!(found, (Some(2), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
    let output = diff().args(["bench", "--dtype", "q4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("expected f32, f64, f16, bf16 or int8"));
}
