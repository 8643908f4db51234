//! A conversation with an adapter in which nothing is taken for granted: raw lines in both directions.
//!
//! [`super::Session`] ends at the first thing that isn't protocol. Whoever wants to know how an adapter
//! takes a bad line, or what else it says, speaks to it through this.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::child::{Child, ExitState, Role, Stopped};
use super::command::AdapterCommand;
use super::failure::{Failure, FailureKind};
use super::interrupt::{await_exit, interrupted};
use super::limits::Limits;
use super::lines::{Line, Lines, excerpt};
use super::session::{Finished, write_in_thread};
use super::stderr_log::StderrLog;

/// A running adapter of which nothing is known yet. Dropping it kills its group.
#[derive(Debug)]
pub struct Dialogue {
    child: Child,
    stdin: Option<Sender<Vec<u8>>>,
    lines: Lines,
    stderr: StderrLog,
    grace: Duration,
}

/// What came of listening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A line, without its line feed.
    Line(Vec<u8>),
    /// The beginning of a line that is too long to be taken.
    TooLong(String),
    /// Nothing, for as long as was asked.
    Silence,
    /// The end of stdout, with how the process ended (none: it runs on), and what stood after the
    /// last line feed.
    Ended { exit: Option<ExitState>, unfinished: String },
}

impl Dialogue {
    /// Starts the program and says nothing. Its stderr goes to `stderr_file`, capped.
    pub fn start(
        command: &AdapterCommand,
        limits: &Limits,
        stderr_file: &Path,
    ) -> Result<Self, Failure> {
        let name = &command.name;
        let refused = |error: std::io::Error| {
            let kind = if interrupted() { FailureKind::Interrupted } else { FailureKind::Spawn };
            Failure::new(kind, command.failed_to_start(&error))
        };
        let (child, pipes) = Child::spawn(command, Role::Adapter).map_err(refused)?;
        let stderr = StderrLog::drain(pipes.stderr, stderr_file, limits.stderr_cap, name)
            .map_err(refused)?;
        let lines = Lines::drain(pipes.stdout, name).map_err(refused)?;
        let stdin = pipes.stdin.map(|pipe| write_in_thread(pipe, name)).transpose();
        let stdin = stdin.map_err(refused)?;
        Ok(Self { child, stdin, lines, stderr, grace: limits.grace })
    }

    /// Sends bytes as they are. A child that has closed its stdin shows that by what it says next.
    pub fn send(&self, bytes: &[u8]) {
        if let Some(stdin) = &self.stdin {
            let _ = stdin.send(bytes.to_vec());
        }
    }

    /// Ends the adapter's stdin, behind all that was sent.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The next line, waited for until `deadline`.
    pub fn hear(&mut self, deadline: Instant) -> Heard {
        let mut quiet_since_exit = None;
        loop {
            await_exit();
            let now = Instant::now();
            let Some(left) = deadline.checked_duration_since(now) else { return Heard::Silence };
            match self.lines.receiver.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(Line::Whole(line)) if line.trim_ascii().is_empty() => {}
                Ok(Line::Whole(line)) => return Heard::Line(line),
                Ok(Line::TooLong(start)) => return Heard::TooLong(excerpt(&start)),
                Ok(Line::Unfinished(part)) => return self.ended(excerpt(&part)),
                Err(RecvTimeoutError::Disconnected) => return self.ended(String::new()),
                // A grandchild may hold stdout open: once nothing more comes, the exit counts.
                Err(RecvTimeoutError::Timeout) if self.child.exit().is_some() => {
                    let since = *quiet_since_exit.get_or_insert(now);
                    if now.duration_since(since) > Duration::from_millis(300) {
                        return self.ended(String::new());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn ended(&self, unfinished: String) -> Heard {
        let exit = self.child.wait(Duration::from_secs(1));
        await_exit();
        Heard::Ended { exit, unfinished }
    }

    /// The last lines of what it said on stderr.
    pub fn stderr_tail(&self) -> String {
        self.stderr.tail()
    }

    /// Ends stdin and waits until `deadline` for the process to end by itself, and then a little for
    /// what it started; TERM, grace and KILL for what doesn't.
    pub fn finish(mut self, deadline: Instant) -> Finished {
        self.stdin = None;
        self.child.wait(deadline.saturating_duration_since(Instant::now()));
        self.child.settle(self.grace);
        let Stopped { exit, forced, leaked } = self.child.stop(self.grace);
        Finished { exit, forced, leaked, stderr: self.stderr.summary() }
    }
}
