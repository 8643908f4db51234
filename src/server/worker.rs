//! The one owner of the model: a thread that answers jobs from a bounded queue, one at a time.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};

use llorch_models::ResolvedModel;
use llorch_models::progress::Progress;
use tokio::sync::{mpsc, watch};

use super::stop::StopMatcher;
use super::{Loaded, ServeArgs};
use crate::cli::load as load_model;
use crate::error::{Error, Result};
use crate::generate::{Finish, Options, generate};
use crate::model::Model;
use crate::probe::NoProbe;
use crate::tokenizer::{TextStream, Tokenizer};

/// Events that a slow client may leave unread before the worker waits for it.
const EVENTS: usize = 64;

/// One request, ready to run.
#[derive(Debug)]
pub struct Job {
    pub ids: Vec<u32>,
    pub options: Options,
    pub stop: Vec<String>,
    /// How many of the most likely tokens to give with each; `None` for no logprobs at all.
    pub logprobs: Option<usize>,
    pub events: mpsc::Sender<Event>,
}

/// What a job gives, in this order: tokens, then one `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    Token(Token),
    Done { finish: FinishReason, tail: String },
    Failed(Error),
}

#[derive(Debug, Clone)]
pub struct Token {
    pub id: u32,
    /// The text that this token completes; empty while a character or a stop string is unfinished.
    pub text: String,
    pub logprob: Option<TokenLogprob>,
}

/// log softmax of the model's own logits, before temperature and filters.
#[derive(Debug, Clone)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f64,
    pub top: Vec<(String, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Why a job was not taken.
#[derive(Debug)]
pub enum Refused {
    Loading,
    Full,
    /// The model could not be loaded, or the daemon is going down.
    Down(String),
}

#[derive(Debug)]
pub struct Worker {
    jobs: SyncSender<Job>,
    /// Set once the model is there, or can't be.
    state: Arc<OnceLock<std::result::Result<Ready, Failed>>>,
    found: watch::Receiver<bool>,
}

#[derive(Debug)]
pub struct Ready {
    pub info: Loaded,
    pub tokenizer: Arc<Tokenizer>,
}

#[derive(Debug, Clone)]
pub struct Failed {
    pub message: String,
    pub exit_code: u8,
}

impl Worker {
    /// Starts the thread, which loads the model first.
    pub fn start(args: ServeArgs) -> Worker {
        let (jobs, queue) = sync_channel(args.queue.max(1));
        let (announce, found) = watch::channel(false);
        let state = Arc::new(OnceLock::new());
        let shared = state.clone();
        std::thread::spawn(move || work(&args, &queue, &shared, announce));
        Worker { jobs, state, found }
    }

    /// Waits until there is a model to load: a folder that is whole. False if there is none.
    pub async fn found(&self) -> bool {
        self.found.clone().wait_for(|found| *found).await.is_ok()
    }

    /// `None` while the model is loading.
    pub fn state(&self) -> Option<std::result::Result<&Ready, &Failed>> {
        self.state.get().map(|s| s.as_ref())
    }

    pub fn ready(&self) -> std::result::Result<&Ready, Refused> {
        match self.state() {
            None => Err(Refused::Loading),
            Some(Err(failed)) => Err(Refused::Down(failed.message.clone())),
            Some(Ok(ready)) => Ok(ready),
        }
    }

    pub fn submit(&self, job: Job) -> std::result::Result<(), Refused> {
        self.jobs.try_send(job).map_err(|e| match e {
            TrySendError::Full(_) => Refused::Full,
            TrySendError::Disconnected(_) => Refused::Down("the engine has stopped".into()),
        })
    }
}

/// A channel for one job's events.
pub fn events() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(EVENTS)
}

fn work(
    args: &ServeArgs,
    queue: &Receiver<Job>,
    state: &OnceLock<std::result::Result<Ready, Failed>>,
    announce: watch::Sender<bool>,
) {
    let loaded = args.model.resolve().and_then(|resolved| {
        let _ = announce.send(true);
        load(args, &resolved)
    });
    let (model, tokenizer) = match loaded {
        Ok((model, tokenizer, info)) => {
            let tokenizer = Arc::new(tokenizer);
            let _ = state.set(Ok(Ready { info, tokenizer: tokenizer.clone() }));
            let (name, threads) = (&args.model.model, model.threads());
            Progress::new(false).say(&format!("{name} is ready, {threads} threads"));
            (model, tokenizer)
        }
        Err(e) => {
            let _ = state.set(Err(Failed { message: e.to_string(), exit_code: e.exit_code() }));
            return;
        }
    };
    let mut cache = model.new_cache();
    while let Ok(job) = queue.recv() {
        // Whoever hung up while waiting costs nothing.
        if job.events.is_closed() {
            continue;
        }
        let events = job.events.clone();
        let last = match answer(&model, &tokenizer, &mut cache, job) {
            Ok((finish, tail)) => Event::Done { finish, tail },
            Err(e) => Event::Failed(e),
        };
        let _ = events.blocking_send(last);
    }
}

fn load(args: &ServeArgs, resolved: &ResolvedModel) -> Result<(Model, Tokenizer, Loaded)> {
    let tokenizer = Tokenizer::load(&resolved.dir)?;
    let model = load_model(resolved, &args.model)?;
    let config = model.config();
    let info = Loaded {
        n_positions: config.n_positions,
        vocab_size: config.vocab_size,
        end_of_text: config.eos_token_id,
    };
    Ok((model, tokenizer, info))
}

fn answer(
    model: &Model,
    tokenizer: &Tokenizer,
    cache: &mut crate::kv_cache::KvCache,
    job: Job,
) -> Result<(FinishReason, String)> {
    let mut text = TextStream::new();
    let mut stop = StopMatcher::new(job.stop);
    let mut stopped = false;
    let mut failed = None;
    let done = generate(model, cache, &job.ids, &job.options, &mut NoProbe, |step| {
        // The token that ends the text is no part of it.
        if job.options.stop_ids.contains(&step.id) {
            return ControlFlow::Continue(());
        }
        let piece = match text.push(tokenizer, step.id) {
            Ok(piece) => piece,
            Err(e) => {
                failed = Some(e);
                return ControlFlow::Break(());
            }
        };
        let (piece, found) = stop.push(&piece);
        let logprob = job.logprobs.map(|n| logprob(tokenizer, step.logits, step.id, n));
        let token = Token { id: step.id, text: piece, logprob };
        stopped = found;
        // An error means that the client is gone: nobody reads on.
        match job.events.blocking_send(Event::Token(token)) {
            Ok(()) if !found => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    if stopped {
        return Ok((FinishReason::Stop, String::new()));
    }
    let rest = text.finish(tokenizer)?;
    let (mut tail, found) = stop.push(&rest);
    if !found {
        tail.push_str(&stop.finish());
    }
    let finish = match done.finish {
        Finish::StopId => FinishReason::Stop,
        _ if found => FinishReason::Stop,
        _ => FinishReason::Length,
    };
    Ok((finish, tail))
}

fn logprob(tokenizer: &Tokenizer, logits: &[f32], id: u32, n: usize) -> TokenLogprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let log_sum = max + logits.iter().map(|l| (*l as f64 - max).exp()).sum::<f64>().ln();
    let text = |id: u32| tokenizer.decode(&[id]).unwrap_or_default();
    let of = |id: u32| logits.get(id as usize).map_or(f64::NEG_INFINITY, |l| *l as f64 - log_sum);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let higher = |a: &u32, b: &u32| of(*b).total_cmp(&of(*a)).then(a.cmp(b));
    let n = n.min(order.len());
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n, higher);
    }
    order.truncate(n);
    order.sort_by(higher);
    TokenLogprob {
        token: text(id),
        logprob: of(id),
        top: order.into_iter().map(|i| (text(i), of(i))).collect(),
    }
}
