//! The daemon, first form: OpenAI-compatible completions over HTTP, one generation at a time.
//!
//! In reading order: [`worker`] owns the model and answers jobs from a bounded queue; [`request`] turns
//! a JSON body into a job or an error of OpenAI's form; [`completions`] answers, whole or as a stream;
//! [`stop`] looks for stop strings; [`routes`] are the other endpoints; [`shutdown`] ends it all.

mod completions;
mod error;
mod request;
mod routes;
mod shutdown;
mod stop;
mod worker;

use std::io::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::cli::ModelArgs;
use crate::error::{Error, Result};
use worker::Worker;

/// How the daemon is started.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 takes a free one, which the first line of output names
    #[arg(long, default_value_t = 8080)]
    pub port: u16,

    /// Requests that may wait while one is answered; more are refused with 429
    #[arg(long, default_value_t = 32)]
    pub queue: usize,
}

/// What every handler sees.
#[derive(Debug, Clone)]
struct App {
    worker: Arc<Worker>,
    /// The name under which the model is listed and asked for.
    model: Arc<str>,
    /// Seconds since 1970 at the start, which `GET /v1/models` gives as `created`.
    started: u64,
}

/// A prompt fills at most a few kilobytes; this bounds what a client can make the daemon hold.
const MAX_BODY: usize = 1 << 20;

fn router(app: App) -> Router {
    Router::new()
        .route("/health", get(routes::health))
        .route("/v1/models", get(routes::models))
        .route("/tokenize", post(routes::tokenize))
        .route("/v1/completions", post(completions::create))
        .fallback(routes::not_found)
        .method_not_allowed_fallback(routes::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

/// Serves until SIGTERM or Ctrl-C; returns the exit code.
///
/// The address is bound before the model is fetched and loaded, so that `/health` can answer 503
/// meanwhile. Where it listens is said once there is a model to load.
pub fn run(args: ServeArgs) -> Result<u8> {
    // The model computes on its own threads; two are plenty for sockets.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    let failed = |source| Error::Service { action: "start the daemon".into(), source };
    runtime.map_err(failed)?.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> Result<u8> {
    let failed = |source| Error::Service {
        action: format!("listen on {}:{}", args.host, args.port),
        source,
    };
    let listener = TcpListener::bind((args.host.as_str(), args.port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let model = args.model.model.as_str().into();
    let worker = Arc::new(Worker::start(args.clone()));
    let waiting = worker.clone();
    tokio::spawn(async move {
        if waiting.found().await {
            // Whoever closed our output doesn't want to know.
            let _ = writeln!(std::io::stdout(), "listening on http://{address}");
        }
    });
    let started = seconds_since_1970();
    let app = App { worker: worker.clone(), model, started };
    shutdown::serve(listener, router(app), worker).await.map_err(failed)
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    n_positions: usize,
    vocab_size: usize,
    end_of_text: Option<u32>,
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A number that differs from request to request; the hasher's keys are random in each process.
fn fresh_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(SystemTime::now())
}
