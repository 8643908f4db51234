//! `POST /v1/completions`: a whole answer, or server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::App;
use super::answer::{Choice, Completion, Growing, Usage, join};
use super::body::Body;
use super::error::{ApiError, ErrorBody};
use super::request::{Checked, CompletionRequest};
use super::schemas::StreamEvent;
use crate::server::access::{Client, RequestId};
use crate::server::engine::{Event, Failure, Refused, Task};
use crate::server::{fresh_number, seconds_since_1970};
use crate::tokenizer::Tokenizer;

/// Completes prompts.
///
/// With `stream`, the answer is `text/event-stream`: objects of the same form, each with the next part of one choice, then
/// `[DONE]`. With `echo`, `logprobs` and `max_tokens` 0 or 1 it gives the log-likelihood of the prompt, as evaluation harnesses ask.
#[utoipa::path(
    post, path = "/v1/completions", operation_id = "create_completion", tag = "OpenAI",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The completion", content(
            (Completion = "application/json"), (StreamEvent = "text/event-stream")
        )),
        (status = 400, description = "A field is not what it may be", body = ErrorBody),
        (status = 404, description = "Another model is asked for", body = ErrorBody),
        (status = 408, description = "Not done within the time allowed", body = ErrorBody),
        (status = 422, description = "Something that is not offered", body = ErrorBody),
        (status = 429, description = "The queue is full", body = ErrorBody),
        (status = 503, description = "The model is still loading", body = ErrorBody),
    )
)]
pub async fn create(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Extension(id): Extension<RequestId>,
    body: Body,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let ready = app.engine.ready()?;
    // A long text is long to tokenize: others are answered meanwhile.
    let check = || CompletionRequest::read(body)?.check(&app.model, ready);
    let request = tokio::task::block_in_place(check)?;
    if app.log_text {
        let texts = request.prompts.iter().map(|(ids, text)| match text {
            Some(text) => text.clone(),
            None => ready.tokenizer.decode(ids).unwrap_or_default(),
        });
        tracing::info!(id = id.as_str(), prompts = ?texts.collect::<Vec<_>>(), "prompts");
    }
    let n = request.samplers.len();
    let sequences = request.prompts.len() * n;
    let growing = (0..sequences).map(|i| Growing::new(i, &request, &ready.tokenizer));
    let growing = growing.collect::<crate::Result<Vec<_>>>()?;
    let (ticket, deadline) = app.engine.ticket(sequences)?;
    let (sender, told) = unbounded_channel();
    let (who, which) = (client.of(request.user.as_deref()), fresh_number());
    let tasks = (0..sequences).map(|index| Task {
        index,
        client: who,
        request: which,
        ids: request.prompts[index / n].0.clone(),
        max_new_tokens: request.max_new_tokens,
        sampler: request.samplers[index % n].clone(),
        stop_ids: request.stop_ids.clone(),
        stop: request.stop.clone(),
        logprobs: request.logprobs,
        prompt_logprobs: request.echo && request.logprobs.is_some(),
        deadline,
        arrived,
        ticket: Some(ticket.clone()),
        events: sender.clone(),
    });
    let tasks = tasks.collect();
    drop(ticket);
    app.engine.complete(tasks)?;
    let answer = Answer::new(&app, id, &request, growing, ready.tokenizer.clone());
    // The only ones left are the engine's: when it lets go of them all, there is nothing more to come.
    drop(sender);
    match request.stream {
        // Asks a proxy in between, nginx say, not to collect what comes piece by piece.
        true => Ok(([("x-accel-buffering", "no")], events(answer, told)).into_response()),
        false => Ok(Json(answer.whole(told).await?).into_response()),
    }
}

/// An answer as it grows.
#[derive(Debug)]
struct Answer {
    head: Completion,
    growing: Vec<Growing>,
    /// Choices that are not at their end.
    open: usize,
    prompt_tokens: usize,
    tokenizer: Arc<Tokenizer>,
    id: RequestId,
    /// The texts so far, where they are logged.
    said: Option<Vec<String>>,
    include_usage: bool,
}

/// However it ends.
impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(texts) = &self.said {
            tracing::info!(id = self.id.as_str(), ?texts, "texts");
        }
    }
}

impl Answer {
    fn new(
        app: &App,
        id: RequestId,
        request: &Checked,
        growing: Vec<Growing>,
        tokenizer: Arc<Tokenizer>,
    ) -> Answer {
        let head = Completion {
            id: format!("cmpl-{:016x}", fresh_number()),
            object: "text_completion",
            created: seconds_since_1970(),
            model: app.model.to_string(),
            choices: vec![],
            usage: None,
        };
        let prompt_tokens = request.prompts.iter().map(|(ids, _)| ids.len()).sum();
        let said = app.log_text.then(|| vec![String::new(); growing.len()]);
        let include_usage = request.stream && request.include_usage;
        let open = growing.len();
        Answer { head, open, growing, prompt_tokens, tokenizer, id, said, include_usage }
    }

    /// The parts of the answer that an event gives.
    fn parts(&mut self, index: usize, event: Event) -> Result<Vec<Choice>, Failure> {
        let growing = &mut self.growing[index];
        let parts = match event {
            Event::Prompt(logprobs) => {
                growing.prompt(logprobs);
                vec![]
            }
            Event::Token(token) => growing.token(token, &self.tokenizer),
            Event::Done { finish, tail } => {
                self.open -= 1;
                growing.done(finish, tail, &self.tokenizer)
            }
            Event::Failed(failure) => return Err(failure),
        };
        if let Some(said) = &mut self.said {
            parts.iter().for_each(|part| said[index].push_str(&part.text));
        }
        Ok(parts)
    }

    fn usage(&self) -> Usage {
        let completion_tokens = self.growing.iter().map(|growing| growing.new_tokens).sum();
        let prompt_tokens = self.prompt_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    async fn whole(
        mut self,
        mut told: UnboundedReceiver<(usize, Event)>,
    ) -> Result<Completion, ApiError> {
        let mut choices: Vec<Option<Choice>> = vec![None; self.growing.len()];
        while self.open > 0 {
            let (index, event) = told.recv().await.ok_or_else(stopped)?;
            for part in self.parts(index, event)? {
                match &mut choices[index] {
                    Some(whole) => join(whole, part),
                    none => *none = Some(part),
                }
            }
        }
        let usage = Some(Some(self.usage()));
        let choices = choices.into_iter().flatten().collect();
        Ok(Completion { choices, usage, ..self.head.clone() })
    }

    fn chunk(&self, choices: Vec<Choice>) -> String {
        // Where usage comes at the end, it is said that it isn't here.
        let usage = self.include_usage.then_some(None);
        to_json(&Completion { choices, usage, ..self.head.clone() })
    }

    /// The lines of server-sent events that an event gives, and whether they are the last.
    fn lines(&mut self, told: Option<(usize, Event)>) -> (Vec<String>, bool) {
        let parts = match told {
            Some((index, event)) => self.parts(index, event).map_err(ApiError::from),
            None => Err(stopped()),
        };
        let parts = match parts {
            Ok(parts) => parts,
            // A stream that fails says so, and is not said to be done.
            Err(error) => {
                tracing::warn!(id = self.id.as_str(), "a stream failed: {}", error.message);
                return (vec![to_json(&error.body())], true);
            }
        };
        let mut lines: Vec<String> = parts.into_iter().map(|part| self.chunk(vec![part])).collect();
        if self.open > 0 {
            return (lines, false);
        }
        if self.include_usage {
            let usage = Some(Some(self.usage()));
            lines.push(to_json(&Completion { usage, ..self.head.clone() }));
        }
        lines.push("[DONE]".into());
        (lines, true)
    }
}

fn stopped() -> ApiError {
    Refused::Down("the engine stopped before it answered".into()).into()
}

fn to_json(value: &impl serde::Serialize) -> String {
    // Only maps with keys that aren't texts, and numbers that can't be written, fail.
    serde_json::to_string(value).unwrap_or_else(|e| {
        let error = ApiError::internal(format!("failed to write the answer: {e}"));
        serde_json::to_string(&error.body()).unwrap_or_default()
    })
}

/// The stream reads from the engine only as fast as its client reads from it; when the client is gone the stream is dropped,
/// and with it the engine's only listener.
fn events(
    answer: Answer,
    told: UnboundedReceiver<(usize, Event)>,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let events = stream::unfold(Some((answer, told)), move |state| async move {
        let (mut answer, mut told) = state?;
        let event = told.recv().await;
        let (lines, last) = answer.lines(event);
        Some((lines, (!last).then_some((answer, told))))
    });
    let events = events.flat_map(stream::iter);
    let events = events.map(|line| Ok(SseEvent::default().data(line)));
    Sse::new(events).keep_alive(KeepAlive::default())
}
