//! What a completion is answered with, and how it grows from what the engine tells.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::request::Checked;
use crate::server::engine::{FinishReason, Token, TokenLogprob};
use crate::tokenizer::{TextStream, Tokenizer};

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Completion {
    pub id: String,
    #[schema(pattern = "^text_completion$")]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// All answers to the first prompt, then all to the second, and so on.
    pub choices: Vec<Choice>,
    /// Null in the chunks of a stream before the one that has it; absent where it wasn't asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Choice {
    pub text: String,
    pub index: usize,
    #[schema(required)]
    pub logprobs: Option<Logprobs>,
    /// Null while it goes on.
    #[schema(required)]
    pub finish_reason: Option<FinishReason>,
    /// With `return_token_ids`: the new tokens, with `echo` after the prompt's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// Lists of one length, an entry a token.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Logprobs {
    /// Its text by itself; `bytes:\xe2\x80` where its bytes are no UTF-8.
    pub tokens: Vec<String>,
    /// log softmax of the model's own logits. Null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// Of the most likely tokens and of the token itself. Null for the first token of a prompt.
    #[schema(value_type = Vec<Option<std::collections::BTreeMap<String, f64>>>)]
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Characters before it in the text.
    pub text_offset: Vec<usize>,
}

/// By token, the likeliest first.
pub type TopLogprobs = serde_json::Map<String, serde_json::Value>;

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl Logprobs {
    fn push(&mut self, logprob: &TokenLogprob, offset: usize) {
        self.tokens.push(logprob.token.clone());
        // JSON has no infinities.
        self.token_logprobs.push(Some(logprob.logprob).filter(|p| p.is_finite()));
        let top = logprob.top.iter().map(|(token, p)| (token.clone(), (*p).into()));
        self.top_logprobs.push(Some(top.collect()));
        self.text_offset.push(offset);
    }

    pub fn append(&mut self, mut more: Logprobs) {
        self.tokens.append(&mut more.tokens);
        self.token_logprobs.append(&mut more.token_logprobs);
        self.top_logprobs.append(&mut more.top_logprobs);
        self.text_offset.append(&mut more.text_offset);
    }
}

/// One choice as it grows: what the engine tells becomes parts of the answer, which a stream sends as they are and a whole
/// answer joins.
#[derive(Debug)]
pub struct Growing {
    index: usize,
    /// Where the prompt is to be given back.
    echo: Option<Prompt>,
    with_ids: bool,
    with_logprobs: bool,
    /// Characters before the next token.
    offset: usize,
    pub new_tokens: usize,
}

#[derive(Debug)]
struct Prompt {
    ids: Arc<[u32]>,
    text: String,
    /// The logprobs of its tokens after the first, as far as they were told.
    told: Vec<TokenLogprob>,
}

impl Growing {
    pub fn new(index: usize, request: &Checked, tokenizer: &Tokenizer) -> crate::Result<Growing> {
        let (ids, text) = &request.prompts[index / request.samplers.len()];
        let echo = || {
            let text = match text {
                Some(text) => text.clone(),
                None => tokenizer.decode(ids)?,
            };
            Ok::<_, crate::Error>(Prompt { ids: ids.clone(), text, told: Vec::new() })
        };
        Ok(Growing {
            index,
            echo: if request.echo { Some(echo()?) } else { None },
            with_ids: request.return_token_ids,
            with_logprobs: request.logprobs.is_some(),
            offset: 0,
            new_tokens: 0,
        })
    }

    fn part(&self, text: String, logprobs: Option<Logprobs>, ids: Vec<u32>) -> Choice {
        let token_ids = self.with_ids.then_some(ids);
        Choice { text, index: self.index, logprobs, finish_reason: None, token_ids }
    }

    pub fn prompt(&mut self, logprobs: Vec<TokenLogprob>) {
        if let Some(prompt) = &mut self.echo {
            prompt.told.extend(logprobs);
        }
    }

    /// The prompt, once, before anything else.
    fn echo(&mut self, tokenizer: &Tokenizer) -> Option<Choice> {
        let Prompt { ids, text, told } = self.echo.take()?;
        let logprobs = self.with_logprobs.then(|| {
            let mut logprobs = Logprobs::default();
            let mut characters = TextStream::new();
            logprobs.tokens.push(tokenizer.piece(ids[0]));
            logprobs.token_logprobs.push(None);
            logprobs.top_logprobs.push(None);
            logprobs.text_offset.push(0);
            let mut offset = 0;
            for (before, logprob) in ids.iter().zip(&told) {
                let piece = characters.push(tokenizer, *before).unwrap_or_default();
                offset += piece.chars().count();
                logprobs.push(logprob, offset);
            }
            logprobs
        });
        self.offset = text.chars().count();
        Some(self.part(text, logprobs, ids.to_vec()))
    }

    /// Parts for a new token.
    pub fn token(&mut self, token: Token, tokenizer: &Tokenizer) -> Vec<Choice> {
        let echo = self.echo(tokenizer);
        let logprobs = token.logprob.as_ref().map(|logprob| {
            let mut one = Logprobs::default();
            one.push(logprob, self.offset);
            one
        });
        self.offset += token.chars;
        self.new_tokens += 1;
        let part = self.part(token.text, logprobs, vec![token.id]);
        echo.into_iter().chain([part]).collect()
    }

    /// The last parts.
    pub fn done(
        &mut self,
        finish: FinishReason,
        tail: String,
        tokenizer: &Tokenizer,
    ) -> Vec<Choice> {
        let echo = self.echo(tokenizer);
        // Asked for, they are there, be there tokens or not.
        let none = self.with_logprobs.then(Logprobs::default);
        let mut last = self.part(tail, none, vec![]);
        last.finish_reason = Some(finish);
        echo.into_iter().chain([last]).collect()
    }
}

/// Joins the parts of one choice.
pub fn join(whole: &mut Choice, part: Choice) {
    whole.text.push_str(&part.text);
    whole.finish_reason = part.finish_reason.or(whole.finish_reason);
    if let Some(more) = part.logprobs {
        whole.logprobs.get_or_insert_default().append(more);
    }
    if let (Some(ids), Some(more)) = (&mut whole.token_ids, part.token_ids) {
        ids.extend(more);
    }
}
