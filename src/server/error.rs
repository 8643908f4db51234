//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::worker::Refused;
use crate::error::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
    pub param: Option<&'static str>,
    pub code: Option<&'static str>,
}

impl ApiError {
    pub fn invalid(param: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            message: message.into(),
            param,
            code: None,
        }
    }

    pub fn with(self, status: StatusCode, code: &'static str) -> ApiError {
        ApiError { status, code: Some(code), ..self }
    }

    fn server(status: StatusCode, code: &'static str, message: String) -> ApiError {
        ApiError { status, kind: "server_error", message, param: None, code: Some(code) }
    }

    pub fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::Loading => {
                let message = "the model is still loading".to_string();
                ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "loading", message)
            }
            Refused::Full => ApiError {
                status: StatusCode::TOO_MANY_REQUESTS,
                kind: "rate_limit_error",
                message: "the queue is full; try again later".into(),
                param: None,
                code: Some("queue_full"),
            },
            Refused::Down(message) => {
                ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            }
        }
    }
}

impl From<Error> for ApiError {
    fn from(e: Error) -> ApiError {
        match e {
            Error::ContextOverflow { .. } => {
                let error = ApiError::invalid(Some("max_tokens"), e.to_string());
                error.with(StatusCode::BAD_REQUEST, "context_length_exceeded")
            }
            Error::Input { .. } => ApiError::invalid(None, e.to_string()),
            _ => ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
