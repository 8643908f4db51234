//! Who may ask.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::daemon::{Daemon, agent, answer};

/// Asks with some headers: the status, the answer, and a header of it.
fn ask(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = agent().get(format!("{}{path}", daemon.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request.call())
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# of the team\nfirst-key\n\nsecond-key\n").unwrap();
    let path = file.path().to_str().unwrap();
    let daemon = Daemon::start(&["--api-key", "own-key", "--api-key-file", path]);
    for open in ["/health", "/ready", "/openapi.json", "/docs", "/"] {
        assert_eq!(ask(&daemon, open, &[]).0, 200, "{open}");
    }
    for closed in ["/v1/models", "/metrics"] {
        for wrong in [
            "Bearer own-kez",
            "Bearer own-key2",
            "Bearer",
            "Bearer ",
            "Basic own-key",
            "own-key",
            "",
        ] {
            let (status, body) = ask(&daemon, closed, &[("authorization", wrong)]);
            assert_eq!(
                (status, &body["error"]["code"]),
                (401, &json!("invalid_api_key")),
                "{wrong:?}"
            );
            assert_eq!(body["error"]["type"], "authentication_error");
        }
        for right in ["Bearer own-key", "bearer first-key", "Bearer second-key"] {
            assert_eq!(ask(&daemon, closed, &[("authorization", right)]).0, 200, "{right}");
        }
    }
    // What isn't there isn't told either.
    assert_eq!(ask(&daemon, "/nothing", &[]).0, 401);
    let refused = agent().get(format!("{}/v1/models", daemon.url)).call().unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
}

#[test]
fn a_daemon_of_this_machine_alone_is_not_asked_by_a_name_that_it_does_not_know() {
    let daemon = Daemon::start(&["--allow-host", "llorch.internal"]);
    for known in [
        "localhost",
        "localhost:8080",
        "127.0.0.1:1",
        "[::1]:8080",
        "a.localhost",
        "LLORCH.internal:80",
    ] {
        assert_eq!(ask(&daemon, "/health", &[("host", known)]).0, 200, "{known}");
    }
    for unknown in
        ["example.org", "example.org:8080", "localhost.example.org", "127.0.0.1.example.org"]
    {
        let (status, body) = ask(&daemon, "/health", &[("host", unknown)]);
        assert_eq!((status, &body["error"]["code"]), (403, &json!("unknown_host")), "{unknown}");
    }
    // Each of several, and the one in the request's first line.
    for head in [
        "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: example.org\r\n",
        "GET http://example.org/health HTTP/1.1\r\nHost: localhost\r\n",
    ] {
        let mut socket = TcpStream::connect(daemon.host()).unwrap();
        write!(socket, "{head}Connection: close\r\n\r\n").unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 403") || said.starts_with("HTTP/1.1 400"), "{said}");
    }
    // With a key, whoever brings it may use any name.
    let daemon = Daemon::start(&["--api-key", "k"]);
    let headers = [("host", "example.org"), ("authorization", "Bearer k")];
    assert_eq!(ask(&daemon, "/v1/models", &headers).0, 200);
}

#[test]
fn a_browser_may_ask_from_the_sites_that_are_named_and_from_no_other() {
    // OpenAI's client for browsers sends headers of its own.
    const ASKED: &str = "authorization,content-type,x-stainless-lang,x-request-id";
    let preflight = |daemon: &Daemon, origin: &str| {
        let request = ureq::http::Request::builder()
            .method("OPTIONS")
            .uri(format!("{}/v1/completions", daemon.url))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", ASKED)
            .body(())
            .unwrap();
        let response = agent().run(request).unwrap();
        let header = |name| response.headers().get(name).map(|v| v.to_str().unwrap().to_string());
        let origin = header("access-control-allow-origin");
        if origin.is_some() {
            assert_eq!(header("access-control-allow-headers").as_deref(), Some(ASKED));
        }
        origin
    };
    let daemon = Daemon::start(&[
        "--cors-origin",
        "https://a.example,http://b.example:3000",
        "--api-key",
        "k",
    ]);
    assert_eq!(preflight(&daemon, "https://a.example").as_deref(), Some("https://a.example"));
    assert_eq!(
        preflight(&daemon, "http://b.example:3000").as_deref(),
        Some("http://b.example:3000")
    );
    assert_eq!(preflight(&daemon, "https://evil.example"), None);
    let daemon = Daemon::start(&[]);
    assert_eq!(preflight(&daemon, "https://a.example"), None);
    // A form or plain text, which a page of any site may send without asking, is not taken.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let request =
            agent().post(format!("{}/v1/completions", daemon.url)).header("content-type", kind);
        let (status, body) = answer(request.send("{\"prompt\": \"a\"}"));
        assert_eq!((status, &body["error"]["code"]), (415, &json!("content_type")), "{kind}");
    }
}

#[test]
fn answers_have_an_id_and_the_headers_of_safety() {
    let daemon = Daemon::start(&[]);
    let given = agent()
        .get(format!("{}/health", daemon.url))
        .header("x-request-id", "mine-1")
        .call()
        .unwrap();
    assert_eq!(given.headers()["x-request-id"], "mine-1");
    let fresh = agent().get(format!("{}/nothing", daemon.url)).call().unwrap();
    assert!(fresh.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
    assert_eq!(fresh.headers()["x-content-type-options"], "nosniff");
    assert!(
        fresh.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'")
    );
}

#[test]
fn keys_and_origins_that_are_none_are_refused_at_the_start() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let file = empty.path().to_str().unwrap();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--api-key-file", "/nowhere/keys"], 3, "/nowhere/keys"),
        (&["--api-key-file", file], 2, "has none"),
        (&["--store", file], 3, file),
        (&["--api-key", "two words"], 2, "9 characters"),
        (&["--cors-origin", "example.org"], 2, "example.org"),
        (&["--cors-origin", "https://example.org/app"], 2, "without a path"),
        (&["--allow-host", "box.lan:8080"], 2, "box.lan:8080"),
        (&["--allow-host", "http://box.lan"], 2, "without a scheme"),
    ];
    for (args, code, says) in cases {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_llorch-cpud"))
            .args(["serve", "--port", "0"])
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
        assert!(!said.contains("two words"), "a key is never shown");
    }
}
