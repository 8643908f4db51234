//! The end: a signal stops the daemon from accepting, what it accepted is finished, a second signal
//! or the end of the patience cuts.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use llorch_models::progress::Progress;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::engine::Engine;
use super::metrics::Metrics;
use super::net::{self, Limits};

/// Serves until a signal; the exit code is 0 if everything accepted was finished within `drain`. `stopping` becomes true with
/// the signal.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    engine: Arc<Engine>,
    limits: Limits,
    metrics: Arc<Metrics>,
    drain: Duration,
    stopping: watch::Sender<bool>,
) -> std::io::Result<u8> {
    let mut seen = stopping.subscribe();
    let wait = async move {
        let _ = seen.wait_for(|stopping| *stopping).await;
    };
    let served = net::serve(listener, router, limits, metrics, wait);
    tokio::pin!(served);
    tokio::select! {
        () = &mut served => return Ok(0),
        () = signal()? => Progress::new(false).say("stopping: finishing what was accepted"),
        code = failed(&engine) => return Ok(code),
    }
    let _ = stopping.send(true);
    tokio::select! {
        () = &mut served => Ok(0),
        () = signal()? => {
            llorch_models::errln!("stopped by a second signal");
            Ok(130)
        }
        () = tokio::time::sleep(drain) => {
            let s = drain.as_secs();
            llorch_models::errln!("stopped: not everything was finished within {s} s");
            Ok(1)
        }
        code = failed(&engine) => Ok(code),
    }
}

/// Ends when the engine turns out not to work, with the exit code for that.
async fn failed(engine: &Engine) -> u8 {
    let failed = engine.failed().await;
    llorch_models::errln!("error: {}", failed.message);
    failed.exit_code
}

/// SIGTERM or Ctrl-C.
fn signal() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    })
}
