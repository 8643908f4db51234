//! A daemon that a test has started, and what is asked of it.
#![allow(clippy::disallowed_methods, reason = "a test starts the program as a user would")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// It is ended with the test.
pub struct Daemon {
    pub child: Child,
    pub url: String,
}

impl Daemon {
    /// Up to its first line: it listens, and loads its model.
    pub fn spawn(program: &mut Command) -> Daemon {
        let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        // From here on dropping it ends it, whatever goes wrong.
        let mut daemon = Daemon { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        daemon.url = line.trim().strip_prefix("listening on ").expect(&line).to_string();
        daemon
    }

    /// It answers 503 until the model is loaded.
    pub fn wait_until_healthy(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.get("/health").0 != 200 {
            assert!(Instant::now() < deadline, "the daemon was not healthy within a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, Value) {
        answer(agent().get(format!("{}{path}", self.url)).call())
    }

    pub fn metrics(&self, key: Option<&str>) -> String {
        let request = agent().get(format!("{}/metrics", self.url));
        let request = request.header("authorization", format!("Bearer {}", key.unwrap_or("none")));
        request.call().unwrap().into_body().read_to_string().unwrap()
    }

    /// The value of a counter or gauge, with its labels as they are written.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics(None);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}

pub fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut response = response.unwrap();
    let status = response.status().as_u16();
    (status, response.body_mut().read_json().unwrap_or(Value::Null))
}
