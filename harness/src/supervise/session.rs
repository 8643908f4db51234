//! One adapter process and the conversation with it.
//!
//! The harness speaks first and waits for each answer: hello, load, then any number of `tokenize`
//! and `run`. What ends the conversation (a time-out, a crash, garbage) ends the process at once;
//! an adapter's own `error` answer doesn't, the next case may go well.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use llorch_models::progress::human_time;
use llorch_trace::Precision;
use llorch_trace::protocol::{
    DoneMessage, DrawRequest, ErrorClass, ErrorMessage, HelloResponse, PROTOCOL_VERSION, Request,
    Response, RunRequest, TensorMessage,
};

use super::child::{Child, ExitState, Forced, Role, Stopped};
use super::command::AdapterCommand;
use super::failure::{Failure, FailureKind};
use super::interrupt::{await_exit, interrupted};
use super::limits::Limits;
use super::lines::{LINE_CAP, Line, Lines, excerpt, start_of};
use super::stderr_log::{StderrLog, StderrSummary};
use crate::text::shorten;

/// Characters that are kept of an adapter's own error message; a traceback has its place on stderr.
const SAID: usize = 2000;

/// A running adapter that has said hello.
#[derive(Debug)]
pub struct Session {
    name: String,
    limits: Limits,
    hello: HelloResponse,
    wire: Wire,
    requests: u64,
}

/// How an adapter came to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    pub exit: Option<ExitState>,
    /// Whether it had to be told twice: the end of stdin should have been enough.
    pub forced: Forced,
    /// Processes that it left behind; they were killed.
    pub leaked: usize,
    pub stderr: StderrSummary,
}

impl Session {
    /// Starts the adapter and greets it. Its stderr goes to `stderr_file`, capped.
    pub fn start(
        command: &AdapterCommand,
        limits: &Limits,
        stderr_file: &Path,
    ) -> Result<Self, Failure> {
        let mut wire = Wire::open(command, limits, stderr_file)?;
        let deadline = Deadline::new("hello", FailureKind::HelloTimeout, limits.hello);
        wire.send(&Request::Hello { protocol: PROTOCOL_VERSION })?;
        let hello = match wire.receive(&deadline)? {
            Response::Hello(hello) => hello,
            Response::Error(error) => return Err(wire.reported(&error)),
            other => return Err(wire.unexpected("hello", &other)),
        };
        if hello.protocol != PROTOCOL_VERSION {
            let message = format!(
                "{} speaks protocol {}, the harness {PROTOCOL_VERSION}",
                command.name, hello.protocol
            );
            return Err(wire.fail(FailureKind::Protocol, message));
        }
        Ok(Self { name: command.name.clone(), limits: limits.clone(), hello, wire, requests: 0 })
    }

    pub fn hello(&self) -> &HelloResponse {
        &self.hello
    }

    /// The name under which the adapter was started (that in its hello may differ).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the adapter's process, which is also that of its group.
    pub fn process_id(&self) -> i32 {
        self.wire.child.pid()
    }

    /// Loads a model. Returns what the adapter computes in: what was asked for, unless it says another.
    pub fn load(
        &mut self,
        model_dir: &Path,
        precision: impl Into<Precision>,
        threads: usize,
    ) -> Result<Precision, Failure> {
        let dtype = precision.into();
        let deadline = Deadline::new("load", FailureKind::LoadTimeout, self.limits.load);
        self.wire.send(&Request::Load { model_dir: model_dir.to_owned(), dtype, threads })?;
        match self.wire.receive(&deadline)? {
            Response::Loaded { dtype: declared, .. } => Ok(declared.unwrap_or(dtype)),
            Response::Error(error) => Err(self.wire.reported(&error)),
            other => Err(self.wire.unexpected("loaded", &other)),
        }
    }

    pub fn tokenize(&mut self, text: &str) -> Result<Vec<u32>, Failure> {
        self.requests += 1;
        let id = format!("tokenize-{}", self.requests);
        let deadline = Deadline::new("tokenize", FailureKind::CaseTimeout, self.limits.case);
        self.wire.send(&Request::Tokenize { id: id.clone(), text: text.to_owned() })?;
        match self.wire.receive(&deadline)? {
            Response::Tokens { id: got, ids } => {
                self.wire.check_id("tokens", &id, &got).map(|()| ids)
            }
            Response::Error(error) => Err(self.wire.reported_for(&id, &error)),
            other => Err(self.wire.unexpected("tokens", &other)),
        }
    }

    /// Runs one case. `on_tensor` sees every tensor message as it comes, before the next is read;
    /// the time that it takes isn't counted against the adapter.
    pub fn run(
        &mut self,
        request: RunRequest,
        on_tensor: &mut dyn FnMut(&TensorMessage),
    ) -> Result<DoneMessage, Failure> {
        let id = request.id.clone();
        let deadline = Deadline::new("run", FailureKind::CaseTimeout, self.limits.case);
        self.wire.send(&Request::Run(request))?;
        self.until_done(&id, deadline, on_tensor)
    }

    /// Draws tokens from given logits; `on_tensor` sees the message that announces them.
    pub fn draw(
        &mut self,
        request: DrawRequest,
        on_tensor: &mut dyn FnMut(&TensorMessage),
    ) -> Result<DoneMessage, Failure> {
        let id = request.id.clone();
        let deadline = Deadline::new("draw", FailureKind::CaseTimeout, self.limits.case);
        self.wire.send(&Request::Draw(request))?;
        self.until_done(&id, deadline, on_tensor)
    }

    fn until_done(
        &mut self,
        id: &str,
        mut deadline: Deadline,
        on_tensor: &mut dyn FnMut(&TensorMessage),
    ) -> Result<DoneMessage, Failure> {
        loop {
            match self.wire.receive(&deadline)? {
                Response::Tensor(tensor) => {
                    self.wire.check_id("tensor", id, &tensor.id)?;
                    let began = Instant::now();
                    on_tensor(&tensor);
                    deadline.extend(began.elapsed());
                }
                Response::Done(done) => {
                    self.wire.check_id("done", id, &done.id)?;
                    return Ok(done);
                }
                Response::Error(error) => return Err(self.wire.reported_for(id, &error)),
                other => return Err(self.wire.unexpected("tensor or done", &other)),
            }
        }
    }

    /// The failure that ended the conversation, if one has: the session must be started anew.
    pub fn dead(&self) -> Option<&Failure> {
        self.wire.dead.as_ref()
    }

    /// Ends the adapter: end of stdin, `grace`, TERM, `grace`, KILL. Everything that it started
    /// is gone afterwards (see the module `supervise` for what is Linux-only in that).
    pub fn finish(mut self) -> Finished {
        self.wire.stdin = None;
        if self.wire.dead.is_none() {
            self.wire.child.wait(self.limits.grace);
        }
        let Stopped { exit, forced, leaked } = self.wire.child.stop(self.limits.grace);
        Finished { exit, forced, leaked, stderr: self.wire.stderr.summary() }
    }
}

/// When an answer is due, and what it means when it doesn't come.
struct Deadline {
    what: &'static str,
    kind: FailureKind,
    limit: Duration,
    at: Instant,
}

impl Deadline {
    fn new(what: &'static str, kind: FailureKind, limit: Duration) -> Self {
        Self { what, kind, limit, at: Instant::now() + limit }
    }

    fn extend(&mut self, time: Duration) {
        self.at += time;
    }
}

/// The process and its three streams.
#[derive(Debug)]
struct Wire {
    name: String,
    child: Child,
    /// Lines to the writer thread, which alone may block on a child that doesn't read.
    stdin: Option<Sender<Vec<u8>>>,
    lines: Lines,
    stderr: StderrLog,
    grace: Duration,
    dead: Option<Failure>,
}

impl Wire {
    fn open(
        command: &AdapterCommand,
        limits: &Limits,
        stderr_file: &Path,
    ) -> Result<Self, Failure> {
        let name = command.name.as_str();
        let refused = |error: std::io::Error| {
            let kind = if interrupted() { FailureKind::Interrupted } else { FailureKind::Spawn };
            Failure::new(kind, format!("failed to start {name} ({}): {error}", command.display()))
        };
        let (child, pipes) = Child::spawn(command, Role::Adapter).map_err(refused)?;
        let log_failed = |error: std::io::Error| {
            Failure::new(
                FailureKind::Spawn,
                format!(
                    "failed to write the stderr of {name} to {}: {error}",
                    stderr_file.display()
                ),
            )
        };
        let stderr = StderrLog::drain(pipes.stderr, stderr_file, limits.stderr_cap, name)
            .map_err(log_failed)?;
        let lines = Lines::drain(pipes.stdout, name).map_err(refused)?;
        let stdin = match pipes.stdin {
            Some(pipe) => Some(write_in_thread(pipe, name).map_err(refused)?),
            None => None,
        };
        let name = name.to_owned();
        Ok(Self { name, child, stdin, lines, stderr, grace: limits.grace, dead: None })
    }

    fn send(&mut self, request: &Request) -> Result<(), Failure> {
        if let Some(dead) = &self.dead {
            return Err(dead.clone());
        }
        let mut line = match serde_json::to_vec(request) {
            Ok(line) => line,
            Err(error) => {
                let message = format!("failed to write a request for {}: {error}", self.name);
                return Err(Failure::new(FailureKind::Protocol, message));
            }
        };
        line.push(b'\n');
        // When the writer is gone the child closed its stdin: what it says on stdout, or how it
        // ended, tells more than the broken pipe.
        if let Some(stdin) = &self.stdin {
            let _ = stdin.send(line);
        }
        Ok(())
    }

    /// The next message.
    fn receive(&mut self, deadline: &Deadline) -> Result<Response, Failure> {
        let mut quiet_since_exit = None;
        loop {
            if interrupted() {
                return Err(
                    self.fail(FailureKind::Interrupted, format!("{} was interrupted", self.name))
                );
            }
            let now = Instant::now();
            let Some(left) = deadline.at.checked_duration_since(now) else {
                return Err(self.timed_out(deadline));
            };
            match self.lines.receiver.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(Line::Whole(line)) if line.trim_ascii().is_empty() => {}
                Ok(Line::Whole(line)) => return self.parse(&line, deadline.what),
                Ok(Line::TooLong(start)) => {
                    let message = format!(
                        "{} wrote a line of more than {} MB on stdout: {}…",
                        self.name,
                        LINE_CAP >> 20,
                        start_of(&start).0
                    );
                    return Err(self.fail(FailureKind::Garbage, message));
                }
                Ok(Line::Unfinished(part)) => return Err(self.ended(deadline, &part)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended(deadline, b"")),
                // A grandchild that holds stdout keeps the stream open after the adapter's end:
                // once nothing more comes, the exit counts.
                Err(RecvTimeoutError::Timeout) if self.child.exit().is_some() => {
                    let since = *quiet_since_exit.get_or_insert(now);
                    if now.duration_since(since) > Duration::from_millis(300) {
                        return Err(self.ended(deadline, b""));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn parse(&mut self, line: &[u8], what: &str) -> Result<Response, Failure> {
        let error = match serde_json::from_slice(line) {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let is_object =
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(line).is_ok();
        let shown = excerpt(line);
        Err(if is_object {
            // The parser quotes what it found, however long that is.
            let error = shorten(&error.to_string(), 200);
            let message = format!(
                "{} broke the protocol in its answer to {what}: {error}: {shown}",
                self.name
            );
            self.fail(FailureKind::Protocol, message)
        } else {
            let message = format!(
                "{} wrote something else than protocol messages on stdout: {shown}",
                self.name
            );
            self.fail(FailureKind::Garbage, message)
        })
    }

    fn check_id(&mut self, what: &str, expected: &str, got: &str) -> Result<(), Failure> {
        if expected == got {
            return Ok(());
        }
        let message =
            format!("{} answered with a {what} for id `{got}`, asked was `{expected}`", self.name);
        Err(self.fail(FailureKind::Protocol, message))
    }

    fn unexpected(&mut self, expected: &str, got: &Response) -> Failure {
        let kind = match got {
            Response::Hello(_) => "hello",
            Response::Loaded { .. } => "loaded",
            Response::Tokens { .. } => "tokens",
            Response::Tensor(_) => "tensor",
            Response::Done(_) => "done",
            Response::Error(_) => "error",
        };
        let message = format!("{} sent `{kind}` where `{expected}` was due", self.name);
        self.fail(FailureKind::Protocol, message)
    }

    /// An `error` answer: the adapter lives on.
    fn reported(&self, error: &ErrorMessage) -> Failure {
        let kind = match error.class {
            ErrorClass::Unsupported => FailureKind::Unsupported,
            ErrorClass::Input => FailureKind::Input,
            ErrorClass::Resource => FailureKind::Resource,
            ErrorClass::Internal => FailureKind::Internal,
        };
        let said = shorten(&error.message, SAID);
        let mut failure = Failure::new(kind, format!("{}: {said}", self.name));
        if failure.kind == FailureKind::Internal {
            failure.stderr_tail = self.stderr.tail();
        }
        failure
    }

    /// An `error` answer to the request `id`; one without an id is meant for it too.
    fn reported_for(&mut self, id: &str, error: &ErrorMessage) -> Failure {
        if let Some(got) = &error.id
            && let Err(failure) = self.check_id("error", id, got)
        {
            return failure;
        }
        self.reported(error)
    }

    fn timed_out(&mut self, deadline: &Deadline) -> Failure {
        let mut message = format!(
            "{} didn't answer {} within {}",
            self.name,
            deadline.what,
            human_time(deadline.limit)
        );
        match self.lines.pending() {
            0 => {}
            bytes => message
                .push_str(&format!(" (an unfinished line of {bytes} bytes is on its stdout)")),
        }
        self.fail(deadline.kind.clone(), message)
    }

    /// The end of stdout before the answer was complete.
    fn ended(&mut self, deadline: &Deadline, unfinished: &[u8]) -> Failure {
        let cut = match unfinished {
            [] => String::new(),
            bytes => format!(", in the middle of a line: {}", excerpt(bytes)),
        };
        let what = deadline.what;
        match self.child.wait(Duration::from_secs(1)) {
            Some(exit) => {
                // Nobody else kills an adapter in the middle of its work.
                let guess = match exit {
                    ExitState::Signalled(9) => "; the system may have run out of memory",
                    _ => "",
                };
                let message =
                    format!("{} ended ({exit}) before it answered {what}{cut}{guess}", self.name);
                self.fail(FailureKind::Crash { exit }, message)
            }
            None => {
                let message = format!(
                    "{} closed its stdout before it answered {what} and runs on{cut}",
                    self.name
                );
                self.fail(FailureKind::Protocol, message)
            }
        }
    }

    /// Ends the process and the conversation.
    fn fail(&mut self, kind: FailureKind, message: String) -> Failure {
        self.stdin = None;
        self.child.stop(self.grace);
        await_exit();
        let mut failure = Failure::new(kind, message);
        failure.stderr_tail = self.stderr.tail();
        self.dead = Some(failure.clone());
        failure
    }
}

/// Writes what it is sent until the sender is dropped or the child closes its end; then the pipe
/// is closed. Only this thread can be held up by a child that never reads.
pub(super) fn write_in_thread(
    mut pipe: impl Write + Send + 'static,
    name: &str,
) -> std::io::Result<Sender<Vec<u8>>> {
    let (sender, receiver) = channel::<Vec<u8>>();
    std::thread::Builder::new().name(format!("{name} stdin")).spawn(move || {
        for line in receiver {
            if pipe.write_all(&line).and_then(|()| pipe.flush()).is_err() {
                break;
            }
        }
    })?;
    Ok(sender)
}
