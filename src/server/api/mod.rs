//! The endpoints: [`body`] reads what comes, [`request`] checks it, [`answer`] is what goes out.

mod answer;
mod body;
mod checkpoints;
mod completions;
pub mod error;
mod openapi;
mod request;
mod schemas;
mod status;
mod tokens;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::{get, post};
use tokio::sync::watch;

use super::engine::Engine;
use super::metrics::Metrics;
use crate::packed::Format;

/// What every handler sees.
#[derive(Debug, Clone)]
pub struct App {
    pub engine: Arc<Engine>,
    pub metrics: Arc<Metrics>,
    /// The name under which the model is listed and asked for.
    pub model: Arc<str>,
    pub dtype: Format,
    /// Seconds since 1970 at the start, which `GET /v1/models` gives as `created`.
    pub started: u64,
    /// Bytes that a body may have.
    pub max_body: usize,
    /// How long a body may take to come.
    pub body_timeout: Duration,
    /// Where bundles are kept.
    pub store: Option<Arc<Path>>,
    /// Bytes of tensors that one capture may have.
    pub max_capture: u64,
    pub log_text: bool,
    /// Whether the daemon is coming to its end.
    pub stopping: watch::Receiver<bool>,
}

/// Paths that are answered without a key: they tell nothing of anybody's requests.
pub const OPEN: [&str; 5] = ["/", "/docs", "/openapi.json", "/health", "/ready"];

pub fn router() -> Router<App> {
    Router::new()
        .route("/", get(page))
        .route("/docs", get(openapi::page))
        .route("/openapi.json", get(openapi::document))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/v1/models", get(status::models))
        .route("/v1/models/{*model}", get(status::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/completions", post(completions::create))
        .route("/v1/checkpoints", post(checkpoints::create))
        .fallback(status::not_found)
        .method_not_allowed_fallback(status::wrong_method)
}

async fn page() -> Html<&'static str> {
    Html(include_str!("../page/index.html"))
}
