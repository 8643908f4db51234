//! The daemon, through its socket: started as a user starts it, asked by a real HTTP client.
#![allow(clippy::disallowed_methods, reason = "a test starts the program as a user would")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

struct Daemon {
    child: Child,
    url: String,
}

impl Daemon {
    fn start(args: &[&str]) -> Daemon {
        let daemon = Daemon::start_without_waiting(args);
        let deadline = Instant::now() + Duration::from_secs(60);
        while daemon.get("/health").0 != 200 {
            assert!(Instant::now() < deadline, "the daemon was not healthy within a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn start_without_waiting(args: &[&str]) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"))
            .args(["serve", "--port", "0", "--threads", "2"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect(&line).to_string();
        Daemon { child, url }
    }

    fn get(&self, path: &str) -> (u16, Value) {
        answer(agent().get(format!("{}{path}", self.url)).call())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(agent().post(format!("{}{path}", self.url)).send_json(body))
    }

    fn complete(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    fn terminate(&self) {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    fn exit_code(&mut self, within: Duration) -> Option<i32> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the daemon did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}

fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut response = response.unwrap();
    let status = response.status().as_u16();
    (status, response.body_mut().read_json().unwrap_or(Value::Null))
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_string()
}

#[test]
fn the_small_endpoints_answer() {
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.get("/health").1["status"], "ok");
    let (_, models) = daemon.get("/v1/models");
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("nano")));
    let (status, tokens) = daemon.post("/tokenize", &json!({"text": "Hello."}));
    assert_eq!((status, &tokens["ids"]), (200, &json!([15496, 13])));
}

#[test]
fn text_and_ids_whole_and_streamed_give_what_generate_gives() {
    let daemon = Daemon::start(&[]);
    let ask = json!({"prompt": "Hello.", "max_tokens": 10, "temperature": 0, "ignore_eos": true, "return_token_ids": true});
    let whole = daemon.complete(ask.clone());
    assert_eq!(
        whole["usage"],
        json!({"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12})
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "length");

    let mut by_ids = ask.clone();
    by_ids["prompt"] = json!([15496, 13]);
    assert_eq!(daemon.complete(by_ids)["choices"], whole["choices"]);

    for one in [json!(["Hello."]), json!([[15496, 13]])] {
        let mut listed = ask.clone();
        listed["prompt"] = one;
        assert_eq!(daemon.complete(listed)["choices"], whole["choices"]);
    }

    let printed = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"))
        .args(["generate", "Hello.", "-n", "10", "--model", "nano"])
        .output()
        .unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(
        printed.trim_end_matches('\n').ends_with(text(&whole).trim_end_matches('\n')),
        "{printed:?}"
    );

    let mut streamed = ask;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let response =
        agent().post(format!("{}/v1/completions", daemon.url)).send_json(&streamed).unwrap();
    let body = response.into_body().read_to_string().unwrap();
    let lines: Vec<&str> = body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    let (last, chunks) = lines.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
    let joined: String = chunks.iter().map(text).collect();
    assert_eq!(joined, text(&whole));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stop_string_ends_the_text_before_itself() {
    let daemon = Daemon::start(&[]);
    let ask = |stop: Value| json!({"prompt": "Hello.", "max_tokens": 24, "temperature": 0, "ignore_eos": true, "stop": stop});
    let whole = text(&daemon.complete(ask(Value::Null)));
    // Some four characters from the middle, so that they cross a token's border.
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(4).collect();
    let stopped = daemon.complete(ask(json!([middle])));
    assert_eq!(text(&stopped), whole[..whole.find(&middle).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[test]
fn the_same_seed_draws_the_same_text_and_logprobs_are_those_of_the_tokens() {
    let daemon = Daemon::start(&[]);
    let ask = |seed: u64| json!({"prompt": "In the", "max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": seed, "logprobs": 3});
    let (a, b) = (daemon.complete(ask(7)), daemon.complete(ask(7)));
    assert_eq!(a["choices"], b["choices"]);
    let seeds: Vec<String> = (0..5).map(|s| text(&daemon.complete(ask(s)))).collect();
    assert!(seeds.iter().any(|t| *t != seeds[0]), "five seeds gave one text: {seeds:?}");
    let l = &a["choices"][0]["logprobs"];
    let n = a["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert_eq!(l["tokens"].as_array().unwrap().len(), n);
    for i in 0..n {
        let chosen = l["token_logprobs"][i].as_f64().unwrap();
        let top = l["top_logprobs"][i].as_object().unwrap();
        let best = top.values().map(|p| p.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert!(chosen <= best && best < 0.0 && top.len() <= 3, "{chosen} {top:?}");
    }
}

#[test]
fn what_is_wrong_is_named_in_openais_form() {
    let daemon = Daemon::start(&[]);
    let cases = [
        (json!({}), 400, "prompt"),
        (json!({"prompt": ""}), 400, "no tokens"),
        (json!({"prompt": [999999]}), 400, "999999"),
        (json!({"prompt": ["a", "b"]}), 400, "one text"),
        (json!({"prompt": "a", "max_tokens": 0}), 400, "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 100000}), 400, "context"),
        (json!({"prompt": "a", "temperature": -1}), 400, "temperature"),
        (json!({"prompt": "a", "top_p": 0}), 400, "top_p"),
        (json!({"prompt": "a", "logprobs": 99}), 400, "logprobs"),
        (json!({"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}), 400, "stop"),
        (json!({"prompt": "a", "n": 2}), 400, "n is not supported"),
        (json!({"prompt": "a", "echo": true}), 400, "echo"),
        (json!({"prompt": "a", "model": "gpt-5"}), 404, "gpt-5"),
        (json!({"prompt": "a", "max_tokens": "ten"}), 400, "ten"),
    ];
    for (body, status, says) in cases {
        let (found, answer) = daemon.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{body} {answer}");
        assert!(message.contains(says), "{body}: {message}");
        assert!(answer["error"]["type"].is_string(), "{answer}");
    }
    // Whatever the type is, the parameter is named, and nothing of how this program is written.
    let wrong_types = [
        ("prompt", json!({"max_tokens": 1})),
        ("prompt", json!({"prompt": {"text": "a"}})),
        ("max_tokens", json!({"prompt": "a", "max_tokens": "ten"})),
        ("max_tokens", json!({"prompt": "a", "max_tokens": -1})),
        ("temperature", json!({"prompt": "a", "temperature": "hot"})),
        ("seed", json!({"prompt": "a", "seed": 1.5})),
        ("stop", json!({"prompt": "a", "stop": [1]})),
        ("stream", json!({"prompt": "a", "stream": "yes"})),
        ("stream_options", json!({"prompt": "a", "stream_options": []})),
        ("model", json!({"prompt": "a", "model": ["x".repeat(500)]})),
    ];
    for (param, body) in wrong_types {
        let (status, answer) = daemon.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
        assert!(message.starts_with(param) && message.contains("expected"), "{message}");
        assert!(message.len() < 150, "{message}");
    }
    let (status, answer) = daemon.post("/tokenize", &json!({"text": 5}));
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("text")), "{answer}");
    let (status, answer) = daemon.post("/v1/completions", &json!([]));
    let message = "the body is []; expected a JSON object";
    assert_eq!((status, answer["error"]["message"].as_str()), (400, Some(message)));
    // A client that writes null where it wants nothing said.
    let nulls = json!({"prompt": "a", "max_tokens": 1, "stream": null, "stop": null, "n": null});
    assert_eq!(daemon.post("/v1/completions", &nulls).0, 200);
    assert_eq!(daemon.get("/nothing").0, 404);
    assert_eq!(daemon.get("/v1/completions").0, 405);
    // Just beyond the limit of 1 MiB: of a much longer body the daemon would not read the rest, and
    // the client might still be writing when the connection is closed.
    let huge = json!({"prompt": "a".repeat(1 << 20)});
    assert_eq!(daemon.post("/v1/completions", &huge).0, 413);
    // And it is still there.
    assert_eq!(daemon.get("/health").0, 200);
}

#[test]
fn a_full_queue_refuses_with_429_and_loses_nothing() {
    let daemon = Daemon::start(&["--queue", "1"]);
    let url = format!("{}/v1/completions", daemon.url);
    let ask = json!({"prompt": "Hello.", "max_tokens": 100, "temperature": 0, "ignore_eos": true});
    let requests: Vec<_> = (0..12)
        .map(|_| {
            let (url, ask) = (url.clone(), ask.clone());
            std::thread::spawn(move || {
                let response = agent().post(&url).send_json(&ask).unwrap();
                let retry = response.headers().get("retry-after").cloned();
                (response.status().as_u16(), retry)
            })
        })
        .collect();
    let answers: Vec<_> = requests.into_iter().map(|r| r.join().unwrap()).collect();
    assert!(answers.iter().any(|(s, _)| *s == 200));
    let refused: Vec<_> = answers.iter().filter(|(s, _)| *s == 429).collect();
    assert!(!refused.is_empty(), "{answers:?}");
    assert!(refused.iter().all(|(_, retry)| retry.is_some()));
    assert!(answers.iter().all(|(s, _)| matches!(s, 200 | 429)), "{answers:?}");
}

#[test]
fn a_client_that_hangs_up_frees_the_engine() {
    let daemon = Daemon::start(&["--queue", "8"]);
    let body = json!({"prompt": "Hello.", "max_tokens": 200, "temperature": 0, "ignore_eos": true, "stream": true});
    let body = body.to_string();
    for _ in 0..6 {
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        write!(
            socket,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut first = [0; 16];
        socket.read_exact(&mut first).unwrap();
    }
    // All of them are abandoned; were they run to their ends, this would wait behind 1,200 tokens
    // and the queue would be full.
    let answer = daemon.complete(json!({"prompt": "Hello.", "max_tokens": 1}));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

#[test]
fn sigterm_finishes_what_was_accepted_and_exits_0() {
    let mut daemon = Daemon::start(&[]);
    let url = format!("{}/v1/completions", daemon.url);
    let ask = json!({"prompt": "Hello.", "max_tokens": 200, "temperature": 0, "ignore_eos": true});
    let request = std::thread::spawn(move || answer(agent().post(&url).send_json(&ask)));
    std::thread::sleep(Duration::from_millis(60));
    daemon.terminate();
    let (status, body) = request.join().unwrap();
    assert_eq!((status, &body["usage"]["completion_tokens"]), (200, &json!(200)), "{body}");
    assert_eq!(daemon.exit_code(Duration::from_secs(30)), Some(0));
}

#[test]
fn a_model_that_is_not_there_ends_the_daemon_with_an_error() {
    for (model, code) in [("/nowhere/at/all", 2), ("nosuch/x", 3)] {
        let output = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"))
            .args(["serve", "--port", "0", "--offline", "--model", model])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(model), "{said}");
        assert!(output.stdout.is_empty(), "it never listened for requests");
    }
}

#[test]
fn a_port_in_use_is_said_and_exits_3() {
    let daemon = Daemon::start(&[]);
    let port = daemon.host().rsplit(':').next().unwrap();
    let second = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"))
        .args(["serve", "--port", port])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(3), "{said}");
    assert!(said.contains("failed to listen on 127.0.0.1"), "{said}");
}

/// The official client, from its pins, in an environment that is made once.
fn openai_python() -> std::path::PathBuf {
    let pins = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/requirements.lock");
    let key = &llorch_trace::hash::sha256_bytes(&std::fs::read(pins).unwrap())[..16];
    let home = llorch_models::cache_dir().join("envs").join(format!("test-openai-{key}"));
    let python = home.join("bin/python");
    let done = home.join("done");
    if !done.exists() {
        let run =
            |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "--require-hashes",
            "-r",
            pins,
        ]));
        std::fs::write(done, "").unwrap();
    }
    python
}

#[test]
fn the_official_openai_client_gets_its_answers() {
    let daemon = Daemon::start(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_client.py");
    let output = Command::new(openai_python()).arg(script).arg(&daemon.url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!answer["text"].as_str().unwrap().is_empty());
    assert_eq!((&answer["by_ids"], &answer["streamed"]), (&answer["text"], &answer["text"]));
    let tokens = answer["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(json!(joined), answer["text"]);
    assert_eq!(answer["top"], json!(vec![2; tokens.len()]));
    let error = json!({"status": 400, "code": "context_length_exceeded", "param": "max_tokens"});
    assert_eq!((&answer["error"], &answer["missing"]), (&error, &json!("model_not_found")));
}
