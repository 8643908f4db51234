//! The daemon: OpenAI-compatible completions over HTTP, many at once, and a look at the checkpoints while it serves.
//!
//! In reading order: [`args`] says how it is started; [`net`] accepts connections, [`access`] says who may ask, [`api`] has the
//! endpoints; [`engine`] owns the model and computes what is asked; [`metrics`] counts; [`shutdown`] ends it all.

mod access;
mod api;
mod args;
mod engine;
mod log;
mod metrics;
mod net;
mod shutdown;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::error::{Error, Result};
use access::Access;
use api::App;
pub use args::ServeArgs;
use engine::Engine;
use metrics::Metrics;
use net::Limits;

/// Serves until SIGTERM or Ctrl-C; returns the exit code.
///
/// The address is bound before the model is fetched and loaded, so that `/health` can answer 503
/// meanwhile. Where it listens is said once there is a model to load.
pub fn run(args: ServeArgs, quiet: bool) -> Result<u8> {
    log::start(&args, quiet);
    // The model computes on its own threads; two are plenty for sockets.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    let failed = |source| Error::Service { action: "start the daemon".into(), source };
    let runtime = runtime.map_err(failed)?;
    let code = runtime.block_on(serve(args));
    // What still reads a long text for somebody who is gone is not waited for.
    runtime.shutdown_background();
    code
}

async fn serve(args: ServeArgs) -> Result<u8> {
    let failed = |source| Error::Service {
        action: format!("listen on {}:{}", args.host, args.port),
        source,
    };
    let listener = TcpListener::bind((args.host.as_str(), args.port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let metrics = Arc::new(Metrics::new());
    let (announce, stopping) = watch::channel(false);
    let is_loopback = address.ip().is_loopback();
    let access = Access::new(&args, is_loopback, metrics.clone(), stopping.clone())?;
    if !is_loopback && args.api_key.is_none() && args.api_key_file.is_none() {
        tracing::warn!("everybody who can reach {address} may ask: no key is set");
    }
    if let Some(store) = &args.store {
        usable(store)?;
    }
    let engine = Engine::start(&args, metrics.clone());
    let engine =
        Arc::new(engine.map_err(|e| Error::Service {
            action: "start the engine's thread".into(),
            source: e,
        })?);
    let waiting = engine.clone();
    tokio::spawn(async move {
        if waiting.found().await {
            // Whoever closed our output doesn't want to know.
            let _ = writeln!(std::io::stdout(), "listening on http://{address}");
        }
    });
    let app = App {
        engine: engine.clone(),
        metrics: metrics.clone(),
        model: args.model.model.as_str().into(),
        dtype: args.model.dtype,
        started: seconds_since_1970(),
        max_body: args.max_body,
        body_timeout: Duration::from_secs(args.header_timeout),
        store: args.store.as_deref().map(Into::into),
        max_capture: args.max_capture.saturating_mul(1_000_000),
        log_text: args.log_text,
        stopping,
    };
    let router = api::router().with_state(app);
    let limits = Limits {
        connections: net::room_for(args.max_connections),
        header_timeout: Duration::from_secs(args.header_timeout),
        write_timeout: Duration::from_secs(args.write_timeout),
    };
    let drain = Duration::from_secs(args.drain);
    let router = access.guard(router);
    shutdown::serve(listener, router, engine, limits, metrics, drain, announce)
        .await
        .map_err(failed)
}

/// Makes a folder, unless there is one, and sees whether something can be made in it.
fn usable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, e))?;
    let trial = tempfile::tempdir_in(folder).map_err(|e| Error::io("write to", folder, e))?;
    trial.close().map_err(|e| Error::io("write to", folder, e))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A number that differs from request to request; the hasher's keys are random in each process.
fn fresh_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(SystemTime::now())
}

/// A request's own id.
fn fresh_id() -> String {
    format!("req-{:016x}", fresh_number())
}
