//! `llorch-diff run` with adapters that misbehave: each fault is a verdict of its own in rows of its
//! own, and the others still run.
//!
//! All adapters are `tests/fake_adapter/fake_adapter.py`; they agree with each other bitwise and with
//! no GPT-2, so checkpoints that the oracle judges are left out where PASS is expected.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use run_support::{Place, assert_conforms, diff, fake, implementation, rows, texts};
use serde_json::Value;

/// Points that the oracle has no say in.
const SOME: [&str; 6] = ["--checkpoint", "ln", "--checkpoint", "qkv", "--checkpoint", "scores"];

fn with<'a>(subject: &'a str, references: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = SOME.to_vec();
    arguments.extend(["--timeout", "60", "--subject", subject]);
    for reference in references {
        arguments.extend(["--ref", reference]);
    }
    arguments
}

fn reference(name: &str, options: &str) -> String {
    format!("{name}={}", fake(options))
}

fn verdicts(rows: &[&Value]) -> Vec<String> {
    let mut all: Vec<String> = rows.iter().map(|r| r["verdict"].as_str().unwrap().into()).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn honest_adapters_pass_and_leave_a_whole_run_behind() {
    let place = Place::new();
    let (subject, x) = (fake("--name mine"), reference("x", ""));
    let out = place.path("out");
    let mut arguments = with(&subject, &[&x]);
    arguments.extend(["--out", out.to_str().unwrap()]);
    let (result, code) = place.result(&arguments);
    assert_eq!((code, result["verdict"].as_str()), (0, Some("PASS")), "{result:#}");
    assert_eq!(result["implementations"][0]["name"], "mine");
    assert_eq!(result["implementations"][0]["role"], "subject");
    // 2 layers; 1 ln_1, 3 of qkv, 2 of scores; 3 and 2 steps; one pair.
    assert_eq!(rows(&result, &[("kind", "pair")]).len(), 2 * 6 * (3 + 2));

    let saved: Value = read_json(&out.join("result.json"));
    assert_eq!(saved, result, "what is printed is what is saved");
    for name in ["mine", "x"] {
        assert_conforms("manifest", &read_json(&out.join(name).join("manifest.json")));
        assert!(out.join(format!("{name}.stderr.txt")).is_file());
    }
    let unchecked = result["unchecked"].as_array().unwrap();
    assert!(unchecked.iter().any(|u| u["what"] == "real GPT-2 weights"), "{unchecked:?}");

    let compared = diff().arg("compare").arg(&out).output().unwrap();
    let (stdout, stderr) = texts(&compared);
    assert_eq!(compared.status.code(), Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("oracle: the run's own float64 oracle, no implementation"), "{stdout}");
}

#[test]
fn a_subject_that_fails_its_hello_ends_the_run_before_references_are_started() {
    let place = Place::new();
    let marker = place.path("started");
    let reference = format!("x=touch '{}'", marker.display());
    for (mode, expected) in [
        ("exit-at-start", "error: subject: crashed: ended (exit code 7) before it answered hello"),
        ("hang-at-hello", "error: subject: timed out: didn't answer hello within 5.0 s"),
        ("error-at-hello", "error: subject: internal error: no library of that name"),
    ] {
        let subject = fake(&format!("--mode {mode}"));
        let output = place.run(&["--subject", &subject, "--ref", &reference, "--timeout", "5"]);
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(5), ""), "{mode}: {stderr}");
        assert!(stderr.contains(expected), "{mode}: {stderr}");
        assert!(!marker.exists(), "{mode}: the reference was started");
    }
    let output = place.run(&["--subject", "cat /dev/zero", "--ref", &reference]);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr.len() < 1000, "{} bytes: {}", stderr.len(), &stderr[..1000]);
}

#[test]
fn a_subject_by_address_that_cannot_be_reached_says_why() {
    let place = Place::new();
    // Bound and let go: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("http://127.0.0.1:{port}");
    let output = place.run(&["--subject", &address, "--ref", "x=true"]);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("Connection refused"), "{stderr}");
    let output = place.run(&["--subject", "https://example.org", "--ref", "x=true"]);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("https is not supported"), "{stderr}");
}

#[test]
fn a_bad_tensor_of_the_subject_is_an_error_in_its_own_rows() {
    let place = Place::new();
    let modes = [
        ("missing-file", "failed to open"),
        ("short-npy", "the file holds"),
        ("short-header", "a header of 118 bytes is claimed in a file of 20"),
        ("huge-npy", "announced with shape [1099511627776]"),
        ("not-npy", "failed to read"),
        ("fifo", "is no plain file"),
        ("directory", "is no plain file"),
        ("outside", "is outside the folder"),
        ("wrong-shape", "announced with shape [4, 8]; expected [3, 8]"),
        ("shape-mismatch", "announced with shape [3, 8, 1]; expected [3, 8]"),
        ("wrong-dtype", "announced as f32, the file holds i64"),
        ("wrong-step", "ended without this tensor"),
        ("drop", "ended without this tensor"),
        ("twice", "came twice"),
    ];
    for (mode, expected) in modes {
        let subject = fake(&format!("--name mine --mode {mode} --point h.1.ln_1"));
        let x = reference("x", "");
        let (result, code) = place.result(&with(&subject, &[&x]));
        assert_eq!((code, result["verdict"].as_str()), (5, Some("ERROR")), "{mode}");
        assert_eq!(implementation(&result, "mine")["status"], "partial", "{mode}");
        let bad = rows(&result, &[("point", "h.1.ln_1"), ("case", "first"), ("kind", "pair")]);
        assert!(!bad.is_empty());
        // The step that `wrong-step` claims is another's, so only the first is sure to be wrong.
        let reason = bad[0]["reason"].as_str().unwrap();
        assert_eq!(bad[0]["verdict"], "ERROR", "{mode}: {reason}");
        assert!(reason.starts_with("mine: ") && reason.contains(expected), "{mode}: {reason}");
        let good = rows(&result, &[("point", "h.1.attn.q"), ("kind", "pair")]);
        assert_eq!(verdicts(&good), ["PASS"], "{mode}");
    }
}

#[test]
fn values_that_are_wrong_or_not_finite_fail_where_they_are() {
    let place = Place::new();
    for (mode, expected) in [
        ("nan", "mine has values that are not finite"),
        ("inf", "mine has values that are not finite"),
        ("wrong-value", "1 of 24 elements exceed"),
    ] {
        let subject = fake(&format!("--name mine --mode {mode} --point h.1.ln_1"));
        let x = reference("x", "");
        let (result, code) = place.result(&with(&subject, &[&x]));
        assert_eq!((code, result["verdict"].as_str()), (1, Some("FAIL")), "{mode}");
        let bad = rows(&result, &[("point", "h.1.ln_1"), ("case", "first"), ("kind", "pair")]);
        assert_eq!(bad[0]["verdict"], "FAIL", "{mode}");
        assert!(
            bad[0]["reason"].as_str().unwrap().contains(expected),
            "{mode}: {}",
            bad[0]["reason"]
        );
        assert_eq!(bad[0]["worst"], serde_json::json!([1, 4]), "{mode}: the middle of [3, 8]");
        assert!(bad[0]["excerpt"]["a"].is_array(), "{mode}");
    }
}

#[test]
fn a_reference_that_fails_leaves_the_others_alone() {
    let place = Place::new();
    let subject = fake("--name mine");
    let modes = [
        ("crash", "signal 11"),
        ("exit-mid-run", "exit code 3"),
        ("garbage", "something else than protocol messages"),
        ("half-line-exit", "exit code 0"),
        ("wrong-id", "for id `somebody-else`"),
        ("stderr-then-crash", "the cat sat on the GPU"),
        ("error-internal", "an error of class internal"),
        ("error-resource", "an error of class resource"),
        ("error-at-load", "not enough memory for the weights"),
        ("error-at-hello", "no library of that name"),
        ("exit-at-start", "exit code 7"),
        ("wrong-version", "speaks protocol 2"),
    ];
    for (mode, expected) in modes {
        // What went wrong stands in the list of what was not checked; its stderr does not.
        let unchecked =
            if mode == "stderr-then-crash" { "before it answered run" } else { expected };
        let (bad, good) = (reference("bad", &format!("--mode {mode}")), reference("good", ""));
        let (result, code) = place.result(&with(&subject, &[&bad, &good]));
        assert_eq!((code, result["verdict"].as_str()), (4, Some("INCOMPLETE")), "{mode}");
        let who = implementation(&result, "bad");
        assert!(who["status"] == "error" || who["status"] == "partial", "{mode}: {who}");
        assert!(who["reason"].as_str().unwrap().contains(expected), "{mode}: {who}");
        let (with_bad, with_good) = (
            rows(&result, &[("kind", "pair"), ("a", "mine"), ("b", "bad")]),
            rows(&result, &[("kind", "pair"), ("a", "mine"), ("b", "good")]),
        );
        assert!(verdicts(&with_bad).contains(&"ERROR".to_string()), "{mode}");
        let listed = result["unchecked"].as_array().unwrap().iter().find(|u| {
            u["what"].as_str().unwrap().starts_with("bad: ")
                && u["reason"].as_str().unwrap().contains(unchecked)
        });
        assert!(listed.is_some(), "{mode}: {:#}", result["unchecked"]);
        assert_eq!(verdicts(&with_good), ["PASS"], "{mode}");
    }
}

#[test]
fn exit_codes_are_those_of_the_documentation() {
    let place = Place::new();
    let cases: [(&str, &[&str], i32, &str); 7] = [
        // The only reference broke, at its start and in the middle.
        ("", &["--mode error-at-load"], 4, "INCOMPLETE"),
        ("", &["--mode crash"], 4, "INCOMPLETE"),
        // The subject broke, after its hello and in the middle, whatever the references did.
        ("--mode error-at-load", &[""], 5, "ERROR"),
        ("--mode crash", &["--mode crash"], 5, "ERROR"),
        // Each can do what the other can't: nothing was compared.
        ("--only embeddings", &[""], 5, "ERROR"),
        ("", &["--only embeddings"], 5, "ERROR"),
        ("--mode wrong-value --point h.0.ln_1", &["", "--mode crash"], 1, "FAIL"),
    ];
    for (ours, theirs, expected, verdict) in cases {
        let subject = fake(&format!("--name mine {ours}"));
        let names = ["x", "y"];
        let references: Vec<String> =
            names.iter().zip(theirs).map(|(name, how)| reference(name, how)).collect();
        let references: Vec<&str> = references.iter().map(String::as_str).collect();
        let (result, code) = place.result(&with(&subject, &references));
        let found = (code, result["verdict"].as_str().unwrap());
        assert_eq!(found, (expected, verdict), "{ours} against {theirs:?}");
    }
}

#[test]
fn what_hangs_is_ended_by_the_time_out() {
    let place = Place::new();
    let subject = fake("--name mine");
    for mode in ["hang-at-hello", "hang-at-load", "hang-at-run"] {
        let (bad, good) = (reference("bad", &format!("--mode {mode}")), reference("good", ""));
        let mut arguments = SOME.to_vec();
        arguments.extend(["--timeout", "8", "--subject", &subject, "--ref", &bad, "--ref", &good]);
        let (result, code) = place.result(&arguments);
        assert_eq!(code, 4, "{mode}");
        let who = implementation(&result, "bad");
        assert_eq!(who["status"], "error", "{mode}: {who}");
        assert!(who["reason"].as_str().unwrap().contains("8.0 s"), "{mode}: {who}");
        let good = rows(&result, &[("kind", "pair"), ("a", "mine"), ("b", "good")]);
        assert_eq!(verdicts(&good), ["PASS"], "{mode}");
    }
}

#[test]
fn a_failure_in_one_case_does_not_take_the_next() {
    let place = Place::new();
    let (subject, x) = (fake("--name mine --mode error-once"), reference("x", ""));
    let (result, code) = place.result(&with(&subject, &[&x]));
    assert_eq!(code, 5);
    let of = |case| verdicts(&rows(&result, &[("case", case), ("kind", "pair")]));
    assert_eq!((of("first"), of("second")), (vec!["ERROR".into()], vec!["PASS".into()]));
}

#[test]
fn an_engine_with_one_checkpoint_is_judged_on_that() {
    let place = Place::new();
    let (subject, x) = (fake("--name mine --only h.*.ln_1"), reference("x", ""));
    let (result, code) = place.result(&with(&subject, &[&x]));
    assert_eq!((code, result["verdict"].as_str()), (0, Some("PASS")), "{:#}", result["unchecked"]);
    let ln = rows(&result, &[("kind", "pair"), ("point", "h.1.ln_1"), ("case", "first")]);
    assert_eq!(ln[0]["verdict"], "PASS");
    assert_eq!(ln[1]["verdict"], "UNCHECKED", "it has no decode steps");
    let q = rows(&result, &[("kind", "pair"), ("point", "h.1.attn.q")]);
    assert_eq!(verdicts(&q), ["UNCHECKED"]);
    assert!(q[0]["reason"].as_str().unwrap().contains("not written yet"), "{}", q[0]);
}

#[test]
fn what_is_not_there_is_missing_and_the_rest_runs() {
    let place = Place::new();
    let (subject, x) = (fake("--name mine"), reference("x", ""));
    let (result, code) = place.result(&with(&subject, &["gone=/nowhere/engine", &x]));
    assert_eq!((code, result["verdict"].as_str()), (4, Some("INCOMPLETE")));
    assert_eq!(implementation(&result, "gone")["status"], "missing");
    let x_rows = rows(&result, &[("kind", "pair"), ("b", "x"), ("a", "mine")]);
    assert_eq!(verdicts(&x_rows), ["PASS"]);

    // A pinned reference that may not be installed names the command that mends it.
    let (result, code) = place.result(&with(&subject, &["numpy", &x]));
    assert_eq!(code, 4);
    let numpy = implementation(&result, "numpy");
    assert!(numpy["mend"].as_str().unwrap().contains("adapters setup numpy"), "{numpy}");
}

#[test]
fn where_nothing_can_run_the_exit_code_is_3() {
    let place = Place::new();
    let subject = fake("--name mine");
    let output = place.run(&with(&subject, &["gone=/nowhere/engine"]));
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("error: failed to compare with anything"), "{stderr}");
    assert!(!stdout.is_empty(), "what there is is still shown");

    let x = reference("x", "");
    let output = place.run(&with("/nowhere/engine", &[&x]));
    assert_eq!(output.status.code(), Some(3));
    assert!(texts(&output).1.contains("error: failed to start"), "{}", texts(&output).1);
}

#[test]
fn fail_fast_skips_the_references_after_the_first_that_disagrees() {
    let place = Place::new();
    let subject = fake("--name mine --mode wrong-value --point h.0.ln_1");
    let (x, y) = (reference("x", ""), reference("y", ""));
    let mut arguments = with(&subject, &[&x, &y]);
    arguments.push("--fail-fast");
    let (result, code) = place.result(&arguments);
    assert_eq!(code, 1);
    let y = implementation(&result, "y");
    assert_eq!(y["status"], "missing");
    assert!(y["reason"].as_str().unwrap().contains("--fail-fast"), "{y}");
}

#[test]
fn references_run_side_by_side_give_the_same_result() {
    let place = Place::new();
    let subject = fake("--name mine");
    let names =
        [reference("x", ""), reference("y", ""), reference("z", "--mode drop --point h.0.ln_1")];
    let references: Vec<&str> = names.iter().map(String::as_str).collect();
    let one = place.result(&with(&subject, &references)).0;
    let mut arguments = with(&subject, &references);
    arguments.extend(["--jobs", "3"]);
    let three = place.result(&arguments).0;
    assert_eq!(one["rows"], three["rows"]);
    let names = |r: &Value| -> Vec<String> {
        r["implementations"].as_array().unwrap().iter().map(|i| i["name"].to_string()).collect()
    };
    assert_eq!(names(&one), names(&three));
}

fn read_json(path: &std::path::Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
