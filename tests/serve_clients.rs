//! The daemon by clients that others wrote: OpenAI's own, an evaluation harness, a generator of requests, a load
//! generator, curl.
#![allow(clippy::disallowed_methods, reason = "a test starts the programs that it tests")]

mod run_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use run_support::daemon::{Daemon, engine};
use run_support::{diff, repository, texts};
use serde_json::{Value, json};

const KEY: &str = "a-key-for-tests";

/// What a program prints; that it fails is a failure of the test.
fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out
}

fn clients() -> PathBuf {
    repository().join("tests/clients")
}

/// A Python with what the pins of a folder name, in an environment that is made once. The pins are complete: nothing is
/// looked for that they don't name.
fn python(name: &str, folder: &Path) -> PathBuf {
    let pins = folder.join("requirements.lock");
    let key = &llorch_trace::hash::sha256_bytes(&fs::read(&pins).unwrap())[..16];
    let home = llorch_models::cache_dir().join("envs").join(format!("test-{name}-{key}"));
    let python = home.join("bin/python");
    if !home.join("done").exists() {
        ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        // Most of what is installed is never imported: what is gets compiled then.
        let pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--require-hashes"];
        ran(Command::new(&python).args(pip).arg("-r").arg(&pins));
        fs::write(home.join("done"), "").unwrap();
    }
    python
}

fn start(args: &[&str], key: Option<&str>) -> Daemon {
    let args = [&["--max-batch", "8"], args].concat();
    // The environment is seen by fewer than a command line is.
    let environment: Vec<_> = key.map(|key| ("LLORCH_API_KEY", key)).into_iter().collect();
    Daemon::with(&args, &environment)
}

/// It answers, and after a moment nothing of any request is left over.
fn is_well(daemon: &Daemon, key: Option<&str>) {
    let idle = ["llorch_running_sequences 0", "llorch_waiting_sequences 0"];
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = daemon.metrics(key);
        if idle.iter().all(|line| found.lines().any(|l| l == *line)) {
            return;
        }
        assert!(Instant::now() < deadline, "a minute, and something runs or waits\n{found}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn openais_client_gets_everything_that_is_offered_with_a_key_and_without() {
    let python = python("openai", &clients());
    for key in [None, Some(KEY)] {
        let daemon = start(&[], key);
        let mut command = Command::new(&python);
        command.arg(clients().join("openai_client.py")).arg(&daemon.url).args(key);
        let found: Value = serde_json::from_str(&ran(&mut command)).unwrap();
        let text = &found["text"];
        assert!(text.as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!((&found["by_ids"], &found["streamed"]), (text, text));
        let tokens = found["tokens"].as_array().unwrap();
        let joined: String = tokens.iter().filter_map(Value::as_str).collect();
        assert_eq!(json!(joined), *text);
        assert_eq!(found["top"], json!(vec![2; tokens.len()]));
        let error =
            json!({"status": 400, "code": "context_length_exceeded", "param": "max_tokens"});
        assert_eq!((&found["error"], &found["missing"]), (&error, &json!("model_not_found")));
        let refused = json!({"status": 401, "code": "invalid_api_key", "param": null, "type": "authentication_error"});
        assert_eq!(found["key"], if key.is_some() { refused } else { Value::Null });
        is_well(&daemon, key);
    }
}

/// One by one, several at once, as ids and as text: the numbers are the engine's own, and Hugging Face's within a bound
/// (tests/clients/lm_eval/compare.py has it).
#[test]
fn lm_evals_log_likelihoods_over_http_are_those_of_the_engine_and_of_hugging_face() {
    let folder = clients().join("lm_eval");
    let python = python("lm-eval", &folder);
    let scratch = tempfile::tempdir().unwrap();
    let model = llorch_models::resolve("nano", &Default::default()).unwrap().dir;
    let daemon = start(&["--queue", "128"], None);
    let evaluate = |name: &str, how: &str, batch: &str| {
        let out = scratch.path().join(name);
        // One more than there are positions: lm_eval sets one aside for a token that it doesn't ask for.
        let asked = format!(
            "model=nano,base_url={}/v1/completions,tokenizer={},tokenizer_backend=huggingface,max_length=257,{how}",
            daemon.url,
            model.display()
        );
        let mut command = Command::new(&python);
        command
            .current_dir(&folder)
            .args(["-m", "lm_eval", "run", "--model", "local-completions", "--model_args", &asked])
            .args(["--tasks", "llorch_choices", "llorch_passages", "llorch_texts"])
            .args(["--include_path", ".", "--batch_size", batch, "--log_samples", "--output_path"])
            .arg(&out)
            .env("HF_HOME", scratch.path().join(format!("{name}-hf")))
            .envs([("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("DO_NOT_TRACK", "1")]);
        ran(&mut command);
        out
    };
    let (many, few) = std::thread::scope(|scope| {
        let many = scope.spawn(|| evaluate("ids", "tokenized_requests=True,num_concurrent=8", "1"));
        let few =
            scope.spawn(|| evaluate("texts", "tokenized_requests=False,num_concurrent=1", "4"));
        (many.join().unwrap(), few.join().unwrap())
    });
    is_well(&daemon, None);

    ran(diff().args(["adapters", "setup", "hf"]));
    let hf = ran(diff().args(["adapters", "command", "hf"]));
    let mut compare = Command::new(&python);
    compare.arg(folder.join("compare.py")).arg(&model).args([engine().as_str(), hf.trim()]);
    let found = ran(compare.args([&many, &few]));
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(
        (&found["choices"], &found["passages"], &found["texts"]),
        (&json!(24), &json!(8), &json!(9))
    );
    assert!(
        found["greedy"].as_u64() >= Some(4) && found["tokens"].as_u64() > Some(2000),
        "{found}"
    );
    assert!(found["undecided"].as_u64() <= Some(2), "{found}");
}

/// Requests that schemathesis makes of `/openapi.json`, right ones and wrong ones; how many there were.
fn generated_requests(examples: u32, seed: u64) -> u64 {
    let folder = clients().join("schemathesis");
    let python = python("schemathesis", &folder);
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("store");
    let limits = "--queue 64 --request-timeout 20 --header-timeout 10 --max-capture 64 --store";
    let args: Vec<&str> = limits.split(' ').chain(store.to_str()).collect();
    let daemon = start(&args, Some(KEY));
    let report = scratch.path().join("report.json");
    let output = Command::new(python.with_file_name("schemathesis"))
        .current_dir(scratch.path())
        .arg("--config-file")
        .arg(folder.join("schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", daemon.url), "--no-color"])
        .args(["--header", &format!("Authorization: Bearer {KEY}")])
        .args(["--max-examples", &examples.to_string(), "--seed", &seed.to_string()])
        .args(["--report", "json", "--report-json-path"])
        .arg(&report)
        .env("SCHEMATHESIS_HOOKS", folder.join("hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    // What it prints has the seed, and a curl command for each failure.
    assert!(output.status.success(), "seed {seed}\n{out}\n{err}");
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!((&report["complete"], &report["failures"]), (&json!(true), &json!([])), "{out}");
    assert_eq!(
        (&report["errors"], &report["operations"]["tested"]),
        (&json!([]), &report["operations"]["total"])
    );
    // Not all of it was refused: a third of the valid requests or more got an answer.
    for endpoint in ["completions", "checkpoints"] {
        let rates = &report["valid_rates"][format!("POST /v1/{endpoint}")]["fuzzing"];
        let (accepted, rejected) =
            (rates["accepted"].as_u64().unwrap(), rates["rejected"].as_u64().unwrap());
        assert!(2 * accepted >= rejected, "{endpoint}: {rates}");
    }
    is_well(&daemon, Some(KEY));
    report["test_cases"]["generated"].as_u64().unwrap()
}

#[test]
fn generated_requests_get_what_the_description_says() {
    let cases = generated_requests(50, 1);
    assert!(cases >= 500, "{cases} cases");
}

#[test]
#[ignore = "six thousand generated requests, two minutes; other ones each time"]
fn thousands_of_generated_requests_get_what_the_description_says() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let cases = generated_requests(1400, now.as_secs());
    assert!(cases >= 5000, "{cases} cases");
}

/// The load generator, built once. What is pinned takes care of its own pins.
fn oha() -> PathBuf {
    const VERSION: &str = "1.16.0";
    let home = llorch_models::cache_dir().join("envs").join(format!("test-oha-{VERSION}"));
    let oha = home.join("bin/oha");
    if !oha.exists() {
        let scratch = tempfile::tempdir().unwrap();
        let mut cargo = Command::new("cargo");
        // Outside of the repository, whose settings are for its own programs.
        cargo.current_dir(scratch.path()).args(["install", "oha", "--locked", "--quiet"]);
        cargo.args(["--version", &format!("={VERSION}"), "--root"]).arg(&home);
        cargo.arg("--target-dir").arg(scratch.path().join("target"));
        // It has to wait for the daemon, not to be quick.
        cargo.envs([
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ]);
        ran(&mut cargo);
    }
    oha
}

/// So many requests on so many connections, each with the next of `bodies`; how many answers had which status.
fn load(
    daemon: &Daemon,
    requests: u64,
    connections: u32,
    bodies: &[Value],
    more: &[&str],
) -> BTreeMap<String, u64> {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("bodies.jsonl");
    let lines: Vec<String> = bodies.iter().map(Value::to_string).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let mut command = Command::new(oha());
    command
        .args(["-n", &requests.to_string(), "-c", &connections.to_string(), "-m", "POST"])
        .args(["-T", "application/json", "-t", "60s", "--no-tui", "--output-format", "json", "-Z"])
        .arg(file)
        .args(more)
        .arg(format!("{}/v1/completions", daemon.url));
    let report: Value = serde_json::from_str(&ran(&mut command)).unwrap();
    // A connection that was refused or cut, an answer that didn't come in a minute.
    assert_eq!(report["errorDistribution"], json!({}), "{report}");
    serde_json::from_value(report["statusCodeDistribution"].clone()).unwrap()
}

/// Each is answered, and the daemon has counted the same.
fn answers_under_load(requests: u64) {
    let body = |n: u64| {
        json!({"prompt": "Hello.", "max_tokens": 1 + n % 12, "temperature": 1, "seed": n,
            "ignore_eos": true, "stream": n.is_multiple_of(3), "n": 1 + n % 2, "echo": n.is_multiple_of(5)})
    };
    let mut bodies: Vec<Value> = (0..24).map(body).collect();
    // As many as wait at most.
    let daemon = Daemon::with(&["--max-batch", "16", "--queue", "112"], &[]);
    let found = load(&daemon, requests, 64, &bodies, &[]);
    assert_eq!(found, BTreeMap::from([("200".into(), requests)]));
    is_well(&daemon, None);
    let completed = "llorch_completions_ended_total{outcome=\"completed\"}";
    assert_eq!(daemon.metric(completed) as u64, requests);

    // More than there is room for, on connections of their own, some of them wrong.
    bodies.push(json!({"prompt": "Hello.", "max_tokens": -1}));
    let daemon = Daemon::with(&["--max-batch", "4", "--queue", "8"], &[]);
    let found = load(&daemon, requests, 64, &bodies, &["--disable-keepalive"]);
    let of = |status: &str| found.get(status).copied().unwrap_or(0);
    assert_eq!(of("200") + of("400") + of("429"), requests, "{found:?}");
    assert!(of("200") > 0 && of("400") > 0 && of("429") > 0, "{found:?}");
    is_well(&daemon, None);
    assert_eq!(daemon.metric(completed) as u64, of("200"));
    assert_eq!(daemon.metric("llorch_refused_total{reason=\"queue_full\"}") as u64, of("429"));
}

#[test]
fn a_load_generator_gets_as_many_answers_as_it_asks_for() {
    answers_under_load(1000);
}

#[test]
#[ignore = "forty thousand requests, some minutes"]
fn a_load_generator_gets_twenty_thousand_answers_twice() {
    answers_under_load(20_000);
}

/// Body and status.
fn curl(args: &[&str]) -> (String, String) {
    let output =
        Command::new("curl").args(["-sS", "-m", "60", "-w", "\n%{http_code}"]).args(args).output();
    let (out, err) =
        texts(&output.expect("curl, which the README tells users to ask the daemon with"));
    let (body, status) = out.rsplit_once('\n').unwrap_or_else(|| panic!("{args:?}: {out}{err}"));
    (body.to_string(), status.to_string())
}

#[test]
fn curl_is_answered_however_it_asks() {
    let daemon = start(&[], None);
    let at = |path: &str| format!("{}{path}", daemon.url);
    let (tokenize, completions) = (at("/tokenize"), at("/v1/completions"));
    let json = ["-H", "content-type: application/json"];
    let hello = ["-d", r#"{"text": "Hello."}"#];
    let tokens = r#"{"ids":[15496,13],"tokens":["Hello","."],"count":2}"#;
    let chunked = ["-H", "transfer-encoding: chunked"];
    let asks_first = ["-H", "expect: 100-continue"];
    let ways: [&[&str]; 4] = [&[], &["--http1.0"], &chunked, &asks_first];
    for way in ways {
        let found = curl(&[&[tokenize.as_str()][..], &json, &hello, way].concat());
        assert_eq!(found, (tokens.into(), "200".into()), "{way:?}");
    }
    // Without a word about it, curl says that what it sends is a form.
    let (body, status) = curl(&[tokenize.as_str(), hello[0], hello[1]]);
    assert!(status == "415" && body.contains("expected application/json"), "{status} {body}");

    let ask = r#"{"prompt": "Hello.", "max_tokens": 4, "temperature": 0, "stream": true}"#;
    let (body, status) = curl(&["-N", completions.as_str(), "-d", ask, json[0], json[1]]);
    assert!(status == "200" && body.ends_with("data: [DONE]\n\n"), "{status} {body}");
    // With its head, an answer has no body.
    let (head, status) = curl(&["-I", &at("/v1/models")]);
    assert!(status == "200" && head.contains("x-request-id: ") && !head.contains("nano"), "{head}");
    let (body, status) = curl(&["-X", "DELETE", &at("/v1/models"), "-i"]);
    assert!(status == "405" && body.to_lowercase().contains("\nallow: get"), "{status} {body}");
    let (body, status) = curl(&[&at("/v1/models"), "-H", "host: evil.example"]);
    assert!(status == "403" && body.contains("unknown_host"), "{status} {body}");
    assert_eq!(curl(&["--path-as-is", &at("/../etc/passwd")]).1, "404");

    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("body.json");
    for (letters, expected) in [(1 << 19, "200"), (1 << 20, "413")] {
        fs::write(&file, json!({"text": "a".repeat(letters)}).to_string()).unwrap();
        let data = format!("@{}", file.display());
        let (body, status) = curl(&[tokenize.as_str(), "-d", data.as_str(), json[0], json[1]]);
        assert_eq!(status, expected, "{letters}: {body:.200}");
    }
    // One connection for several requests, and a client that doesn't wait.
    let health = at("/health");
    let connects = ran(Command::new("curl")
        .args(["-sS", "-w", "%{num_connects}", "-o", "/dev/null", &health])
        .args(["-o", "/dev/null", &health]));
    assert_eq!(connects, "10");
    let long = r#"{"prompt": "Hello.", "max_tokens": 250, "ignore_eos": true}"#;
    let hurried = Command::new("curl")
        .args(["-sS", "-m", "0.02", &completions, "-d", long])
        .args(json)
        .output();
    let code = hurried.unwrap().status.code();
    assert!(matches!(code, Some(0 | 28)), "{code:?}");
    is_well(&daemon, None);
}

/// The commands of a page that ask the daemon, as they are to be typed.
fn documented(page: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(page)).unwrap().replace("\\\n", " ");
    let typed = text.lines().filter_map(|line| line.strip_prefix("$ "));
    typed.filter(|line| line.contains("curl -s ")).map(String::from).collect()
}

#[test]
fn the_documented_curl_commands_do_what_they_say() {
    let daemon = start(&[], None);
    for (page, at_least) in [("README.md", 3), ("docs/API.md", 3)] {
        let commands = documented(page);
        assert!(commands.len() >= at_least, "{page}: {commands:?}");
        let scratch = tempfile::tempdir().unwrap();
        for command in commands {
            let asked = command.replace("127.0.0.1:8080", &daemon.url);
            let asked = asked.replace("curl -s ", "curl -sSf ");
            let shell = ["-e", "-o", "pipefail", "-c", &asked];
            let out = ran(Command::new("bash").args(shell).current_dir(scratch.path()));
            if command.contains("tar x") {
                let manifest = fs::read(scratch.path().join("live/manifest.json")).unwrap();
                let manifest: Value = serde_json::from_slice(&manifest).unwrap();
                assert_eq!(manifest["implementation"], "llorch-cpud", "{command}");
            } else if command.contains("/metrics") {
                assert!(out.contains("\nllorch_"), "{command}: {out}");
            } else {
                let answer: Value =
                    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{command}: {e}: {out}"));
                let has =
                    ["choices", "tensors", "ids", "text"].map(|field| !answer[field].is_null());
                assert!(has.contains(&true), "{command}: {out}");
            }
        }
    }
    is_well(&daemon, None);
}
