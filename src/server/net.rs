//! Connections: accepted, limited, and brought to an end.
//!
//! An accept loop of our own, because that of axum gives a client all the time in the world to send its headers.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::ConnectInfo;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower::Service;

use super::api::error::ApiError;
use super::fresh_id;
use super::metrics::Metrics;

/// What a connection beyond the limit is told.
fn busy() -> String {
    let error = ApiError::server(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        "too many connections; try again later",
    );
    let body = serde_json::to_string(&error.body()).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nx-request-id: {}\r\n\
         retry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        fresh_id(),
        body.len()
    )
}

/// How long requests that are already on their way may still come in on open connections once the daemon ends.
pub const LINGER: Duration = Duration::from_millis(300);

/// Files that the daemon opens beside connections: the log, the model, the runtime's own, bundles that are written.
const OTHER_FILES: u64 = 64;

/// How many connections there can be of those that may be: each takes a descriptor. Asks the system for as many; says so where
/// there are too few.
pub fn room_for(connections: usize) -> usize {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let wanted = connections as u64 + OTHER_FILES;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // Absent: unlimited.
        let Some(now) = current.filter(|now| *now < wanted) else { return connections };
        let had = maximum.map_or(wanted, |most| most.min(wanted));
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(had), maximum });
        let had = if raised.is_ok() { had } else { now };
        if had < wanted {
            let room = had.saturating_sub(OTHER_FILES).max(had / 4).max(1) as usize;
            tracing::warn!(
                "only {had} files may be open (ulimit -n): {room} connections are taken, not {connections}"
            );
            return room;
        }
    }
    connections
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub connections: usize,
    pub header_timeout: Duration,
    /// How long a client may read nothing while there is something for it.
    pub write_timeout: Duration,
}

/// Accepts until `stop` is over, then lets what was accepted finish; returns when all connections are closed.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    // The time-out holds from the moment at which a request could come: an idle connection ends by it too.
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);

    let take = |stream: TcpStream| {
        let Ok(place) = places.clone().try_acquire_owned() else {
            metrics.refused("connections");
            tokio::spawn(turn_away(stream));
            return;
        };
        // Small writes are events of a stream: each is wanted at once.
        let _ = stream.set_nodelay(true);
        let peer = stream.peer_addr().ok();
        let router = router.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(ConnectInfo(peer));
            }
            // A router is always ready.
            router.clone().call(request)
        });
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write_timeout));
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let watched = graceful.watch(connection);
        let metrics = metrics.clone();
        metrics.connections.inc();
        tokio::spawn(async move {
            // An error is a client that went away or doesn't speak HTTP: nothing to tell anybody.
            if let Err(e) = watched.await {
                tracing::debug!("a connection ended: {e}");
            }
            metrics.connections.dec();
            drop(place);
        });
    };

    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => take(stream),
                Err(e) if is_of_one_connection(&e) => {}
                Err(e) => {
                    // No descriptors left, say: some will be given back.
                    tracing::warn!("failed to accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = &mut stop => break,
        }
    }
    // Who has connected before the end is let in: the system had accepted them.
    let in_queue = async {
        while let Ok((stream, _)) = listener.accept().await {
            take(stream);
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(1), in_queue).await;
    drop(listener);
    tokio::time::sleep(LINGER).await;
    graceful.shutdown().await;
}

fn is_of_one_connection(e: &std::io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers without reading: whoever it is, there is no room.
async fn turn_away(mut stream: TcpStream) {
    let answer = async {
        stream.write_all(busy().as_bytes()).await?;
        stream.shutdown().await?;
        // What the client was sending is read, or the answer would be lost with it.
        let mut rest = [0; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_one_too_many_is_as_long_as_it_says() {
        let text = busy();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "too_many_connections");
    }
}
