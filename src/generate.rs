//! Generation: prefill, then one token at a time.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use llorch_trace::{Point, Stage};
use ndarray::Array1;

use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use crate::model::{Model, Rows, Sequence};
use crate::probe::{NoProbe, Probe};
use crate::sampler::{Sampler, Sampling, argmax};

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// 0 runs the prefill alone.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Tokens after which generation ends; the token itself is still given out.
    pub stop_ids: Vec<u32>,
    /// Feed these instead of the tokens chosen; as many as `max_new_tokens`.
    pub forced_ids: Option<Vec<u32>>,
}

/// One new token, as it is handed out.
#[derive(Debug)]
pub struct Step<'a> {
    /// 0 for the token that the prefill chose.
    pub step: usize,
    pub id: u32,
    /// The model's own logits that it was chosen from, `[V]`, before penalty and warpers.
    pub logits: &'a [f32],
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// `max_new_tokens` were made.
    Length,
    /// One of `stop_ids` came.
    StopId,
    /// The caller had enough.
    Cancelled,
}

#[derive(Debug, Clone)]
pub struct Generation {
    pub ids: Vec<u32>,
    pub finish: Finish,
    /// The prompt's forward pass.
    pub prefill: Duration,
    /// All later steps.
    pub decode: Duration,
}

/// Continues `prompt` in an empty cache; `on_token` gets each token and may end the generation.
///
/// # Errors
/// A prompt that is empty, outside the vocabulary or, with the new tokens, longer than the context:
/// an error before anything is computed, never a shortened answer.
pub fn generate<P: Probe>(
    model: &Model,
    cache: &mut KvCache,
    prompt: &[u32],
    options: &Options,
    probe: &mut P,
    mut on_token: impl FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut going = Going::new(model, cache, prompt, options)?;
    for step in 0..options.max_new_tokens.max(1) {
        let started = Instant::now();
        probe.begin_step(step);
        let ids = &going.history[going.fed..];
        let logits = model.forward(ids, going.cache, Rows::Last, probe)?; // [1, V]
        let logits = logits.row(0).to_vec(); // [V]
        let chosen = going.choose(&logits, probe);
        let Some(id) = going.go_on(step, chosen, started.elapsed())? else { break };
        if on_token(&Step { step, id, logits: &logits }).is_break() {
            going.done.finish = Finish::Cancelled;
        }
        if !going.is_on() {
            break;
        }
    }
    Ok(going.done)
}

/// Continues several prompts at once, each in a cache of its own and as [`generate`] would: every weight is read once a step
/// for all of them. `on_step` may end it after each step. The times are those of all together.
///
/// # Errors
/// As [`generate`], for any of the prompts.
pub fn generate_batch(
    model: &Model,
    caches: &mut [KvCache],
    prompts: &[&[u32]],
    options: &Options,
    mut on_step: impl FnMut() -> ControlFlow<()>,
) -> Result<Vec<Generation>> {
    assert_eq!(caches.len(), prompts.len(), "a cache for each prompt");
    let going = caches.iter_mut().zip(prompts);
    let going = going.map(|(cache, prompt)| Going::new(model, cache, prompt, options));
    let mut going = going.collect::<Result<Vec<_>>>()?;
    for step in 0..options.max_new_tokens.max(1) {
        let started = Instant::now();
        let batch = going.iter_mut().filter(|g| g.is_on()).map(|g| {
            let ids = &g.history[g.fed..];
            Sequence { ids, cache: &mut *g.cache, rows: Rows::Last }
        });
        let logits = model.forward_batch(&mut batch.collect::<Vec<_>>())?; // [B, V]
        let mut chosen = Vec::new();
        for (g, logits) in going.iter_mut().filter(|g| g.is_on()).zip(logits.rows()) {
            let logits = logits.as_slice().expect("rows are in standard layout");
            chosen.push(g.choose(logits, &mut NoProbe));
        }
        let spent = started.elapsed();
        for (g, chosen) in going.iter_mut().filter(|g| g.is_on()).zip(chosen) {
            g.go_on(step, chosen, spent)?;
        }
        if on_step().is_break() {
            going.iter_mut().for_each(|g| g.done.finish = Finish::Cancelled);
        }
        if !going.iter().any(Going::is_on) {
            break;
        }
    }
    Ok(going.into_iter().map(|g| g.done).collect())
}

/// A sequence on its way.
struct Going<'a> {
    cache: &'a mut KvCache,
    /// Its prompt and what it went on with.
    history: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// How many of those have been through the model.
    fed: usize,
    sampler: Sampler,
    options: &'a Options,
    done: Generation,
}

impl<'a> Going<'a> {
    fn new(
        model: &Model,
        cache: &'a mut KvCache,
        prompt: &[u32],
        options: &'a Options,
    ) -> Result<Going<'a>> {
        check(model, prompt, options)?;
        cache.truncate(0);
        let done = Generation {
            ids: Vec::with_capacity(options.max_new_tokens),
            finish: Finish::Length,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let sampler = Sampler::new(options.sampling)?;
        let (history, prompt) = (prompt.to_vec(), prompt.len());
        Ok(Going { cache, history, prompt, fed: 0, sampler, options, done })
    }

    fn is_on(&self) -> bool {
        self.done.finish == Finish::Length
    }

    fn choose<P: Probe>(&mut self, logits: &[f32], probe: &mut P) -> Result<u32> {
        choose(logits, &self.history, self.prompt, &mut self.sampler, probe)
    }

    /// Takes the token that was chosen, or the one that is forced in its place; None where none is wanted.
    fn go_on(&mut self, step: usize, chosen: Result<u32>, spent: Duration) -> Result<Option<u32>> {
        *(if step == 0 { &mut self.done.prefill } else { &mut self.done.decode }) += spent;
        if self.options.max_new_tokens == 0 {
            return Ok(None);
        }
        let id = match &self.options.forced_ids {
            Some(forced) => forced[step],
            None => chosen?,
        };
        self.fed = self.history.len();
        self.history.push(id);
        self.done.ids.push(id);
        if self.options.stop_ids.contains(&id) {
            self.done.finish = Finish::StopId;
        }
        Ok(Some(id))
    }
}

/// Whether `generate` would accept this, without computing anything.
pub fn check(model: &Model, prompt: &[u32], options: &Options) -> Result<()> {
    options.sampling.check()?;
    let new = options.max_new_tokens;
    let n_positions = model.config().n_positions;
    if prompt.is_empty() {
        return Err(Error::input("generate", "the prompt has no tokens; expected one or more"));
    }
    // The last new token is never fed.
    if prompt.len().saturating_add(new.saturating_sub(1)) > n_positions {
        return Err(Error::ContextOverflow { prompt: prompt.len(), new, n_positions });
    }
    let forced = options.forced_ids.as_deref().unwrap_or_default();
    if options.forced_ids.is_some() && forced.len() != new {
        let what = format!("there are {} forced ids; expected max_new_tokens, {new}", forced.len());
        return Err(Error::input("generate", what));
    }
    let size = model.config().vocab_size;
    if let Some(id) = prompt.iter().chain(forced).find(|&&id| id as usize >= size) {
        let what = format!("token id {id} is outside the vocabulary; expected 0 to {}", size - 1);
        return Err(Error::input("generate", what));
    }
    Ok(())
}

/// The token that the model would go on with after `history`, of which the first `prompt` tokens were given. `argmax` and
/// `next.probs` pass the probe on the way, and what it puts there is what the choice is made from.
pub fn choose<P: Probe>(
    logits: &[f32],
    history: &[u32],
    prompt: usize,
    sampler: &mut Sampler,
    probe: &mut P,
) -> Result<u32> {
    let mut adjusted = Cow::from(logits); // [V]
    if sampler.adjusts() {
        sampler.adjust(adjusted.to_mut(), history, prompt);
    }
    let mut highest = None;
    let point = Point::new(Stage::Argmax);
    if probe.wants(point) {
        // With a NaN there is no highest; a probe is shown where it is, as torch's argmax would.
        let first_nan = || logits.iter().position(|x| x.is_nan()).unwrap_or(0) as u32;
        let mut id = [argmax(logits).unwrap_or_else(|_| first_nan())];
        probe.ids(point, &[], &mut id)?;
        highest = Some(id[0]);
    }
    let mut probabilities = None; // [V]
    let point = Point::new(Stage::NextProbs);
    if probe.wants(point) {
        let mut values = Array1::from_vec(sampler.probabilities(&adjusted));
        probe.tensor(point, values.view_mut().into_dyn())?;
        probabilities = Some(values.to_vec());
    }
    if sampler.is_greedy() {
        match highest {
            Some(id) if !sampler.adjusts() => Ok(id),
            _ => argmax(&adjusted),
        }
    } else {
        sampler.draw(&probabilities.unwrap_or_else(|| sampler.probabilities(&adjusted)))
    }
}
