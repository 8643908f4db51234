//! The conversation: one JSON object a line, until stdin ends.

use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use llorch_trace::{Dtype, Precision};
use llorch_trace::protocol::{
    DoneMessage, ErrorMessage, PROTOCOL_VERSION, Request, Response, RunRequest,
};

use crate::failure::{Failure, Result};
use crate::hello::hello;
use crate::model::{self, Model};
use crate::recorder::Recorder;
use crate::run::{Outcome, run};
use crate::tokenizer::LazyTokenizer;
use crate::variant::Variant;
use crate::{process, request};

/// The most threads that a `load` may ask for: beyond it is a mistake, not a machine.
const MAX_THREADS: usize = 1024;

pub(crate) fn send(output: &mut dyn Write, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

/// Answers until stdin ends. The error is that of writing: nobody listens any more.
pub fn serve(variant: Variant, mut output: impl Write + Send) -> io::Result<()> {
    let mut inbox = Inbox::start();
    let mut server = Server { variant, loaded: None, runs: 0 };
    while let Some(line) = inbox.next() {
        let answered =
            parse(&line).and_then(|request| server.answer(request, &mut inbox, &mut output));
        let response = match answered {
            Ok(None) => continue,
            Ok(Some(response)) => response,
            Err(failure) => Response::Error(ErrorMessage {
                id: id_of(&line),
                class: failure.class,
                message: failure.message,
            }),
        };
        send(&mut output, &response)?;
    }
    Ok(())
}

struct Server {
    variant: Variant,
    loaded: Option<Loaded>,
    /// Cases run so far.
    runs: usize,
}

struct Loaded {
    model: Box<dyn Model>,
    tokenizer: LazyTokenizer,
    pool: rayon::ThreadPool,
}

impl Server {
    fn answer(
        &mut self,
        request: Request,
        inbox: &mut Inbox,
        output: &mut (dyn Write + Send),
    ) -> Result<Option<Response>> {
        Ok(Some(match request {
            Request::Hello { protocol: PROTOCOL_VERSION } => Response::Hello(hello(self.variant)),
            Request::Hello { protocol } => {
                return Err(Failure::unsupported(format!(
                    "protocol {protocol}; this adapter speaks {PROTOCOL_VERSION}"
                )));
            }
            Request::Load { dtype: Precision::Int8, .. } => {
                return Err(Failure::unsupported("int8: this adapter computes in floats"));
            }
            Request::Load { model_dir, dtype: Precision::Float(dtype), threads } => {
                let start = Instant::now();
                // The old model's memory first.
                self.loaded = None;
                self.loaded = Some(load(self.variant, &model_dir, dtype, threads)?);
                Response::Loaded { seconds: Some(start.elapsed().as_secs_f64()), dtype: None }
            }
            Request::Tokenize { id, text } => {
                let ids = loaded(&mut self.loaded)?.tokenizer.encode(&text)?;
                Response::Tokens { id, ids }
            }
            Request::Run(request) => {
                self.runs += 1;
                let loaded = loaded(&mut self.loaded)?;
                let done = loaded.run(&request, self.runs, inbox, output)?;
                Response::Done(done)
            }
            Request::Draw(_) => {
                return Err(Failure::unsupported(
                    "draw: this adapter draws within runs only",
                ));
            }
            // What it names is over, or it would have been seen by the run itself.
            Request::Cancel { .. } => return Ok(None),
        }))
    }
}

fn loaded(loaded: &mut Option<Loaded>) -> Result<&mut Loaded> {
    loaded.as_mut().ok_or_else(|| Failure::input("no model is loaded; send load first"))
}

fn load(variant: Variant, model_dir: &Path, dtype: Dtype, threads: usize) -> Result<Loaded> {
    if threads > MAX_THREADS {
        return Err(Failure::input(format!(
            "threads is {threads}; expected at most {MAX_THREADS}"
        )));
    }
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    process::set_candle_threads(threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Failure::resource(format!("failed to start {threads} threads: {e}")))?;
    let model = guard(|| pool.install(|| model::load(variant, model_dir, dtype)))?;
    Ok(Loaded { model, tokenizer: LazyTokenizer::new(model_dir), pool })
}

impl Loaded {
    fn run(
        &mut self,
        request: &RunRequest,
        serial: usize,
        inbox: &mut Inbox,
        output: &mut (dyn Write + Send),
    ) -> Result<DoneMessage> {
        let Loaded { model, tokenizer, pool } = self;
        let plan = request::plan(request, model.as_ref())?;
        let mut recorder = Recorder::new(&request.id, plan, &request.out_dir, serial, output)?;
        // The whole run on the pool's threads: Candle's operations then need no hand-over each.
        let Outcome { generated, seconds } = guard(|| {
            pool.install(|| {
                run(model.as_mut(), request, &mut recorder, || inbox.cancels(&request.id))
            })
        })?;
        let text = request.text.then(|| tokenizer.decode(&generated)).flatten();
        let id = request.id.clone();
        Ok(DoneMessage { id, generated, text, seconds, ..DoneMessage::default() })
    }
}

/// A panic below becomes an answer; the next case starts from an empty cache anyway.
fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let says = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_string()
    };
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Failure::internal(format!("panicked: {}", says(panic)))))
}

fn parse(line: &[u8]) -> Result<Request> {
    let json: serde_json::Value = serde_json::from_slice(line)
        .map_err(|e| Failure::input(format!("failed to read a request: {e}")))?;
    let Some(kind) = json.get("type").and_then(|t| t.as_str()).map(String::from) else {
        return Err(Failure::input("failed to read a request: it is no object with a type"));
    };
    serde_json::from_value(json).map_err(|e| {
        let known = ["hello", "load", "tokenize", "run", "cancel"].contains(&kind.as_str());
        match known {
            true => Failure::input(format!("failed to read a {kind} request: {e}")),
            false => {
                Failure::unsupported(format!("failed to read a request: unknown type {kind:?}"))
            }
        }
    })
}

/// The id of a request of whatever form, for the error that answers it.
fn id_of(line: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(line).ok()?;
    Some(json.get("id")?.as_str()?.to_string())
}

/// Lines of stdin, read by a thread of their own so that a run sees its cancellation.
struct Inbox {
    lines: Receiver<Vec<u8>>,
    waiting: VecDeque<Vec<u8>>,
}

impl Inbox {
    fn start() -> Inbox {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut input = io::stdin().lock();
            loop {
                let mut line = Vec::new();
                match input.read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if line.trim_ascii().is_empty() => {}
                    Ok(_) => {
                        if sender.send(line).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Inbox { lines, waiting: VecDeque::new() }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front().or_else(|| self.lines.recv().ok())
    }

    /// Whether a cancel for this id has come; other requests wait their turn.
    fn cancels(&mut self, id: &str) -> bool {
        self.waiting.extend(self.lines.try_iter());
        let names = |line: &Vec<u8>| matches!(parse(line), Ok(Request::Cancel { id: named }) if named == id);
        let found = self.waiting.iter().position(names);
        found.is_some_and(|at| self.waiting.remove(at).is_some())
    }
}
