//! Limits, ends, and clients that misbehave.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::{Daemon, agent, answer, text};

#[test]
fn a_full_queue_refuses_with_429_and_loses_nothing() {
    let daemon = Daemon::start(&["--max-batch", "1", "--queue", "1"]);
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
    let daemon = Daemon::start(&["--max-batch", "2", "--queue", "8"]);
    // Far more than is made before the client is gone.
    let ask =
        json!({"prompt": "Hello.", "n": 64, "max_tokens": 200, "ignore_eos": true, "stream": true});
    let body = ask.to_string();
    for _ in 0..6 {
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        send(&mut socket, &body, body.len());
        let mut first = [0; 12];
        socket.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    // Each was in mid-stream; their slots are free again at once, and they are counted as what they were.
    daemon.wait_until_idle(Duration::from_secs(5));
    let ended = "llorch_completions_ended_total{outcome=\"abandoned\"}";
    assert_eq!(daemon.metric(ended), 6.0);
    let answer = daemon.complete(json!({"prompt": "Hello.", "max_tokens": 1}));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

#[test]
fn sigterm_finishes_what_was_accepted_and_exits_0() {
    let mut daemon = Daemon::start(&[]);
    let url = format!("{}/v1/completions", daemon.url);
    let ask = json!({"prompt": "Hello.", "max_tokens": 200, "temperature": 0, "ignore_eos": true});
    let request = std::thread::spawn(move || answer(agent().post(&url).send_json(&ask)));
    while daemon.metric("llorch_completions_accepted_total") == 0.0 {
        std::thread::sleep(Duration::from_millis(5));
    }
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

#[test]
fn a_client_that_hangs_up_before_the_answer_frees_the_engine_too() {
    let daemon = Daemon::start(&["--max-batch", "2"]);
    let body =
        json!({"prompt": "Hello.", "n": 64, "max_tokens": 200, "ignore_eos": true}).to_string();
    let mut socket = TcpStream::connect(daemon.host()).unwrap();
    send(&mut socket, &body, body.len());
    while daemon.metric("llorch_running_sequences") == 0.0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(socket);
    daemon.wait_until_idle(Duration::from_secs(5));
    assert_eq!(daemon.metric("llorch_completions_ended_total{outcome=\"abandoned\"}"), 1.0);
    assert_eq!(daemon.metric("llorch_completions_accepted_total"), 1.0);
}

/// The head of a completion request, and so much of its body.
fn send(socket: &mut TcpStream, body: &str, length: usize) {
    write!(
        socket,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
    )
    .unwrap();
}

/// What comes until the daemon closes the connection.
fn until_closed(socket: &mut TcpStream, within: Duration) -> String {
    socket.set_read_timeout(Some(within)).unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).expect("the daemon closes the connection");
    String::from_utf8(said).unwrap()
}

#[test]
fn who_sends_slowly_is_not_waited_for() {
    let daemon = Daemon::start(&["--header-timeout", "1"]);
    let began = Instant::now();
    let mut silent = TcpStream::connect(daemon.host()).unwrap();
    let mut slow: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(daemon.host()).unwrap()).collect();
    for socket in &mut slow {
        write!(socket, "GET /health HTTP/1.1\r\nHost: loc").unwrap();
    }
    let mut half = TcpStream::connect(daemon.host()).unwrap();
    send(&mut half, "{\"prompt\": ", 100);
    assert_eq!(daemon.get("/health").0, 200);
    let patience = Duration::from_secs(10);
    for socket in &mut slow {
        until_closed(socket, patience);
    }
    until_closed(&mut silent, patience);
    let said = until_closed(&mut half, patience);
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("\"code\":\"timeout\""), "{said}");
    assert!(began.elapsed() > Duration::from_millis(900), "they had their second");
}

#[test]
fn connections_beyond_the_limit_are_told_to_come_again() {
    let daemon = Daemon::start(&["--max-connections", "3"]);
    let mut kept: Vec<TcpStream> = Vec::new();
    // Those of the client that asked for its health may still be open.
    let refused = loop {
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        write!(socket, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).unwrap();
        match &status {
            b"HTTP/1.1 200" => kept.push(socket),
            _ => break until_closed(&mut socket, Duration::from_secs(5)),
        }
        assert!(kept.len() <= 3);
    };
    assert!(
        refused.contains("retry-after: 1") && refused.contains("too_many_connections"),
        "{refused}"
    );
    drop(kept);
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon.get("/health").0 != 200 {
        assert!(Instant::now() < deadline, "their places stay taken");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection takes a descriptor: as many as may be open are had from the system, or it is said that they aren't.
#[test]
fn descriptors_are_had_for_the_connections_that_may_be_open() {
    let daemon = Daemon::start_limited("ulimit -Sn 64", &["--max-connections", "150"]);
    let mut kept: Vec<TcpStream> = Vec::new();
    for _ in 0..140 {
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        write!(socket, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut status = [0; 12];
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.read_exact(&mut status).expect("it takes the connection");
        assert_eq!(&status, b"HTTP/1.1 200");
        kept.push(socket);
    }

    let mut daemon = Daemon::start_limited("ulimit -n 100", &["--max-connections", "150"]);
    let answered = (0..60).map(|_| {
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        write!(socket, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).expect("it answers, if only that there is no room");
        (socket, String::from_utf8(status.to_vec()).unwrap())
    });
    let answered: Vec<_> = answered.collect();
    let (taken, told): (Vec<_>, Vec<_>) = answered.iter().partition(|(_, s)| s.ends_with("200"));
    assert!(!taken.is_empty() && !told.is_empty() && told.iter().all(|(_, s)| s.ends_with("503")));
    daemon.terminate();
    let mut said = String::new();
    daemon.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("100 files") && said.contains("not 150"), "{said}");
    assert!(!said.contains("failed to accept"), "{said}");
}

#[test]
fn a_request_whose_time_is_over_ends_with_408() {
    let daemon = Daemon::start(&["--request-timeout", "1", "--max-batch", "1"]);
    // Some 30,000 tokens, one after another.
    let ask = json!({"prompt": "Hello.", "n": 128, "max_tokens": 240, "temperature": 1, "ignore_eos": true});
    let (status, body) = daemon.post("/v1/completions", &ask);
    assert_eq!((status, &body["error"]["code"]), (408, &json!("timeout")), "{body}");
    daemon.wait_until_idle(Duration::from_secs(5));
    assert_eq!(daemon.metric("llorch_completions_ended_total{outcome=\"timed_out\"}"), 1.0);
    assert!(
        !text(&daemon.complete(json!({"prompt": "Hello.", "max_tokens": 2, "ignore_eos": true})))
            .is_empty()
    );
}

#[test]
fn while_it_ends_it_is_not_ready_and_what_takes_too_long_is_cut() {
    let mut daemon = Daemon::start(&["--drain", "2", "--max-batch", "1"]);
    let mut open = TcpStream::connect(daemon.host()).unwrap();
    let body = json!({"prompt": "Hello.", "n": 128, "max_tokens": 240, "ignore_eos": true, "stream": true}).to_string();
    send(&mut open, &body, body.len());
    let mut first = [0; 12];
    open.read_exact(&mut first).unwrap();
    // A connection that is open is still answered for a moment.
    let mut idle = TcpStream::connect(daemon.host()).unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut told = false;
    let said = loop {
        write!(idle, "GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = vec![0; 4096];
        let n = idle.read(&mut answer).unwrap();
        let said = String::from_utf8_lossy(&answer[..n]).into_owned();
        if !said.starts_with("HTTP/1.1 200 ") {
            break said;
        }
        if !told {
            daemon.terminate();
            told = true;
        }
    };
    let rest = until_closed(&mut idle, Duration::from_secs(5));
    assert!(
        said.starts_with("HTTP/1.1 503 ") && (said.clone() + &rest).contains("stopping"),
        "{said}"
    );
    assert!(said.contains("connection: close"), "{said}");
    assert_eq!(daemon.exit_code(Duration::from_secs(10)), Some(1));
}

#[test]
fn a_second_signal_cuts() {
    let mut daemon = Daemon::start(&["--max-batch", "1"]);
    let mut open = TcpStream::connect(daemon.host()).unwrap();
    let body = json!({"prompt": "Hello.", "n": 128, "max_tokens": 240, "ignore_eos": true, "stream": true}).to_string();
    send(&mut open, &body, body.len());
    let mut first = [0; 12];
    open.read_exact(&mut first).unwrap();
    daemon.terminate();
    // One that comes at once is taken for the first one's twin.
    std::thread::sleep(Duration::from_millis(1000));
    let began = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.exit_code(Duration::from_secs(10)), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn options_come_from_the_environment_too() {
    let environment = [("LLORCH_MAX_BODY", "100"), ("LLORCH_API_KEY", "sesame")];
    let daemon = Daemon::start_in(&[], &environment);
    daemon.wait_until_healthy();
    assert_eq!(daemon.get("/v1/models").0, 401);
    let post =
        agent().post(format!("{}/tokenize", daemon.url)).header("authorization", "Bearer sesame");
    let (status, body) = answer(post.send_json(json!({"text": "a".repeat(200)})));
    assert_eq!((status, &body["error"]["code"]), (413, &json!("body_too_large")), "{body}");
}

#[test]
fn a_client_that_reads_nothing_does_not_keep_its_place() {
    let daemon =
        Daemon::start(&["--max-connections", "4", "--write-timeout", "1", "--api-key", "k"]);
    let mut deaf: Vec<TcpStream> =
        (0..4).map(|_| TcpStream::connect(daemon.host()).unwrap()).collect();
    // More than the system keeps for a client that doesn't read.
    let ask = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(600);
    for socket in &mut deaf {
        socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = socket.write_all(ask.as_bytes());
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // Whoever comes while all places are taken is told so, or finds the connection closed.
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        let _ =
            write!(socket, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        if until_closed(&mut socket, Duration::from_secs(5)).starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < deadline, "they keep their places");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(deaf);
}

/// A daemon whose log is read by somebody.
fn with_log(args: &[&str]) -> (Daemon, std::process::ChildStderr) {
    let mut daemon = Daemon::start_logging(args);
    let log = daemon.child.stderr.take().unwrap();
    daemon.wait_until_healthy();
    (daemon, log)
}

#[test]
fn a_log_that_cannot_be_written_costs_no_answer() {
    let (mut daemon, log) = with_log(&[]);
    drop(log);
    for _ in 0..5 {
        assert_eq!(daemon.get("/health").0, 200);
        assert_eq!(daemon.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2})).0, 200);
    }
    daemon.terminate();
    assert_eq!(daemon.exit_code(Duration::from_secs(10)), Some(0));
}

#[test]
fn the_log_has_a_line_for_each_request_however_it_ends_and_no_text_of_it() {
    let (mut daemon, mut log) = with_log(&[
        "--log-format",
        "json",
        "--request-timeout",
        "1",
        "--max-batch",
        "1",
        "--drain",
        "5",
    ]);
    let ask = |stream: bool| json!({"prompt": "xylophone", "n": 128, "max_tokens": 240, "ignore_eos": true, "stream": stream});
    daemon.complete(json!({"prompt": "xylophone", "max_tokens": 2, "ignore_eos": true}));
    // A body whose length its head tells.
    let capture = json!({"prompt": "a", "points": ["*"], "max_new_tokens": 3});
    let capture =
        agent().post(format!("{}/v1/checkpoints", daemon.url)).send_json(capture).unwrap();
    assert!(capture.into_body().read_to_vec().unwrap().len() > 1 << 20);
    // A stream whose time is over.
    let failing =
        agent().post(format!("{}/v1/completions", daemon.url)).send_json(ask(true)).unwrap();
    assert!(failing.into_body().read_to_string().unwrap().contains("\"code\":\"timeout\""));
    // An answer that is a head alone.
    agent().head(format!("{}/health", daemon.url)).call().unwrap();
    // A client that leaves before its answer.
    let body = ask(false).to_string();
    let mut socket = TcpStream::connect(daemon.host()).unwrap();
    send(&mut socket, &body, body.len());
    while daemon.metric("llorch_running_sequences") == 0.0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(socket);
    daemon.wait_until_idle(Duration::from_secs(5));
    daemon.terminate();
    assert_eq!(daemon.exit_code(Duration::from_secs(10)), Some(0));
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    assert!(!said.contains("xylophone"), "{said}");
    let lines: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let heads: Vec<_> = lines.iter().filter(|l| l["method"] == "HEAD").collect();
    assert_eq!((heads.len(), &heads[0]["message"]), (1, &json!("answered")), "{said}");
    let captures: Vec<_> = lines.iter().filter(|l| l["path"] == "/v1/checkpoints").collect();
    assert_eq!((captures.len(), &captures[0]["message"]), (1, &json!("answered")), "{said}");
    let completions: Vec<_> = lines.iter().filter(|l| l["path"] == "/v1/completions").collect();
    let ends: Vec<_> = completions.iter().map(|l| l["message"].as_str().unwrap()).collect();
    assert_eq!(ends, ["answered", "answered", "cut before its answer"], "{said}");
    assert!(completions[1]["seconds"].as_f64().unwrap() > 0.9, "the whole of the stream: {said}");
    let failed: Vec<_> = lines.iter().filter(|l| l["level"] == "WARN").collect();
    assert_eq!(failed.len(), 1, "{said}");
    assert_eq!(failed[0]["id"], completions[1]["id"]);
}

#[test]
fn the_log_has_the_text_of_prompts_and_answers_where_it_is_told_to() {
    let (daemon, mut log) = with_log(&["--log-text", "--max-batch", "1", "--drain", "1"]);
    let ask = |prompt: &str, n: u32, stream: bool| json!({"prompt": prompt, "n": n, "max_tokens": 200, "logit_bias": {"262": 100}, "stream": stream});
    daemon.complete(ask("xylophone", 1, false));
    let streamed =
        agent().post(format!("{}/v1/completions", daemon.url)).send_json(ask("yttrium", 1, true));
    streamed.unwrap().into_body().read_to_vec().unwrap();
    let capture = json!({"prompt": "zeppelin", "points": ["ln_f"], "max_new_tokens": 1});
    assert_eq!(daemon.post("/v1/checkpoints", &capture).0, 200);
    // One that is cut by the end, which a hang-up asks for too.
    let mut open = TcpStream::connect(daemon.host()).unwrap();
    let body = ask("weasel", 128, true).to_string();
    send(&mut open, &body, body.len());
    let mut first = [0; 12];
    open.read_exact(&mut first).unwrap();
    let pid = daemon.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    for prompt in ["xylophone", "yttrium", "zeppelin", "weasel"] {
        assert_eq!(said.matches(prompt).count(), 1, "{prompt}: {said}");
    }
    assert!(said.matches(" the the").count() >= 2, "{said}");
    assert!(said.matches(" texts").count() >= 3, "{said}");
    assert!(said.contains("1 unfinished"), "{said}");
}

#[test]
fn an_idle_daemon_ends_at_once_and_well_with_no_time_to_drain_at_all() {
    let mut daemon = Daemon::start(&["--drain", "0"]);
    daemon.terminate();
    daemon.terminate();
    assert_eq!(daemon.exit_code(Duration::from_secs(10)), Some(0));
}

#[test]
fn a_body_that_says_that_it_is_too_long_is_refused_unread() {
    let daemon = Daemon::start(&["--header-timeout", "30"]);
    let mut socket = TcpStream::connect(daemon.host()).unwrap();
    send(&mut socket, "", 10_000_000_000);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut said = [0; 12];
    socket.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"HTTP/1.1 413");
}
