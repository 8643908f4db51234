//! The daemon as a user starts it, and a client of it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_llorch-cpud");

pub struct Daemon {
    pub child: Child,
    pub url: String,
}

impl Daemon {
    pub fn start(args: &[&str]) -> Daemon {
        let daemon = Daemon::start_without_waiting(args);
        daemon.wait_until_healthy();
        daemon
    }

    pub fn wait_until_healthy(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.get("/health").0 != 200 {
            assert!(Instant::now() < deadline, "the daemon was not healthy within a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn start_without_waiting(args: &[&str]) -> Daemon {
        Daemon::start_in(args, &[])
    }

    /// With variables in its environment.
    pub fn start_in(args: &[&str], environment: &[(&str, &str)]) -> Daemon {
        Daemon::spawn(args, environment, Stdio::null())
    }

    /// Its standard error is the caller's to read.
    pub fn start_logging(args: &[&str]) -> Daemon {
        Daemon::spawn(args, &[], Stdio::piped())
    }

    /// Behind a command of the shell that sets limits; healthy, and its standard error the caller's.
    pub fn start_limited(limit: &str, args: &[&str]) -> Daemon {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{limit} && exec \"$@\""), "sh", PROGRAM]);
        let daemon = Daemon::from(shell, args, &[], Stdio::piped());
        daemon.wait_until_healthy();
        daemon
    }

    fn spawn(args: &[&str], environment: &[(&str, &str)], log: Stdio) -> Daemon {
        Daemon::from(Command::new(PROGRAM), args, environment, log)
    }

    fn from(
        mut program: Command,
        args: &[&str],
        environment: &[(&str, &str)],
        log: Stdio,
    ) -> Daemon {
        let mut child = program
            .args(["serve", "--port", "0", "--threads", "2"])
            .args(args)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect(&line).to_string();
        Daemon { child, url }
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        answer(agent().get(format!("{}{path}", self.url)).call())
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(agent().post(format!("{}{path}", self.url)).send_json(body))
    }

    pub fn complete(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The value of a counter or gauge, with its labels as they are written.
    pub fn metric(&self, name: &str) -> f64 {
        let response = agent().get(format!("{}/metrics", self.url)).call().unwrap();
        let text = response.into_body().read_to_string().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until every request that was accepted has ended, one way or another.
    pub fn wait_until_idle(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let ended = |outcome: &str| {
            self.metric(&format!("llorch_completions_ended_total{{outcome=\"{outcome}\"}}"))
        };
        let all =
            || ["completed", "abandoned", "timed_out", "failed"].map(ended).iter().sum::<f64>();
        let computing =
            || self.metric("llorch_running_sequences") + self.metric("llorch_waiting_sequences");
        // The last two follow the engine's steps: what has just come is not in them yet.
        while all() < self.metric("llorch_completions_accepted_total") || computing() > 0.0 {
            assert!(Instant::now() < deadline, "it is still computing for somebody");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub fn terminate(&self) {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    pub fn exit_code(&mut self, within: Duration) -> Option<i32> {
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

pub fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}

pub fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut response = response.unwrap();
    let status = response.status().as_u16();
    (status, response.body_mut().read_json().unwrap_or(Value::Null))
}

pub fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_string()
}
