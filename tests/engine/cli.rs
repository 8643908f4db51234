//! The command line, as a user runs it.
#![allow(clippy::disallowed_methods, reason = "a test starts the program as a user would")]

use std::process::{Command, Output, Stdio};

use crate::support::{TinyModel, repository};

fn llorch(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"));
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The exit code, and what was said on stderr.
fn failure(args: &[&str]) -> (Option<i32>, String) {
    let output = llorch(args);
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn generate_streams_text_and_ids() {
    let nano = repository().join("golden/models/nano");
    let nano = nano.to_str().unwrap();
    let text = stdout(&llorch(&["generate", "--model", nano, "Hello.", "-n", "10"]));
    let ids =
        stdout(&llorch(&["generate", "-m", nano, "--ids", "15496,13", "-n", "10", "--print-ids"]));
    let ids: Vec<u32> = ids.trim().split(',').map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 10);
    let tokenizer = llorch_cpud::Tokenizer::load(std::path::Path::new(nano)).unwrap();
    assert_eq!(text, format!("{}\n", tokenizer.decode(&ids).unwrap()));

    let sampled = |seed: &str, threads: &str| {
        let options = [
            "--temperature",
            "0.9",
            "--top-k",
            "50",
            "--top-p",
            "0.95",
            "--repetition-penalty",
            "1.2",
        ];
        let mut args = vec![
            "generate",
            "-m",
            nano,
            "Hello.",
            "-n",
            "8",
            "--ignore-eos",
            "--seed",
            seed,
            "--threads",
            threads,
        ];
        args.extend(options);
        stdout(&llorch(&args))
    };
    assert_eq!(sampled("1", "1"), sampled("1", "2"));
    assert_ne!(sampled("1", "1"), sampled("2", "1"));
}

#[test]
fn generate_ends_at_the_end_of_text_unless_told_otherwise() {
    // A head that always chooses token 299, the model's end of text.
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = TinyModel::new(4, 96);
    let wte = &mut tiny.tensors.get_mut("wte.weight").unwrap().1;
    wte[299 * 96..].fill(5.0);
    tiny.tensors.get_mut("ln_f.weight").unwrap().1.fill(0.0);
    tiny.tensors.get_mut("ln_f.bias").unwrap().1.fill(1.0);
    tiny.write(dir.path());
    let dir = dir.path().to_str().unwrap();
    let run = |more: &[&str]| {
        let mut args = vec!["generate", "--model", dir, "--ids", "1", "-n", "3", "--print-ids"];
        args.extend(more);
        stdout(&llorch(&args))
    };
    assert_eq!((run(&[]).as_str(), run(&["--ignore-eos"]).as_str()), ("299\n", "299,299,299\n"));
}

#[test]
fn inspect_lists_configuration_tensors_and_hashes() {
    let nano = repository().join("golden/models/nano");
    let text = stdout(&llorch(&["inspect", nano.to_str().unwrap()]));
    let sha256 = llorch_trace::hash::sha256_file(&nano.join("model.safetensors")).unwrap();
    for part in [
        sha256.as_str(),
        "model.safetensors",
        "n_layer",
        "parameters",
        "wte.weight",
        "F16",
        "[50257, ",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let json = stdout(&llorch(&["inspect", nano.to_str().unwrap(), "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["config"]["model_type"], "gpt2");
    assert!(json["parameters"].as_u64().unwrap() > 1_000_000);
    assert!(json["tensors"].as_array().unwrap().len() > 12);
}

#[test]
fn mistakes_end_with_the_documented_code() {
    let help = stdout(&llorch(&["--help"]));
    assert!(
        help.contains("Exit codes:") && help.contains("generate") && help.contains("inspect"),
        "{help}"
    );

    let nano = repository().join("golden/models/nano");
    let nano = nano.to_str().unwrap();
    assert_eq!(failure(&["generate", "--model", nano]).0, Some(2), "no prompt");
    assert_eq!(
        failure(&["generate", "--model", nano, "a", "--ids", "1"]).0,
        Some(2),
        "two prompts"
    );
    assert_eq!(failure(&["generate", "--model", nano, "a", "--top-p", "nine"]).0, Some(2));
    let (code, said) = failure(&["generate", "--model", nano, "a", "--top-p", "9"]);
    assert!(code == Some(2) && said.contains("top_p is 9"), "{said}");
    let (code, said) = failure(&["generate", "--model", nano, ""]);
    assert!(code == Some(2) && said.contains("no tokens"), "{said}");
    let (code, said) = failure(&["generate", "--model", nano, "a", "-n", "100000"]);
    assert!(code == Some(2) && said.contains("positions"), "{said}");
    let (code, said) = failure(&["generate", "--model", nano, "--ids", "50257"]);
    assert!(code == Some(2) && said.contains("50257"), "{said}");
    let (code, said) = failure(&["generate", "--model", nano, "a", "--threads", "1000000"]);
    assert!(code == Some(2) && said.contains("expected 0 to 1024"), "{code:?} {said}");
    let (code, said) = failure(&["generate", "--model", "/no/such/folder", "a"]);
    assert!(matches!(code, Some(2 | 3)) && said.contains("/no/such/folder"), "{code:?} {said}");
    let (code, said) = failure(&["inspect", "not a model name!"]);
    assert!(code == Some(2) && said.starts_with("error: failed to"), "{code:?} {said}");

    // Weights that don't fit, through the program.
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = TinyModel::new(4, 96);
    tiny.tensors.remove("ln_f.bias");
    tiny.write(dir.path());
    let (code, said) = failure(&["inspect", dir.path().to_str().unwrap()]);
    assert!(code == Some(2) && said.contains("ln_f.bias"), "{code:?} {said}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_no_success() {
    let nano = repository().join("golden/models/nano");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"));
    let command = command.args(["generate", "Hello.", "-n", "2", "--model"]).arg(nano);
    let output = command.stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("standard output"), "{said}");
}

#[test]
fn trace_ends_with_its_input() {
    let output = llorch(&["trace"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}
