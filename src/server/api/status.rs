//! What the daemon is and how it does.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::request::check_model;
use crate::server::engine::Refused;

#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`, `loading`, `stopping` or `failed`.
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    #[schema(pattern = "^list$")]
    pub object: &'static str,
    pub data: Vec<ModelCard>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelCard {
    /// The name that the daemon was started with.
    pub id: String,
    #[schema(pattern = "^model$")]
    pub object: &'static str,
    /// When the daemon started, in seconds since 1970.
    pub created: u64,
    pub owned_by: &'static str,
    /// Of its `model.safetensors`.
    pub sha256: String,
    /// What weights are kept in: f32, bf16 or int8.
    pub dtype: String,
    /// The longest context.
    pub n_positions: usize,
    /// Blocks.
    pub n_layer: usize,
    /// Heads of attention in each.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    pub vocab_size: usize,
}

/// 200 when requests are answered, 503 while the model is loading or if it could not be.
#[utoipa::path(
    get, path = "/health", tag = "llorch", security(()),
    responses(
        (status = 200, description = "Requests are answered", body = Health),
        (status = 503, description = "Not yet, or not any more", body = Health),
    )
)]
pub async fn health(State(app): State<App>) -> Response {
    let (status, health) = match app.engine.ready() {
        Ok(_) => {
            let model = Some(app.model.to_string());
            (StatusCode::OK, Health { status: "ok", model, message: None })
        }
        Err(refused) => {
            let (status, message) = match refused {
                Refused::Down(message) => ("failed", Some(message)),
                _ => ("loading", None),
            };
            (StatusCode::SERVICE_UNAVAILABLE, Health { status, model: None, message })
        }
    };
    (status, Json(health)).into_response()
}

/// As `/health`, but 503 also while the daemon ends: a balancer sends nothing more.
#[utoipa::path(
    get, path = "/ready", tag = "llorch", security(()),
    responses(
        (status = 200, description = "Send requests", body = Health),
        (status = 503, description = "Send none", body = Health),
    )
)]
pub async fn ready(state: State<App>) -> Response {
    if *state.stopping.borrow() {
        let stopping = Health { status: "stopping", model: None, message: None };
        return (StatusCode::SERVICE_UNAVAILABLE, Json(stopping)).into_response();
    }
    health(state).await
}

/// The one model that is served.
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI",
    responses(
        (status = 200, description = "A list of one", body = ModelList),
        (status = 503, description = "The model is still loading", body = ErrorBody),
    )
)]
pub async fn models(State(app): State<App>) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList { object: "list", data: vec![card(&app)?] }))
}

/// The same, by its name, slashes and all.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "OpenAI",
    params(("model" = String, Path, description = "The name that the daemon was started with")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 404, description = "Another model is asked for", body = ErrorBody),
        (status = 503, description = "The model is still loading", body = ErrorBody),
    )
)]
pub async fn model(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    // What isn't text is no model's name.
    let name = name.map_or(String::new(), |Path(name)| name);
    check_model(Some(&name), &app.model)?;
    Ok(Json(card(&app)?))
}

fn card(app: &App) -> Result<ModelCard, ApiError> {
    let ready = app.engine.ready()?;
    let config = &ready.config;
    Ok(ModelCard {
        id: app.model.to_string(),
        object: "model",
        created: app.started,
        owned_by: "llorch",
        sha256: ready.sha256.clone(),
        dtype: app.dtype.to_string(),
        n_positions: config.n_positions,
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_embd: config.n_embd,
        vocab_size: config.vocab_size,
    })
}

/// Counts and times, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "llorch",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"))
)]
pub async fn metrics(State(app): State<App>) -> Response {
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, KIND)], app.metrics.text()).into_response()
}

pub async fn not_found(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("there is nothing at {path}");
    ApiError::invalid(None, message).with(StatusCode::NOT_FOUND, "not_found")
}

pub async fn wrong_method(uri: Uri) -> ApiError {
    let message = format!("{} does not answer to this method", uri.path());
    ApiError::invalid(None, message).with(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
}
