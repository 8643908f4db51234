//! `llorch-diff golden`: nano against its goldens, published answers on the right and the wrong weights.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::path::Path;
use std::process::Command;

use run_support::{assert_conforms, diff, repository, texts};
use serde_json::Value;

/// No network and no hub cache but an empty one, so that no machine's GPT-2 is found.
fn golden(home: &Path, arguments: &[&str]) -> Command {
    let mut command = diff();
    command.arg("golden").args(arguments);
    command.env("HF_HOME", home).env("HF_HUB_OFFLINE", "1");
    command
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .env_remove("HF_ENDPOINT");
    command
}

fn checked(home: &Path, arguments: &[&str]) -> (Value, i32) {
    let output = golden(home, &[&["check", "--format", "json", "--offline"], arguments].concat())
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    let result: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}\n{stderr}"));
    assert_conforms("golden", &result);
    (result, output.status.code().unwrap())
}

fn verdicts(rows: &Value) -> Vec<(String, String)> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_string();
    let name =
        |row: &Value| if row["id"].is_string() { text(row, "id") } else { text(row, "what") };
    rows.as_array().unwrap().iter().map(|row| (name(row), text(row, "verdict"))).collect()
}

#[test]
fn nano_holds_its_goldens_and_published_answers_wait_for_their_weights() {
    let home = tempfile::tempdir().unwrap();
    let (result, code) = checked(home.path(), &[]);
    assert_eq!((code, result["verdict"].as_str()), (0, Some("PASS")), "{result:#}");
    let goldens = result["goldens"].as_array().unwrap();
    for golden in ["nano hf-f32", "nano hf-f64"] {
        let rows: Vec<&Value> = goldens.iter().filter(|g| g["golden"] == golden).collect();
        assert_eq!(rows.len(), 13, "{golden}: a row for each checkpoint");
        assert!(rows.iter().all(|r| r["verdict"] == "PASS" && r["compared"].as_u64().unwrap() > 0));
    }
    let tokenizer = goldens.iter().find(|g| g["golden"] == "tokenizer").unwrap();
    assert_eq!(
        (tokenizer["compared"].as_u64(), tokenizer["verdict"].as_str()),
        (Some(10_000), Some("PASS"))
    );
    let published = verdicts(&result["published"]);
    assert_eq!(published.len(), 27);
    for (id, verdict) in published {
        let expected = if id == "tokenizer-cpp-cuda" { "PASS" } else { "UNCHECKED" };
        assert_eq!(verdict, expected, "{id}");
    }
}

#[test]
fn the_first_line_says_that_real_weights_are_unchecked() {
    let home = tempfile::tempdir().unwrap();
    // In the checkout, where no golden may wait for a review.
    let mut strict = golden(home.path(), &["check", "--strict", "--offline"]);
    let output = strict.current_dir(repository()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (stdout, _) = texts(&output);
    let first = stdout.lines().next().unwrap();
    let expected =
        "· real GPT-2 weights: UNCHECKED (check them with `llorch-diff golden check --model gpt2`)";
    assert!(first.starts_with("PASS llorch-cpud: ") && first.ends_with(expected), "{first}");
}

#[test]
fn asked_for_weights_that_are_not_there_are_incomplete_and_the_tokenizer_runs_all_the_same() {
    let home = tempfile::tempdir().unwrap();
    let (result, code) = checked(home.path(), &["--model", "gpt2"]);
    assert_eq!((code, result["verdict"].as_str()), (4, Some("INCOMPLETE")));
    let published = result["published"].as_array().unwrap();
    assert_eq!(published.len(), 24);
    assert_eq!(published.iter().filter(|a| a["verdict"] == "PASS").count(), 1);
    let waiting = published.iter().find(|a| a["id"] == "wpe-row0").unwrap();
    assert!(!waiting["reason"].as_str().unwrap().is_empty());
}

#[test]
fn weights_that_are_not_gpt2_fail_under_any_name() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("gpt2");
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(repository().join("golden/models/nano")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    for model in ["nano", folder.to_str().unwrap()] {
        let (result, code) = checked(home.path(), &["--model", model]);
        assert_eq!((code, result["verdict"].as_str()), (1, Some("FAIL")), "{model}");
        for (id, verdict) in verdicts(&result["published"]) {
            let expected = if id == "tokenizer-cpp-cuda" { "PASS" } else { "FAIL" };
            assert_eq!(verdict, expected, "{model}: {id}");
        }
        // Each was answered: a number or a text was held against the published one.
        for answer in result["published"].as_array().unwrap() {
            assert!(
                !answer["checks"].as_array().unwrap().is_empty(),
                "{}: {}",
                answer["id"],
                answer["reason"]
            );
        }
    }
}

#[test]
fn tables_fit_a_reader_and_mistakes_have_their_codes() {
    let home = tempfile::tempdir().unwrap();
    let output = golden(home.path(), &["check", "--offline"]).output().unwrap();
    let (stdout, _) = texts(&output);
    for text in [
        "PASS llorch-cpud",
        "11 Softmax probabilities",
        "rust-bert-greedy",
        "golden check --model gpt2",
    ] {
        assert!(stdout.contains(text), "{text}\n{stdout}");
    }
    for (arguments, code) in [
        (["check", "--model", "./nowhere"], 2),
        (["check", "--format", "xml"], 2),
        (["check", "--subject", "/nowhere/adapter"], 3),
        (["record", "--dir", "/nowhere"], 2),
        (["review", "--dir", "/nowhere"], 2),
        (["check", "--dir", "/nowhere"], 2),
    ] {
        let output = golden(home.path(), &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", texts(&output).1);
    }
}
