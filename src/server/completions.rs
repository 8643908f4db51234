//! `POST /v1/completions`: a whole answer, or server-sent events.

use std::convert::Infallible;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::request::CompletionRequest;
use super::worker::{Event, FinishReason, Job, Token, events};
use super::{App, fresh_number, seconds_since_1970};

pub async fn create(
    State(app): State<App>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|e| ApiError::invalid(None, e.body_text()).with(e.status(), "body"))?;
    let request = CompletionRequest::read(&body)?;
    let checked = request.check(&app.model, app.worker.ready()?)?;
    let (sender, receiver) = events();
    let prompt_tokens = checked.ids.len();
    let head = Head {
        id: format!("cmpl-{:016x}", fresh_number()),
        created: seconds_since_1970(),
        model: app.model.to_string(),
    };
    app.worker.submit(Job {
        ids: checked.ids,
        options: checked.options,
        stop: checked.stop,
        logprobs: checked.logprobs,
        events: sender,
    })?;
    let answer =
        Answer { head, prompt_tokens, with_ids: request.return_token_ids, ..Default::default() };
    if request.stream {
        let usage = request.stream_options.is_some_and(|o| o.include_usage);
        return Ok(stream(answer, receiver, usage).into_response());
    }
    Ok(Json(answer.whole(receiver).await?).into_response())
}

#[derive(Debug, Clone, Default)]
struct Head {
    id: String,
    created: u64,
    model: String,
}

/// An answer as it grows.
#[derive(Debug, Default)]
struct Answer {
    head: Head,
    prompt_tokens: usize,
    completion_tokens: usize,
    with_ids: bool,
    /// Characters of text given out: OpenAI's `text_offset`.
    offset: usize,
}

impl Answer {
    async fn whole(mut self, mut receiver: mpsc::Receiver<Event>) -> Result<Value, ApiError> {
        let (mut text, mut ids, mut logprobs) = (String::new(), Vec::new(), Vec::new());
        while let Some(event) = receiver.recv().await {
            match event {
                Event::Token(token) => {
                    text.push_str(&token.text);
                    ids.push(token.id);
                    logprobs.extend(self.logprobs(&token));
                    self.completion_tokens += 1;
                }
                Event::Done { finish, tail } => {
                    text.push_str(&tail);
                    let logprobs = merge(logprobs);
                    let mut body = self.body(&text, &ids, logprobs, Some(finish));
                    body["usage"] = self.usage();
                    return Ok(body);
                }
                Event::Failed(e) => return Err(e.into()),
            }
        }
        Err(super::worker::Refused::Down("the engine stopped before it answered".into()).into())
    }

    fn body(
        &self,
        text: &str,
        ids: &[u32],
        logprobs: Value,
        finish: Option<FinishReason>,
    ) -> Value {
        let mut choice = json!({
            "text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish.map(FinishReason::name),
        });
        if self.with_ids {
            choice["token_ids"] = json!(ids);
        }
        json!({
            "id": self.head.id, "object": "text_completion", "created": self.head.created,
            "model": self.head.model, "choices": [choice],
        })
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }

    /// One token's logprobs in OpenAI's form, lists of one.
    fn logprobs(&mut self, token: &Token) -> Option<Value> {
        let l = token.logprob.as_ref()?;
        let top: serde_json::Map<String, Value> =
            l.top.iter().map(|(t, p)| (t.clone(), json!(p))).collect();
        let value = json!({
            "tokens": [l.token], "token_logprobs": [l.logprob], "top_logprobs": [top],
            "text_offset": [self.offset],
        });
        self.offset += l.token.chars().count();
        Some(value)
    }

    /// The JSON of one server-sent event.
    fn chunk(&mut self, event: Event) -> Value {
        match event {
            Event::Token(token) => {
                self.completion_tokens += 1;
                let logprobs = self.logprobs(&token).unwrap_or(Value::Null);
                self.body(&token.text, &[token.id], logprobs, None)
            }
            Event::Done { finish, tail } => self.body(&tail, &[], Value::Null, Some(finish)),
            Event::Failed(e) => ApiError::from(e).body(),
        }
    }
}

/// Events become lines in a task of their own; it ends, and with it the generation, when the client
/// is gone.
fn stream(
    mut answer: Answer,
    mut receiver: mpsc::Receiver<Event>,
    usage: bool,
) -> Sse<impl tokio_stream::Stream<Item = Result<SseEvent, Infallible>>> {
    let (sender, lines) = mpsc::channel::<String>(16);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = receiver.recv() => event,
                // Notices a client that leaves before the first token.
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            let last = !matches!(event, Event::Token(_));
            let mut batch = vec![answer.chunk(event).to_string()];
            if last {
                if usage {
                    let mut body = answer.body("", &[], Value::Null, None);
                    body["choices"] = json!([]);
                    body["usage"] = answer.usage();
                    batch.push(body.to_string());
                }
                batch.push("[DONE]".into());
            }
            for line in batch {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
        }
    });
    let events = ReceiverStream::new(lines).map(|line| Ok(SseEvent::default().data(line)));
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// Lists of one into one list each; null where none were asked for.
fn merge(parts: Vec<Value>) -> Value {
    if parts.is_empty() {
        return Value::Null;
    }
    let mut merged = serde_json::Map::new();
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let all: Vec<Value> = parts.iter().map(|p| p[key][0].clone()).collect();
        merged.insert(key.into(), all.into());
    }
    merged.into()
}
