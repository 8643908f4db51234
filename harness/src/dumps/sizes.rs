//! The sizes of the model behind a dump: said by the user or a bundle, else read off the shapes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use llorch_trace::{Dims, Stage};

use super::alias::Layout;
use super::recipe::{Order, Recipe, Sizes, axes, is_width_stage};
use super::side::{Key, Named, Understood};

/// What is known of one side.
#[derive(Debug, Clone, Default)]
pub struct Known {
    heads: Option<usize>,
    width: Option<usize>,
    /// T and S by case and step.
    steps: BTreeMap<(String, usize), (Option<usize>, Option<usize>)>,
}

impl Known {
    pub fn sizes(&self, key: &Key) -> Sizes {
        let step = self.steps.get(&(key.case.clone(), key.step));
        let (tokens, keys) = step.copied().unwrap_or_default();
        // Without a cache, all keys are this step's.
        let keys = keys.or(tokens.filter(|_| key.step == 0));
        Sizes { heads: self.heads, width: self.width, tokens, keys }
    }
}

/// The one value that has the most votes.
#[derive(Debug, Default)]
struct Votes(BTreeMap<usize, usize>);

impl Votes {
    fn add(&mut self, value: usize) {
        *self.0.entry(value).or_default() += 1;
    }

    fn winner(&self) -> Option<usize> {
        let most = self.0.values().max()?;
        let mut best = self.0.iter().filter(|(_, n)| *n == most).map(|(value, _)| *value);
        // A tie is no knowledge.
        best.next().filter(|_| best.next().is_none())
    }
}

/// Reads every side's sizes; what one side does not tell, another may: they are dumps of one model.
pub fn learn(sides: &[Understood], said: Option<Dims>, heads: Option<usize>) -> Vec<Known> {
    let mut all: Vec<Known> = sides
        .iter()
        .map(|side| {
            let dims = said.or(side.dims());
            let mut known = Known {
                heads: heads.or(dims.map(|d| d.n_head)),
                width: dims.map(|d| d.n_embd),
                ..Known::default()
            };
            known.read_rows(&side.named);
            known
        })
        .collect();
    share(&mut all, |known| &mut known.width);
    for (known, side) in all.iter_mut().zip(sides) {
        known.read_heads(&side.named);
    }
    share(&mut all, |known| &mut known.heads);
    all
}

/// Fills what is missing with what the others agree on.
fn share(all: &mut [Known], field: impl Fn(&mut Known) -> &mut Option<usize>) {
    let mut votes = Votes::default();
    all.iter_mut().filter_map(|known| *field(known)).for_each(|value| votes.add(value));
    for known in all {
        let slot = field(known);
        *slot = slot.or(votes.winner());
    }
}

impl Known {
    /// T and E from `[T,E]`, S from `[H,T,S]`.
    fn read_rows(&mut self, named: &[Named]) {
        let mut width = Votes::default();
        let mut tokens: BTreeMap<(String, usize), Votes> = BTreeMap::new();
        let mut keys: BTreeMap<(String, usize), Votes> = BTreeMap::new();
        for n in named {
            let Some(shape) = readable(n) else { continue };
            let place = (n.key.case.clone(), n.key.step);
            match (n.key.point.stage, &*shape) {
                (Stage::Context, [_, _, _]) => {}
                (stage, [t, e]) if is_width_stage(stage) => {
                    width.add(*e);
                    tokens.entry(place).or_default().add(*t);
                }
                (Stage::Fc | Stage::Act | Stage::Logits, [t, _]) => {
                    tokens.entry(place).or_default().add(*t);
                }
                (Stage::Q, [t, e]) if n.layout == Layout::Merged => {
                    width.add(e / 3);
                    tokens.entry(place).or_default().add(*t);
                }
                (Stage::Tokens, [t]) => tokens.entry(place).or_default().add(*t),
                // Padded keys (ggml) vote too, and lose against scores elsewhere only by number:
                // in the prefill S is T, which is used instead.
                (Stage::Scores | Stage::Probs, [_, t, s]) => {
                    tokens.entry(place.clone()).or_default().add(*t);
                    if n.key.step > 0 {
                        keys.entry(place).or_default().add(*s);
                    }
                }
                _ => {}
            }
        }
        self.width = self.width.or(width.winner());
        for (place, votes) in tokens {
            self.steps.entry(place).or_default().0 = votes.winner();
        }
        for (place, votes) in keys {
            self.steps.entry(place).or_default().1 = votes.winner();
        }
    }

    /// H from attention's square tensors, from declared layouts, and from heads whose product with
    /// D is E.
    fn read_heads(&mut self, named: &[Named]) {
        let mut votes = Votes::default();
        for n in named {
            let Some(shape) = readable(n) else { continue };
            let [a, b, d] = &*shape else { continue };
            let tokens = self.sizes(&n.key).tokens;
            match (n.key.point.stage, n.layout) {
                (Stage::Scores | Stage::Probs, _) => votes.add(*a),
                (_, Layout::TokensHeads) => votes.add(*b),
                (Stage::Q | Stage::K | Stage::V, _) if n.canonical => votes.add(*a),
                (Stage::Q | Stage::K | Stage::V, _) => {
                    let (Some(t), Some(e)) = (tokens, self.width) else { continue };
                    match (*b == t && a * d == e, *a == t && b * d == e) {
                        (true, false) => votes.add(*a),
                        (false, true) => votes.add(*b),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        self.heads = self.heads.or(votes.winner());
    }
}

/// The shape without a batch axis, where the order of the axes is sure.
fn readable(n: &Named) -> Option<Cow<'_, [usize]>> {
    let (stage, rank) = (n.key.point.stage, axes(n.key.point.stage, n.layout));
    match (n.order, n.raw.shape.as_slice()) {
        (Order::Either, _) => None,
        // Of the last layer llama.cpp may keep one row, and probabilities are padded.
        (Order::Printed, shape) => {
            let sure = matches!(stage, Stage::Embeddings | Stage::Ln1 | Stage::Q);
            let shape = (Recipe::FromPrinted { axes: rank }).shape(shape).filter(|_| sure)?;
            Some(Cow::Owned(shape))
        }
        (_, shape) if shape.len() == rank => {
            // [1,T,E] under a name of three axes has its heads merged.
            (rank != 3 || shape[0] != 1 || n.canonical).then_some(Cow::Borrowed(shape))
        }
        (_, [1, shape @ ..]) if shape.len() == rank => Some(Cow::Borrowed(shape)),
        _ => None,
    }
}
