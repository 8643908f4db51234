//! One running process: started with its own group, watched, and ended for certain.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::time::{Duration, Instant};

use super::command::{AdapterCommand, OF_CARGO, SCRUBBED};
use super::group::{self, Group};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitState {
    Exited(i32),
    Signalled(i32),
}

impl ExitState {
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for ExitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signalled(number) => match signal_hook::low_level::signal_name(*number) {
                Some(name) => write!(f, "signal {number}, {name}"),
                None => write!(f, "signal {number}"),
            },
        }
    }
}

/// What it took to end a process that didn't end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forced {
    No,
    Term,
    Kill,
}

/// How a process and its group came to an end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped {
    pub exit: Option<ExitState>,
    pub forced: Forced,
    /// Processes that the leader left behind and that had to be killed.
    pub leaked: usize,
}

/// Our ends of a child's pipes.
pub(crate) struct Pipes {
    pub stdin: Option<PipeWriter>,
    pub stdout: PipeReader,
    pub stderr: PipeReader,
}

/// What a child is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Spoken to over stdin; everything that it starts ends with it.
    Adapter,
    /// Reads nothing; may leave a background process of the user's behind (a compiler cache).
    Tool,
}

/// A running process. Dropping it kills its group.
#[derive(Debug)]
pub(crate) struct Child {
    handle: duct::Handle,
    group: Group,
    stopped: Option<Stopped>,
}

impl Child {
    pub(crate) fn spawn(command: &AdapterCommand, role: Role) -> io::Result<(Self, Pipes)> {
        let (stdout, child_stdout) = io::pipe()?;
        let (stderr, child_stderr) = io::pipe()?;
        let (mark_name, mark) = group::new_mark();

        let program = resolve(command)?;
        let mut expression = duct::cmd(program, &command.args)
            .stdout_file(child_stdout)
            .stderr_file(child_stderr)
            .unchecked()
            .before_spawn(|child| {
                child.process_group(0);
                Ok(())
            });
        let mut stdin = None;
        expression = match role {
            Role::Adapter => {
                let (child_stdin, writer) = io::pipe()?;
                stdin = Some(writer);
                expression.stdin_file(child_stdin)
            }
            Role::Tool => expression.stdin_null(),
        };
        // In duct what is said first holds: the command's own settings, the last of two equal names,
        // before what is scrubbed.
        for (key, value) in command.env.iter().rev() {
            expression = expression.env(key, value);
        }
        expression = expression.env(mark_name, &mark);
        for name in SCRUBBED {
            expression = expression.env_remove(name);
        }
        for (name, _) in std::env::vars_os() {
            if OF_CARGO.iter().any(|of_cargo| name.to_string_lossy().starts_with(of_cargo)) {
                expression = expression.env_remove(name);
            }
        }
        if let Some(dir) = &command.cwd {
            expression = expression.dir(dir);
        }

        // The expression owns the child's ends of the pipes: it must go out of scope here, or our
        // reading ends never see the end of the stream.
        let (handle, group) = group::start(&mark, role == Role::Adapter, || {
            let handle = expression.start()?;
            let pid = handle.pids().first().copied().unwrap_or_default();
            Ok((handle, pid))
        })?;
        Ok((Self { handle, group, stopped: None }, Pipes { stdin, stdout, stderr }))
    }

    /// The id of the process, which is also that of its group.
    pub(crate) fn pid(&self) -> i32 {
        self.group.leader()
    }

    /// How the process ended, if it has.
    pub(crate) fn exit(&self) -> Option<ExitState> {
        exit_state(self.handle.try_wait().ok()??)
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&self, limit: Duration) -> Option<ExitState> {
        let deadline = Instant::now() + limit;
        exit_state(self.handle.wait_deadline(deadline).ok()??)
    }

    /// Waits for what an ended process has started to end as well.
    pub(crate) fn settle(&self, within: Duration) {
        if self.exit().is_some() {
            self.group.settle(within);
        }
    }

    /// Ends the whole group: TERM, `grace`, KILL. Nothing to do for one that ended by itself but
    /// to look for what it left behind.
    pub(crate) fn stop(&mut self, grace: Duration) -> Stopped {
        if let Some(stopped) = self.stopped {
            return stopped;
        }
        let mut forced = Forced::No;
        let mut exit = self.exit();
        if exit.is_none() {
            forced = Forced::Term;
            self.group.terminate();
            exit = self.wait(grace);
        }
        if exit.is_none() {
            forced = Forced::Kill;
            self.group.kill();
            exit = self.wait(Duration::from_secs(10));
        }
        let leaked = self.group.clear();
        // What TERM or KILL was sent to as a group isn't a leak of the leader's own making.
        let leaked = if forced == Forced::No { leaked } else { 0 };
        *self.stopped.insert(Stopped { exit, forced, leaked })
    }

    /// For a tool that ended by itself: what it left running belongs to the user and is let be.
    pub(crate) fn release(&mut self) {
        if let Some(exit) = self.exit() {
            self.group.forget();
            self.stopped = Some(Stopped { exit: Some(exit), forced: Forced::No, leaked: 0 });
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

fn exit_state(output: &std::process::Output) -> Option<ExitState> {
    match (output.status.code(), output.status.signal()) {
        (Some(code), _) => Some(ExitState::Exited(code)),
        (None, Some(signal)) => Some(ExitState::Signalled(signal)),
        (None, None) => None,
    }
}

/// A path with a slash means that file, seen from our own working directory even where the child
/// gets another; a bare name is looked up on PATH.
fn resolve(command: &AdapterCommand) -> io::Result<OsString> {
    let program = &command.program;
    if program.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no program is named"));
    }
    if program.is_relative() && program.components().count() > 1 {
        return Ok(std::path::absolute(program)?.into_os_string());
    }
    // Not as a path: duct would take that for a file in the working directory.
    Ok(program.clone().into_os_string())
}
