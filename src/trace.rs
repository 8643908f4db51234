//! `llorch-cpud trace`: this engine as an adapter of the differential-testing protocol.
//!
//! JSON Lines over standard input and output; tensors go into files. `adapters/PROTOCOL.md` tells
//! what each message means. Requests are answered one after another; a thread of its own reads them,
//! so that `cancel` is seen while a run is going on.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llorch_trace::files::{read_npy, read_safetensors, write_npy};
use llorch_trace::lines::{Cancelled, read_lines, write_line};
use llorch_trace::protocol::{
    DRAWS, DoneMessage, DrawRequest, ErrorClass, ErrorMessage, HelloResponse, Inject, MOST_DRAWS,
    PROTOCOL_VERSION, Request, Response, RunRequest, Seconds, TensorFile, TensorMessage, Worth,
};
use llorch_trace::{Dtype, Point, PointSet, Precision, Stage, Tensor, all_points};

use crate::error::Error;
use crate::generate::{Finish, Options, generate, generate_batch};
use crate::kv_cache::KvCache;
use crate::model::Model;
use crate::ops::simd;
use crate::packed::Format;
use crate::probe::{Injector, NoProbe, Recorder};
use crate::sampler::{Sampler, Sampling};
use crate::tokenizer::Tokenizer;

const CAPABILITIES: [&str; 9] = [
    "capture",
    "tokenize",
    "generate",
    "inject",
    "sample",
    "draw",
    "bench",
    "batch",
    "deterministic",
];

/// Request types; any other is `unsupported`.
const KNOWN: [&str; 6] = ["hello", "load", "tokenize", "run", "draw", "cancel"];

/// Native tensor to canonical point; points that are captured as they are computed have no line.
const RECIPES: [(&str, &str); 7] = [
    ("h.*.attn.q", "first third of linear(ln_1, attn.c_attn); t (h d) -> h t d"),
    ("h.*.attn.k", "second third of linear(ln_1, attn.c_attn); t (h d) -> h t d"),
    ("h.*.attn.v", "last third of linear(ln_1, attn.c_attn); t (h d) -> h t d"),
    ("h.*.attn.cache.k", "blocks of 64 positions, transposed; h (s/64) d 64 -> h s d"),
    ("h.*.attn.cache.v", "rows by position, 64 dimensions at a time; h (d/64) s 64 -> h s d"),
    ("h.*.attn.scores", "q k^T / sqrt(d), summed over d; masked cells are -inf"),
    ("h.*.attn.context", "probs v; h t d -> t (h d)"),
];

/// An error with its class in the protocol.
#[derive(Debug)]
struct Failure {
    class: ErrorClass,
    message: String,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let class = match &e {
            Error::Unsupported { .. } => ErrorClass::Unsupported,
            Error::Internal { .. } => ErrorClass::Internal,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ErrorClass::Resource
            }
            _ => ErrorClass::Input,
        };
        Failure { class, message: e.to_string() }
    }
}

impl From<llorch_trace::Error> for Failure {
    fn from(e: llorch_trace::Error) -> Failure {
        Error::from(e).into()
    }
}

fn input(message: impl Into<String>) -> Failure {
    Failure { class: ErrorClass::Input, message: message.into() }
}

/// Serves requests from `requests` until it ends. `answers` is the real standard output, which nothing
/// else in this program writes to.
///
/// # Errors
/// Only that the answers can't be written any more.
pub fn serve(
    requests: impl BufRead + Send + 'static,
    answers: &mut (impl Write + Send),
) -> std::io::Result<()> {
    let cancelled = Cancelled::default();
    let lines = read_lines(requests, cancelled.clone());
    let mut adapter = Adapter { loaded: None, cancelled, answers };
    for line in lines {
        adapter.answer(&line)?;
    }
    Ok(())
}

struct Loaded {
    model: Model,
    /// One for each sequence that has run at once, so that the first is always there.
    caches: Vec<KvCache>,
    tokenizer: LazyTokenizer,
}

/// Read when somebody wants text: it takes some 50 MB.
struct LazyTokenizer {
    dir: PathBuf,
    tokenizer: Option<Tokenizer>,
}

impl LazyTokenizer {
    /// None where the folder has no such files.
    fn get(&mut self) -> crate::Result<Option<&Tokenizer>> {
        let has = |name: &str| self.dir.join(name).is_file();
        let is_there = has("tokenizer.json") || (has("vocab.json") && has("merges.txt"));
        if self.tokenizer.is_none() && is_there {
            self.tokenizer = Some(Tokenizer::load(&self.dir)?);
        }
        Ok(self.tokenizer.as_ref())
    }
}

struct Adapter<'a, W> {
    loaded: Option<Loaded>,
    cancelled: Cancelled,
    answers: &'a mut W,
}

impl<W: Write + Send> Adapter<'_, W> {
    fn answer(&mut self, line: &[u8]) -> std::io::Result<()> {
        let value: serde_json::Value = match serde_json::from_slice(line) {
            Ok(value @ serde_json::Value::Object(_)) => value,
            Ok(_) => {
                return self.fail(None, input("failed to read a request: expected a JSON object"));
            }
            Err(e) => {
                return self.fail(None, input(format!("failed to read a request: not JSON: {e}")));
            }
        };
        let id = value.get("id").and_then(|id| id.as_str()).map(str::to_owned);
        let kind = value.get("type").and_then(|t| t.as_str()).unwrap_or_default().to_owned();
        let outcome = match serde_json::from_value::<Request>(value) {
            Ok(request) => self.handle(request),
            Err(_) if !KNOWN.contains(&kind.as_str()) => Err(Failure {
                class: ErrorClass::Unsupported,
                message: format!(
                    "failed to answer a request of type {kind:?}: expected {}",
                    KNOWN.join(", ")
                ),
            }),
            Err(e) => Err(input(format!("failed to read a request of type {kind:?}: {e}"))),
        };
        match outcome {
            Ok(Ok(response)) => self.send(&response),
            Ok(Err(gone)) => Err(gone),
            Err(failure) => self.fail(id, failure),
        }
    }

    /// The inner error is that of writing answers.
    fn handle(&mut self, request: Request) -> Result<std::io::Result<Response>, Failure> {
        match request {
            Request::Hello { protocol } => hello(protocol).map(Ok),
            Request::Load { model_dir, dtype, threads } => {
                let started = Instant::now();
                self.loaded = None;
                self.loaded = Some(load(&model_dir, dtype, threads)?);
                Ok(Ok(Response::Loaded {
                    seconds: Some(started.elapsed().as_secs_f64()),
                    dtype: None,
                }))
            }
            Request::Tokenize { id, text } => {
                let Loaded { tokenizer, .. } = loaded(&mut self.loaded)?;
                let tokenizer = tokenizer.get()?.ok_or_else(|| Failure {
                    class: ErrorClass::Unsupported,
                    message: "failed to tokenize: the model folder holds no tokenizer".into(),
                })?;
                Ok(Ok(Response::Tokens { id, ids: tokenizer.encode(&text)? }))
            }
            Request::Run(run) => self.run(run),
            Request::Draw(draw) => self.draw(draw),
            Request::Cancel { .. } => Err(input("failed to cancel: there is no such run")),
        }
    }

    fn run(&mut self, request: RunRequest) -> Result<std::io::Result<Response>, Failure> {
        let Loaded { model, caches, tokenizer } = loaded(&mut self.loaded)?;
        let options = Options {
            max_new_tokens: request.max_new_tokens,
            sampling: sampling(&request.sampling),
            stop_ids: vec![],
            forced_ids: request.forced_ids,
        };
        crate::generate::check(model, &request.ids, &options)?;
        let injector = injector(model, &request.inject, options.max_new_tokens.max(1))?;
        let points = PointSet::new(&request.points);

        let (id, cancelled) = (&request.id, &self.cancelled);
        if cancelled.contains(id) {
            return Err(cancelled_failure());
        }
        let on_step = || match cancelled.contains(id) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let on_token = |_: &crate::generate::Step<'_>| on_step();
        let mut gone = None;
        let mut beside = Vec::new();
        let generated = if !request.beside.is_empty() {
            if !points.is_empty() || !request.inject.is_empty() {
                let what = "points and inject are for one sequence; expected none with beside";
                return Err(input(format!("failed to run several sequences: {what}")));
            }
            let prompts: Vec<&[u32]> =
                std::iter::once(&request.ids).chain(&request.beside).map(Vec::as_slice).collect();
            caches.resize_with(prompts.len(), || model.new_cache());
            let all = generate_batch(model, caches, &prompts, &options, on_step);
            all.map(|mut all| {
                beside = all.split_off(1).into_iter().map(|generation| generation.ids).collect();
                all.remove(0)
            })
        } else if points.is_empty() && request.inject.is_empty() {
            generate(model, &mut caches[0], &request.ids, &options, &mut NoProbe, on_token)
        } else {
            let n_layer = model.config().n_layer;
            let captures = || all_points(n_layer).into_iter().any(|p| points.contains_point(p));
            let out_dir = match request.out_dir.as_os_str().is_empty() {
                true if captures() => {
                    return Err(input("out_dir is missing: there is nowhere to put the tensors"));
                }
                true => PathBuf::new(),
                false => make_folder(&request.out_dir)?,
            };
            let answers = &mut *self.answers;
            let recorder = Recorder::new(points, |step, point, tensor| {
                let message = keep(&out_dir, id, step, &point.to_string(), &tensor)?;
                write_line(answers, &Response::Tensor(message)).map_err(|e| {
                    gone = Some(e);
                    Error::internal("answer", "standard output is closed")
                })
            });
            let mut probe = (injector, recorder);
            generate(model, &mut caches[0], &request.ids, &options, &mut probe, on_token)
        };
        if let Some(gone) = gone {
            return Ok(Err(gone));
        }
        let generated = generated?;
        if generated.finish == Finish::Cancelled {
            return Err(cancelled_failure());
        }
        let tokenizer = if request.text { tokenizer.get()? } else { None };
        let text = tokenizer.map(|tokenizer| tokenizer.decode(&generated.ids)).transpose()?;
        let seconds = Seconds {
            prefill: Some(generated.prefill.as_secs_f64()),
            decode: Some(generated.decode.as_secs_f64()),
        };
        Ok(Ok(Response::Done(DoneMessage {
            id: request.id,
            generated: generated.ids,
            text,
            beside,
            seconds,
        })))
    }

    /// Draws from logits that were given: by the sampler of a run, which no model is needed for.
    fn draw(&mut self, request: DrawRequest) -> Result<std::io::Result<Response>, Failure> {
        let sampling = sampling(&request.sampling);
        if sampling.temperature == 0.0 {
            return Err(input("failed to draw: temperature is 0; expected more than 0"));
        }
        if request.draws > MOST_DRAWS {
            let n = request.draws;
            return Err(input(format!(
                "failed to draw: draws is {n}; expected at most {MOST_DRAWS}"
            )));
        }
        let mut sampler = Sampler::new(sampling)?;
        let TensorFile { file, key } = &request.logits;
        let logits = read_tensor(file, key.as_deref())?;
        let values: Vec<f32> = match (logits.shape.len(), logits.dtype()) {
            (1, dtype) if dtype != Dtype::I64 && !logits.is_empty() => {
                (0..logits.len()).map(|i| logits.get(i) as f32).collect()
            }
            (_, dtype) => {
                let found = format!("{} holds {dtype} {:?}", file.display(), logits.shape);
                return Err(input(format!("failed to draw: {found}; expected one row of floats")));
            }
        };
        let drawn = sampler.draw_many(&sampler.probabilities(&values), request.draws)?;
        let drawn = Tensor::i64(vec![drawn.len()], drawn.into_iter().map(i64::from).collect());
        let out_dir = make_folder(&request.out_dir)?;
        let message = keep(&out_dir, &request.id, 0, DRAWS, &drawn)?;
        if let Err(gone) = self.send(&Response::Tensor(message)) {
            return Ok(Err(gone));
        }
        Ok(Ok(Response::Done(DoneMessage { id: request.id, ..DoneMessage::default() })))
    }

    fn fail(&mut self, id: Option<String>, failure: Failure) -> std::io::Result<()> {
        let Failure { class, message } = failure;
        self.send(&Response::Error(ErrorMessage { id, class, message }))
    }

    fn send(&mut self, response: &Response) -> std::io::Result<()> {
        write_line(self.answers, response)
    }
}

fn loaded(loaded: &mut Option<Loaded>) -> Result<&mut Loaded, Failure> {
    loaded
        .as_mut()
        .ok_or_else(|| input("failed to run: no model is loaded; expected a load request before"))
}

fn cancelled_failure() -> Failure {
    Failure { class: ErrorClass::Resource, message: "cancelled".into() }
}

fn hello(protocol: u32) -> Result<Response, Failure> {
    if protocol != PROTOCOL_VERSION {
        let message = format!(
            "failed to agree on a protocol: found version {protocol}, expected {PROTOCOL_VERSION}"
        );
        return Err(Failure { class: ErrorClass::Unsupported, message });
    }
    Ok(Response::Hello(HelloResponse {
        protocol: PROTOCOL_VERSION,
        name: "llorch-cpud".into(),
        version: format!("{} ({:?})", env!("CARGO_PKG_VERSION"), simd::level()).to_lowercase(),
        worth: Worth::Kernels,
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        unsupported: vec![],
        recipes: RECIPES
            .iter()
            .map(|(point, recipe)| (point.to_string(), recipe.to_string()))
            .collect::<BTreeMap<_, _>>(),
        deviations: vec![],
    }))
}

fn load(dir: &Path, dtype: Precision, threads: usize) -> Result<Loaded, Failure> {
    let format = match dtype {
        Precision::Float(Dtype::F32) => Format::F32,
        Precision::Float(Dtype::BF16) => Format::Bf16,
        Precision::Int8 => Format::Int8,
        _ => {
            let what =
                "this engine computes in f32, or in f32 on weights and inputs in bf16 or int8";
            let message = format!("failed to compute in {dtype}: {what}");
            return Err(Failure { class: ErrorClass::Unsupported, message });
        }
    };
    let model = Model::load(dir, format, threads)?;
    let caches = vec![model.new_cache()];
    let tokenizer = LazyTokenizer { dir: dir.to_owned(), tokenizer: None };
    Ok(Loaded { model, caches, tokenizer })
}

/// Reads the tensors to be put in place; every point and step must be one that the run will reach.
fn injector(model: &Model, inject: &[Inject], steps: usize) -> Result<Injector, Failure> {
    let mut injector = Injector::default();
    for Inject { point: name, step, file, key } in inject {
        let point: Point = name.parse()?;
        let n_layer = model.config().n_layer;
        if point.stage == Stage::Generated || point.layer.is_some_and(|layer| layer >= n_layer) {
            return Err(input(format!(
                "failed to inject {name}: the model has {n_layer} layers and no such point"
            )));
        }
        if *step >= steps {
            return Err(input(format!(
                "failed to inject {name} in step {step}: the run has {steps} steps"
            )));
        }
        injector.replace(*step, point, read_tensor(file, key.as_deref())?);
    }
    Ok(injector)
}

fn sampling(asked: &llorch_trace::protocol::Sampling) -> Sampling {
    Sampling {
        temperature: asked.temperature,
        top_k: asked.top_k,
        top_p: asked.top_p,
        seed: asked.seed,
        ..Sampling::default()
    }
}

fn read_tensor(file: &Path, key: Option<&str>) -> llorch_trace::Result<Tensor> {
    match key {
        Some(key) => read_safetensors(file, key),
        None => read_npy(file),
    }
}

/// Makes the folder where there is none; its absolute path.
fn make_folder(dir: &Path) -> crate::Result<PathBuf> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    std::path::absolute(dir).map_err(|e| Error::io("find", dir, e))
}

/// Writes one tensor and makes the message that announces it.
fn keep(
    out_dir: &Path,
    id: &str,
    step: usize,
    point: &str,
    tensor: &Tensor,
) -> crate::Result<TensorMessage> {
    let file: PathBuf = out_dir.join(format!("{step:04}_{point}.npy"));
    write_npy(&file, tensor)?;
    Ok(TensorMessage {
        id: id.to_owned(),
        point: point.to_string(),
        step,
        file,
        key: None,
        dtype: tensor.dtype(),
        shape: tensor.shape.clone(),
    })
}
