//! The end: a signal stops the daemon from accepting, what it accepted is finished, a second signal
//! or the end of the patience cuts.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use llorch_models::progress::Progress;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::worker::Worker;

/// How long accepted requests may take to finish. A connection that sends its headers slowly is never
/// closed by the server itself, so something must end the wait.
const DRAIN: Duration = Duration::from_secs(60);

/// Serves until a signal; the exit code is 0 if everything accepted was finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    worker: Arc<Worker>,
) -> std::io::Result<u8> {
    let (announce, stopping) = watch::channel(false);
    let mut seen = stopping.clone();
    let wait = async move {
        let _ = seen.wait_for(|stopping| *stopping).await;
    };
    let served = axum::serve(listener, router).with_graceful_shutdown(wait).into_future();
    tokio::pin!(served);
    tokio::select! {
        done = &mut served => return done.map(|()| 0),
        () = signal()? => Progress::new(false).say("stopping: finishing what was accepted"),
        code = failed(&worker) => return Ok(code),
    }
    let _ = announce.send(true);
    tokio::select! {
        done = &mut served => done.map(|()| 0),
        () = signal()? => {
            llorch_models::errln!("stopped by a second signal");
            Ok(130)
        }
        () = tokio::time::sleep(DRAIN) => {
            llorch_models::errln!("stopped: not everything was finished within {} s", DRAIN.as_secs());
            Ok(1)
        }
    }
}

/// Ends when the model turns out not to load, with the exit code for that.
async fn failed(worker: &Worker) -> u8 {
    loop {
        match worker.state() {
            None => tokio::time::sleep(Duration::from_millis(20)).await,
            Some(Err(failed)) => {
                llorch_models::errln!("error: {}", failed.message);
                return failed.exit_code;
            }
            Some(Ok(_)) => return std::future::pending().await,
        }
    }
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
