//! The API's description for programs, and a page that shows it.

use axum::Json;
use axum::response::Html;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{OPEN, checkpoints, completions, status, tokens};

/// All of it.
#[derive(Debug, OpenApi)]
#[openapi(
    info(description = "GPT-2 completions in OpenAI's form, and a look at every checkpoint of the forward pass."),
    paths(
        completions::create,
        checkpoints::create,
        tokens::tokenize,
        tokens::detokenize,
        status::models,
        status::model,
        status::health,
        status::ready,
        status::metrics,
    ),
    security(("key" = [])),
    modifiers(&Key, &Everywhere),
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

/// What any endpoint may answer before it reads its request.
#[derive(Debug)]
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        const ALL: [(&str, &str); 2] = [
            ("403", "Asked by a name that the daemon doesn't know"),
            ("500", "A fault of the daemon's own, which its log has too"),
        ];
        const WITH_KEY: [(&str, &str); 1] = [("401", "The key is missing or wrong")];
        const WITH_BODY: [(&str, &str); 3] = [
            ("408", "Not sent or not done within the time allowed"),
            ("413", "The body is longer than may be"),
            ("415", "The body is not said to be JSON"),
        ];
        for (path, item) in &mut api.paths.paths {
            let with_key = if OPEN.contains(&path.as_str()) { &[][..] } else { &WITH_KEY };
            let add = |operation: &mut utoipa::openapi::path::Operation, more: &[(&str, &str)]| {
                for (status, description) in ALL.iter().chain(with_key).chain(more) {
                    let content = utoipa::openapi::ContentBuilder::new()
                        .schema(Some(utoipa::openapi::Ref::from_schema_name("ErrorBody")))
                        .build();
                    let response = utoipa::openapi::ResponseBuilder::new()
                        .description(*description)
                        .content("application/json", content)
                        .build();
                    let responses = &mut operation.responses.responses;
                    responses.entry((*status).into()).or_insert_with(|| response.into());
                }
            };
            item.get.iter_mut().for_each(|operation| add(operation, &[]));
            item.post.iter_mut().for_each(|operation| add(operation, &WITH_BODY));
        }
    }
}

pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}

pub async fn page() -> Html<&'static str> {
    Html(include_str!("../page/docs.html"))
}
