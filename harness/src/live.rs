//! One implementation, spoken to directly: what `export` and `golden` need of an adapter, without the
//! cases, rows and faults of a run. Whatever goes wrong ends the conversation with an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llorch_trace::files::write_npy;
use llorch_trace::protocol::{
    DrawRequest, HelloResponse, Inject, RunRequest, Sampling, Seconds, TensorFile, TensorMessage,
};
use llorch_trace::{Dims, Dtype, Point, Precision, Tensor};

use crate::collect::tensors;
use crate::evidence::Case;
use crate::supervise::{AdapterCommand, Failure, Limits, Session};

#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error(transparent)]
    Adapter(#[from] Failure),
    #[error(transparent)]
    Trace(#[from] llorch_trace::Error),
    #[error("failed to run {name}: {what}")]
    Tensor { name: String, what: String },
    #[error("failed to make a temporary folder: {0}")]
    Scratch(std::io::Error),
}

/// What it computes in, with how many threads, and how long it may take.
#[derive(Debug, Clone)]
pub struct Setup {
    pub dtype: Precision,
    pub threads: usize,
    pub limits: Limits,
}

/// A loaded implementation.
#[derive(Debug)]
pub struct Live {
    session: Session,
    dims: Dims,
    scratch: tempfile::TempDir,
    runs: usize,
    /// From the request to load the model to its answer.
    pub load_seconds: f64,
}

/// One run: the prompt, what to capture, how far to go.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    pub ids: Vec<u32>,
    /// Globs.
    pub points: Vec<String>,
    pub max_new_tokens: usize,
    pub forced_ids: Option<Vec<u32>>,
    pub sampling: Sampling,
    pub inject: Vec<Inject>,
    /// More sequences at the same time.
    pub beside: Vec<Vec<u32>>,
    pub without_text: bool,
}

#[derive(Debug, Default)]
pub struct Captured {
    pub tensors: BTreeMap<(usize, Point), Tensor>,
    pub generated: Vec<u32>,
    pub text: Option<String>,
    /// What the sequences of `beside` went on with.
    pub beside: Vec<Vec<u32>>,
    pub seconds: Seconds,
}

impl Captured {
    /// The tensor, or a sentence that says that it did not come.
    pub fn get(&self, step: usize, point: Point) -> Result<&Tensor, String> {
        self.tensors
            .get(&(step, point))
            .ok_or_else(|| format!("{point} at step {step} was asked for and did not come"))
    }
}

impl Live {
    /// Starts the adapter and loads the model, to compute with all cores.
    pub fn start(
        command: &AdapterCommand,
        model_dir: &Path,
        dtype: Dtype,
    ) -> Result<Live, LiveError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let setup = Setup { dtype: dtype.into(), threads, limits: Limits::default() };
        Live::start_with(command, model_dir, &setup)
    }

    pub fn start_with(
        command: &AdapterCommand,
        model_dir: &Path,
        setup: &Setup,
    ) -> Result<Live, LiveError> {
        let scratch = tempfile::Builder::new()
            .prefix("llorch-live-")
            .tempdir()
            .map_err(LiveError::Scratch)?;
        let dims = Dims::from_config_file(&model_dir.join("config.json"))?;
        let stderr = scratch.path().join("stderr.txt");
        let mut session = Session::start(command, &setup.limits, &stderr)?;
        let began = Instant::now();
        session.load(model_dir, setup.dtype, setup.threads)?;
        let load_seconds = began.elapsed().as_secs_f64();
        Ok(Live { session, dims, scratch, runs: 0, load_seconds })
    }

    pub fn hello(&self) -> &HelloResponse {
        self.session.hello()
    }

    /// The id of the adapter's process.
    pub fn process_id(&self) -> i32 {
        self.session.process_id()
    }

    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    pub fn tokenize(&mut self, text: &str) -> Result<Vec<u32>, LiveError> {
        Ok(self.session.tokenize(text)?)
    }

    pub fn run(&mut self, ask: Ask) -> Result<Captured, LiveError> {
        let name = self.session.name().to_string();
        let out_dir = self.folder()?;
        let _cleanup = crate::supervise::remove_on_interrupt(&out_dir);
        let case = Case {
            name: format!("run-{}", self.runs),
            prompt: None,
            ids: ask.ids.clone(),
            max_new_tokens: ask.max_new_tokens,
            sampling: ask.sampling,
            forced_ids: Vec::new(),
        };
        let request = RunRequest {
            id: case.name.clone(),
            ids: ask.ids,
            points: ask.points,
            max_new_tokens: ask.max_new_tokens,
            forced_ids: ask.forced_ids,
            sampling: ask.sampling,
            inject: ask.inject,
            out_dir: out_dir.clone(),
            beside: ask.beside,
            text: !ask.without_text,
        };
        let mut captured = Captured::default();
        let mut wrong: Option<String> = None;
        let dims = self.dims;
        let done = self.session.run(request, &mut |message| {
            match take(message, &case, &dims, &out_dir) {
                Ok((point, tensor)) => {
                    captured.tensors.insert((message.step, point), tensor);
                }
                Err(what) => {
                    wrong.get_or_insert(format!(
                        "{} at step {}: {what}",
                        message.point, message.step
                    ));
                }
            }
            tensors::remove_after_reading(message, &out_dir);
        })?;
        let _ = std::fs::remove_dir_all(&out_dir);
        if let Some(what) = wrong {
            return Err(LiveError::Tensor { name, what });
        }
        captured.generated = done.generated;
        captured.text = done.text;
        captured.beside = done.beside;
        captured.seconds = done.seconds;
        Ok(captured)
    }

    /// Tokens drawn from `logits`, `[V]`, one after another from one generator.
    pub fn draw(
        &mut self,
        logits: &Tensor,
        sampling: Sampling,
        draws: usize,
    ) -> Result<Vec<u32>, LiveError> {
        let name = self.session.name().to_string();
        let out_dir = self.folder()?;
        let _cleanup = crate::supervise::remove_on_interrupt(&out_dir);
        let file = out_dir.join("logits.npy");
        write_npy(&file, logits)?;
        let request = DrawRequest {
            id: format!("draw-{}", self.runs),
            logits: TensorFile { file, key: None },
            sampling,
            draws,
            out_dir: out_dir.clone(),
        };
        let mut drawn = Err("no draws came".to_string());
        self.session.draw(request, &mut |message| {
            drawn = tensors::read_draws(message, draws, logits.len(), &out_dir);
        })?;
        let _ = std::fs::remove_dir_all(&out_dir);
        drawn.map_err(|what| LiveError::Tensor { name, what })
    }

    /// A folder of its own for each request.
    fn folder(&mut self) -> Result<PathBuf, LiveError> {
        self.runs += 1;
        let folder = self.scratch.path().join(format!("run-{}", self.runs));
        // Resolved, so that what the adapter calls absolute is below it.
        let made = std::fs::create_dir(&folder).and_then(|()| folder.canonicalize());
        made.map_err(LiveError::Scratch)
    }

    pub fn finish(self) {
        self.session.finish();
    }
}

fn take(
    message: &TensorMessage,
    case: &Case,
    dims: &Dims,
    out_dir: &Path,
) -> Result<(Point, Tensor), String> {
    let point: Point = message.point.parse().map_err(|e: llorch_trace::Error| e.to_string())?;
    let tensor = tensors::read(message, point, case, dims, out_dir).map_err(|(_, what)| what)?;
    Ok((point, tensor))
}
