//! The end: a signal stops the daemon from accepting, what it accepted is finished, a second signal
//! or the end of the patience cuts.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::engine::Engine;
use super::metrics::Metrics;
use super::net::{self, LINGER, Limits};

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
    let served = net::serve(listener, router, limits, metrics.clone(), wait);
    tokio::pin!(served);
    tokio::select! {
        () = &mut served => return Ok(0),
        () = signal()? => tracing::info!("stopping: finishing what was accepted"),
        code = failed(&engine) => return Ok(code),
    }
    let _ = stopping.send(true);
    tokio::select! {
        () = &mut served => Ok(0),
        second = second_signal() => {
            second?;
            tracing::error!("stopped by a second signal: {} unfinished", metrics.unfinished());
            Ok(130)
        }
        // Even with no time to drain, what is idle ends well.
        () = tokio::time::sleep(LINGER + drain.max(Duration::from_millis(200))) => {
            let s = drain.as_secs();
            tracing::error!("stopped after {s} s: {} unfinished", metrics.unfinished());
            Ok(1)
        }
        code = failed(&engine) => Ok(code),
    }
}

/// Ends when the engine turns out not to work, with the exit code for that.
async fn failed(engine: &Engine) -> u8 {
    let failed = engine.failed().await;
    tracing::error!("{}", failed.message);
    failed.exit_code
}

/// A signal that somebody sends because the first one wasn't enough. Some senders send each twice.
async fn second_signal() -> std::io::Result<()> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal()?.await;
    Ok(())
}

/// SIGTERM, Ctrl-C, or the end of the terminal.
fn signal() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    use tokio::signal::unix::{SignalKind, signal};
    #[cfg(unix)]
    let (mut term, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = term.recv() => {}
            _ = hangup.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    })
}
