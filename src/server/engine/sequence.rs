//! One sequence on its way through the engine: its prompt, what it goes on with, and what its client is told of it.

use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayView2;
use tokio::sync::mpsc::UnboundedSender;

use super::logprobs::{TokenLogprob, logprob};
use super::stop::StopMatcher;
use super::ticket::{Outcome, Ticket};
use crate::error::Result;
use crate::generate::choose;
use crate::model::{Model, Rows};
use crate::probe::NoProbe;
use crate::sampler::Sampler;
use crate::tokenizer::{TextStream, Tokenizer};

/// One sequence that somebody wants.
#[derive(Debug)]
pub struct Task {
    /// Which of its request's sequences it is.
    pub index: usize,
    /// Whose it is: clients take turns.
    pub client: u64,
    /// Which request it is of: those of one client take turns too.
    pub request: u64,
    /// One or more.
    pub ids: Arc<[u32]>,
    /// 0 where only the prompt's logprobs are wanted.
    pub max_new_tokens: usize,
    pub sampler: Sampler,
    /// Tokens that end it. They are told, and are no part of the text.
    pub stop_ids: Vec<u32>,
    pub stop: Vec<String>,
    /// How many of the most likely tokens to give with each; `None` for no logprobs at all.
    pub logprobs: Option<usize>,
    /// Whether the prompt's tokens get theirs too.
    pub prompt_logprobs: bool,
    /// After this it is not worth going on.
    pub deadline: Instant,
    pub arrived: Instant,
    /// Its request's place among those that are not finished.
    pub ticket: Option<Arc<Ticket>>,
    /// There are no more events than tokens, so that the engine never waits for a client.
    pub events: UnboundedSender<(usize, Event)>,
}

/// What a task gives, in this order: the prompt's logprobs if wanted, tokens, then one `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// Of the prompt's tokens after the first, some at a time.
    Prompt(Vec<TokenLogprob>),
    Token(Token),
    Done {
        finish: FinishReason,
        tail: String,
    },
    Failed(Failure),
}

#[derive(Debug, Clone)]
pub enum Failure {
    /// Its time was over before it was done.
    Late,
    Engine(String),
}

#[derive(Debug, Clone)]
pub struct Token {
    pub id: u32,
    /// The text that may be given out with it; empty while a character or a stop string is unfinished.
    pub text: String,
    /// Characters that it completed, given out or not.
    pub chars: usize,
    pub logprob: Option<TokenLogprob>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// A stop string, or the end of the text.
    Stop,
    /// `max_tokens` were made.
    Length,
}

#[derive(Debug)]
pub struct Sequence {
    task: Task,
    /// The prompt and what it went on with.
    ids: Vec<u32>,
    /// How many of those have been through the model.
    fed: usize,
    text: TextStream,
    stop: StopMatcher,
    /// When its first and its last token came.
    pub tokens_came: Option<(Instant, Instant)>,
    ended: bool,
}

impl Sequence {
    /// `reused` of the prompt's tokens are in its cache already.
    pub fn new(task: Task, reused: usize) -> Sequence {
        Sequence {
            ids: task.ids.to_vec(),
            fed: reused,
            text: TextStream::new(),
            stop: StopMatcher::new(task.stop.clone()),
            tokens_came: None,
            ended: false,
            task,
        }
    }

    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Tokens that have been through the model, the prompt's first.
    pub fn fed(&self) -> &[u32] {
        &self.ids[..self.fed]
    }

    /// New tokens so far.
    pub fn generated(&self) -> usize {
        self.ids.len() - self.task.ids.len()
    }

    /// Tokens of the prompt that have not been through the model.
    pub fn prompt_left(&self) -> usize {
        self.task.ids.len().saturating_sub(self.fed)
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What the next step feeds, at most `most` of a prompt, and for which of it logits are wanted.
    pub fn next(&self, most: usize) -> (&[u32], Rows) {
        let left = &self.ids[self.fed..];
        let next = if self.prompt_left() > 0 { &left[..most.clamp(1, left.len())] } else { left };
        let rows = match () {
            _ if self.prompt_left() > 0 && self.task.prompt_logprobs => Rows::All,
            _ if next.len() < left.len() => Rows::None,
            _ => Rows::Last,
        };
        (next, rows)
    }

    /// Tells the logprobs of the prompt's tokens that follow those which [`Sequence::next`] fed, `count` of them, with `logits`,
    /// `[count, V]`. To be called before [`Sequence::take`].
    pub fn tell_prompt(
        &self,
        count: usize,
        logits: ArrayView2<'_, f32>,
        model: &Model,
        tokenizer: &Tokenizer,
    ) {
        if self.prompt_left() == 0 || !self.task.prompt_logprobs {
            return;
        }
        let prompt = &self.task.ids;
        let next = &prompt[self.fed + 1..prompt.len().min(self.fed + count + 1)];
        let n = self.task.logprobs.unwrap_or(0);
        let mut found: Vec<_> =
            next.iter().zip(logits.rows()).map(|(id, row)| (*id, row, None)).collect();
        model.share(&mut found, |(id, row, found)| {
            let row = row.as_slice().expect("rows are in standard layout");
            *found = Some(logprob(tokenizer, row, *id, n));
        });
        self.tell(Event::Prompt(found.into_iter().filter_map(|(_, _, found)| found).collect()));
    }

    /// Goes on by what [`Sequence::next`] fed, `count` tokens, of the last of which these are the logits, `[V]`, where they
    /// were wanted.
    pub fn take(&mut self, count: usize, logits: Option<&[f32]>, tokenizer: &Tokenizer) {
        self.fed += count;
        if self.prompt_left() > 0 {
            return;
        }
        if let Err(error) = self.advance(logits.unwrap_or_default(), tokenizer) {
            self.fail(Failure::Engine(error.to_string()));
        }
    }

    fn advance(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<()> {
        if self.task.max_new_tokens == 0 {
            self.end(FinishReason::Length, String::new());
            return Ok(());
        }
        let prompt = self.task.ids.len();
        let id = choose(logits, &self.ids, prompt, &mut self.task.sampler, &mut NoProbe)?;
        let now = Instant::now();
        self.tokens_came = Some((self.tokens_came.map_or(now, |(first, _)| first), now));
        self.ids.push(id);
        let logprob = self.task.logprobs.map(|n| logprob(tokenizer, logits, id, n));
        // The token that ends the text is told like any other, and adds nothing to it.
        if self.task.stop_ids.contains(&id) {
            self.tell(Event::Token(Token { id, text: String::new(), chars: 0, logprob }));
            return self.finish(FinishReason::Stop, tokenizer);
        }
        let piece = self.text.push(tokenizer, id)?;
        let chars = piece.chars().count();
        let (text, found) = self.stop.push(&piece);
        self.tell(Event::Token(Token { id, text, chars, logprob }));
        if found {
            self.end(FinishReason::Stop, String::new());
        } else if self.generated() == self.task.max_new_tokens {
            return self.finish(FinishReason::Length, tokenizer);
        }
        Ok(())
    }

    /// Gives out what was held back.
    fn finish(&mut self, finish: FinishReason, tokenizer: &Tokenizer) -> Result<()> {
        let rest = self.text.finish(tokenizer)?;
        let (mut tail, found) = self.stop.push(&rest);
        if !found {
            tail.push_str(&self.stop.finish());
        }
        self.end(if found { FinishReason::Stop } else { finish }, tail);
        Ok(())
    }

    fn end(&mut self, finish: FinishReason, tail: String) {
        self.ended = true;
        self.task.give_back(Outcome::Completed);
        self.tell(Event::Done { finish, tail });
    }

    pub fn fail(&mut self, failure: Failure) {
        self.ended = true;
        self.task.fail(failure);
    }

    /// Ends it without a word: nobody listens.
    pub fn abandon(&mut self) {
        self.ended = true;
        self.task.give_back(Outcome::Abandoned);
    }

    fn tell(&self, event: Event) {
        self.task.tell(event);
    }
}

impl Task {
    /// Nobody waits for it any more.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub fn is_late(&self, now: Instant) -> bool {
        now >= self.deadline
    }

    pub fn fail(&mut self, failure: Failure) {
        self.give_back(match failure {
            Failure::Late => Outcome::TimedOut,
            Failure::Engine(_) => Outcome::Failed,
        });
        self.tell(Event::Failed(failure));
    }

    /// Before the last event is told: whoever has it may ask again at once.
    pub fn give_back(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            ticket.part_ended(outcome);
        }
    }

    /// Whoever is gone is not told; the engine finds out between steps.
    fn tell(&self, event: Event) {
        let _ = self.events.send((self.index, event));
    }
}
