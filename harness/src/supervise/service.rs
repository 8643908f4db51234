//! A program that runs until it is stopped: the daemon under test.

use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use llorch_models::progress::human_time;

use super::child::{Child, ExitState, Role, Stopped};
use super::command::AdapterCommand;
use super::failure::{Failure, FailureKind};
use super::interrupt::{await_exit, interrupted};
use super::limits::Limits;
use super::lines::{Line, Lines};
use super::session::Finished;
use super::stderr_log::StderrLog;

/// A running program that isn't spoken to over stdin. Dropping it kills its group.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    lines: Lines,
    stderr: StderrLog,
    grace: Duration,
}

impl Service {
    pub fn start(
        command: &AdapterCommand,
        limits: &Limits,
        stderr_file: &Path,
    ) -> Result<Self, Failure> {
        let name = command.name.clone();
        let refused = |error: std::io::Error| {
            let kind = if interrupted() { FailureKind::Interrupted } else { FailureKind::Spawn };
            Failure::new(kind, format!("failed to start {name} ({}): {error}", command.display()))
        };
        let (child, pipes) = Child::spawn(command, Role::Tool).map_err(refused)?;
        let stderr = StderrLog::drain(pipes.stderr, stderr_file, limits.stderr_cap, &name)
            .map_err(refused)?;
        let lines = Lines::drain(pipes.stdout, &name).map_err(refused)?;
        Ok(Self { name, child, lines, stderr, grace: limits.grace })
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<ExitState> {
        self.child.exit()
    }

    /// Asks `ready` every 50 ms until it gives a value; fails when the program ends before or the
    /// time is up.
    pub fn wait_until<T>(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            let name = self.name.clone();
            if interrupted() {
                return Err(self.fail(FailureKind::Interrupted, format!("{name} was interrupted")));
            }
            if let Some(exit) = self.child.exit() {
                let message = format!("{name} ended ({exit}) before it was ready");
                return Err(self.fail(FailureKind::Crash { exit }, message));
            }
            if Instant::now() > deadline {
                let message = format!("{name} wasn't ready within {}", human_time(limit));
                return Err(self.fail(FailureKind::HelloTimeout, message));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The next line of its stdout, if one comes in time.
    pub fn line(&mut self, limit: Duration) -> Option<String> {
        match self.lines.receiver.recv_timeout(limit) {
            Ok(Line::Whole(line) | Line::Unfinished(line)) => {
                Some(String::from_utf8_lossy(&line).into_owned())
            }
            Ok(Line::TooLong(_))
            | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// TERM, the grace period, KILL. A well-behaved daemon exits 0 on TERM.
    pub fn stop(mut self) -> Finished {
        let Stopped { exit, forced, leaked } = self.child.stop(self.grace);
        Finished { exit, forced, leaked, stderr: self.stderr.summary() }
    }

    fn fail(&mut self, kind: FailureKind, message: String) -> Failure {
        self.child.stop(self.grace);
        await_exit();
        let mut failure = Failure::new(kind, message);
        failure.stderr_tail = self.stderr.tail();
        failure
    }
}
