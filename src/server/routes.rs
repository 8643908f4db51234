//! The small endpoints.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::request::Body;

/// 200 when requests are answered, 503 while the model is loading or if it could not be.
pub async fn health(State(app): State<App>) -> Response {
    let (status, body) = match app.worker.state() {
        None => (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "loading"})),
        Some(Err(failed)) => {
            let body = json!({"status": "failed", "message": failed.message});
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
        Some(Ok(_)) => (StatusCode::OK, json!({"status": "ok", "model": &*app.model})),
    };
    (status, Json(body)).into_response()
}

pub async fn models(State(app): State<App>) -> Json<Value> {
    Json(json!({"object": "list", "data": [{
        "id": &*app.model, "object": "model", "created": app.started, "owned_by": "llorch",
    }]}))
}

/// `{"text": "Hello."}` → `{"ids": [15496, 13], "count": 2}`
pub async fn tokenize(
    State(app): State<App>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let body = body.map_err(|e| ApiError::invalid(None, e.body_text()).with(e.status(), "body"))?;
    let text: String = Body::read(&body)?.need("text", "a text")?;
    let ids = app.worker.ready()?.tokenizer.encode(&text).map_err(ApiError::from)?;
    Ok(Json(json!({"count": ids.len(), "ids": ids})))
}

pub async fn not_found(uri: Uri) -> ApiError {
    let message = format!("there is nothing at {}", uri.path());
    ApiError::invalid(None, message).with(StatusCode::NOT_FOUND, "not_found")
}

pub async fn wrong_method(uri: Uri) -> ApiError {
    let message = format!("{} does not answer to this method", uri.path());
    ApiError::invalid(None, message).with(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
}
