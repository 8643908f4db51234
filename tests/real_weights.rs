//! The twins of the checkpoint tests on the real GPT-2: the same questions, the published weights.
//! They run where the weights can be had:
//!
//! ```text
//! cargo test --release --test real_weights -- --ignored --test-threads 1
//! ```
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use run_support::{diff, texts};
use serde_json::Value;

/// One checkpoint of GPT-2 small, the engine against Hugging Face and Candle: PASS, on real weights,
/// with something compared.
fn holds(checkpoint: u8) {
    let number = checkpoint.to_string();
    let arguments = [
        "run",
        "--model",
        "gpt2",
        "--checkpoint",
        &number,
        "--ref",
        "hf",
        "--ref",
        "candle",
        "--format",
        "json",
    ];
    let output = diff().args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    let result: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}\n{stderr}"));
    assert_eq!(result["model"]["kind"], "real", "{}", result["model"]);
    assert_eq!(
        (output.status.code(), result["verdict"].as_str()),
        (Some(0), Some("PASS")),
        "{stderr}"
    );
    let rows = result["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["checkpoint"] == checkpoint && row["kind"] == "pair"));
}

macro_rules! twins {
    ($($name:ident = $checkpoint:literal),* $(,)?) => {$(
        #[test]
        #[ignore = "needs the real GPT-2 weights (548 MB from the hub) and the references"]
        fn $name() {
            holds($checkpoint);
        }
    )*};
}

twins! {
    checkpoint_00_foundation = 0,
    checkpoint_01_layer_normalization = 1,
    checkpoint_02_qkv_projection = 2,
    checkpoint_03_kv_cache_state = 3,
    checkpoint_04_attention_scores = 4,
    checkpoint_05_attention_output = 5,
    checkpoint_06_ffn_output = 6,
    checkpoint_07_first_block = 7,
    checkpoint_08_full_logits = 8,
    checkpoint_09_selected_logits = 9,
    checkpoint_10_argmax = 10,
    checkpoint_11_softmax_probabilities = 11,
    checkpoint_12_end_to_end = 12,
}

/// Every published answer of a model on its weights.
fn answers_hold(model: &str, at_least: usize) {
    let output =
        diff().args(["golden", "check", "--model", model, "--format", "json"]).output().unwrap();
    let (stdout, stderr) = texts(&output);
    let result: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}\n{stderr}"));
    let answers = result["published"].as_array().unwrap();
    let wrong: Vec<&Value> = answers.iter().filter(|a| a["verdict"] != "PASS").collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(answers.len() >= at_least && output.status.code() == Some(0));
}

#[test]
#[ignore = "needs the real GPT-2 weights (548 MB from the hub)"]
fn published_answers_of_gpt2() {
    answers_hold("gpt2", 24);
}

#[test]
#[ignore = "needs the real GPT-2 medium weights (1.5 GB from the hub)"]
fn published_answers_of_gpt2_medium() {
    answers_hold("gpt2-medium", 2);
}

#[test]
#[ignore = "needs the real DistilGPT-2 weights (353 MB from the hub)"]
fn published_answers_of_distilgpt2() {
    answers_hold("distilgpt2", 1);
}
