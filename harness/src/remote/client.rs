//! What is asked of a daemon over HTTP, and what its refusals mean in the protocol.

use std::time::{Duration, Instant};

use llorch_trace::protocol::{ErrorClass, Sampling};
use serde_json::{Value, json};
use ureq::http::{HeaderValue, Response, StatusCode};
use ureq::{Agent, Body};

use crate::result::Generation;
use crate::text::shorten;

/// The environment variable with the key of a daemon that wants one. On a command line everybody could read it.
pub const KEY: &str = "LLORCH_API_KEY";

/// How long a busy daemon that doesn't say when is left alone, and how long at most if it does.
const AGAIN: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(30);

/// Between two looks at whether there is anything to wait for.
const LOOK: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub class: ErrorClass,
    /// Without anything in front: it says who refuses.
    pub message: String,
}

impl Refused {
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Refused {
        Refused { class, message: message.into() }
    }

    pub fn cancelled() -> Refused {
        Refused::new(ErrorClass::Resource, "cancelled")
    }
}

/// What `GET /health` tells.
#[derive(Debug)]
pub enum Health {
    Ready,
    Loading,
    /// It says itself that it can't.
    Failed(String),
    Unreachable(String),
}

/// What is to be completed.
#[derive(Debug)]
pub struct Ask<'a> {
    /// A text, ids, or a list of lists of ids.
    pub prompt: Value,
    pub max_tokens: usize,
    pub sampling: &'a Sampling,
}

/// The model that is served, by the daemon's own words.
#[derive(Debug)]
pub struct Serves {
    /// Of model.safetensors.
    pub sha256: String,
    pub dtype: String,
}

/// One daemon. Requests that it is too busy for are made again.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    base: String,
    key: Option<HeaderValue>,
    /// For one answer, waiting included; without end where whoever started this program sees to that.
    limit: Option<Duration>,
}

impl Client {
    /// Refuses only a key that can't be sent.
    pub fn new(base: &str, limit: Option<Duration>) -> Result<Client, Refused> {
        let config = Agent::config_builder()
            // The body of an error says what is wrong.
            .http_status_as_error(false)
            // The daemon is where the address says, whatever proxy the environment names.
            .proxy(None)
            // A connection that the daemon has closed meanwhile would look like a daemon that died.
            .max_idle_connections(0);
        Ok(Client { agent: config.build().into(), base: base.to_string(), key: key()?, limit })
    }

    /// As it is called in messages.
    pub fn name(&self) -> String {
        format!("the daemon at {}", self.base)
    }

    pub fn address(&self) -> &str {
        &self.base
    }

    pub fn health(&self) -> Health {
        let request = self.agent.get(format!("{}/health", self.base));
        let mut response = match request.config().timeout_global(self.limit).build().call() {
            Ok(response) => response,
            Err(error) => return Health::Unreachable(told(&error)),
        };
        let status = response.status();
        if status == 200 {
            return Health::Ready;
        }
        let body: Value = response.body_mut().read_json().unwrap_or_default();
        match body["status"].as_str() {
            Some("failed") => {
                Health::Failed(format!("{} is not healthy: {}", self.name(), body["message"]))
            }
            Some("loading") => Health::Loading,
            _ => Health::Unreachable(format!("/health answered {status}; expected llorch-cpud's")),
        }
    }

    /// The sentence for a daemon that isn't there.
    pub fn unreachable(&self, why: &str) -> String {
        format!("failed to reach a daemon at {}: {why}", self.base)
    }

    /// What `GET /v1/models` says of the model.
    pub fn serves(&self, stop: &dyn Fn() -> bool) -> Result<Serves, Refused> {
        const PATH: &str = "/v1/models";
        let answer = self.json(PATH, None, stop)?;
        let model = &answer["data"][0];
        match (model["sha256"].as_str(), model["dtype"].as_str()) {
            (Some(sha256), Some(dtype)) => {
                Ok(Serves { sha256: sha256.to_string(), dtype: dtype.to_string() })
            }
            // Something else, or older.
            _ => Err(Refused {
                class: ErrorClass::Unsupported,
                ..self.unexpected(PATH, "the sha256 and dtype of a model", &answer)
            }),
        }
    }

    pub fn tokenize(&self, text: &str, stop: &dyn Fn() -> bool) -> Result<Vec<u32>, Refused> {
        const PATH: &str = "/tokenize";
        let answer = self.json(PATH, Some(&json!({"text": text})), stop)?;
        ids(&answer["ids"]).ok_or_else(|| self.unexpected(PATH, "ids", &answer))
    }

    /// One generation for each prompt, in their order.
    pub fn complete(
        &self,
        ask: &Ask<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Generation>, Refused> {
        const PATH: &str = "/v1/completions";
        let mut body = json!({
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "ignore_eos": true,
            "return_token_ids": true,
        });
        sample(&mut body, ask.sampling);
        let answer = self.json(PATH, Some(&body), stop)?;
        let unexpected = || self.unexpected(PATH, "choices with token_ids", &answer);
        let choices = answer["choices"].as_array().ok_or_else(unexpected)?;
        let mut generations: Vec<Option<Generation>> = vec![None; choices.len()];
        for choice in choices {
            let place = choice["index"].as_u64().and_then(|n| usize::try_from(n).ok());
            let place = place.and_then(|n| generations.get_mut(n)).ok_or_else(unexpected)?;
            let ids = ids(&choice["token_ids"]).ok_or_else(unexpected)?;
            *place = Some(Generation { ids, text: choice["text"].as_str().map(str::to_string) });
        }
        generations.into_iter().collect::<Option<Vec<_>>>().ok_or_else(unexpected)
    }

    /// Asks for an answer in JSON: `GET`, or `POST` where there is a body.
    fn json(
        &self,
        path: &str,
        body: Option<&Value>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Value, Refused> {
        let mut response = self.ask(path, body, stop)?;
        let read = response.body_mut().read_json();
        read.map_err(|error| self.broke_off(path, &told(&error)))
    }

    /// The answer, whose body is still to be read. A daemon that says when to come again is asked again.
    pub fn ask(
        &self,
        path: &str,
        body: Option<&Value>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Response<Body>, Refused> {
        let due = self.limit.map(|limit| Instant::now() + limit);
        let mut waited = false;
        loop {
            let mut response = self.send(path, body, due)?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let again = again(&response);
            let said = said(&mut response);
            let wait = again.filter(|wait| due.is_none_or(|due| Instant::now() + *wait < due));
            let Some(wait) = wait else { return Err(self.refused(path, status, &said)) };
            if !waited {
                llorch_models::errln!("{} answered {status}: {said}; asked again", self.name());
                waited = true;
            }
            rest(wait, stop)?;
        }
    }

    fn send(
        &self,
        path: &str,
        body: Option<&Value>,
        due: Option<Instant>,
    ) -> Result<Response<Body>, Refused> {
        let url = format!("{}{path}", self.base);
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let sent = match body {
            None => {
                let request = self.agent.get(url).config().timeout_global(left).build();
                match &self.key {
                    Some(key) => request.header("authorization", key).call(),
                    None => request.call(),
                }
            }
            Some(body) => {
                let request = self.agent.post(url).config().timeout_global(left).build();
                match &self.key {
                    Some(key) => request.header("authorization", key).send_json(body),
                    None => request.send_json(body),
                }
            }
        };
        sent.map_err(|error| match error {
            ureq::Error::Timeout(_) => {
                let what = format!("{} did not answer {path} in time", self.name());
                Refused::new(ErrorClass::Resource, what)
            }
            error => {
                let what = format!("{} failed to answer {path}: {}", self.name(), told(&error));
                Refused::new(ErrorClass::Internal, what)
            }
        })
    }

    /// A status that is no success, by what it means.
    fn refused(&self, path: &str, status: StatusCode, said: &str) -> Refused {
        let name = self.name();
        match status.as_u16() {
            401 | 403 => {
                let what = match self.key {
                    Some(_) => format!("refuses the key in {KEY}"),
                    None => format!("wants a key: set {KEY}"),
                };
                Refused::new(ErrorClass::Input, format!("{name} {what} ({status})"))
            }
            404 | 405 => {
                let what = format!("{name} has no {path} ({status}); expected llorch-cpud's");
                Refused::new(ErrorClass::Unsupported, what)
            }
            code => {
                let class = match code {
                    408 | 429 | 503 | 507 => ErrorClass::Resource,
                    400..500 => ErrorClass::Input,
                    _ => ErrorClass::Internal,
                };
                Refused::new(class, format!("{name} answered {path} with {status}: {said}"))
            }
        }
    }

    pub fn broke_off(&self, path: &str, why: &str) -> Refused {
        let what = format!("{} broke off in its answer to {path}: {why}", self.name());
        Refused::new(ErrorClass::Internal, what)
    }

    fn unexpected(&self, path: &str, expected: &str, answer: &Value) -> Refused {
        let found = shorten(&answer.to_string(), 200);
        let what = format!("{} answered {path} with {found}; expected {expected}", self.name());
        Refused::new(ErrorClass::Internal, what)
    }
}

/// The settings of a draw. Without one they would be refused, or mean nothing.
pub fn sample(body: &mut Value, sampling: &Sampling) {
    body["temperature"] = json!(sampling.temperature);
    if sampling.temperature > 0.0 {
        body["top_k"] = json!(sampling.top_k);
        body["top_p"] = json!(sampling.top_p);
        // Its seeds are signed, as OpenAI's are: the bits are the same.
        body["seed"] = json!(sampling.seed as i64);
    }
}

/// Sleeps, unless there is no reason to any more.
pub fn rest(time: Duration, stop: &dyn Fn() -> bool) -> Result<(), Refused> {
    let until = Instant::now() + time;
    loop {
        if stop() {
            return Err(Refused::cancelled());
        }
        match until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return Ok(()),
            left => std::thread::sleep(left.min(LOOK)),
        }
    }
}

fn key() -> Result<Option<HeaderValue>, Refused> {
    let refuse = |what: &str| {
        let what = format!("failed to read {KEY}: {what}; expected visible ASCII characters");
        Refused::new(ErrorClass::Input, what)
    };
    let key = match std::env::var(KEY) {
        Ok(key) if key.is_empty() => return Ok(None),
        Ok(key) => key,
        Err(std::env::VarError::NotPresent) => return Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => return Err(refuse("it is no text")),
    };
    if !key.chars().all(|c| c.is_ascii_graphic()) {
        // Never the key itself.
        return Err(refuse("it holds something else"));
    }
    let mut value =
        HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| refuse("it can't be sent"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// When a daemon that is busy, or not ready yet, wants to be asked again.
fn again(response: &Response<Body>) -> Option<Duration> {
    let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let after = after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    match response.status().as_u16() {
        429 => Some(after.unwrap_or(AGAIN).clamp(LOOK, LATEST)),
        503 => after.map(|after| after.clamp(LOOK, LATEST)),
        _ => None,
    }
}

/// The daemon's own words in the body of an error.
fn said(response: &mut Response<Body>) -> String {
    let text = response.body_mut().read_to_string().unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = value["error"]["message"].as_str().unwrap_or(text.trim());
    shorten(message, 500)
}

/// Without the words that an HTTP library puts before a plain error of the network.
fn told(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    value.as_array()?.iter().map(id).collect()
}
