//! The API's description for programs, and a page that shows it.

use axum::Json;
use axum::response::Html;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{checkpoints, completions, status, tokens};

/// llorch-cpud: GPT-2 completions in OpenAI's form, and a look at every checkpoint of the forward pass.
#[derive(Debug, OpenApi)]
#[openapi(
    paths(
        completions::create,
        checkpoints::create,
        tokens::tokenize,
        tokens::detokenize,
        status::models,
        status::health,
        status::ready,
        status::metrics,
    ),
    security(("key" = [])),
    modifiers(&Key),
    tags(
        (name = "OpenAI", description = "What OpenAI's clients ask"),
        (name = "llorch", description = "What is this daemon's own"),
    )
)]
pub struct Api;

#[derive(Debug)]
struct Key;

impl Modify for Key {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = api.components.get_or_insert_default();
        components.security_schemes.insert("key".into(), scheme.into());
    }
}

pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}

pub async fn page() -> Html<&'static str> {
    Html(include_str!("../page/docs.html"))
}
