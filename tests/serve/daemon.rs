//! The daemon as a user starts it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use crate::serving::{Daemon, agent, answer};

const PROGRAM: &str = env!("CARGO_BIN_EXE_llorch-cpud");

/// With these options, on a port of its own.
fn serve(mut program: Command, args: &[&str], log: Stdio) -> Daemon {
    program.args(["serve", "--port", "0", "--threads", "2"]).args(args).stderr(log);
    Daemon::spawn(&mut program)
}

impl Daemon {
    pub fn start(args: &[&str]) -> Daemon {
        let daemon = Daemon::start_without_waiting(args);
        daemon.wait_until_healthy();
        daemon
    }

    pub fn start_without_waiting(args: &[&str]) -> Daemon {
        Daemon::start_in(args, &[])
    }

    /// With variables in its environment.
    pub fn start_in(args: &[&str], environment: &[(&str, &str)]) -> Daemon {
        let mut program = Command::new(PROGRAM);
        program.envs(environment.iter().copied());
        serve(program, args, Stdio::null())
    }

    /// Its standard error is the caller's to read.
    pub fn start_logging(args: &[&str]) -> Daemon {
        serve(Command::new(PROGRAM), args, Stdio::piped())
    }

    /// Behind a command of the shell that sets limits; healthy, and its standard error the caller's.
    pub fn start_limited(limit: &str, args: &[&str]) -> Daemon {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{limit} && exec \"$@\""), "sh", PROGRAM]);
        let daemon = serve(shell, args, Stdio::piped());
        daemon.wait_until_healthy();
        daemon
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(agent().post(format!("{}{path}", self.url)).send_json(body))
    }

    pub fn complete(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
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

pub fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_string()
}
