//! The conversation: requests of the adapter protocol in, HTTP to the daemon, its answers out.
//!
//! Runs with points, or with tokens that are given, go through `POST /v1/checkpoints`; a daemon that is left to itself
//! generates through `POST /v1/completions`, as its clients see it.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use llorch_trace::lines::{Cancelled, read_lines, write_line};
use llorch_trace::protocol::{
    DoneMessage, ErrorClass, ErrorMessage, HelloResponse, PROTOCOL_VERSION, Request, Response,
    RunRequest, Worth,
};
use llorch_trace::{Dims, Point, PointSet, Precision, all_points};
use serde_json::{Value, json};

use super::client::{Ask, Client, Health, Refused, rest};
use crate::lineup::ENGINE;

const CAPABILITIES: [&str; 6] =
    ["capture", "tokenize", "generate", "sample", "batch", "deterministic"];

/// Request types; any other is `unsupported`.
const KNOWN: [&str; 6] = ["hello", "load", "tokenize", "run", "draw", "cancel"];

/// Between two looks at whether the daemon has loaded its model.
const LOADING: Duration = Duration::from_millis(100);

/// Why a request ends without its answer.
pub(super) enum End {
    Refused(Refused),
    /// Nobody reads the answers any more.
    Gone(std::io::Error),
}

impl From<Refused> for End {
    fn from(refused: Refused) -> End {
        End::Refused(refused)
    }
}

fn refused(class: ErrorClass, message: impl Into<String>) -> End {
    End::Refused(Refused::new(class, message))
}

pub(super) fn failed(to: &str, error: impl std::fmt::Display) -> End {
    refused(ErrorClass::Resource, format!("failed to {to}: {error}"))
}

fn input(message: impl Into<String>) -> End {
    refused(ErrorClass::Input, message)
}

/// Answers `requests` until they end.
///
/// # Errors
/// Only that the answers can't be written any more.
pub fn serve(
    requests: impl BufRead + Send + 'static,
    answers: &mut impl Write,
    client: Client,
) -> std::io::Result<()> {
    let cancelled = Cancelled::default();
    let lines = read_lines(requests, cancelled.clone());
    let mut adapter = Adapter { client, dims: None, cancelled, answers };
    for line in lines {
        adapter.answer(&line)?;
    }
    Ok(())
}

pub(super) struct Adapter<'a, W> {
    pub(super) client: Client,
    /// Of the model, once it is known to be the daemon's.
    dims: Option<Dims>,
    pub(super) cancelled: Cancelled,
    answers: &'a mut W,
}

impl<W: Write> Adapter<'_, W> {
    fn answer(&mut self, line: &[u8]) -> std::io::Result<()> {
        let value: Value = serde_json::from_slice(line).unwrap_or_default();
        let id = value["id"].as_str().map(str::to_owned);
        let kind = value["type"].as_str().unwrap_or_default().to_owned();
        let answered = match serde_json::from_value::<Request>(value.clone()) {
            _ if !value.is_object() => {
                Err(input("failed to read a request: expected a JSON object"))
            }
            Ok(request) => self.handle(request),
            Err(_) if !KNOWN.contains(&kind.as_str()) => {
                let what = format!("failed to answer a request of type {kind:?}");
                let known = KNOWN.join(", ");
                Err(refused(ErrorClass::Unsupported, format!("{what}: expected {known}")))
            }
            Err(e) => Err(input(format!("failed to read a request of type {kind:?}: {e}"))),
        };
        match answered {
            Ok(response) => self.send(&response),
            Err(End::Gone(error)) => Err(error),
            Err(End::Refused(Refused { class, message })) => {
                self.send(&Response::Error(ErrorMessage { id, class, message }))
            }
        }
    }

    fn handle(&mut self, request: Request) -> Result<Response, End> {
        match request {
            Request::Hello { protocol } => self.hello(protocol),
            Request::Load { model_dir, dtype, .. } => self.load(&model_dir, dtype),
            Request::Tokenize { id, text } => {
                self.dims()?;
                let ids = self.client.tokenize(&text, &|| false)?;
                Ok(Response::Tokens { id, ids })
            }
            Request::Run(run) => self.run(run),
            Request::Draw(_) => {
                let what = "failed to draw: a daemon draws from no logits but its own";
                Err(refused(ErrorClass::Unsupported, what))
            }
            Request::Cancel { .. } => Err(input("failed to cancel: there is no such run")),
        }
    }

    /// Without a word to the daemon: whoever greets has not asked for anything yet.
    fn hello(&self, protocol: u32) -> Result<Response, End> {
        if protocol != PROTOCOL_VERSION {
            let what = "failed to agree on a protocol";
            let what = format!("{what}: found version {protocol}, expected {PROTOCOL_VERSION}");
            return Err(refused(ErrorClass::Unsupported, what));
        }
        let recipe = "as POST /v1/checkpoints gives it";
        Ok(Response::Hello(HelloResponse {
            protocol,
            name: ENGINE.into(),
            version: self.client.address().into(),
            worth: Worth::Kernels,
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            unsupported: Vec::new(),
            recipes: BTreeMap::from([("*".to_string(), recipe.to_string())]),
            deviations: Vec::new(),
        }))
    }

    /// The daemon has its model; this sees to it that it is the one that is meant.
    fn load(&mut self, model_dir: &Path, dtype: Precision) -> Result<Response, End> {
        let began = Instant::now();
        self.dims = None;
        let config = model_dir.join("config.json");
        let dims = Dims::from_config_file(&config).map_err(|e| input(e.to_string()))?;
        let ours = llorch_models::weights_sha256(model_dir).map_err(|e| input(e.to_string()))?;
        self.await_model()?;
        let serves = self.client.serves(&|| false)?;
        let name = self.client.name();
        if serves.sha256 != ours {
            let (theirs, dir) = (serves.sha256, model_dir.display());
            return Err(input(format!(
                "{name} serves other weights: their sha256 is {theirs}; expected {ours}, as model.safetensors in {dir}"
            )));
        }
        if serves.dtype != dtype.name() {
            let what = format!("{name} computes in {}; expected {dtype}", serves.dtype);
            return Err(refused(ErrorClass::Unsupported, what));
        }
        self.dims = Some(dims);
        Ok(Response::Loaded { seconds: Some(began.elapsed().as_secs_f64()), dtype: None })
    }

    fn await_model(&self) -> Result<(), End> {
        let mut told = false;
        loop {
            match self.client.health() {
                Health::Ready => return Ok(()),
                Health::Failed(reason) => return Err(refused(ErrorClass::Internal, reason)),
                Health::Unreachable(why) => {
                    return Err(refused(ErrorClass::Resource, self.client.unreachable(&why)));
                }
                Health::Loading => {
                    if !told {
                        llorch_models::errln!("{} is still loading", self.client.name());
                        told = true;
                    }
                    rest(LOADING, &|| false)?;
                }
            }
        }
    }

    fn dims(&self) -> Result<Dims, End> {
        const NONE: &str =
            "failed to run: no model is loaded; expected a load request that is answered before";
        self.dims.ok_or_else(|| input(NONE))
    }

    fn run(&mut self, run: RunRequest) -> Result<Response, End> {
        let dims = self.dims()?;
        if !run.inject.is_empty() {
            let what = "failed to inject: a daemon takes no values from outside";
            return Err(refused(ErrorClass::Unsupported, what));
        }
        check_room(&run, &dims)?;
        let set = PointSet::new(&run.points);
        let points: Vec<Point> =
            all_points(dims.n_layer).into_iter().filter(|p| set.contains_point(*p)).collect();
        if !points.is_empty() && !run.beside.is_empty() {
            return Err(input("failed to run: points are for one sequence; expected no beside"));
        }
        if !points.is_empty() && run.out_dir.as_os_str().is_empty() {
            return Err(input("out_dir is missing: there is nowhere to put the tensors"));
        }
        self.go_on(&run.id)?;
        let generates = run.max_new_tokens > 0 && run.forced_ids.is_none();
        let mut done = match points.is_empty() && generates {
            true => self.complete(&run)?,
            false => self.capture(&run, &dims, &points)?,
        };
        self.go_on(&run.id)?;
        done.text = done.text.filter(|_| run.text);
        Ok(Response::Done(DoneMessage { id: run.id, ..done }))
    }

    /// Fails once the run is cancelled.
    pub(super) fn go_on(&self, id: &str) -> Result<(), Refused> {
        if self.cancelled.contains(id) { Err(Refused::cancelled()) } else { Ok(()) }
    }

    /// Left to itself, and alone only as far as its other clients let it.
    fn complete(&self, run: &RunRequest) -> Result<DoneMessage, End> {
        let prompts: Vec<&Vec<u32>> = std::iter::once(&run.ids).chain(&run.beside).collect();
        let prompt = if run.beside.is_empty() { json!(run.ids) } else { json!(prompts) };
        let ask = Ask { prompt, max_tokens: run.max_new_tokens, sampling: &run.sampling };
        let generations = self.client.complete(&ask, &|| self.cancelled.contains(&run.id))?;
        let (found, expected) = (generations.len(), prompts.len());
        if found != expected {
            let name = self.client.name();
            let what = format!("{name} answered {expected} prompts with {found} choices");
            return Err(refused(ErrorClass::Internal, what));
        }
        let mut generations = generations.into_iter();
        let own = generations.next();
        Ok(DoneMessage {
            generated: own.as_ref().map(|g| g.ids.clone()).unwrap_or_default(),
            text: own.and_then(|g| g.text),
            beside: generations.map(|g| g.ids).collect(),
            ..DoneMessage::default()
        })
    }

    pub(super) fn send(&mut self, response: &Response) -> std::io::Result<()> {
        write_line(self.answers, response)
    }
}

/// What no model can run is refused here, so that what an answer may take is known.
fn check_room(run: &RunRequest, dims: &Dims) -> Result<(), End> {
    for ids in std::iter::once(&run.ids).chain(&run.beside) {
        if ids.is_empty() {
            return Err(input("failed to run: the prompt is empty; expected one id at least"));
        }
        let needs = ids.len().saturating_add(run.max_new_tokens.max(1)) - 1;
        if needs > dims.n_positions {
            return Err(input(format!(
                "context overflow: {} ids and {} new tokens need {needs} positions, the model has {}",
                ids.len(),
                run.max_new_tokens,
                dims.n_positions
            )));
        }
    }
    Ok(())
}
