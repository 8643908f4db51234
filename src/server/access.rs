//! Who may ask: keys, hosts, origins; and a line in the log for each answer.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use llorch_trace::hash::sha256_bytes;
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::api::OPEN;
use super::api::error::{ApiError, Cause};
use super::args::ServeArgs;
use super::fresh_id;
use super::metrics::Metrics;
use crate::error::{Error, Result};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// On every answer: a browser takes it for what it says it is, shows it in nobody's frame, and lets the built-in pages load
/// nothing from elsewhere.
const ALWAYS: [(HeaderName, &str); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

/// What is asked of everybody.
#[derive(Debug)]
pub struct Access {
    /// SHA-256 of each key, so that comparing takes the same time for keys of any length. Empty: none is asked for.
    keys: Vec<String>,
    /// Names under which the daemon may be asked, or any.
    hosts: Option<Vec<String>>,
    cors: Option<CorsLayer>,
    clients: RandomState,
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
}

/// Who asks, as far as turns are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Client(u64);

impl Client {
    /// One of those that `user` tells apart.
    pub fn of(self, user: Option<&str>) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (self.0, user).hash(&mut hasher);
        hasher.finish()
    }
}

impl Access {
    /// # Errors
    /// A file of keys that can't be read or has none, an origin that isn't one.
    pub fn new(
        args: &ServeArgs,
        is_loopback: bool,
        metrics: Arc<Metrics>,
        stopping: watch::Receiver<bool>,
    ) -> Result<Access> {
        let mut keys: Vec<String> = args.api_key.iter().cloned().collect();
        if let Some(file) = &args.api_key_file {
            keys.extend(read_keys(file)?);
        }
        if let Some(key) = keys.iter().find(|key| key.is_empty() || !key.bytes().all(is_visible)) {
            let n = key.chars().count();
            let what = format!(
                "one has {n} characters; expected one or more that can be sent: ASCII, no spaces"
            );
            return Err(Error::input("use the API keys", what));
        }
        let allowed = args.allow_host.iter();
        if let Some(host) = allowed.clone().find(|host| !host.bytes().all(is_of_name)) {
            let what = format!("{host:?} is none; expected a name, without a scheme or a port");
            return Err(Error::input("use a host's name", what));
        }
        let guarded = is_loopback && keys.is_empty();
        Ok(Access {
            keys: keys.iter().map(|key| sha256_bytes(key.as_bytes())).collect(),
            hosts: guarded.then(|| allowed.cloned().collect()),
            cors: cors(&args.cors_origin)?,
            clients: RandomState::new(),
            metrics,
            stopping,
        })
    }

    /// Puts all of it before the endpoints.
    pub fn guard(self, router: Router) -> Router {
        let cors = self.cors.clone();
        let access = Arc::new(self);
        let router = router.layer(from_fn_with_state(access.clone(), check));
        // Before the check, so that a browser may ask whether it may ask.
        let router = match cors {
            Some(cors) => router.layer(cors),
            None => router,
        };
        router.layer(from_fn_with_state(access, observe))
    }

    fn has_key(&self, request: &Request) -> bool {
        let value = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = match value.and_then(|v| v.split_at_checked(7)) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key,
            _ => b"",
        };
        let given = sha256_bytes(given.trim_ascii());
        // All of them, whichever it is: how long it takes tells nothing.
        let same = |key: &String| key.as_bytes().ct_eq(given.as_bytes());
        self.keys.iter().map(same).fold(subtle::Choice::from(0), |a, b| a | b).into()
    }

    /// A page of another site can make a browser believe that its own name is this machine's address, but not that it is
    /// called by an address.
    fn knows_host(&self, request: &Request) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let given = request.headers().get_all(header::HOST).into_iter();
        let given = given.map(|host| host.to_str().unwrap_or_default());
        given.chain(request.uri().host()).all(|host| is_known(host, hosts))
    }
}

/// Whether it is an address, this machine's own name, or one of those given.
fn is_known(host: &str, hosts: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn is_visible(byte: u8) -> bool {
    (0x21..=0x7e).contains(&byte)
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

fn read_keys(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(String::from).collect();
    match keys.is_empty() {
        true => {
            let what = format!("{} has none; expected one a line", file.display());
            Err(Error::input("use the API keys", what))
        }
        false => Ok(keys),
    }
}

fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => {
            let one = |origin: &String| {
                let has_path = origin.splitn(4, '/').count() > 3;
                let is_site = origin.starts_with("http://") || origin.starts_with("https://");
                let value = HeaderValue::from_str(origin).ok();
                value.filter(|_| is_site && !has_path).ok_or_else(|| {
                    let what = format!(
                        "{origin:?} is none; expected https://example.org, without a path, or *"
                    );
                    Error::input("use an origin", what)
                })
            };
            AllowOrigin::list(origins.iter().map(one).collect::<Result<Vec<_>>>()?)
        }
    };
    // Whatever headers its client sends: OpenAI's has many of its own.
    let layer =
        CorsLayer::new().allow_origin(allowed).allow_headers(AllowHeaders::mirror_request());
    let layer = layer.allow_methods([Method::GET, Method::POST]).expose_headers([REQUEST_ID]);
    Ok(Some(layer))
}

/// Lets through who may ask.
async fn check(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    if !access.knows_host(&request) {
        let message = "this daemon is asked by a name that it doesn't know; \
                       use localhost or an address, start it with --allow-host NAME, or with a key";
        let error = ApiError::invalid(None, message).with(StatusCode::FORBIDDEN, "unknown_host");
        return error.into_response();
    }
    let is_open = OPEN.contains(&request.uri().path());
    if !access.keys.is_empty() && !is_open && !access.has_key(&request) {
        access.metrics.refused("key");
        let error = ApiError {
            kind: "authentication_error",
            ..ApiError::invalid(
                None,
                "the key is missing or wrong; expected Authorization: Bearer KEY",
            )
            .with(StatusCode::UNAUTHORIZED, "invalid_api_key")
        };
        return error.into_response();
    }
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let key = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let client = Client(access.clients.hash_one((peer, key)));
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// Gives each answer an id, counts it and logs it.
async fn observe(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    // A client's own id is kept where it is one: it can be found in both logs.
    let id = request.headers().get(&REQUEST_ID).filter(|id| {
        !id.is_empty() && id.len() <= 128 && id.as_bytes().iter().copied().all(is_visible)
    });
    let id = id.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&fresh_id()).unwrap_or_else(|_| HeaderValue::from_static("req-0"))
    });
    let method = request.method().clone();
    // Only paths that there are, so that nobody can make the counters many.
    let known = request.extensions().get::<MatchedPath>();
    let known = known.map_or("other", MatchedPath::as_str).to_string();
    let path = request.uri().path().chars().take(200).collect();
    let has_body = method != Method::HEAD;
    let mut line = Line { id: id.clone(), method, path, began, status: None, whole: false };
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    let status = response.status();
    line.status = Some(status.as_u16());
    access.metrics.answered(&known, status.as_u16());
    if let Some(Cause(cause)) = response.extensions_mut().remove() {
        tracing::error!(id = id.to_str().unwrap_or_default(), "{cause}");
    }
    response.headers_mut().insert(REQUEST_ID, id.clone());
    for (name, value) in ALWAYS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if *access.stopping.borrow() {
        // Who has open connections is to find another daemon.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    line.whole = !has_body || response.body().is_end_stream();
    let length = response.headers().get(header::CONTENT_LENGTH);
    let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
    response.map(|body| Body::new(Watched { body, left, line }))
}

/// The id of a request, for whoever logs more of it.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// A line in the log, which is written when there is nothing more to do for a request, however it ended.
#[derive(Debug)]
struct Line {
    id: HeaderValue,
    method: Method,
    path: String,
    began: Instant,
    /// None while there is no answer.
    status: Option<u16>,
    /// Whether all of the answer was sent.
    whole: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        let Line { id, method, path, began, status, whole } = self;
        let id = id.to_str().unwrap_or_default();
        let seconds = (began.elapsed().as_secs_f64() * 1e6).round() / 1e6;
        match (status, whole) {
            (Some(status), true) => tracing::info!(id, %method, path, status, seconds, "answered"),
            // Its client is gone, or the daemon is.
            (Some(status), false) => tracing::info!(id, %method, path, status, seconds, "cut"),
            (None, _) => tracing::info!(id, %method, path, seconds, "cut before its answer"),
        }
    }
}

/// A body that is seen to its end.
#[derive(Debug)]
struct Watched {
    body: Body,
    /// Bytes that are still to come, where the head says how many there are: after the last, nobody looks for the end.
    left: Option<u64>,
    line: Line,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Watched { body, left, line } = self.get_mut();
        let frame = Pin::new(&mut *body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&frame, left.as_mut()) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        line.whole |=
            matches!(frame, Poll::Ready(None)) || body.is_end_stream() || *left == Some(0);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
