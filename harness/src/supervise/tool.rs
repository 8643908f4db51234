//! Programs that end by themselves: `uv`, `cargo`, `python3 -m venv`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use llorch_models::progress::{Bar, human_time};

use super::child::{Child, ExitState, Role};
use super::command::AdapterCommand;
use super::failure::indent;
use super::interrupt::{await_exit, interrupted};
use super::lines::{Line, Lines};

/// What a tool printed on stdout, and how long it took.
#[derive(Debug, Clone)]
pub struct ToolOutput {
    pub stdout: String,
    pub seconds: f64,
}

/// What is told while a tool runs.
#[derive(Debug)]
pub enum ToolEvent<'a> {
    /// A line of its output (stdout or stderr).
    Line(&'a str),
    /// A second or so has passed.
    Tick(Duration),
}

/// A tool that didn't do its work.
#[derive(Debug, Clone)]
pub struct ToolFailure {
    pub kind: ToolFailureKind,
    pub message: String,
    /// The last lines of its output.
    pub tail: String,
    /// Where all of its output is, if it was kept.
    pub log: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFailureKind {
    Spawn,
    Timeout,
    Exit(ExitState),
    Interrupted,
}

/// The end of the output that is quoted in a failure, in lines.
const TAIL_LINES: usize = 15;
/// The stdout that is handed back, in bytes.
const STDOUT_CAP: usize = 1 << 20;

/// Runs a tool to its end. Its output is appended to `log`, if given.
pub fn run_tool(
    command: &AdapterCommand,
    timeout: Duration,
    log: Option<&Path>,
) -> Result<ToolOutput, ToolFailure> {
    run_tool_with(command, timeout, log, &mut |_| {})
}

/// Like [`run_tool`], with its last line of output behind a bar.
pub fn run_tool_told(
    command: &AdapterCommand,
    timeout: Duration,
    log: Option<&Path>,
    bar: &Bar,
) -> Result<ToolOutput, ToolFailure> {
    run_tool_with(command, timeout, log, &mut |event| {
        if let ToolEvent::Line(line) = event {
            bar.detail(line);
        }
    })
}

/// Like [`run_tool`], telling `watch` what happens meanwhile.
pub fn run_tool_with(
    command: &AdapterCommand,
    timeout: Duration,
    log: Option<&Path>,
    watch: &mut dyn FnMut(ToolEvent<'_>),
) -> Result<ToolOutput, ToolFailure> {
    let fail = |kind, message: String, tail: String| ToolFailure {
        kind,
        message,
        tail,
        log: log.map(Path::to_owned),
    };
    let name = &command.name;
    let refused = |error: std::io::Error| {
        let kind =
            if interrupted() { ToolFailureKind::Interrupted } else { ToolFailureKind::Spawn };
        fail(
            kind,
            format!("failed to start {name} ({}): {error}", command.display()),
            String::new(),
        )
    };

    let mut log_file = match log {
        Some(path) => Some(open_log(path, command).map_err(|error| {
            fail(
                ToolFailureKind::Spawn,
                format!("failed to write {}: {error}", path.display()),
                String::new(),
            )
        })?),
        None => None,
    };
    let (mut child, pipes) = Child::spawn(command, Role::Tool).map_err(refused)?;
    let lines = Lines::merge(vec![Box::new(pipes.stdout), Box::new(pipes.stderr)], name)
        .map_err(refused)?;

    let began = Instant::now();
    let mut next_tick = Duration::from_secs(1);
    let mut stdout = String::new();
    let mut tails: [Vec<String>; 2] = Default::default();
    let mut open = true;
    let mut quiet_since_exit = None;
    loop {
        let line = match lines.recv_timeout(Duration::from_millis(20)) {
            Ok((index, Line::Whole(line) | Line::Unfinished(line) | Line::TooLong(line))) => {
                Some((index, line))
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                open = false;
                None
            }
        };
        let heard = line.is_some();
        if let Some((index, line)) = line {
            let text = String::from_utf8_lossy(&line);
            if let Some(file) = &mut log_file {
                let _ = writeln!(file, "{text}"); // a full disk shows in the tool's own failure
            }
            if index == 0 && stdout.len() < STDOUT_CAP {
                stdout.push_str(&text);
                stdout.push('\n');
            }
            let tail = &mut tails[index];
            if tail.len() == TAIL_LINES {
                tail.remove(0);
            }
            tail.push(text.trim_end().to_owned());
            watch(ToolEvent::Line(&text));
        }

        let elapsed = began.elapsed();
        if elapsed >= next_tick {
            watch(ToolEvent::Tick(elapsed));
            next_tick = elapsed + Duration::from_secs(1);
        }
        if interrupted() {
            child.stop(Duration::from_secs(2));
            await_exit();
            return Err(fail(
                ToolFailureKind::Interrupted,
                format!("{name} was interrupted"),
                String::new(),
            ));
        }
        if elapsed > timeout {
            child.stop(Duration::from_secs(5));
            let message = format!("{name} didn't end within {}", human_time(timeout));
            return Err(fail(ToolFailureKind::Timeout, message, telling(&tails)));
        }
        if heard {
            continue;
        }
        let Some(exit) = child.exit() else {
            if !open {
                std::thread::sleep(Duration::from_millis(5));
            }
            continue;
        };
        // A background process that holds a pipe must not hold us: a short silence is the end.
        let since = *quiet_since_exit.get_or_insert_with(Instant::now);
        if open && since.elapsed() < Duration::from_millis(200) {
            continue;
        }
        child.release();
        await_exit();
        if exit.success() {
            return Ok(ToolOutput { stdout, seconds: elapsed.as_secs_f64() });
        }
        return Err(fail(
            ToolFailureKind::Exit(exit),
            format!("{name} failed ({exit})"),
            telling(&tails),
        ));
    }
}

/// The end of stderr, where reasons are given; of stdout where stderr is silent. (Their lines can't
/// be put in order: they come through two pipes.)
fn telling([stdout, stderr]: &[Vec<String>; 2]) -> String {
    if stderr.is_empty() { stdout } else { stderr }.join("\n")
}

fn open_log(path: &Path, command: &AdapterCommand) -> std::io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "$ {}", command.display())?;
    Ok(file)
}

impl fmt::Display for ToolFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.tail.is_empty() {
            write!(f, "; its output ends with:\n{}", indent(&self.tail))?;
        }
        if let Some(log) = &self.log {
            write!(f, "\n  all of it: {}", log.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ToolFailure {}

impl ToolFailure {
    /// In one sentence: the message and the last line of the output that says anything.
    pub fn brief(&self) -> String {
        let last = self.tail.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let log = self
            .log
            .as_ref()
            .map(|path| format!(" (all of it: {})", path.display()))
            .unwrap_or_default();
        match last {
            Some(line) => format!("{}: {line}{log}", self.message),
            None => format!("{}{log}", self.message),
        }
    }
}
