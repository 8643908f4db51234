//! A completion request: what is understood, what is refused by name, and nothing silently ignored
//! that would change the answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::body::Body;
use super::error::ApiError;
use super::schemas::{bias_schema, prompts_schema, stop_schema};
use crate::sampler::{Sampler, Sampling, SplitMix64};
use crate::server::engine::Ready;
use crate::server::fresh_number;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;
/// OpenAI's limits.
const MAX_LOGPROBS: usize = 5;
pub const MAX_STOPS: usize = 4;
const MAX_PENALTY: f64 = 2.0;
pub const MAX_BIAS: f64 = 100.0;
/// Logits times or over these are numbers yet.
pub const REPETITION: std::ops::RangeInclusive<f64> = 0.01..=100.0;
/// Prompts times n: what one request may ask the engine to hold.
pub const MAX_SEQUENCES: usize = 128;

pub const WHOLE: &str = "a whole number, 0 or more";
pub const SEED: &str = "a whole number, -2^63 to 2^63 - 1";
pub const TOP_K: &str = "a whole number, 1 or more, or 0 or -1 for all";
const LOGPROBS: &str = "a whole number, 0 to 5";
const FLAG: &str = "true or false";

/// The body of `POST /v1/completions`. Fields that are not here are ignored, as OpenAI's API does; null is as good as absent.
#[derive(Debug, Clone, ToSchema)]
#[schema(example = json!({"prompt": "Hello.", "max_tokens": 10, "temperature": 0}))]
pub struct CompletionRequest {
    /// The name that the daemon was started with; any other is refused.
    pub model: Option<String>,
    #[schema(schema_with = prompts_schema)]
    pub prompt: Prompt,
    /// Tokens to generate, at most; 16 if absent. 0 with `echo` alone.
    #[schema(minimum = 0)]
    pub max_tokens: Option<usize>,
    /// 0 takes the most likely token; 1 if absent.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// Draw from the fewest tokens that together have this probability; 1 if absent.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Not OpenAI's: draw from the k most likely tokens; 0 or -1 for all.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Not OpenAI's: of Keskar et al. 2019; 1 is none.
    #[schema(minimum = 0.01, maximum = 100)]
    pub repetition_penalty: Option<f64>,
    /// Taken off the logits of tokens that were generated before.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    /// The same, as often as they were.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    /// Added to the logits of tokens, by their ids.
    #[schema(schema_with = bias_schema)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Answers to each prompt; 1 if absent.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<usize>,
    /// The same seed draws the same tokens; each request draws its own if absent.
    pub seed: Option<i64>,
    /// Up to four texts before which the answer ends.
    #[schema(schema_with = stop_schema)]
    pub stop: Option<Stop>,
    /// Give the log probability of each token, and those of so many of the most likely ones.
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<usize>,
    /// Give the prompt back too, with its logprobs if any are wanted.
    pub echo: Option<bool>,
    /// Answer as server-sent events.
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// Who asks, in the client's own words: clients take turns.
    pub user: Option<String>,
    /// Not OpenAI's: go on after `<|endoftext|>`.
    pub ignore_eos: Option<bool>,
    /// Not OpenAI's: give the ids of the tokens as `token_ids`.
    pub return_token_ids: Option<bool>,
    /// As many as `n`, or absent: there is no choosing among more.
    #[schema(minimum = 1, maximum = 128)]
    pub best_of: Option<usize>,
    /// Not offered: absent or empty.
    #[schema(max_length = 0)]
    pub suffix: Option<String>,
}

/// One text or one list of token ids, or several of either kind.
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

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
// An object only: a struct alone would read a list as its fields in order.
#[serde(try_from = "serde_json::Map<String, Value>")]
pub struct StreamOptions {
    /// Give the usage in a chunk of its own at the end.
    pub include_usage: Option<bool>,
}

impl TryFrom<Map<String, Value>> for StreamOptions {
    type Error = &'static str;

    fn try_from(fields: Map<String, Value>) -> Result<StreamOptions, &'static str> {
        match fields.get("include_usage") {
            None | Some(Value::Null) => Ok(StreamOptions::default()),
            Some(Value::Bool(include)) => Ok(StreamOptions { include_usage: Some(*include) }),
            Some(_) => Err("include_usage is not true or false"),
        }
    }
}

/// A prompt's tokens, with the text that was given, if it was text.
pub type Tokenized = (Arc<[u32]>, Option<String>);

/// A request that can be run.
#[derive(Debug)]
pub struct Checked {
    pub prompts: Vec<Tokenized>,
    pub max_new_tokens: usize,
    /// One for each of the `n` answers to a prompt.
    pub samplers: Vec<Sampler>,
    pub stop_ids: Vec<u32>,
    pub stop: Vec<String>,
    pub logprobs: Option<usize>,
    pub echo: bool,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
    pub user: Option<String>,
}

impl CompletionRequest {
    pub fn read(mut body: Body) -> Result<CompletionRequest, ApiError> {
        const PENALTY: std::ops::RangeInclusive<f64> = -MAX_PENALTY..=MAX_PENALTY;
        const COUNT: &str = "a whole number, 1 or more";
        Ok(CompletionRequest {
            prompt: body
                .need("prompt", "a text, a list of texts, of token ids, or of such lists")?,
            model: body.take("model", "the name of a model")?,
            max_tokens: body.take("max_tokens", WHOLE)?,
            temperature: Some(body.number("temperature", 1.0, 0.0..=2.0)?),
            top_p: Some(body.number("top_p", 1.0, 0.0..=1.0)?),
            top_k: body.take("top_k", TOP_K)?,
            repetition_penalty: Some(body.number("repetition_penalty", 1.0, REPETITION)?),
            presence_penalty: Some(body.number("presence_penalty", 0.0, PENALTY)?),
            frequency_penalty: Some(body.number("frequency_penalty", 0.0, PENALTY)?),
            logit_bias: body.take("logit_bias", "an object of token ids and numbers")?,
            n: body.take("n", COUNT)?,
            best_of: body.take("best_of", COUNT)?,
            seed: body.take("seed", SEED)?,
            stop: body.take("stop", "a text or a list of texts")?,
            logprobs: body.take("logprobs", LOGPROBS)?,
            echo: body.take("echo", FLAG)?,
            stream: body.take("stream", FLAG)?,
            stream_options: body
                .take("stream_options", "an object with include_usage, true or false")?,
            user: body.take("user", "a text")?,
            ignore_eos: body.take("ignore_eos", FLAG)?,
            return_token_ids: body.take("return_token_ids", FLAG)?,
            suffix: body.take("suffix", "a text")?,
        })
    }

    pub fn check(self, model: &str, ready: &Ready) -> Result<Checked, ApiError> {
        check_model(self.model.as_deref(), model)?;
        if self.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
            let message =
                "suffix is not offered: GPT-2 has no notion of what comes after; leave it out";
            return Err(ApiError::unsupported("suffix", message));
        }
        let n = self.n.unwrap_or(1);
        if self.best_of.is_some_and(|best_of| best_of != n) {
            let message = format!("best_of is not offered: expected it absent or n, which is {n}");
            return Err(ApiError::unsupported("best_of", message));
        }
        let prompts = self.prompts(ready)?;
        if !(1..=MAX_SEQUENCES).contains(&n) {
            let message = format!("n is {n}; expected 1 to {MAX_SEQUENCES}");
            return Err(ApiError::invalid(Some("n"), message));
        }
        if n * prompts.len() > MAX_SEQUENCES {
            let count = prompts.len();
            let message = format!(
                "{count} prompts with n {n} are too many; expected up to {MAX_SEQUENCES} answers in all"
            );
            return Err(ApiError::invalid(Some("prompt"), message));
        }
        let echo = self.echo.unwrap_or(false);
        let max_new_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_new_tokens == 0 && !echo {
            let message = "max_tokens is 0; expected 1 or more, or echo";
            return Err(ApiError::invalid(Some("max_tokens"), message));
        }
        for (ids, _) in &prompts {
            check_length(ids, max_new_tokens, "max_tokens", ready)?;
        }
        let eos = ready.config.eos_token_id.into_iter().collect();
        Ok(Checked {
            prompts,
            max_new_tokens,
            samplers: self.samplers(n, ready)?,
            stop_ids: if self.ignore_eos.unwrap_or(false) { vec![] } else { eos },
            stop: self.stops()?,
            logprobs: self.logprobs()?,
            echo,
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            user: self.user,
        })
    }

    fn prompts(&self, ready: &Ready) -> Result<Vec<Tokenized>, ApiError> {
        let of_text = |text: &String| Ok((encode(text, ready)?.into(), Some(text.clone())));
        let of_ids = |ids: &Vec<u32>| {
            check_ids(ids, "prompt", ready)?;
            Ok((ids.as_slice().into(), None))
        };
        match &self.prompt {
            Prompt::Text(text) => Ok(vec![of_text(text)?]),
            Prompt::Ids(ids) => Ok(vec![of_ids(ids)?]),
            // Each is checked before any is tokenized: a long list is refused at once.
            Prompt::Texts(texts) if texts.len() <= MAX_SEQUENCES => {
                texts.iter().map(of_text).collect()
            }
            Prompt::IdLists(lists) if lists.len() <= MAX_SEQUENCES => {
                lists.iter().map(of_ids).collect()
            }
            Prompt::Texts(_) | Prompt::IdLists(_) => {
                let message = format!("prompt has too many parts; expected up to {MAX_SEQUENCES}");
                Err(ApiError::invalid(Some("prompt"), message))
            }
        }
    }

    /// OpenAI's defaults: temperature 1, top_p 1. The first answer to a prompt is drawn by the seed itself, the others by
    /// numbers that follow from it.
    fn samplers(&self, n: usize, ready: &Ready) -> Result<Vec<Sampler>, ApiError> {
        let number = |value: Option<f64>| value.unwrap_or_default();
        let top_p = number(self.top_p);
        if top_p == 0.0 {
            return Err(ApiError::invalid(Some("top_p"), "top_p is 0; expected above 0, to 1"));
        }
        let (bias, top_k) = (self.bias(ready)?, top_k(self.top_k)?);
        let seed = self.seed.map_or_else(fresh_number, |seed| seed as u64);
        let mut others = SplitMix64::new(seed);
        let sampler = |i| {
            let sampling = Sampling {
                temperature: number(self.temperature),
                top_k,
                top_p,
                repetition_penalty: number(self.repetition_penalty),
                presence_penalty: number(self.presence_penalty),
                frequency_penalty: number(self.frequency_penalty),
                seed: if i == 0 { seed } else { others.next_u64() },
            };
            Ok(Sampler::new(sampling)?.with_bias(bias.clone()))
        };
        (0..n).map(sampler).collect()
    }

    fn bias(&self, ready: &Ready) -> Result<Vec<(u32, f32)>, ApiError> {
        let vocabulary = ready.config.vocab_size;
        let one = |(token, bias): (&String, &f64)| match token.parse::<u32>() {
            Ok(id) if (id as usize) < vocabulary && bias.abs() <= MAX_BIAS => {
                Ok((id, *bias as f32))
            }
            _ => {
                let message = format!(
                    "logit_bias gives {token:?} {bias}; expected a token id below {vocabulary}, and -{MAX_BIAS} to {MAX_BIAS}"
                );
                Err(ApiError::invalid(Some("logit_bias"), message))
            }
        };
        self.logit_bias.iter().flatten().map(one).collect()
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => vec![],
            Some(Stop::One(one)) => vec![one.clone()],
            Some(Stop::Many(many)) => many.clone(),
        };
        let found = match stops.len() {
            n if n > MAX_STOPS => Some(format!("has {n} texts")),
            _ if stops.iter().any(String::is_empty) => Some("has an empty text".into()),
            _ => None,
        };
        if let Some(found) = found {
            let message = format!("stop {found}; expected up to {MAX_STOPS}, none of them empty");
            return Err(ApiError::invalid(Some("stop"), message));
        }
        Ok(stops)
    }

    fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        match self.logprobs {
            Some(n) if n > MAX_LOGPROBS => {
                let message = format!("logprobs is {n}; expected {LOGPROBS}");
                Err(ApiError::invalid(Some("logprobs"), message))
            }
            other => Ok(other),
        }
    }
}

/// 0 is all; so is -1, as other servers have it.
pub fn top_k(given: Option<i64>) -> Result<usize, ApiError> {
    let given = given.unwrap_or(0);
    match given {
        -1 => Ok(0),
        _ => usize::try_from(given).map_err(|_| {
            let message = format!("top_k is {given}; expected {TOP_K}");
            ApiError::invalid(Some("top_k"), message)
        }),
    }
}

pub fn check_model(asked: Option<&str>, served: &str) -> Result<(), ApiError> {
    match asked {
        Some(asked) if asked != served => {
            let asked: String = asked.chars().take(80).collect();
            let message = format!("the model {asked:?} is not here; this daemon serves {served:?}");
            let error = ApiError::invalid(Some("model"), message);
            Err(error.with(StatusCode::NOT_FOUND, "model_not_found"))
        }
        _ => Ok(()),
    }
}

/// The tokens of a prompt.
pub fn encode(text: &str, ready: &Ready) -> Result<Vec<u32>, ApiError> {
    let ids = ready.tokenizer.encode(text)?;
    check_ids(&ids, "prompt", ready)?;
    Ok(ids)
}

pub fn check_ids(ids: &[u32], param: &'static str, ready: &Ready) -> Result<(), ApiError> {
    if ids.is_empty() {
        let message = format!("{param} has no tokens; expected one or more");
        return Err(ApiError::invalid(Some(param), message));
    }
    let vocabulary = ready.config.vocab_size;
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => {
            let message = format!("{param} has token id {id}; expected ids below {vocabulary}");
            Err(ApiError::invalid(Some(param), message))
        }
    }
}

/// Whether a prompt and what is to follow it fit the context; the last new token is never fed.
pub fn check_length(
    ids: &[u32],
    new: usize,
    field: &'static str,
    ready: &Ready,
) -> Result<(), ApiError> {
    let (prompt, positions) = (ids.len(), ready.config.n_positions);
    if prompt.saturating_add(new.saturating_sub(1)) <= positions {
        return Ok(());
    }
    let message =
        format!("{prompt} prompt tokens and {field} {new} do not fit the context of {positions}");
    let param = if prompt > positions { "prompt" } else { field };
    Err(ApiError::invalid(Some(param), message)
        .with(StatusCode::BAD_REQUEST, "context_length_exceeded"))
}
