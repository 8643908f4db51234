//! What is asked of the adapter on the bench: runs, and of what it may be asked at all.

use std::path::{Path, PathBuf};
use std::time::Instant;

use llorch_trace::protocol::{DoneMessage, ErrorMessage, Response, TensorMessage};
use llorch_trace::{Point, all_points};
use serde_json::{Value, json};

use super::bench::Bench;
use super::check::Stop;
use super::running::COMPONENTS;

/// One `run`, from request to end.
#[derive(Debug)]
pub struct Ran {
    pub sent: String,
    pub request: Value,
    pub out_dir: PathBuf,
    pub tensors: Vec<TensorMessage>,
    pub end: End,
}

#[derive(Debug)]
pub enum End {
    Done(DoneMessage),
    Error(ErrorMessage),
}

impl Bench<'_> {
    /// A `run` with an id and a folder of its own; `fields` are added, or replace those.
    pub fn run_request(&mut self, fields: Value) -> Value {
        self.requests += 1;
        let id = format!("{}-{}", self.current, self.requests);
        let out_dir = self.scratch.join("out").join(&id);
        let mut request =
            json!({"type": "run", "id": id, "ids": self.prompt(), "out_dir": out_dir});
        if let (Some(request), Value::Object(fields)) = (request.as_object_mut(), fields) {
            request.extend(fields);
        }
        request
    }

    pub fn run(&mut self, fields: Value) -> Result<Ran, Stop> {
        self.ready()?;
        let request = self.run_request(fields);
        self.send(&request)?;
        self.hear_run(request)
    }

    /// A run that must end well.
    pub fn done(&mut self, fields: Value) -> Result<(Ran, DoneMessage), Stop> {
        let ran = self.run(fields)?;
        match &ran.end {
            End::Done(done) => {
                let done = done.clone();
                Ok((ran, done))
            }
            End::Error(error) => Err(self.unexpected(&Response::Error(error.clone()), "a done")),
        }
    }

    /// All that comes of a request that was sent, until its end.
    pub fn hear_run(&mut self, request: Value) -> Result<Ran, Stop> {
        let id = request["id"].as_str().unwrap_or_default().to_string();
        let deadline = Instant::now() + self.setup.limits.case;
        let expected = format!("tensors of run {id}, and one done");
        let mut tensors = Vec::new();
        loop {
            let response = self.receive(&expected, deadline)?;
            let found = match &response {
                Response::Tensor(tensor) => Some(tensor.id.clone()),
                Response::Done(done) => Some(done.id.clone()),
                Response::Error(error) => error.id.clone(),
                _ => None,
            };
            if found.as_deref() != Some(&id) {
                return Err(self.unexpected(&response, &expected));
            }
            let end = match response {
                Response::Tensor(tensor) => {
                    tensors.push(tensor);
                    continue;
                }
                Response::Done(done) => End::Done(done),
                Response::Error(error) => End::Error(error),
                other => return Err(self.unexpected(&other, &expected)),
            };
            let out_dir = PathBuf::from(request["out_dir"].as_str().unwrap_or_default());
            return Ok(Ran { sent: self.sent(), request, out_dir, tensors, end });
        }
    }

    /// Whether it still works after what was just done to it.
    pub fn alive(&mut self) -> Result<(), Stop> {
        let after = self.sent();
        if self.can(COMPONENTS) {
            return self.load_again();
        }
        match self.done(json!({})) {
            Err(Stop::Wrong(mut wrong)) => {
                wrong.sent = format!("{after}, then {}", wrong.sent);
                wrong.expected = "it goes on after an error".into();
                Err(Stop::Wrong(wrong))
            }
            other => other.map(|_| ()),
        }
    }

    // What may be asked.

    /// A prompt of five tokens, or as many as the model has room for.
    pub fn prompt(&self) -> Vec<u32> {
        self.ids(self.setup.dims.n_positions.saturating_sub(3).clamp(1, 5), 13)
    }

    /// `n` token ids that differ from one another where the vocabulary allows it.
    pub fn ids(&self, n: usize, from: usize) -> Vec<u32> {
        let vocab = self.setup.dims.vocab_size;
        (0..n).map(|i| ((from + 7919 * i) % vocab) as u32).collect()
    }

    pub fn can(&self, capability: &str) -> bool {
        self.hello.as_ref().is_some_and(|hello| hello.can(capability))
    }

    /// Goes on only with this capability.
    pub fn needs(&self, capability: &str) -> Result<(), Stop> {
        match self.can(capability) {
            true => Ok(()),
            false => Err(Stop::Skip(format!("capability `{capability}` isn't declared"))),
        }
    }

    /// N where decode steps are to be seen too.
    pub fn steps(&self) -> usize {
        if self.can("generate") && self.setup.dims.n_positions > 3 { 3 } else { 0 }
    }

    /// Whether a point can be captured.
    pub fn shows(&self, point: &str) -> bool {
        let hello = self.hello.as_ref();
        hello.is_some_and(|h| h.can("capture") && h.unsupported_reason(point).is_none())
    }

    /// The points that must come when all are asked for, in data-flow order.
    pub fn points(&self) -> Vec<Point> {
        let all = all_points(self.setup.dims.n_layer);
        all.into_iter().filter(|point| self.shows(&point.to_string())).collect()
    }

    /// The parent of all `out_dir`s, and what stands in it: one folder a run, and stderr beside it.
    pub fn strays(&self) -> Vec<PathBuf> {
        let entries = |dir: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_string();
        let here = entries(self.scratch).into_iter().filter(|path| {
            let name = name(path);
            !["out", "in", "models"].contains(&name.as_str()) && !name.starts_with("stderr-")
        });
        let runs = entries(&self.scratch.join("out")).into_iter().filter(|path| !path.is_dir());
        here.chain(runs).collect()
    }

    /// A file that the adapter may read.
    pub fn input_file(&self, name: &str) -> PathBuf {
        self.scratch.join("in").join(name)
    }

    /// A folder for a model that is made for a check.
    pub fn model_folder(&self, name: &str) -> PathBuf {
        self.scratch.join("models").join(name)
    }
}
