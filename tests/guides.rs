//! `llorch-diff explain`: what it prints, what it writes, and that the lines of code which it names hold
//! what it says in the versions that are installed.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use llorch_diff::guides::{self, guide::Reference};
use run_support::seeded::command_of;
use run_support::{assert_conforms, diff, repository, texts};
use serde_json::Value;

fn explain(arguments: &[&str]) -> (String, String, i32) {
    let output = diff().arg("explain").args(arguments).env("COLUMNS", "72").output().unwrap();
    let (stdout, stderr) = texts(&output);
    (stdout, stderr, output.status.code().unwrap())
}

#[test]
fn a_guide_is_printed_for_a_number_a_name_and_a_point() {
    let (by_number, _, code) = explain(&["4"]);
    assert_eq!(code, 0);
    assert!(by_number.starts_with("Checkpoint 4 · Attention scores · critical\n"), "{by_number}");
    for heading in [
        "WHAT IS COMPUTED",
        "WHEN TO CHECK IT",
        "CHECKLIST",
        "WHERE IT IS",
        "COMMON FAILURES",
        "WHAT SUCCESS LOOKS LIKE",
        "HOW TO INSPECT IT",
        "WHAT NEXT",
    ] {
        assert!(by_number.lines().any(|l| l == heading), "{heading}\n{by_number}");
    }
    // Prose is as wide as the terminal.
    let purpose = by_number.split("WHAT IS COMPUTED").next().unwrap();
    assert!(purpose.lines().all(|l| l.chars().count() <= 72), "{purpose}");
    assert_eq!(explain(&["scores"]).0, by_number);
    let (by_point, _, _) = explain(&["h.3.attn.probs"]);
    assert!(by_point.contains("\nAT h.3.attn.probs\nthe mask is causal"), "{by_point}");
    assert!(by_point.contains("\n> h.i.attn.probs [H,T,S]"), "{by_point}");

    let (stdout, stderr, code) = explain(&["score"]);
    assert_eq!((stdout.as_str(), code), ("", 2));
    assert!(stderr.contains("failed to find \"score\"; expected a checkpoint"), "{stderr}");
    let (list, _, _) = explain(&[]);
    assert_eq!(
        list.lines().filter(|l| l.contains("critical") || l.contains("important")).count(),
        10
    );
}

#[test]
fn json_conforms_to_its_schema_and_markdown_is_the_page_in_docs() {
    let all: Value = serde_json::from_str(&explain(&["--format", "json"]).0).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 13);
    for (i, guide) in all.as_array().unwrap().iter().enumerate() {
        assert_conforms("guide", guide);
        let number = i.to_string();
        let one: Value = serde_json::from_str(&explain(&[&number, "--format", "json"]).0).unwrap();
        assert_eq!(&one, guide);
    }
    let page = std::fs::read_to_string(repository().join("docs/checkpoints/06-ffn.md")).unwrap();
    assert_eq!(explain(&["ffn", "--format", "md"]).0, page);
}

#[test]
fn pages_are_written_to_a_folder_and_what_can_not_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pages");
    let (stdout, stderr, code) = explain(&["--write", out.to_str().unwrap()]);
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("", "", 0));
    for entry in std::fs::read_dir(repository().join("docs/checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        let written = std::fs::read(out.join(path.file_name().unwrap())).unwrap();
        assert!(written == std::fs::read(&path).unwrap(), "{}", path.display());
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (_, stderr, code) = explain(&["--write", file.to_str().unwrap()]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("failed to write") && stderr.contains("file"), "{stderr}");
}

/// Holds the places that a reference's guides name to the files below `root`.
fn look(name: &str, root: impl Fn(&str) -> PathBuf) {
    let mut checked = 0;
    let of_it = |r: &&Reference| r.name == name;
    for place in
        guides::all().iter().flat_map(|g| &g.reference).filter(of_it).flat_map(|r| &r.place)
    {
        if place.file.starts_with("adapters/") {
            continue;
        }
        assert!(place.lines.is_some() && place.holds.is_some(), "{}", place.cite());
        let path = root(&place.file);
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        place.find(&text).unwrap_or_else(|e| panic!("{}: {:?} {e}", place.cite(), place.holds));
        checked += 1;
    }
    assert!(checked > 5, "{name}: {checked}");
}

#[test]
fn lines_of_transformers_and_tinygrad_are_where_the_guides_say() {
    for name in ["hf", "tinygrad"] {
        let line = command_of(name);
        let words = shlex::split(&line).unwrap();
        let python = words.iter().find(|w| w.ends_with("/bin/python")).expect("an interpreter");
        let lib = Path::new(python).parent().unwrap().with_file_name("lib");
        let versions = std::fs::read_dir(&lib).unwrap().map(|e| e.unwrap().path());
        let packages = versions.map(|p| p.join("site-packages")).find(|p| p.is_dir()).unwrap();
        look(name, |file| packages.join(file));
    }
}

#[test]
fn lines_of_candle_are_where_the_guides_say() {
    let manifest = repository().join("adapters/candle/Cargo.toml");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest)
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let metadata: Value = serde_json::from_str(&stdout).unwrap();
    let package = |p: &Value| {
        let path = PathBuf::from(p["manifest_path"].as_str().unwrap());
        (p["name"].as_str().unwrap().to_string(), path.parent().unwrap().to_path_buf())
    };
    let folders: BTreeMap<String, PathBuf> =
        metadata["packages"].as_array().unwrap().iter().map(package).collect();
    look("candle", |file| {
        let (package, rest) = file.split_once('/').unwrap();
        folders[package].join(rest)
    });
}
