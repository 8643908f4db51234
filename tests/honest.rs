//! No false alarms: implementations that are right, in whatever order they add, get no FAIL and no
//! WARN, whoever else is in the jury.
//!
//! The ordinary run takes some prompts. All of `golden/suites/varied.toml` on nano, and a few on
//! models of the size of GPT-2 and GPT-2 medium:
//!
//! ```text
//! cargo test --release --test honest -- --ignored --nocapture
//! ```
#![allow(clippy::disallowed_methods, reason = "a test starts the program that it tests")]

mod run_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use run_support::seeded::{bug_adapter, command_of};
use run_support::{diff, repository};
use serde_json::Value;

/// Adds every sum strictly in order.
const SEQUENTIAL: &str = "numpy:sequential";

fn run(arguments: &[&str]) -> (Value, Option<i32>) {
    let mut command = diff();
    command.args(["run", "--format", "json", "--quiet"]).args(arguments);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    (result, output.status.code())
}

/// The suite, and how many cases it has.
fn suite(name: &str) -> (PathBuf, usize) {
    let path = repository().join("golden/suites").join(name);
    let table: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    let cases = table["case"].as_array().unwrap().len();
    (path, cases)
}

/// A suite with those cases of another which `keep` is true of; it gets their number and name.
fn part_of(name: &str, keep: impl Fn(usize, &str) -> bool) -> (tempfile::TempDir, PathBuf, usize) {
    let (whole, _) = suite(name);
    let mut table: toml::Table = std::fs::read_to_string(whole).unwrap().parse().unwrap();
    let cases = table["case"].as_array_mut().unwrap();
    let mut n = 0;
    cases.retain(|case| {
        n += 1;
        keep(n - 1, case["name"].as_str().unwrap())
    });
    let count = cases.len();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.toml");
    std::fs::write(&path, table.to_string()).unwrap();
    (dir, path, count)
}

/// How close to an alarm each kind of stage came, as a share of its noise band, and where.
fn closest(result: &Value) -> BTreeMap<String, (f64, String)> {
    let mut closest: BTreeMap<String, (f64, String)> = BTreeMap::new();
    for row in result["rows"].as_array().unwrap() {
        let Some(of_band) = row["local"]["of_band"].as_f64() else { continue };
        let point = row["point"].as_str().unwrap();
        let stage = match point.splitn(3, '.').collect::<Vec<_>>()[..] {
            ["h", _, stage] => stage,
            ["h", _] => "h.i",
            _ => point,
        };
        let at = format!("{} {point} {} step {}", row["a"], row["case"], row["step"]);
        let known = closest.entry(stage.to_string()).or_default();
        if of_band >= known.0 {
            *known = (of_band, at);
        }
    }
    closest
}

/// Panics with every alarm, and prints how close the others came.
fn require_silence(what: &str, (result, code): &(Value, Option<i32>), cases: usize) {
    println!("{what}: {}", result["verdict"]);
    for (stage, (of_band, at)) in closest(result) {
        println!("    {stage:14} {of_band:6.3} of the noise band, {at}");
    }
    let rows = result["rows"].as_array().unwrap();
    let alarms: Vec<String> = rows
        .iter()
        .filter(|r| r["verdict"] != "PASS" && r["verdict"] != "UNCHECKED")
        .map(|r| {
            let [kind, a, b, point] = ["kind", "a", "b", "point"].map(|k| r[k].as_str().unwrap());
            let place = format!("{kind} {a}–{b} {point} step {} of {}", r["step"], r["case"]);
            format!("{place}: {}, {}", r["verdict"], r["reason"])
        })
        .collect();
    assert!(alarms.is_empty(), "{what}: {} alarms\n{}", alarms.len(), alarms.join("\n"));
    assert_eq!((*code, &result["verdict"]), (Some(0), &"PASS".into()), "{what}");
    assert_eq!(result["odd"], serde_json::json!([]), "{what}");
    let recomputed = rows.iter().filter(|r| !r["local"].is_null()).count();
    assert!(recomputed > 50 * cases, "{what}: {recomputed} local errors in {cases} cases");
    let seen: BTreeSet<&str> = rows.iter().map(|r| r["case"].as_str().unwrap()).collect();
    assert_eq!(seen.len(), cases, "{what}: cases with rows");
}

#[test]
fn some_varied_prompts_raise_no_alarm_for_a_sequential_engine() {
    let (_dir, some, count) = part_of("varied.toml", |n, _| n.is_multiple_of(7));
    assert!(count >= 15, "{count} cases");
    let subject = command_of(SEQUENTIAL);
    let found = run(&["--subject", &subject, "--ref", "numpy", "--suite", some.to_str().unwrap()]);
    require_silence("sequential sums beside NumPy's", &found, count);
}

#[test]
#[ignore = "minutes: run it when the judge changes, and every night"]
fn a_hundred_varied_prompts_raise_no_alarm_for_anyone() {
    let (varied, cases) = suite("varied.toml");
    assert!(cases >= 100, "{cases} cases");
    let varied = varied.to_str().unwrap();
    let subject = command_of(SEQUENTIAL);
    let found = run(&["--subject", &subject, "--ref", "hf", "--suite", varied]);
    require_silence("sequential sums beside hf", &found, cases);
    let found = run(&["--ref", "numpy", "--ref", "tinygrad", "--ref", "candle", "--suite", varied]);
    require_silence("llorch-cpud beside numpy, tinygrad and candle", &found, cases);
}

#[test]
#[ignore = "minutes, and gigabytes of synthetic weights: every night"]
fn larger_models_raise_no_alarm_for_anyone() {
    let (large, cases) = suite("varied-large.toml");
    let large = large.to_str().unwrap();
    let sequential = format!("{SEQUENTIAL}={}", command_of(SEQUENTIAL));
    for model in ["synth:gpt2", "synth:gpt2-medium"] {
        let references = ["--ref", "hf", "--ref", &sequential];
        let found = run(&[&["--model", model, "--suite", large][..], &references].concat());
        require_silence(&format!("llorch-cpud, hf and sequential sums on {model}"), &found, cases);
    }
}

/// Another eps, GELU by erf, shifted positions: a jury that is wrong does not make an engine that is
/// right wrong.
#[test]
fn three_broken_references_are_each_named_and_the_subject_passes() {
    let bug = bug_adapter();
    let broken = [
        ("other-eps", "eps:value=1e-3", "h.0.ln_1"),
        ("erf", "erf_gelu", "h.0.mlp.act"),
        ("shifted", "position_shift", "embeddings"),
    ];
    let references: Vec<String> =
        broken.iter().map(|(name, inject, _)| format!("{name}={bug} --bug {inject}")).collect();
    let (_dir, suite, count) = part_of("canonical.toml", |_, case| case != "long");
    assert!(count >= 4, "{count} cases");
    for subject in [None, Some(command_of(SEQUENTIAL))] {
        let mut arguments = vec!["--suite", suite.to_str().unwrap()];
        for reference in &references {
            arguments.extend(["--ref", reference]);
        }
        if let Some(subject) = &subject {
            arguments.extend(["--subject", subject]);
        }
        let (result, code) = run(&arguments);
        assert_eq!((code, &result["verdict"]), (Some(0), &"PASS".into()));
        let named: BTreeMap<&str, &str> = result["odd"]
            .as_array()
            .unwrap()
            .iter()
            .map(|odd| (odd["name"].as_str().unwrap(), odd["point"].as_str().unwrap()))
            .collect();
        assert_eq!(named, broken.iter().map(|(name, _, point)| (*name, *point)).collect());
        let ours = result["implementations"][0]["name"].as_str().unwrap();
        let rows = result["rows"].as_array().unwrap();
        let accused = |row: &&Value| {
            row["blame"].as_array().is_some_and(|names| names.iter().any(|name| *name == ours))
        };
        assert_eq!(rows.iter().filter(accused).count(), 0, "{ours} is blamed");
        let differing = rows.iter().filter(|r| r["kind"] == "pair" && r["verdict"] == "FAIL");
        assert!(differing.count() > 100, "the broken references differ from {ours}");
    }
}
