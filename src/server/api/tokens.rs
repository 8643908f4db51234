//! Text to tokens and back.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::body::Body;
use super::error::{ApiError, ErrorBody};
use super::request::check_ids;
use super::schemas::ids_schema;

/// For the documentation: the fields are read one by one.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"text": "Hello."}))]
pub struct TokenizeRequest {
    #[allow(dead_code, reason = "it describes what is read")]
    text: String,
}

#[derive(Debug, ToSchema)]
#[schema(example = json!({"ids": [15496, 13]}))]
pub struct DetokenizeRequest {
    #[allow(dead_code, reason = "it describes what is read")]
    #[schema(schema_with = ids_schema)]
    ids: Vec<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// The text of each; `bytes:\xe2\x80` where its bytes are no UTF-8.
    pub tokens: Vec<String>,
    pub count: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Text {
    pub text: String,
}

/// `{"text": "Hello."}` → `{"ids": [15496, 13], "tokens": ["Hello", "."], "count": 2}`
#[utoipa::path(
    post, path = "/tokenize", tag = "llorch",
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "Its tokens", body = Tokens),
        (status = 400, description = "A field is not what it may be", body = ErrorBody),
        (status = 503, description = "The model is still loading", body = ErrorBody),
    )
)]
pub async fn tokenize(State(app): State<App>, mut body: Body) -> Result<Json<Tokens>, ApiError> {
    let text: String = body.need("text", "a text")?;
    let tokenizer = &app.engine.ready()?.tokenizer;
    let ids = tokio::task::block_in_place(|| tokenizer.encode(&text))?;
    let tokens = ids.iter().map(|id| tokenizer.piece(*id)).collect();
    Ok(Json(Tokens { count: ids.len(), tokens, ids }))
}

/// `{"ids": [15496, 13]}` → `{"text": "Hello."}`; bytes that are no UTF-8 become U+FFFD.
#[utoipa::path(
    post, path = "/detokenize", tag = "llorch",
    request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "Their text", body = Text),
        (status = 400, description = "A field is not what it may be", body = ErrorBody),
        (status = 503, description = "The model is still loading", body = ErrorBody),
    )
)]
pub async fn detokenize(State(app): State<App>, mut body: Body) -> Result<Json<Text>, ApiError> {
    let ids: Vec<u32> = body.need("ids", "a list of token ids")?;
    let ready = app.engine.ready()?;
    if !ids.is_empty() {
        check_ids(&ids, "ids", ready)?;
    }
    Ok(Json(Text { text: ready.tokenizer.decode(&ids)? }))
}
