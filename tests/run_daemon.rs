//! `llorch-diff run --subject http://…`: a daemon that runs already, held to its own engine bit by bit, alone and while
//! others ask it too; and what is said when it is the wrong one, busy, or breaks.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use run_support::daemon::{Daemon, Fate, Load, Proxy, engine};
use run_support::{assert_conforms, diff, rows, texts};
use serde_json::{Value, json};

const SUITE: &str = r#"
schema = "llorch.suite/1"
[[case]]
name = "greedy"
prompt = "The old man said"
max_new_tokens = 8
[[case]]
name = "drawn"
ids = [15496, 11, 616, 1438, 318]
max_new_tokens = 4
sampling = { temperature = 0.8, top_k = 40, top_p = 0.95, seed = 12 }
[[case]]
name = "prefill"
prompt = "Once upon a time there was a little girl who lived in a small house near the forest."
max_new_tokens = 0
"#;

/// `llorch-diff run` of this daemon, with the engine itself as the only reference.
fn run(url: &str) -> Command {
    let mut run = diff();
    run.args(["run", "--format", "json", "--subject", url])
        .args(["--ref", &format!("again={}", engine())])
        .env_remove("LLORCH_API_KEY");
    run
}

fn finish(run: &mut Command) -> (Value, i32, String) {
    let output = run.output().unwrap();
    let (stdout, stderr) = texts(&output);
    let result = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("result", &result);
    (result, output.status.code().unwrap(), stderr)
}

/// All cases of the suite; the sha256 of all tensors that the daemon gave.
fn judged(url: &str, out: &Path) -> String {
    let suite = out.with_extension("toml");
    std::fs::write(&suite, SUITE).unwrap();
    let (result, code, stderr) = finish(run(url).arg("--suite").arg(&suite).arg("--out").arg(out));
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    let pairs = rows(&result, &[("kind", "pair"), ("a", "llorch-cpud"), ("b", "again")]);
    for checkpoint in 0..13 {
        let passed = |row: &&&Value| row["checkpoint"] == checkpoint && row["verdict"] == "PASS";
        assert!(pairs.iter().any(|row| passed(&row)), "checkpoint {checkpoint}");
    }
    // In each of the 8 + 4 + 1 steps: every point.
    assert!(pairs.len() >= 13 * (4 * 16 + 4), "{} rows", pairs.len());
    let other = pairs.iter().find(|row| row["max_abs"].as_f64().is_some_and(|d| d != 0.0));
    assert!(other.is_none(), "not the engine's bits: {other:?}");
    for row in rows(&result, &[("verdict", "UNCHECKED")]) {
        assert!(!row["reason"].as_str().unwrap().contains("daemon"), "{row}");
    }
    let generated = rows(&result, &[("kind", "pair"), ("point", "generated"), ("case", "greedy")]);
    assert_eq!(generated.len(), 1);
    assert_eq!(generated[0]["verdict"], "PASS");
    let manifest = std::fs::read_to_string(out.join("llorch-cpud/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["hello"]["version"], *url);
    manifest["sha256"].as_str().unwrap().to_string()
}

#[test]
fn a_daemon_shows_all_checkpoints_with_the_same_bits_alone_and_under_load() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let alone = judged(&daemon.url, &dir.path().join("alone"));
    let load = Load::on(&daemon, 6);
    load.wait_for(6);
    let before = load.done();
    let busy = judged(&daemon.url, &dir.path().join("busy"));
    let meanwhile = load.done() - before;
    load.stop();
    assert!(meanwhile >= 12, "{meanwhile} other answers: that is no load");
    assert_eq!(busy, alone, "the tensors of all cases");
}

/// The answers to these requests, tensors left out.
fn answers(command: &str, requests: &[Value]) -> Vec<Value> {
    let words = shlex::split(command).unwrap();
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .env_remove("LLORCH_API_KEY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: Vec<String> = requests.iter().map(|request| format!("{request}\n")).collect();
    child.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {}", output.status);
    let answers = texts(&output).0;
    let answers = answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    answers.filter(|answer| answer["type"] != "tensor").collect()
}

fn adapter(url: &str) -> String {
    format!("{} adapter http {url}", env!("CARGO_BIN_EXE_llorch-diff"))
}

#[test]
fn what_is_drawn_is_what_the_engine_draws_however_it_is_asked() {
    let daemon = Daemon::start();
    let model = llorch_models::resolve("nano", &Default::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut requests = vec![
        json!({"type": "hello", "protocol": 1}),
        json!({"type": "load", "model_dir": model.dir, "dtype": "f32", "threads": 2}),
    ];
    let mut run = |fields: Value| {
        let mut run = json!({"type": "run", "id": requests.len().to_string(),
            "max_new_tokens": 12, "out_dir": dir.path(), "ids": [15496, 11, 616, 1438, 318]});
        run.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        requests.push(run);
    };
    // The last is more than a signed number holds.
    for seed in [0, 7, u64::MAX] {
        let sampling = json!({"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": seed});
        run(json!({"sampling": sampling}));
        // The same with the hooks on, which is another endpoint.
        run(json!({"sampling": sampling, "points": ["next.probs"]}));
    }
    run(json!({"beside": [[464], [2215, 314, 373]]}));
    let load = Load::on(&daemon, 4);
    load.wait_for(4);
    let (ours, theirs) = (answers(&adapter(&daemon.url), &requests), answers(&engine(), &requests));
    load.stop();
    assert_eq!((ours.len(), theirs.len()), (requests.len(), requests.len()), "{ours:#?}");
    for (ours, theirs) in ours.iter().zip(&theirs).skip(2) {
        assert_eq!(ours["generated"].as_array().map(Vec::len), Some(12), "{ours}");
        for field in ["type", "id", "generated", "text", "beside"] {
            assert_eq!(ours[field], theirs[field], "{field}");
        }
    }
    for (left, hooked) in [(2, 3), (4, 5), (6, 7)] {
        assert_eq!(ours[left]["generated"], ours[hooked]["generated"]);
    }
    assert_eq!(ours[8]["beside"].as_array().map(Vec::len), Some(2));
    let draws: HashSet<String> = ours[2..].iter().map(|o| o["generated"].to_string()).collect();
    assert_eq!(draws.len(), 4, "three seeds and a greedy one: {draws:?}");
}

/// All of it but what a daemon can't do: load another model, and draw at a temperature above OpenAI's 2.
#[test]
fn the_adapter_of_a_daemon_keeps_the_protocol() {
    let daemon = Daemon::start();
    let output = diff()
        .args(["adapter", "check", &adapter(&daemon.url), "--format", "json"])
        .env_remove("LLORCH_API_KEY")
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    let of = |verdict: &str| -> Vec<String> {
        let rows = report["rows"].as_array().unwrap().iter();
        let rows = rows.filter(|row| row["verdict"] == verdict);
        rows.map(|row| row["check"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(of("FAIL"), ["sample", "second_load"], "{report:#}");
    assert_eq!(of("UNCHECKED"), ["draw", "inject"]);
    assert!(of("PASS").len() >= 40, "{report:#}");
}

#[test]
fn bisect_finds_nothing_in_a_daemon_that_is_right() {
    let daemon = Daemon::start();
    let search = |prompt: &str| {
        let output = diff()
            .args(["bisect", "--subject", &daemon.url, "--ref", "none", "--prompt", prompt])
            .args(["--format", "json"])
            .output()
            .unwrap();
        let (stdout, stderr) = texts(&output);
        (output.status.code(), serde_json::from_str::<Value>(&stdout).unwrap_or_default(), stderr)
    };
    let (code, answer, stderr) = search("Hello.");
    assert_eq!(code, Some(0), "{answer:#}\n{stderr}");
    assert_conforms("bisect", &answer);
}

/// Nothing runs, no reference is asked, and the reason is a sentence.
fn refused(output: &Output, code: i32, expected: &[&str]) {
    let (stdout, stderr) = texts(output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(code), ""), "{stderr}");
    for part in expected {
        assert!(stderr.contains(part), "expected {part}\n{stderr}");
    }
    assert!(!stderr.contains("again:"), "{stderr}");
}

#[test]
fn a_daemon_that_serves_something_else_is_refused_before_anything_runs() {
    let daemon = Daemon::start();
    let other = run(&daemon.url).args(["--model", "synth:tiny"]).output().unwrap();
    let name = format!("llorch-cpud: input refused: the daemon at {} serves other", daemon.url);
    refused(&other, 5, &[&name, "their sha256 is", "as model.safetensors in"]);
    let bf16 = run(&daemon.url).args(["--dtype", "bf16"]).output().unwrap();
    refused(&bf16, 5, &["llorch-cpud: unsupported:", "computes in f32; expected bf16"]);
}

#[test]
fn a_daemon_that_is_not_there_is_an_unfit_environment() {
    // Bound and let go: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let output = run(&url).args(["--checkpoint", "12"]).output().unwrap();
    refused(&output, 3, &["error: failed to reach a daemon at", &url, "Connection refused"]);
}

#[test]
fn a_key_is_read_from_the_environment_and_kept_nowhere() {
    const KEY: &str = "k3y-0f-the-daemon";
    let daemon = Daemon::with(&[], &[("LLORCH_API_KEY", KEY)]);
    let without = run(&daemon.url).output().unwrap();
    refused(&without, 5, &["wants a key: set LLORCH_API_KEY (401 Unauthorized)"]);
    let wrong = run(&daemon.url).env("LLORCH_API_KEY", "another").output().unwrap();
    refused(&wrong, 5, &["refuses the key in LLORCH_API_KEY (401 Unauthorized)"]);
    let unfit = run(&daemon.url).env("LLORCH_API_KEY", "a key").output().unwrap();
    refused(&unfit, 3, &["failed to read LLORCH_API_KEY", "expected visible ASCII characters"]);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut right = run(&daemon.url);
    right.env("LLORCH_API_KEY", KEY).args(["--prompt", "Hello.", "--out"]).arg(&out);
    let (result, code, stderr) = finish(&mut right);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    let texts = ["result.json", "llorch-cpud/manifest.json", "llorch-cpud.stderr.txt"];
    for name in texts {
        let text = std::fs::read_to_string(out.join(name)).unwrap();
        assert!(!text.contains(KEY), "{name}");
    }
    assert!(!stderr.contains(KEY), "{stderr}");
}

fn answer(status: &str, header: &str, body: &Value) -> Fate {
    let body = body.to_string();
    let length = body.len();
    Fate::Answer(format!(
        "HTTP/1.1 {status}\r\n{header}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
}

#[test]
fn a_daemon_that_is_busy_or_still_loading_is_asked_again() {
    let daemon = Daemon::start();
    let full = json!({"error": {"message": "the queue is full", "code": "queue_full"}});
    let proxy = Proxy::before(&daemon, move |path, before| match path {
        "/v1/checkpoints" | "/v1/completions" if before == 0 => {
            answer("429 Too Many Requests", "retry-after: 1\r\n", &full)
        }
        "/health" if before < 3 => {
            answer("503 Service Unavailable", "", &json!({"status": "loading"}))
        }
        _ => Fate::Pass,
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut run = run(&proxy.url);
    run.args(["--prompt", "Hello.", "--out"]).arg(&out);
    let (result, code, stderr) = finish(&mut run);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    assert_eq!((proxy.asked("/v1/checkpoints"), proxy.asked("/v1/completions")), (2, 2));
    let told = std::fs::read_to_string(out.join("llorch-cpud.stderr.txt")).unwrap();
    let twice = "answered 429 Too Many Requests: the queue is full; asked again";
    assert_eq!(told.matches(twice).count(), 2, "{told}");
}

#[test]
fn a_daemon_that_stays_busy_is_asked_until_the_time_is_up() {
    let daemon = Daemon::start();
    let proxy = Proxy::before(&daemon, |path, _| match path {
        "/v1/checkpoints" => answer("429 Too Many Requests", "retry-after: 1\r\n", &json!({})),
        _ => Fate::Pass,
    });
    let mut run = run(&proxy.url);
    run.args(["--prompt", "Hello.", "--checkpoint", "1", "--timeout", "4"]);
    let (result, code, stderr) = finish(&mut run);
    assert_eq!((code, &result["verdict"]), (5, &"ERROR".into()), "{stderr}");
    assert!(proxy.asked("/v1/checkpoints") >= 3, "{}", proxy.asked("/v1/checkpoints"));
    for part in ["didn't answer run within 4.0 s", "answered 429 Too Many Requests"] {
        assert!(stderr.contains(part), "expected {part}\n{stderr}");
    }
}

#[test]
fn an_answer_that_is_not_whole_is_an_error_of_the_daemon() {
    let daemon = Daemon::start();
    let not_found = json!({"error": {"message": "there is nothing"}});
    let fates = [
        // Before its first byte, in the head, in the tensors.
        (Fate::Cut(0), "failed to answer /v1/checkpoints"),
        (Fate::Cut(40), "failed to answer /v1/checkpoints"),
        (Fate::Cut(60_000), "broke off in its answer to /v1/checkpoints"),
        (answer("200 OK", "", &json!({"tensors": []})), "it is no whole archive"),
        (answer("404 Not Found", "", &not_found), "has no /v1/checkpoints (404 Not Found)"),
        (answer("500 Internal Server Error", "", &not_found), "with 500 Internal Server Error"),
    ];
    for (fate, expected) in fates {
        let shown = format!("{fate:?}");
        let proxy = Proxy::before(&daemon, move |path, _| match path {
            "/v1/checkpoints" => fate.clone(),
            _ => Fate::Pass,
        });
        let mut run = run(&proxy.url);
        run.args(["--prompt", "Hello.", "--checkpoint", "1", "--checkpoint", "12"]);
        let (result, code, stderr) = finish(&mut run);
        assert!(stderr.contains(expected), "{shown}: expected {expected}\n{stderr}");
        let captured = rows(&result, &[("kind", "pair"), ("point", "h.0.ln_1")]);
        let unsupported = expected.contains("404");
        let verdict = if unsupported { "UNCHECKED" } else { "ERROR" };
        assert!(!captured.is_empty());
        assert!(captured.iter().all(|row| row["verdict"] == verdict), "{shown}: {captured:#?}");
        assert!(unsupported || (code, &result["verdict"]) == (5, &"ERROR".into()), "{shown}");
        // What it can answer still counts.
        let generated = rows(&result, &[("kind", "pair"), ("point", "generated")]);
        assert_eq!(generated.len(), 1, "{shown}");
        assert_eq!(generated[0]["verdict"], "PASS", "{shown}: {}", generated[0]);
    }
}
