//! What the tests of this module share: nano, and tasks for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::sequence::{Event, Task};
use crate::model::Model;
use crate::packed::Format;
use crate::sampler::{Sampler, Sampling};
use crate::tokenizer::Tokenizer;

pub fn nano() -> (Model, Tokenizer) {
    let resolved = llorch_models::resolve("nano", &Default::default()).unwrap();
    let model = Model::load(&resolved.dir, Format::F32, 2).unwrap();
    (model, Tokenizer::load(&resolved.dir).unwrap())
}

/// A greedy one, and where it tells.
pub fn task(
    client: u64,
    ids: &[u32],
    max_new_tokens: usize,
) -> (Task, UnboundedReceiver<(usize, Event)>) {
    let (events, told) = unbounded_channel();
    let now = Instant::now();
    let task = Task {
        index: 0,
        client,
        request: client,
        ids: Arc::from(ids),
        max_new_tokens,
        sampler: Sampler::new(Sampling::default()).unwrap(),
        stop_ids: vec![],
        stop: vec![],
        logprobs: None,
        prompt_logprobs: false,
        deadline: now + Duration::from_secs(600),
        arrived: now,
        ticket: None,
        events,
    };
    (task, told)
}

/// The ids of the tokens that were told, and the last event.
pub fn all(mut told: UnboundedReceiver<(usize, Event)>) -> (Vec<u32>, Option<Event>) {
    let (mut ids, mut last) = (Vec::new(), None);
    while let Ok((_, event)) = told.try_recv() {
        if let Event::Token(token) = &event {
            ids.push(token.id);
        }
        last = Some(event);
    }
    (ids, last)
}
