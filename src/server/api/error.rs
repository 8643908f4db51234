//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Error;
use crate::server::engine::{Failure, Refused};

/// What every answer that isn't a success holds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// What was found and what was expected.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field of the request that it is about.
    #[schema(required)]
    pub param: Option<&'static str>,
    /// For programs: `context_length_exceeded`, `model_not_found`, `queue_full`, `timeout`, …
    #[schema(required)]
    pub code: Option<&'static str>,
}

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

    /// What is understood and not offered.
    pub fn unsupported(param: &'static str, message: impl Into<String>) -> ApiError {
        let error = ApiError::invalid(Some(param), message);
        error.with(StatusCode::UNPROCESSABLE_ENTITY, "unsupported")
    }

    /// Its time was over.
    pub fn late(what: &str) -> ApiError {
        let message = format!("{what} within the time that this daemon allows");
        ApiError::invalid(None, message).with(StatusCode::REQUEST_TIMEOUT, "timeout")
    }

    pub fn with(self, status: StatusCode, code: &'static str) -> ApiError {
        ApiError { status, code: Some(code), ..self }
    }

    pub fn server(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError { status, kind: "server_error", message, param: None, code: Some(code) }
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    pub fn body(self) -> ErrorBody {
        let ApiError { kind, message, param, code, .. } = self;
        ErrorBody { error: ErrorDetail { message, kind, param, code } }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match refused {
            Refused::Loading => {
                ApiError::server(unavailable, "loading", "the model is still loading")
            }
            Refused::Full => ApiError {
                status: StatusCode::TOO_MANY_REQUESTS,
                kind: "rate_limit_error",
                message: "the queue is full; try again later".into(),
                param: None,
                code: Some("queue_full"),
            },
            Refused::Down(message) => ApiError::server(unavailable, "unavailable", message),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        match failure {
            Failure::Late => ApiError::late("the request was not done"),
            Failure::Engine(message) => ApiError::internal(message),
        }
    }
}

impl From<Error> for ApiError {
    fn from(e: Error) -> ApiError {
        match e {
            Error::Input { .. } => ApiError::invalid(None, e.to_string()),
            _ => ApiError::internal(e.to_string()),
        }
    }
}

/// What a fault of the daemon's own came of, beside the answer that tells its client: for the log.
#[derive(Debug, Clone)]
pub struct Cause(pub String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let cause = (status == StatusCode::INTERNAL_SERVER_ERROR).then(|| self.message.clone());
        let mut response = (status, Json(self.body())).into_response();
        if let Some(cause) = cause {
            response.extensions_mut().insert(Cause(cause));
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            // OpenAI's clients would ask the same again, and wait as long.
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        }
        let again =
            matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
