//! The engine as the rest of the daemon sees it: loading, ready or gone.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use llorch_models::ResolvedModel;
use tokio::sync::watch;

use super::capture::Capture;
use super::room::{Order, Room};
use super::sequence::Task;
use super::ticket::{Ticket, Tickets};
use crate::cli::load as load_model;
use crate::error::Result;
use crate::kv_cache::KvCache;
use crate::model::Model;
use crate::server::args::ServeArgs;
use crate::server::metrics::Metrics;
use crate::tokenizer::Tokenizer;

const ENDED: &str = "the engine has ended by a fault of its own";

/// Why a request was not taken on.
#[derive(Debug)]
pub enum Refused {
    Loading,
    /// As many are accepted as may be.
    Full,
    /// The model could not be loaded, or the engine has ended.
    Down(String),
}

#[derive(Debug)]
pub struct Engine {
    orders: Sender<Order>,
    tickets: Arc<Tickets>,
    /// Set once the model is there, or can't be.
    loaded: Arc<OnceLock<Loaded>>,
    found: watch::Receiver<bool>,
    /// Closed when the thread has ended.
    alive: watch::Receiver<()>,
    /// After which a request is given up.
    patience: Duration,
}

type Loaded = std::result::Result<Ready, Failed>;

/// A model that is ready.
#[derive(Debug)]
pub struct Ready {
    pub tokenizer: Arc<Tokenizer>,
    pub sha256: String,
    pub config: crate::config::Config,
}

#[derive(Debug, Clone)]
pub struct Failed {
    pub message: String,
    pub exit_code: u8,
}

impl Engine {
    /// Starts the thread, which loads the model first.
    pub fn start(args: &ServeArgs, metrics: Arc<Metrics>) -> std::io::Result<Engine> {
        let (orders, taken) = channel();
        let (announce, found) = watch::channel(false);
        let (living, alive) = watch::channel(());
        let loaded = Arc::new(OnceLock::new());
        let tickets = Tickets::new(args.max_batch + args.queue, metrics.clone());
        let patience = Duration::from_secs(args.request_timeout);
        let (args, theirs) = (args.clone(), loaded.clone());
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            // Dropped last, when all else has been told.
            let _living = living;
            work(&args, taken, &theirs, announce, metrics);
        })?;
        Ok(Engine { orders, tickets, loaded, found, alive, patience })
    }

    /// Waits until there is a model to load: a folder that is whole. False if there is none.
    pub async fn found(&self) -> bool {
        self.found.clone().wait_for(|found| *found).await.is_ok()
    }

    /// What it answers with, or why it doesn't.
    pub fn ready(&self) -> std::result::Result<&Ready, Refused> {
        match self.loaded.get() {
            None => Err(Refused::Loading),
            Some(Err(failed)) => Err(Refused::Down(failed.message.clone())),
            Some(Ok(_)) if self.alive.has_changed().is_err() => Err(Refused::Down(ENDED.into())),
            Some(Ok(ready)) => Ok(ready),
        }
    }

    /// Ends when the daemon can't go on, with the reason.
    pub async fn failed(&self) -> Failed {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
        match self.loaded.get() {
            Some(Err(failed)) => failed.clone(),
            _ => Failed { message: ENDED.into(), exit_code: 5 },
        }
    }

    /// A place for a request of so many sequences, and when its time is over.
    pub fn ticket(&self, sequences: usize) -> std::result::Result<(Arc<Ticket>, Instant), Refused> {
        let ticket = self.tickets.take(sequences).ok_or(Refused::Full)?;
        Ok((ticket, Instant::now() + self.patience))
    }

    pub fn complete(&self, tasks: Vec<Task>) -> std::result::Result<(), Refused> {
        self.order(Order::Complete(tasks))
    }

    pub fn capture(&self, capture: Capture) -> std::result::Result<(), Refused> {
        self.order(Order::Capture(capture))
    }

    fn order(&self, order: Order) -> std::result::Result<(), Refused> {
        let gone = |_| Refused::Down(ENDED.into());
        self.orders.send(order).map_err(gone)
    }
}

fn work(
    args: &ServeArgs,
    orders: Receiver<Order>,
    state: &OnceLock<Loaded>,
    announce: watch::Sender<bool>,
    metrics: Arc<Metrics>,
) {
    let loaded = args.model.resolve().and_then(|resolved| {
        let _ = announce.send(true);
        load(args, &resolved)
    });
    let (model, ready) = match loaded {
        Ok(loaded) => loaded,
        Err(e) => {
            let failed = Failed { message: e.to_string(), exit_code: e.exit_code() };
            let _ = state.set(Err(failed));
            return;
        }
    };
    let tokenizer = ready.tokenizer.clone();
    let caches = args.max_batch * KvCache::bytes(model.config(), args.model.dtype);
    metrics.is_ready(caches);
    let name = &args.model.model;
    tracing::info!(
        "{name} is ready: {} threads, {} sequences at once, {} MB for their keys and values",
        model.threads(),
        args.max_batch,
        caches / 1_000_000
    );
    let room = Room::new(model, tokenizer, args.max_batch, orders, metrics);
    let _ = state.set(Ok(ready));
    room.run();
}

fn load(args: &ServeArgs, resolved: &ResolvedModel) -> Result<(Model, Ready)> {
    let tokenizer = Arc::new(Tokenizer::load(&resolved.dir)?);
    let model = load_model(resolved, &args.model)?;
    let sha256 = resolved.weights_sha256().to_string();
    let config = model.config().clone();
    Ok((model, Ready { tokenizer, sha256, config }))
}
