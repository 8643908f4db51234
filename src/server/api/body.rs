//! A request's body: read within limits, then field by field, so that an error can name the field.

use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
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
        if let Some(coding) = request.headers().get(header::CONTENT_ENCODING)
            && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            let message = format!("content-encoding is {coding:?}; expected none");
            let error = ApiError::invalid(None, message);
            return Err(error.with(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding"));
        }
        let read = tokio::time::timeout(app.body_timeout, whole(request, app.max_body));
        let bytes = read.await.map_err(|_| ApiError::late("the body did not come"))?;
        Body::read(&bytes?)
    }
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Bytes beyond the limit that are read all the same: a client that is still sending may not look for the answer, and would
/// find its connection closed.
const READ_ON: usize = 4 << 20;

/// All of a body, if it isn't longer than may be. What says itself that it is far longer is refused before any of it is read.
async fn whole(request: Request, most: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = |found: String| {
        let message = format!("the body has {found} bytes; expected at most {most} (--max-body)");
        ApiError::invalid(None, message).with(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large")
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length > (most + READ_ON) as u64) {
        return Err(too_large(length.to_string()));
    }
    let (mut bytes, mut read) = (Vec::new(), 0);
    let mut parts = request.into_body().into_data_stream();
    while let Some(part) = parts.next().await {
        let part =
            part.map_err(|_| ApiError::invalid(None, "the body ended before it was whole"))?;
        read += part.len();
        if read <= most {
            bytes.extend_from_slice(&part);
        } else if read > most + READ_ON {
            break;
        }
    }
    match read > most {
        true => Err(too_large(length.map_or_else(|| "more".into(), |length| length.to_string()))),
        false => Ok(bytes),
    }
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
        let value: f64 = self.take(name, "a number")?.unwrap_or(default);
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
    const MOST: f64 = (1u64 << 63) as f64;
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(x) = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < MOST) {
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
