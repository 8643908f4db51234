//! `llorch-diff adapter check`: honest adapters pass, and each fault is named by the check that is for it.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use run_support::{assert_conforms, diff, repository, texts};
use serde_json::Value;

/// The report, its exit code, and stderr.
fn check(arguments: &[&str]) -> (Value, i32, String) {
    let mut command = diff();
    command.args(["adapter", "check", "--format", "json", "--offline"]).args(arguments);
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    let report = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("adapter-check", &report);
    (report, output.status.code().unwrap(), stderr)
}

fn with_verdict(report: &Value, verdict: &str) -> Vec<String> {
    let rows = report["rows"].as_array().unwrap().iter().filter(|r| r["verdict"] == verdict);
    rows.map(|r| r["check"].as_str().unwrap().to_string()).collect()
}

fn row<'a>(report: &'a Value, check: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().find(|r| r["check"] == check).unwrap_or_else(|| panic!("no {check}"))
}

/// The Python template with a fault in it, as a command.
fn faulty(folder: &Path, fault: &str) -> String {
    let adapter = folder.join("honest.py");
    if !adapter.exists() {
        let template = repository().join("harness/templates/adapter/python/adapter.py");
        let text = std::fs::read_to_string(template).unwrap();
        std::fs::write(&adapter, text.replace("@NAME@", "faulty")).unwrap();
    }
    let script = repository().join("tests/fixtures/faulty_adapter.py");
    format!("python3 -u -B '{}' '{}' {fault}", script.display(), adapter.display())
}

/// Each fault, the check that is there for it, and those that fail with it because they look at more.
const FAULTS: &[(&str, &[&str])] = &[
    ("no_version", &["hello"]),
    ("runs_without_a_model", &["before_load", "no_such_model", "damaged_model"]),
    ("never_loads", &["load"]),
    ("hangs", &["run"]),
    ("needs_out_dir", &["defaults"]),
    (
        "drops_a_point",
        &["points", "prefill", "one_token", "forced_ids", "leftovers", "deterministic"],
    ),
    (
        "other_name",
        &["points", "prefill", "one_token", "out_dir", "forced_ids", "leftovers", "deterministic"],
    ),
    (
        "sends_twice",
        &[
            "points",
            "files",
            "prefill",
            "one_token",
            "forced_ids",
            "leftovers",
            "deterministic",
            "second_load",
        ],
    ),
    (
        "batch_axis",
        &[
            "shapes",
            "prefill",
            "one_token",
            "full_context",
            "out_dir",
            "forced_ids",
            "probabilities",
            "leftovers",
            "second_load",
            "deterministic",
        ],
    ),
    (
        "float_tokens",
        &["dtypes", "prefill", "one_token", "forced_ids", "leftovers", "deterministic"],
    ),
    (
        "cut_file",
        &[
            "files",
            "prefill",
            "one_token",
            "full_context",
            "forced_ids",
            "leftovers",
            "deterministic",
        ],
    ),
    (
        "nan",
        &[
            "finite",
            "consistent",
            "prefill",
            "one_token",
            "full_context",
            "out_dir",
            "forced_ids",
            "leftovers",
            "deterministic",
        ],
    ),
    ("steps_mixed", &["steps", "prefill"]),
    ("chooses_the_second", &["consistent"]),
    ("one_step_more", &["prefill", "full_context"]),
    ("squeezes_one", &["one_token"]),
    ("crashes_on_long_prompts", &["full_context"]),
    ("globs_are_names", &["globs", "full_context", "probabilities"]),
    ("empty_globs_are_errors", &["globs"]),
    ("writes_beside", &["out_dir"]),
    ("forced_ids_are_ignored", &["forced_ids", "bad_forced"]),
    ("warm_probabilities", &["probabilities"]),
    ("injection_is_ignored", &["undeclared"]),
    ("empty_prompt_crashes", &["empty_prompt"]),
    ("ids_are_cut", &["bad_ids", "second_load"]),
    ("prompts_are_cut", &["too_long"]),
    ("forced_ids_of_any_number", &["bad_forced"]),
    ("points_are_not_looked_at", &["bad_fields"]),
    ("unknown_types_are_internal", &["unknown_type", "undeclared"]),
    ("bad_json_ends_it", &["bad_lines"]),
    ("last_comes_first", &["in_turn", "cancel", "end_of_stdin"]),
    (
        "done_twice",
        &["ends_once", "prefill", "full_context", "probabilities", "leftovers", "deterministic"],
    ),
    ("other_id", &["run"]),
    ("cancel_is_ignored", &["cancel"]),
    ("cache_is_left", &["leftovers", "shapes", "prefill", "out_dir", "deterministic"]),
    ("noisy", &["deterministic", "consistent", "leftovers"]),
    ("f64_is_ignored", &["f64"]),
    ("keeps_the_old_model", &["no_such_model", "damaged_model"]),
    ("random_weights", &["damaged_model"]),
    ("loads_once", &["second_load"]),
    ("exits_with_one", &["end_of_stdin", "idle_end"]),
    ("never_ends", &["end_of_stdin", "idle_end"]),
    ("leaves_a_child", &["end_of_stdin", "idle_end"]),
    ("any_protocol", &["other_protocol"]),
    ("unknown_fields_are_errors", &["unknown_fields"]),
    ("prints", &["stdout"]),
    ("exits_at_once", &["hello"]),
];

/// What goes wrong with a fault, or nothing.
fn tried(folder: &Path, fault: &str, checks: &[&str]) -> Option<String> {
    let command = faulty(folder, fault);
    let timeout = if ["hangs", "never_ends"].contains(&fault) { "5" } else { "60" };
    // The small model is quicker; whether it is replaced shows with two.
    let model = if fault == "loads_once" { "nano" } else { "synth:tiny" };
    let (report, code, stderr) = check(&[&command, "--timeout", timeout, "--model", model]);
    let failed = with_verdict(&report, "FAIL");
    let right = code == 1
        && failed.iter().any(|name| name == checks[0])
        && failed.iter().all(|name| checks.contains(&name.as_str()));
    (!right).then(|| format!("{fault}: exit code {code}, failed {failed:?}\n{stderr}"))
}

#[test]
fn each_fault_is_named_by_the_check_that_is_for_it() {
    let folder = tempfile::tempdir().unwrap();
    faulty(folder.path(), "none");
    let halves = FAULTS.split_at(FAULTS.len() / 2);
    let missed: Vec<String> = std::thread::scope(|scope| {
        let try_all = |faults: &'static [(&str, &[&str])]| {
            let folder = folder.path();
            scope.spawn(move || {
                let all = faults.iter().filter_map(|(fault, checks)| tried(folder, fault, checks));
                all.collect::<Vec<_>>()
            })
        };
        let threads = [try_all(halves.0), try_all(halves.1)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_check_has_a_fault_or_a_capability_that_the_template_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let (report, code, _) = check(&[&faulty(folder.path(), "none"), "--model", "synth:tiny"]);
    assert_eq!((code, with_verdict(&report, "FAIL")), (0, vec![]));
    assert_eq!(report["verdict"], "PASS");
    let tried: BTreeSet<&str> = FAULTS.iter().map(|(_, checks)| checks[0]).collect();
    let passed = with_verdict(&report, "PASS");
    // The two ends of stdin share their faults.
    let untried: Vec<&String> =
        passed.iter().filter(|c| !tried.contains(c.as_str()) && *c != "idle_end").collect();
    assert!(untried.is_empty(), "{untried:?}");
    assert_eq!(with_verdict(&report, "UNCHECKED"), ["sample", "draw", "inject", "tokenize"]);
    let reason = row(&report, "inject")["reason"].as_str().unwrap();
    assert_eq!(reason, "capability `inject` isn't declared");
}

#[test]
fn the_text_says_what_was_sent_what_came_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let command = faulty(folder.path(), "cancel_is_ignored");
    let arguments = ["adapter", "check", &command, "--model", "synth:tiny", "--offline"];
    let output = diff().args(arguments).output().unwrap();
    let (out, _) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(out.starts_with("FAIL · faulty fails 1 of 41 checks, first cancel"), "{out}");
    for part in ["sent ", "\"type\":\"cancel\"", "found ", "expected ", "(adapters/PROTOCOL.md,"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[test]
fn a_program_that_ends_is_to_be_run_by_hand_and_the_same_end_is_told_once() {
    let mend = |report: &Value, name: &str| row(report, name)["mend"].as_str().unwrap().to_string();
    let (report, ..) = check(&["echo hi", "--model", "synth:tiny"]);
    let hello = row(&report, "hello");
    assert!(hello["found"].as_str().unwrap().contains("which is no message: hi"), "{hello:#}");
    assert!(mend(&report, "hello").contains("Run it by hand (`echo hi`)"), "{hello:#}");

    let folder = tempfile::tempdir().unwrap();
    let command = faulty(folder.path(), "crashes_when_it_generates");
    let (report, ..) = check(&[&command, "--model", "synth:tiny"]);
    let failed = with_verdict(&report, "FAIL");
    assert!(failed.len() > 3, "{failed:?}");
    let (first, others) = failed.split_first().unwrap();
    assert!(mend(&report, first).starts_with("It ended instead of answering"), "{report:#}");
    let same = format!("It ends as at check {first}: mend that first.");
    assert!(others.iter().all(|name| mend(&report, name) == same), "{report:#}");
}

/// A capability that is claimed and not there.
#[test]
fn what_is_declared_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    for capability in ["sample", "inject", "tokenize"] {
        let command = format!("CLAIMS={capability} {}", faulty(folder.path(), "claims"));
        let (report, code, _) = check(&[&command]);
        assert_eq!(code, 1, "{capability}");
        assert_eq!(row(&report, capability)["verdict"], "FAIL", "{capability}");
    }
    let command = format!("CLAIMS=sample,draw {}", faulty(folder.path(), "claims"));
    let (report, ..) = check(&[&command, "--model", "synth:tiny"]);
    assert_eq!(row(&report, "draw")["verdict"], "FAIL");
}

#[test]
fn what_cannot_be_started_or_meant_has_its_exit_code() {
    let code = |arguments: &[&str]| {
        let output = diff().args(["adapter", "check"]).args(arguments).output().unwrap();
        let (out, err) = texts(&output);
        assert!(out.is_empty(), "{out}");
        (output.status.code().unwrap(), err)
    };
    let (missing, err) = code(&["/no/such/adapter"]);
    assert_eq!(missing, 3, "{err}");
    assert!(err.contains("/no/such/adapter"), "{err}");
    let (folder, err) = code(&["/"]);
    assert_eq!(folder, 3, "{err}");
    assert!(err.contains("a folder; expected a program"), "{err}");
    assert_eq!(code(&[]).0, 2);
    assert_eq!(code(&["a 'b"]).0, 2);
    assert_eq!(code(&["http://127.0.0.1:8080"]).0, 2);
    assert_eq!(code(&["--ref", "nosuch"]).0, 2);
    assert_eq!(code(&["--ref", "mine=x"]).0, 2);
    assert_eq!(code(&["true", "--model", "/nowhere"]).0, 2);
}

/// Ours keep what we ask of others, variants included.
#[test]
fn our_own_adapters_pass() {
    // Those that take longest come first.
    let own = "hf tinygrad flax llamacpp openvino onnxruntime ctranslate2 candle candle:upstream llorch-cpud \
        numpy numpy:f64";
    let left = Mutex::new(own.split_whitespace());
    let next = || left.lock().unwrap().next();
    let work = || std::iter::from_fn(next).filter_map(not_passed).collect::<Vec<String>>();
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn not_passed(name: &str) -> Option<String> {
    // Provisioning may need the network, so not through `check`.
    let output =
        diff().args(["adapter", "check", "--ref", name, "--format", "json"]).output().unwrap();
    let (out, err) = texts(&output);
    let report: Value = match serde_json::from_str(&out) {
        Ok(report) => report,
        Err(e) => return Some(format!("{name}: {e}\n{err}")),
    };
    let failed = with_verdict(&report, "FAIL");
    let right = failed.is_empty() && output.status.code() == Some(0);
    (!right).then(|| format!("{name}: {failed:?}: {report:#}"))
}
