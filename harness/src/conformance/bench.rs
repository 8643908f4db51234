//! The adapter on the bench: started as often as it takes, spoken to in raw lines, listened to with a
//! time limit. What a check sends and hears goes through here, so that nothing hangs and every failure
//! says what was sent.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llorch_models::progress::human_time;
use llorch_trace::Dims;
use llorch_trace::protocol::{ErrorClass, ErrorMessage, HelloResponse, PROTOCOL_VERSION, Response};
use serde_json::{Map, Value, json};

use super::check::Stop;
use super::survey::Survey;
use crate::supervise::{AdapterCommand, Dialogue, Failure, Finished, Heard, Limits};
use crate::text::shorten;

/// An adapter that lets this many requests go unanswered isn't asked any more: each costs the whole
/// time limit.
const PATIENCE: usize = 3;
/// Lines on stdout that aren't protocol, before the adapter is given up.
const MOST_NOISE: usize = 1000;
const SHOWN: usize = 300;

/// What is checked, and on what.
#[derive(Debug)]
pub struct Setup<'a> {
    pub command: &'a AdapterCommand,
    pub model_dir: &'a Path,
    pub dims: Dims,
    /// Another model, to be loaded in the first one's place: folder and sizes.
    pub other: (PathBuf, Dims),
    pub threads: usize,
    pub limits: Limits,
}

#[derive(Debug)]
pub struct Bench<'a> {
    pub setup: &'a Setup<'a>,
    /// Holds a folder for each run, and nothing else that an adapter should write into.
    pub(super) scratch: &'a Path,
    process: Option<Process>,
    /// What the first process said of itself.
    pub hello: Option<HelloResponse>,
    /// Of stdout, what isn't protocol: the check that was going on, and the line.
    pub noise: Vec<(&'static str, String)>,
    pub current: &'static str,
    /// The run that several checks look at; `None` inside where it went wrong.
    pub survey: Option<Option<Survey>>,
    starts: usize,
    pub(super) requests: usize,
    unanswered: usize,
    /// What was found where the process ended by itself, and the check at which it did so first.
    ends: Vec<(String, &'static str)>,
}

#[derive(Debug)]
struct Process {
    talk: Dialogue,
    greeted: bool,
    loaded: bool,
    sent: String,
}

impl<'a> Bench<'a> {
    pub fn new(setup: &'a Setup<'a>, scratch: &'a Path) -> Self {
        Self {
            setup,
            scratch,
            process: None,
            hello: None,
            noise: Vec::new(),
            current: "",
            survey: None,
            starts: 0,
            requests: 0,
            unanswered: 0,
            ends: Vec::new(),
        }
    }

    // Processes.

    /// A new process that has been told nothing.
    pub fn start(&mut self) -> Result<(), Failure> {
        self.process = None;
        self.starts += 1;
        let stderr = self.scratch.join(format!("stderr-{}.txt", self.starts));
        let talk = Dialogue::start(self.setup.command, &self.setup.limits, &stderr)?;
        self.process =
            Some(Process { talk, greeted: false, loaded: false, sent: "nothing yet".into() });
        Ok(())
    }

    pub fn fresh(&mut self) -> Result<(), Stop> {
        if self.unanswered >= PATIENCE {
            let what = format!("not tried: {PATIENCE} requests were not answered before");
            return Err(Stop::Skip(what));
        }
        self.start().map_err(|failure| {
            Stop::wrong("nothing: the process is started", failure.message, "it starts every time")
        })
    }

    /// Kills what is running: after a failure nobody knows what it will say next.
    pub fn discard(&mut self) {
        self.process = None;
    }

    /// A process that has been told nothing yet, or has only refused what it was told.
    pub fn ungreeted(&mut self) -> Result<(), Stop> {
        match &self.process {
            Some(process) if !process.greeted => Ok(()),
            _ => self.fresh(),
        }
    }

    /// A process that has said hello and has no model.
    pub fn unloaded(&mut self) -> Result<(), Stop> {
        if self.process.as_ref().is_some_and(|p| p.greeted && !p.loaded) {
            return Ok(());
        }
        self.fresh()?;
        self.greet(json!({"type": "hello", "protocol": PROTOCOL_VERSION})).map(|_| ())
    }

    /// A process with the model loaded.
    pub fn ready(&mut self) -> Result<(), Stop> {
        if self.process.as_ref().is_some_and(|p| p.loaded) {
            return Ok(());
        }
        self.unloaded()?;
        self.load(self.load_request(self.setup.model_dir))
    }

    pub fn greet(&mut self, request: Value) -> Result<HelloResponse, Stop> {
        match self.ask(&request, "a hello", self.setup.limits.hello)? {
            Response::Hello(hello) => {
                self.process_mut()?.greeted = true;
                Ok(hello)
            }
            other => Err(self.unexpected(&other, "a hello")),
        }
    }

    /// Loads; from now on the process counts as ready.
    pub fn load(&mut self, request: Value) -> Result<(), Stop> {
        match self.ask(&request, "loaded", self.setup.limits.load)? {
            Response::Loaded { .. } => {
                self.process_mut()?.loaded = true;
                Ok(())
            }
            other => Err(self.unexpected(&other, "loaded")),
        }
    }

    /// What a check did to the model leaves none that others may count on.
    pub fn forget_model(&mut self) {
        if let Some(process) = &mut self.process {
            process.loaded = false;
        }
    }

    /// Loads the model again into the process that is there.
    pub fn load_again(&mut self) -> Result<(), Stop> {
        self.load(self.load_request(self.setup.model_dir))
    }

    pub fn load_request(&self, folder: &Path) -> Value {
        let threads = self.setup.threads;
        json!({"type": "load", "model_dir": folder, "dtype": "f32", "threads": threads})
    }

    /// Ends stdin and waits; how it ended, with the last words sent.
    pub fn finish(&mut self) -> Result<(Finished, String), Stop> {
        let process = self.process.take().ok_or_else(|| Stop::Skip("nothing is running".into()))?;
        let limit = Instant::now() + self.setup.limits.case.min(Duration::from_secs(30));
        Ok((process.talk.finish(limit), process.sent))
    }

    pub fn end_input(&mut self) -> Result<(), Stop> {
        self.process_mut()?.talk.end_input();
        Ok(())
    }

    fn process_mut(&mut self) -> Result<&mut Process, Stop> {
        self.process.as_mut().ok_or_else(|| Stop::Skip("nothing is running".into()))
    }

    // Messages.

    pub fn send(&mut self, request: &Value) -> Result<(), Stop> {
        self.send_lines(&[request])
    }

    /// Several requests at one blow, before the first can be answered.
    pub fn send_lines(&mut self, requests: &[&Value]) -> Result<(), Stop> {
        let lines: Vec<String> = requests.iter().map(|r| r.to_string()).collect();
        self.send_raw(&lines.join("\n"))
    }

    pub fn send_raw(&mut self, text: &str) -> Result<(), Stop> {
        let process = self.process_mut()?;
        process.sent = shorten(text, SHOWN);
        process.talk.send(format!("{text}\n").as_bytes());
        Ok(())
    }

    pub fn ask(
        &mut self,
        request: &Value,
        expected: &str,
        limit: Duration,
    ) -> Result<Response, Stop> {
        self.send(request)?;
        self.receive(expected, Instant::now() + limit)
    }

    /// The next message. What isn't protocol is written down and passed over.
    pub fn receive(&mut self, expected: &str, deadline: Instant) -> Result<Response, Stop> {
        loop {
            let process = self.process_mut()?;
            let sent = process.sent.clone();
            let mut ended = false;
            let found = match process.talk.hear(deadline) {
                Heard::Line(line) => {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    if serde_json::from_slice::<Map<String, Value>>(&line).is_err() {
                        self.noise.push((self.current, shorten(&text, SHOWN)));
                        if self.noise.len() <= MOST_NOISE {
                            continue;
                        }
                        format!("{MOST_NOISE} lines on stdout that are no messages")
                    } else {
                        match serde_json::from_slice(&line) {
                            Ok(response) => return Ok(response),
                            Err(error) => {
                                let error = shorten(&error.to_string(), SHOWN);
                                format!("{} ({error})", shorten(&text, SHOWN))
                            }
                        }
                    }
                }
                Heard::TooLong(start) => {
                    self.noise.push((self.current, start.clone()));
                    format!("a line of more than 16 MB: {start}")
                }
                Heard::Silence => {
                    self.unanswered += 1;
                    let limit = self.setup.limits.case;
                    format!("no answer within {}; it was killed", human_time(limit))
                }
                Heard::Ended { exit, unfinished } => {
                    ended = true;
                    let how = match exit {
                        Some(exit) => format!("it ended ({exit})"),
                        None => "it closed its stdout and ran on".to_string(),
                    };
                    let cut = match unfinished.as_str() {
                        "" => String::new(),
                        text => format!(" in the middle of a line: {text}"),
                    };
                    let said = match process.talk.stderr_tail() {
                        tail if tail.trim().is_empty() => String::new(),
                        tail => {
                            let last: Vec<&str> = tail.trim().lines().rev().take(3).collect();
                            let last: Vec<&str> = last.into_iter().rev().collect();
                            format!("; stderr ends with: {}", shorten(&last.join(" | "), SHOWN))
                        }
                    };
                    let noise = match self.noise.last() {
                        Some((check, line)) if *check == self.current => {
                            format!("; its last line on stdout, which is no message: {line}")
                        }
                        _ => String::new(),
                    };
                    format!("{how}{cut}{said}{noise}")
                }
            };
            self.discard();
            let mend = ended.then(|| self.mend_an_end(&sent, &found));
            let stop = Stop::wrong(sent, found, expected);
            return Err(match mend {
                Some(mend) => stop.mended_by(mend),
                None => stop,
            });
        }
    }

    /// A program that ends in mid-dialogue needs other advice than one that answers wrongly, and the same
    /// end at several checks needs it once.
    fn mend_an_end(&mut self, sent: &str, found: &str) -> String {
        let sent = shorten(sent, SHOWN);
        let first = self.ends.iter().find(|(f, _)| f == found);
        if let Some((_, check)) = first {
            return format!("It ends as at check {check}: mend that first.");
        }
        self.ends.push((found.to_string(), self.current));
        format!(
            "It ended instead of answering. Run it by hand (`{}`), give it a hello, then what was sent \
             ({sent}), and see what it says on stderr.",
            self.setup.command.display()
        )
    }

    /// Another answer than was due.
    pub fn unexpected(&self, found: &Response, expected: &str) -> Stop {
        let found = serde_json::to_string(found).unwrap_or_default();
        Stop::wrong(self.sent(), shorten(&found, SHOWN), expected)
    }

    pub fn wrong(&self, found: impl Into<String>, expected: impl Into<String>) -> Stop {
        Stop::wrong(self.sent(), found, expected)
    }

    /// What was sent last.
    pub fn sent(&self) -> String {
        self.process.as_ref().map(|p| p.sent.clone()).unwrap_or_default()
    }

    /// Asks, and holds the answer to being an error of this class for this id.
    pub fn refuses(
        &mut self,
        request: &Value,
        class: ErrorClass,
        id: Option<&str>,
    ) -> Result<(), Stop> {
        self.send(request)?;
        self.hears_refusal(class, id)
    }

    pub fn hears_refusal(&mut self, class: ErrorClass, id: Option<&str>) -> Result<(), Stop> {
        let expected = refusal(class, id);
        let answer = self.receive(&expected, Instant::now() + self.setup.limits.case)?;
        match &answer {
            Response::Error(error) => self.is_refusal(error, class, id),
            // The run is going on: what else it sends would be taken for the next one's.
            Response::Tensor(_) => Err(self.unexpected(&answer, &expected)),
            other => Err(self.unexpected(other, &expected)),
        }
    }

    pub fn is_refusal(
        &self,
        error: &ErrorMessage,
        class: ErrorClass,
        id: Option<&str>,
    ) -> Result<(), Stop> {
        let said = Response::Error(error.clone());
        if error.class != class || error.id.as_deref() != id {
            return Err(self.unexpected(&said, &refusal(class, id)));
        }
        match error.message.trim().is_empty() || error.message.contains('\n') {
            true => Err(self.unexpected(&said, "a message of one line")),
            false => Ok(()),
        }
    }
}

fn refusal(class: ErrorClass, id: Option<&str>) -> String {
    let class = match class {
        ErrorClass::Unsupported => "unsupported",
        ErrorClass::Input => "input",
        ErrorClass::Resource => "resource",
        ErrorClass::Internal => "internal",
    };
    match id {
        Some(id) => format!("an error of class {class} with id {id}"),
        None => format!("an error of class {class} without an id"),
    }
}
