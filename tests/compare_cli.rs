//! `compare` and `export` as a user meets them: what is printed, and the exit codes.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod dumps;
mod run_support;

use std::path::Path;
use std::process::Command;

use dumps::*;
use run_support::{assert_conforms, diff, repository, texts};
use serde_json::Value;

fn compare_cli(arguments: &[&str]) -> (String, String, i32) {
    let output = diff().arg("compare").args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    (stdout, stderr, output.status.code().unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn tables_name_the_worst_place_the_recipe_and_what_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(1);
    let mut wrong = all.clone();
    wrong.insert("h.1.mlp.out".into(), nudged(&all["h.1.mlp.out"], 0.5));
    let ours = write_bundle(&dir.path().join("ours"), "llorch-cpud", &wrong, 2);
    let theirs = write_folder(
        &dir.path().join("theirs"),
        &[
            ("checkpoint_00_embeddings_candle", batched(&all["embeddings"])),
            ("checkpoint_06_ffn_l01_candle", batched(&all["h.1.mlp.out"])),
            ("checkpoint_02_nonsense_candle", batched(&all["h.1.mlp.out"])),
        ],
    );
    let (stdout, _, code) = compare_cli(&[text(&ours), text(&theirs), "--values", "3"]);
    assert_eq!(code, 1, "{stdout}");
    for expected in [
        "FAIL 1 of 2 comparisons; the first in data-flow order is h.1.mlp.out, case hello (llorch-cpud–candle)",
        "60 of 60 elements exceed the tolerance",
        "drop the batch axis",
        "expected q, k, v",
        "only in llorch-cpud",
    ] {
        assert!(stdout.contains(expected), "{expected}\n{stdout}");
    }
    let (markdown, _, _) = compare_cli(&[text(&ours), text(&theirs), "--format", "md"]);
    assert!(markdown.contains("| # ") || markdown.contains("|#"), "{markdown}");

    let (json, _, code) = compare_cli(&[text(&ours), text(&theirs), "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_conforms("compare", &json);
    assert_eq!((code, json["verdict"].as_str()), (1, Some("FAIL")));
    assert_eq!(json["rows"].as_array().unwrap().len(), 2);
    let (stdout, _, code) = compare_cli(&[text(&ours), text(&theirs), "--tolerance", "0.6"]);
    assert_eq!(code, 0, "{stdout}");
}

#[test]
fn mistakes_are_said_on_stderr_with_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let a = write_folder(&dir.path().join("a"), &[("ln_f", tensors(2)["ln_f"].clone())]);
    for arguments in [
        &[][..],
        &[text(&a)],
        &[text(&a), "/nowhere"],
        &[text(&a), text(&a), "--tolerance", "-1"],
        &[text(&a), text(&a), "--config", "/nowhere"],
        &[text(&a), text(&a), "--heads", "0"],
        &[text(&a), text(&a), "--case", "nosuch"],
    ] {
        let (stdout, stderr, code) = compare_cli(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(!stderr.is_empty());
    }
}

#[test]
fn a_case_that_is_nowhere_is_refused_with_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(3);
    let a = write_bundle(&dir.path().join("a"), "a", &all, 1);
    let b = write_bundle(&dir.path().join("b"), "b", &all, 1);
    let (_, stderr, code) = compare_cli(&[text(&a), text(&b), "--case", "nosuch"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("no source has a case nosuch; found hello"), "{stderr}");
    let plain = write_folder(&dir.path().join("plain"), &[("ln_f", all["ln_f"].clone())]);
    let (_, stderr, code) = compare_cli(&[text(&plain), text(&plain), "--case", "nosuch"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("none has cases"), "{stderr}");
}

/// Written by Candle itself on nano; tests/fixtures/candle_eight/README.md tells how.
#[test]
fn a_candle_generators_eight_files_are_read_as_they_are() {
    let folder = repository().join("tests/fixtures/candle_eight");
    let golden = repository().join("golden/nano/hf-f32");
    let arguments = [text(&folder), text(&golden), "--case", "hello", "--format", "json"];
    let (json, stderr, code) = compare_cli(&arguments);
    assert_eq!(code, 0, "{stderr}\n{json}");
    let json: Value = serde_json::from_str(&json).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let points: Vec<&str> = rows.iter().map(|r| r["point"].as_str().unwrap()).collect();
    let expected = [
        "embeddings",
        "h.0.ln_1",
        "h.0.attn.q",
        "h.0.attn.k",
        "h.0.attn.v",
        "h.0.attn.scores",
        "h.0.attn.out",
        "h.0.mlp.out",
    ];
    assert_eq!(points, expected);
    assert!(rows.iter().all(|r| r["verdict"] == "PASS"));
    assert_eq!(json["sources"][0]["recipes"]["h.*.attn.q"], "drop the batch axis");
    assert!(json["sources"][0]["unmapped"].as_object().unwrap().is_empty());
}

#[test]
fn the_engine_is_exported_and_compared_with_nanos_golden() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output =
        diff().args(["export", "--npy", text(&out), "--offline", "-n", "3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    assert!(out.join("prompt/checkpoint_02_q_l03_s01_llorch-cpud.npy").is_file());
    // nano's golden of the same prompt: the keys of whole tensors are points; those of rows are not.
    let golden = repository().join("golden/nano/hf-f32");
    let case = ["--case", "hello", "--format", "json"];
    let (json, stderr, code) =
        compare_cli(&[&[text(&out.join("prompt")), text(&golden)], &case[..]].concat());
    assert_eq!(code, 0, "{stderr}\n{json}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(json["rows"].as_array().unwrap().len() > 3 * 4 * 15);
}

/// What the system does to who reads a map of a file that has become shorter: it is told, not only ended.
#[cfg(unix)]
#[test]
fn a_file_that_becomes_shorter_while_it_is_read_is_told() {
    use std::process::Stdio;
    let mut waits = diff()
        .args(["run", "--subject", "sleep 20", "--ref", "other=sleep 20"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once it has said something its handlers are there.
    let mut first = [0; 1];
    std::io::Read::read_exact(waits.stderr.as_mut().unwrap(), &mut first).unwrap();
    let sent = Command::new("kill").args(["-BUS", &waits.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = waits.wait_with_output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("a file became shorter while it was being read"), "{stderr}");
}
