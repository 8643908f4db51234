//! A request's body: read within limits, then field by field, so that an error can name the field.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::App;
use super::error::ApiError;

/// A JSON object.
#[derive(Debug)]
pub struct Body(Map<String, Value>);

impl FromRequest<App> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Body, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str());
        if !matches!(kind, Some(Ok(kind)) if is_json(kind)) {
            // Any web page may send a form or plain text to any address; JSON it has to ask for.
            let found = match kind {
                Some(Ok(kind)) => format!("{kind:?}"),
                Some(Err(_)) => "no text".into(),
                None => "missing".into(),
            };
            let message = format!("content-type is {found}; expected application/json");
            let error = ApiError::invalid(None, message);
            return Err(error.with(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type"));
        }
        let read = tokio::time::timeout(app.body_timeout, Bytes::from_request(request, app));
        let bytes = read.await.map_err(|_| ApiError::late("the body did not come"))?;
        Body::read(&bytes.map_err(unread)?)
    }
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn unread(e: BytesRejection) -> ApiError {
    let status = e.status();
    let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "body_too_large" } else { "body" };
    ApiError::invalid(None, e.body_text()).with(status, code)
}

impl Body {
    fn read(body: &[u8]) -> Result<Body, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut fields)) => {
                fields.values_mut().for_each(whole_numbers);
                Ok(Body(fields))
            }
            Ok(other) => {
                let message = format!("the body is {}; expected a JSON object", short(&other));
                Err(ApiError::invalid(None, message))
            }
            Err(e) => Err(ApiError::invalid(None, format!("the body is not JSON: {e}"))),
        }
    }

    /// Takes a field out; `expected` says what it may be. Null is as good as absent.
    pub fn take<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(&value).map(Some).map_err(|_| {
                let message = format!("{name} is {}; expected {expected}", short(&value));
                ApiError::invalid(Some(name), message)
            }),
        }
    }

    pub fn need<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        expected: &str,
    ) -> Result<T, ApiError> {
        let missing =
            || ApiError::invalid(Some(name), format!("{name} is missing; expected {expected}"));
        self.take(name, expected)?.ok_or_else(missing)
    }

    /// A number between limits, or what stands for none given.
    pub fn number(
        &mut self,
        name: &'static str,
        default: f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<f64, ApiError> {
        let value = self.take(name, "a number")?.unwrap_or(default);
        match range.contains(&value) {
            true => Ok(value),
            false => {
                let (from, to) = range.into_inner();
                let message = format!("{name} is {value}; expected {from} to {to}");
                Err(ApiError::invalid(Some(name), message))
            }
        }
    }
}

/// Makes 5.0 what it is to JSON, and to clients whose language has one kind of numbers: 5.
fn whole_numbers(value: &mut Value) {
    // Beyond this, not every whole number is an f64.
    const EXACT: f64 = (1u64 << 53) as f64;
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(x) = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT) {
                *value = (x as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// A value as an error message may quote it.
fn short(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
