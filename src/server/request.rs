//! A completion request: what is understood, what is refused by name, and nothing silently ignored
//! that would change the answer.

use axum::body::Bytes;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::worker::Ready;
use crate::generate::Options;
use crate::sampler::Sampling;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;
/// OpenAI's limits.
const MAX_LOGPROBS: usize = 5;
const MAX_STOPS: usize = 4;

/// The body of `POST /v1/completions`. Fields that are not here and change nothing (`user`) are
/// ignored, as OpenAI's API does; null is as good as absent.
#[derive(Debug, Clone)]
pub struct CompletionRequest {
    pub model: Option<String>,
    pub prompt: Prompt,
    pub max_tokens: Option<usize>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// Not OpenAI's: keep the k most likely tokens.
    pub top_k: Option<usize>,
    /// Not OpenAI's: of Keskar et al. 2019, 1 is none.
    pub repetition_penalty: Option<f64>,
    pub seed: Option<i64>,
    pub stop: Option<Stop>,
    pub logprobs: Option<usize>,
    pub stream: bool,
    pub stream_options: Option<StreamOptions>,
    /// Not OpenAI's: go on after `<|endoftext|>`.
    pub ignore_eos: bool,
    /// Not OpenAI's: give the ids of the tokens as `token_ids`.
    pub return_token_ids: bool,
    // What follows is refused by name where it would change the answer.
    pub n: Option<Value>,
    pub best_of: Option<Value>,
    pub echo: Option<Value>,
    pub suffix: Option<Value>,
    pub logit_bias: Option<Value>,
    pub presence_penalty: Option<Value>,
    pub frequency_penalty: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
// An object only: a struct alone would read a list as its fields in order.
#[serde(try_from = "serde_json::Map<String, Value>")]
pub struct StreamOptions {
    pub include_usage: bool,
}

impl TryFrom<serde_json::Map<String, Value>> for StreamOptions {
    type Error = &'static str;

    fn try_from(fields: serde_json::Map<String, Value>) -> Result<StreamOptions, &'static str> {
        match fields.get("include_usage") {
            None | Some(Value::Null) => Ok(StreamOptions { include_usage: false }),
            Some(Value::Bool(include_usage)) => Ok(StreamOptions { include_usage: *include_usage }),
            Some(_) => Err("include_usage is not true or false"),
        }
    }
}

/// A request that can be run.
#[derive(Debug)]
pub struct Checked {
    pub ids: Vec<u32>,
    pub options: Options,
    pub stop: Vec<String>,
    pub logprobs: Option<usize>,
}

/// A JSON body, field by field, so that an error can name the field.
pub struct Body(Map<String, Value>);

impl Body {
    pub fn read(body: &Bytes) -> Result<Body, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Body(fields)),
            Ok(other) => {
                let message = format!("the body is {}; expected a JSON object", short(&other));
                Err(ApiError::invalid(None, message))
            }
            Err(e) => Err(ApiError::invalid(None, format!("the body is not JSON: {e}"))),
        }
    }

    /// Takes a field out; `expected` says what it may be.
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

impl CompletionRequest {
    pub fn read(body: &Bytes) -> Result<CompletionRequest, ApiError> {
        const WHOLE: &str = "a whole number, 0 or more";
        const NUMBER: &str = "a number";
        const FLAG: &str = "true or false";
        let mut body = Body::read(body)?;
        Ok(CompletionRequest {
            prompt: body.need("prompt", "one text or one list of token ids")?,
            model: body.take("model", "the name of a model")?,
            max_tokens: body.take("max_tokens", WHOLE)?,
            temperature: body.take("temperature", NUMBER)?,
            top_p: body.take("top_p", NUMBER)?,
            top_k: body.take("top_k", WHOLE)?,
            repetition_penalty: body.take("repetition_penalty", NUMBER)?,
            seed: body.take("seed", "a whole number")?,
            stop: body.take("stop", "a text or a list of texts")?,
            logprobs: body.take("logprobs", WHOLE)?,
            stream: body.take("stream", FLAG)?.unwrap_or_default(),
            stream_options: body.take("stream_options", "an object with include_usage")?,
            ignore_eos: body.take("ignore_eos", FLAG)?.unwrap_or_default(),
            return_token_ids: body.take("return_token_ids", FLAG)?.unwrap_or_default(),
            n: body.take("n", "")?,
            best_of: body.take("best_of", "")?,
            echo: body.take("echo", "")?,
            suffix: body.take("suffix", "")?,
            logit_bias: body.take("logit_bias", "")?,
            presence_penalty: body.take("presence_penalty", "")?,
            frequency_penalty: body.take("frequency_penalty", "")?,
        })
    }

    pub fn check(&self, model: &str, ready: &Ready) -> Result<Checked, ApiError> {
        self.refuse_what_is_not_there()?;
        if let Some(asked) = self.model.as_deref().filter(|m| *m != model) {
            let message = format!("the model {asked:?} is not here; this daemon serves {model:?}");
            let error = ApiError::invalid(Some("model"), message);
            return Err(error.with(StatusCode::NOT_FOUND, "model_not_found"));
        }
        let encode = |text: &str| ready.tokenizer.encode(text).map_err(ApiError::from);
        let ids = match &self.prompt {
            Prompt::Text(text) => encode(text)?,
            Prompt::Ids(ids) => ids.clone(),
            // Clients send lists of one.
            Prompt::Texts(texts) if texts.len() == 1 => encode(&texts[0])?,
            Prompt::IdLists(lists) if lists.len() == 1 => lists[0].clone(),
            Prompt::Texts(_) | Prompt::IdLists(_) => {
                let message = "prompt must be one text or one list of token ids";
                return Err(ApiError::invalid(Some("prompt"), message));
            }
        };
        if ids.is_empty() {
            return Err(ApiError::invalid(
                Some("prompt"),
                "prompt has no tokens; expected one or more",
            ));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= ready.info.vocab_size) {
            let message =
                format!("token id {id} is outside the vocabulary of {}", ready.info.vocab_size);
            return Err(ApiError::invalid(Some("prompt"), message));
        }
        let max_new_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_new_tokens == 0 {
            return Err(ApiError::invalid(
                Some("max_tokens"),
                "max_tokens is 0; expected 1 or more",
            ));
        }
        let (prompt, positions) = (ids.len(), ready.info.n_positions);
        if prompt.saturating_add(max_new_tokens - 1) > positions {
            let message = format!(
                "{prompt} prompt tokens and max_tokens {max_new_tokens} do not fit the context of {positions}"
            );
            let error = ApiError::invalid(Some("max_tokens"), message);
            return Err(error.with(StatusCode::BAD_REQUEST, "context_length_exceeded"));
        }
        let stop_ids =
            if self.ignore_eos { vec![] } else { ready.info.end_of_text.into_iter().collect() };
        let options =
            Options { max_new_tokens, sampling: self.sampling()?, stop_ids, forced_ids: None };
        Ok(Checked { ids, options, stop: self.stops()?, logprobs: self.logprobs()? })
    }

    /// OpenAI's defaults: temperature 1, top_p 1. Without a seed each request draws its own.
    fn sampling(&self) -> Result<Sampling, ApiError> {
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=2.0).contains(&temperature) {
            let message = format!("temperature is {temperature}; expected 0 to 2");
            return Err(ApiError::invalid(Some("temperature"), message));
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            let message = format!("top_p is {top_p}; expected above 0 and at most 1");
            return Err(ApiError::invalid(Some("top_p"), message));
        }
        let repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            let message = format!("repetition_penalty is {repetition_penalty}; expected above 0");
            return Err(ApiError::invalid(Some("repetition_penalty"), message));
        }
        let seed = self.seed.map_or_else(super::fresh_number, |s| s as u64);
        Ok(Sampling {
            temperature,
            top_p,
            top_k: self.top_k.unwrap_or(0),
            repetition_penalty,
            seed,
        })
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => vec![],
            Some(Stop::One(one)) => vec![one.clone()],
            Some(Stop::Many(many)) => many.clone(),
        };
        if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
            let message = format!("stop takes up to {MAX_STOPS} texts, none of them empty");
            return Err(ApiError::invalid(Some("stop"), message));
        }
        Ok(stops)
    }

    fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        match self.logprobs {
            Some(n) if n > MAX_LOGPROBS => {
                let message = format!("logprobs is {n}; expected 0 to {MAX_LOGPROBS}");
                Err(ApiError::invalid(Some("logprobs"), message))
            }
            other => Ok(other),
        }
    }

    fn refuse_what_is_not_there(&self) -> Result<(), ApiError> {
        let is = |v: &Option<Value>, neutral: &[Value]| {
            v.as_ref().is_none_or(|v| v.is_null() || neutral.contains(v))
        };
        let one = [Value::from(1), Value::from(1.0)];
        let zero = [Value::from(0), Value::from(0.0)];
        let fields = [
            ("n", is(&self.n, &one)),
            ("best_of", is(&self.best_of, &one)),
            ("echo", is(&self.echo, &[Value::from(false)])),
            ("suffix", is(&self.suffix, &[Value::from("")])),
            ("logit_bias", is(&self.logit_bias, &[Value::Object(Default::default())])),
            ("presence_penalty", is(&self.presence_penalty, &zero)),
            ("frequency_penalty", is(&self.frequency_penalty, &zero)),
        ];
        match fields.iter().find(|(_, neutral)| !neutral) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("{name} is not supported by this daemon; leave it out");
                Err(ApiError::invalid(Some(name), message))
            }
        }
    }
}
