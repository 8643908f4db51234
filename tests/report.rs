//! `llorch-diff report`: a saved run in its forms, read back by others' programs.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use run_support::browser::python;
use run_support::reported::{Saved, failing, missing, passing};
use run_support::{diff, repository, texts};
use serde_json::Value;

/// The file as junitparser reads it.
fn junit(path: &Path) -> Value {
    let script = repository().join("tests/browser/junit.py");
    let output = Command::new(python()).arg(script).arg(path).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn cases(suites: &Value) -> Vec<&Value> {
    suites.as_array().unwrap().iter().flat_map(|s| s["cases"].as_array().unwrap()).collect()
}

fn outcomes<'a>(suites: &'a Value, outcome: &str) -> BTreeSet<&'a str> {
    let has = cases(suites).into_iter().filter(|c| c["outcome"] == outcome);
    has.map(|c| c["name"].as_str().unwrap()).collect()
}

/// Of a row: point, who, whom.
fn name(row: &Value) -> String {
    let [point, a, b] = ["point", "a", "b"].map(|key| row[key].as_str().unwrap());
    match row["kind"].as_str().unwrap() {
        "self" => format!("{point} {a} against itself"),
        _ => format!("{point} {a}–{b}"),
    }
}

#[test]
fn junit_has_a_suite_a_checkpoint_and_a_case_a_point_and_pair() {
    let saved = passing();
    assert_eq!(saved.code, 0);
    let suites = junit(&saved.short.path("run.xml"));
    let names: Vec<&str> =
        suites.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 14, "{names:?}");
    assert_eq!((names[0], names[5]), ("run", "4 Attention scores"));
    let rows = saved.result["rows"].as_array().unwrap();
    let wanted: BTreeSet<String> = rows.iter().map(name).collect();
    let all = cases(&suites);
    let found: BTreeSet<String> = all
        .iter()
        .filter(|c| !c["class"].as_str().unwrap().starts_with("llorch.run"))
        .map(|c| c["name"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(found, wanted);
    assert_eq!((outcomes(&suites, "failure").len(), outcomes(&suites, "error").len()), (0, 0));
    // The figures are those of the row that is worst.
    let largest = rows
        .iter()
        .filter(|r| name(r) == "h.1.attn.scores bug–candle")
        .map(|r| r["max_abs"].as_f64().unwrap())
        .fold(0.0, f64::max);
    let case = all.iter().find(|c| c["name"] == "h.1.attn.scores bug–candle").unwrap();
    assert!(case["out"].as_str().unwrap().contains(&format!("max_abs: {largest:e}\n")), "{case}");
    let unchecked = &suites[0]["cases"][1];
    assert_eq!(unchecked["outcome"], "skipped", "{unchecked}");
    assert!(unchecked["message"].as_str().unwrap().contains("run --model gpt2"), "{unchecked}");
}

#[test]
fn junit_fails_where_the_subject_fails_and_skips_what_nobody_checked() {
    let saved = failing();
    assert_eq!(saved.code, 1);
    let suites = junit(&saved.short.path("run.xml"));
    let rows = saved.result["rows"].as_array().unwrap();
    let mut wanted: BTreeSet<String> =
        rows.iter().filter(|r| r["verdict"] == "FAIL").map(name).collect();
    wanted.insert("verdict".into());
    assert!(wanted.len() > 20 && wanted.contains("h.2.attn.k bug–candle"));
    assert_eq!(outcomes(&suites, "failure"), wanted.iter().map(String::as_str).collect());
    let first = cases(&suites).into_iter().find(|c| c["name"] == "h.2.attn.k bug–oracle").unwrap();
    assert!(first["message"].as_str().unwrap().contains("no rounding"), "{first}");

    let saved = missing();
    assert_eq!(saved.code, 4);
    let suites = junit(&saved.short.path("run.xml"));
    let ghost = &suites[0]["cases"].as_array().unwrap()[1];
    assert_eq!(
        (&ghost["name"], &ghost["outcome"]),
        (&"ghost: every point".into(), &"skipped".into())
    );
    assert!(ghost["message"].as_str().unwrap().contains("/nonexistent/adapter"), "{ghost}");
    assert_eq!(suites[0]["cases"][0]["outcome"], "skipped", "INCOMPLETE is no PASS");
}

#[test]
fn a_report_is_what_the_run_wrote_and_json_is_the_result_to_the_last_digit() {
    let saved = failing();
    let read = |name: &str| std::fs::read_to_string(saved.short.path(name)).unwrap();
    assert_eq!(saved.report("json"), read("out/result.json"));
    assert_eq!(saved.report("md"), read("run.md"));
    assert_eq!(saved.report("junit"), read("run.xml"));
    assert!(saved.report("table").starts_with("FAIL · bug against"));
    let written = saved.short.path("again.md");
    let output = diff()
        .arg("report")
        .arg(saved.out())
        .args(["--format", "md", "--output"])
        .arg(&written)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert_eq!(std::fs::read_to_string(written).unwrap(), read("run.md"));
}

fn on_github(saved: &Saved, format: &str, summary: &Path) -> (String, String) {
    let output = diff()
        .arg("report")
        .arg(saved.out())
        .args(["--format", format])
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", summary)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    texts(&output)
}

#[test]
fn github_gets_an_annotation_a_cause_and_a_summary_below_what_is_there() {
    let saved = failing();
    let shown = saved.report("github");
    let line = shown.lines().next().unwrap();
    assert!(
        line.starts_with("::error title=bug is wrong first at h.2.attn.k::bug: h.2.attn.k"),
        "{line}"
    );
    assert!(shown.contains("\n# FAIL · bug against"), "{shown}");

    let dir = tempfile::tempdir().unwrap();
    let summary = dir.path().join("summary.md");
    std::fs::write(&summary, "before\n").unwrap();
    let (stdout, stderr) = on_github(saved, "github", &summary);
    assert_eq!((stdout.as_str(), stderr.trim_end()), ("", line));
    let text = std::fs::read_to_string(&summary).unwrap();
    assert_eq!(text, format!("before\n{}", saved.report("md")));
    // Other forms are written as ever.
    assert_eq!(on_github(saved, "md", &summary).0, saved.report("md"));
    assert_eq!(std::fs::read_to_string(&summary).unwrap(), text);
    // Almost full: what fits, and a line that says so.
    std::fs::write(&summary, vec![b'x'; 1024 * 1024 - 9_000]).unwrap();
    on_github(saved, "github", &summary);
    let text = std::fs::read_to_string(&summary).unwrap();
    assert!(
        text.len() <= 1024 * 1024 && text.contains("Left out, to stay below"),
        "{}",
        text.len()
    );

    let shown = missing().report("github");
    assert!(shown.starts_with("::warning title=UNCHECKED%3A ghost%3A every point::"), "{shown}");
}

#[test]
fn a_run_tells_github_by_itself_and_stdout_stays_json() {
    let dir = tempfile::tempdir().unwrap();
    let place = run_support::Place::new();
    let summary = dir.path().join("summary.md");
    let run = |github: &str| {
        let output = place
            .command("run")
            .args([
                "--subject",
                &run_support::fake("--name ours --mode wrong-value --point h.1.ln_1"),
                "--format",
                "json",
                "--quiet",
            ])
            .args(["--ref", &format!("ref={}", run_support::fake("--name ref"))])
            .env("GITHUB_ACTIONS", github)
            .env("GITHUB_STEP_SUMMARY", &summary)
            .output()
            .unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(serde_json::from_str::<Value>(&stdout).is_ok(), "{stdout}{stderr}");
        stderr
    };
    assert!(!run("false").contains("::") && !summary.exists());
    let stderr = run("true");
    assert!(stderr.starts_with("::error title=ours is wrong first at "), "{stderr}");
    assert!(std::fs::read_to_string(&summary).unwrap().starts_with("# FAIL · ours"));
}

#[test]
fn what_is_no_saved_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let report = |text: Option<&str>| {
        let path = dir.path().join("result.json");
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => assert!(!path.exists()),
        }
        let output = diff().arg("report").arg(dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        texts(&output).1
    };
    for (text, said) in [
        (None, "it is not there; expected the folder of a run --out that ended"),
        (Some("[1"), "found no JSON with a schema; expected \"llorch.result/1\""),
        (Some("{\"a\": 1}"), "found no JSON with a schema"),
        (Some("{\"schema\": \"other/1\"}"), "schema \"other/1\"; expected \"llorch.result/1\""),
        (Some("{\"schema\": \"llorch.result/0\"}"), "another version of llorch-diff wrote it"),
        (Some("{\"schema\": \"llorch.result/1\"}"), "missing field"),
    ] {
        let stderr = report(text);
        assert!(stderr.contains("result.json: ") && stderr.contains(said), "{said}: {stderr}");
    }
    let output = diff().args(["report", "/nonexistent/run"]).output().unwrap();
    assert!(texts(&output).1.contains("it is not there"));
    let output = diff().args(["run", "--report", "junit=/nonexistent/x.xml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("its folder is not there"), "{}", texts(&output).1);
}
