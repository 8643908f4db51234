//! `llorch-diff` as a user meets it: usage errors, exit codes, saved runs, bisect, Ctrl-C.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use run_support::{Place, assert_conforms, diff, fake, texts};
use serde_json::Value;

#[test]
fn help_names_the_exit_codes_and_only_what_exists() {
    let output = diff().arg("--help").output().unwrap();
    let (stdout, _) = texts(&output);
    assert_eq!(output.status.code(), Some(0));
    for word in
        ["run", "bisect", "compare", "export", "judge", "points", "adapters", "Exit codes:", "130"]
    {
        assert!(stdout.contains(word), "{word}\n{stdout}");
    }
    let output = diff().args(["run", "--help"]).output().unwrap();
    let (stdout, _) = texts(&output);
    for option in [
        "--checkpoint",
        "--layer",
        "--prompt",
        "--suite",
        "--ref",
        "--subject",
        "--model",
        "--out",
        "--format",
        "--values",
        "--pairs",
        "--fail-fast",
        "--jobs",
        "--threads",
        "--dtype",
        "--offline",
        "--no-provision",
        "--deny-warnings",
        "--timeout",
        "--isolate",
        "--point",
        "--input",
    ] {
        assert!(stdout.contains(option), "{option}\n{stdout}");
    }
}

#[test]
fn a_reader_of_messages_that_has_gone_changes_no_exit_code() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut judge = diff();
    let status = judge.args(["judge", "nowhere"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn what_is_no_saved_run_is_said_to_be_none() {
    let place = Place::new();
    let dir = place.path("saved");
    std::fs::create_dir(&dir).unwrap();
    let judged = || {
        let output = diff().args(["judge", dir.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", texts(&output).1);
        texts(&output).1
    };
    assert!(
        judged().contains(
            "result.json: it is not there; expected the folder of a run --out that ended"
        )
    );
    for (text, said) in [
        ("{\"a\": 1}", "found no JSON with a schema; expected \"llorch.result/1\""),
        ("no JSON", "found no JSON with a schema; expected \"llorch.result/1\""),
        ("{\"schema\": \"x/2\"}", "schema \"x/2\"; expected \"llorch.result/1\""),
    ] {
        std::fs::write(dir.join("result.json"), text).unwrap();
        let stderr = judged();
        assert!(stderr.contains(said), "{stderr}");
    }
}

#[test]
fn usage_errors_say_what_was_found_and_expected_and_exit_with_2() {
    let place = Place::new();
    let subject = fake("");
    let x = format!("x={}", fake(""));
    let base = ["--subject", &subject, "--ref", &x];
    let file = place.path("suite.toml");
    let file = file.to_str().unwrap();
    let cases: [(&[&str], &str); 15] = [
        (&["--checkpoint", "nonsense"], "failed to find checkpoint \"nonsense\""),
        (&["--checkpoint", "13"], "failed to find checkpoint \"13\""),
        (&["--layer", "2"], "failed to find layer 2; the model has layers 0 to 1"),
        (&["--checkpoint", "block", "--layer", "1"], "no point of these checkpoints is in layer"),
        (&["--ref", "nosuch"], "failed to find reference `nosuch`: known are"),
        (&["--ref", "hf:f8"], "failed to find variant `f8`"),
        (&["--ref", &x], "x is named twice"),
        (&["--dtype", "i64"], "expected f32, f64, f16 or bf16"),
        (&["--jobs", "0"], "--jobs"),
        (&["--threads", "0"], "expected a whole number from 1 on"),
        (&["--ref", "none"], "--ref none asks for no other; found x="),
        (&["--out", file], "found a file; expected a folder"),
        (&["--timeout=-1"], "--timeout"),
        (&["--prompt", "a"], "cannot be used with"),
        (&["--format", "xml"], "possible values"),
    ];
    for (arguments, expected) in cases {
        let output = place.run(&[&base, arguments].concat());
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected) && stdout.is_empty(), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_case_that_does_not_fit_the_model_is_refused() {
    let place = Place::new();
    let suite = place.path("long.toml");
    let text = "schema = \"llorch.suite/1\"\n[[case]]\nname = \"long\"\nids = [1, 2]\nmax_new_tokens = 24\n";
    std::fs::write(&suite, text).unwrap();
    let output = diff()
        .args(["run", "--model", place.path("model").to_str().unwrap()])
        .args(["--suite", suite.to_str().unwrap(), "--subject", &fake(""), "--ref", "x=true"])
        .output()
        .unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("case long: 2 ids and 24 new tokens need 25 positions; the model has 24"),
        "{stderr}"
    );
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let output =
        diff().args(["run", "--model", "./no-such-folder", "--subject", "x"]).output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.starts_with("error: failed to") && stderr.contains("no-such-folder"),
        "{stderr}"
    );
}

#[test]
fn a_folder_of_somebody_else_is_not_written_to() {
    let place = Place::new();
    let output = place.run(&[
        "--subject",
        &fake(""),
        "--ref",
        "x=true",
        "--out",
        place.path("model").to_str().unwrap(),
    ]);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("found other files in it"), "{stderr}");
}

/// A saved run in which the subject is wrong at one point.
fn saved(place: &Place) -> String {
    let out = place.path("out").to_str().unwrap().to_string();
    let subject = fake("--name mine --mode wrong-value --point h.1.attn.k");
    let x = format!("x={}", fake(""));
    let (_, code) = place.result(&[
        "--subject",
        &subject,
        "--ref",
        &x,
        "--out",
        &out,
        "--checkpoint",
        "ln",
        "--checkpoint",
        "qkv",
    ]);
    assert_eq!(code, 1);
    out
}

#[test]
fn a_saved_run_is_judged_again_to_the_same_rows() {
    let place = Place::new();
    let out = saved(&place);
    let output = diff().args(["judge", &out, "--format", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", texts(&output).1);
    let again: Value = serde_json::from_str(&texts(&output).0).unwrap();
    let first: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{out}/result.json")).unwrap())
            .unwrap();
    assert_conforms("result", &again);
    assert_eq!(again, first);
    let output = diff().args(["judge", place.path("model").to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn bisect_names_the_first_wrong_element_and_the_command_that_reproduces_it() {
    let place = Place::new();
    let out = saved(&place);
    let output = diff().args(["bisect", "--from", &out]).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    // The fake adds 0.5 to the element in the middle of [2, 3, 4].
    let first = stdout.lines().next().unwrap();
    assert_eq!(
        first,
        "FIRST CAUSE h.1.attn.k · layer 1 · step 0 · head 1 · token 0 · element 0 · unlike x"
    );
    let command =
        stdout.lines().find(|l| l.starts_with("reproduce with: llorch-diff bisect ")).unwrap();
    assert!(
        command.contains("--checkpoint qkv --layer 1 ") && command.contains("--subject "),
        "{command}"
    );

    let output = diff().args(["bisect", "--from", &out, "--format", "json"]).output().unwrap();
    let found: Value = serde_json::from_str(&texts(&output).0).unwrap();
    assert_conforms("bisect", &found);
    let cause = &found["causes"][0];
    assert_eq!(
        (&cause["point"], &cause["head"], &cause["local"]),
        (&"h.1.attn.k".into(), &1.into(), &Value::Null)
    );
}

#[test]
fn bisect_of_an_honest_engine_finds_no_divergence() {
    let place = Place::new();
    let x = format!("x={}", fake(""));
    let arguments = ["--subject", &fake("--name mine"), "--ref", &x, "--checkpoint", "ln"];
    let output = place.command("bisect").args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(stdout.starts_with("NO DIVERGENCE\nmine agrees with x in 2 cases"), "{stdout}");
}

#[test]
fn bisect_names_an_interval_where_nobody_checked_what_is_between() {
    let place = Place::new();
    let subject = fake("--name mine --mode wrong-value,drop --point h.1.attn.k");
    // `drop` wins over `wrong-value` at that point; a second subject is wrong behind it.
    let x = format!("x={}", fake("--only h.*.attn.[qv]"));
    let y = fake("--name mine --mode wrong-value --point h.0.attn.v");
    let arguments = ["--ref", &x, "--checkpoint", "ln", "--checkpoint", "qkv", "--subject", &y];
    let output = place.command("bisect").args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(4), "{stdout}{stderr}");
    assert!(
        stdout.starts_with("FIRST CAUSE between h.0.attn.q and h.0.attn.v · layer 0"),
        "{stdout}"
    );

    let x = format!("x={}", fake(""));
    let output = place
        .command("bisect")
        .args(["--ref", &x, "--checkpoint", "qkv", "--subject", &subject])
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", texts(&output).0);
    assert!(texts(&output).0.starts_with("NO VERDICT: mine failed"), "{}", texts(&output).0);
}

#[test]
fn ctrl_c_ends_the_run_with_130_and_leaves_nothing_behind() {
    let place = Place::new();
    let out = place.path("out");
    let x = format!("x={}", fake("--mode hang-at-run"));
    let mut child = place
        .command("run")
        .args([
            "--subject",
            &fake("--name mine"),
            "--ref",
            &x,
            "--out",
            out.to_str().unwrap(),
            "--checkpoint",
            "ln",
        ])
        .env("TMPDIR", place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It hangs in the reference once that has its folder.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !out.join("x").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(out.join("x").exists(), "the run never came to its reference");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!out.join("result.json").exists());
    assert!(out.join("mine/manifest.json").is_file(), "what was whole stays");
    assert!(!out.join("x").exists(), "half a bundle stayed");
    let left: Vec<_> = std::fs::read_dir(place.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("llorch-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn points_are_listed_with_checkpoint_shape_class_and_recipe() {
    let (stdout, _) = texts(&diff().arg("points").output().unwrap());
    let line = stdout.lines().find(|l| l.contains("h.i.attn.scores")).unwrap();
    for word in ["4 scores", "[H,T,S]", "1e-4", "√D"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let place = Place::new();
    let model = place.path("model");
    let output = diff()
        .args(["points", "--format", "json", "--model", model.to_str().unwrap()])
        .output()
        .unwrap();
    let points: Vec<Value> = serde_json::from_str(&texts(&output).0).unwrap();
    assert_eq!(points.len(), 2 + 2 * 16 + 5 + 1);
    assert!(
        points.iter().any(|p| p["point"] == "h.1.mlp.fc" && p["shape"] == "[T,32]"),
        "{points:?}"
    );
}

#[test]
fn stdout_is_one_table_in_each_format_and_progress_goes_to_stderr() {
    let place = Place::new();
    let x = format!("x={}", fake(""));
    let arguments = ["--subject", &fake("--name mine"), "--ref", &x, "--checkpoint", "ln"];
    for format in ["table", "md"] {
        let output = place.run(&[&arguments[..], &["--format", format]].concat());
        let (stdout, stderr) = texts(&output);
        assert!(stdout.contains("PASS") && stdout.contains("ln_1"), "{format}: {stdout}");
        assert!(!stdout.contains('\u{1b}'), "no colours into a pipe");
        assert!(stderr.contains("mine: first: ") && stderr.contains("mine–x: PASS"), "{stderr}");
    }
    let output = place.run(&[&arguments[..], &["--quiet"]].concat());
    assert_eq!(texts(&output).1, "", "--quiet");
    let output = place.run(&[&arguments[..], &["--values", "3", "--format", "json"]].concat());
    let result: Value = serde_json::from_str(&texts(&output).0).unwrap();
    let row = &result["rows"][0];
    assert_eq!(
        (row["verdict"].as_str(), row["excerpt"]["a"].as_array().unwrap().len()),
        (Some("PASS"), 3)
    );
}
