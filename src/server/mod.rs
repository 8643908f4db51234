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

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

use worker::Worker;

/// How the daemon is started.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// nano, synth:gpt2, gpt2, a hub id or a folder
    #[arg(long, default_value = "nano", env = "LLORCH_MODEL")]
    pub model: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", env = "LLORCH_HOST")]
    pub host: String,
    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 8080, env = "LLORCH_PORT")]
    pub port: u16,
    /// Threads of the engine; 0 takes as many as the machine has
    #[arg(long, default_value_t = 0, env = "LLORCH_THREADS")]
    pub threads: usize,
    /// Requests that may wait while one is answered; more are refused with 429
    #[arg(long, default_value_t = 32, env = "LLORCH_QUEUE")]
    pub queue: usize,
    /// Never ask the hub
    #[arg(long)]
    pub offline: bool,
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
/// The address is bound before the model is loaded, so that `/health` can answer 503 meanwhile.
pub fn run(args: &ServeArgs) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &ServeArgs) -> anyhow::Result<u8> {
    let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port)).await;
    let listener = match listener {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("error: failed to listen on {}:{}: {e}", args.host, args.port);
            return Ok(3);
        }
    };
    let address: SocketAddr = listener.local_addr()?;
    println!("listening on http://{address}");
    let worker = Arc::new(Worker::start(args.clone()));
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let app = App { worker: worker.clone(), model: args.model.as_str().into(), started };
    let served = shutdown::serve(listener, router(app), worker.clone()).await?;
    Ok(served)
}

/// The model's folder, as the worker resolved it.
#[derive(Debug, Clone)]
struct Loaded {
    dir: PathBuf,
    n_positions: usize,
    vocab_size: usize,
    end_of_text: Option<u32>,
}
