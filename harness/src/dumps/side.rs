//! One side of a comparison: a source's tensors under our names, and what could not be placed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llorch_trace::{Dims, Point, Stage, Tensor};

use super::alias::{Layout, Meaning, meaning};
use super::names::parse_stem;
use super::raw::{Raw, RawTensor, SourceError};
use super::recipe::{self, Order, Recipe, Sizes};
use super::sizes::Known;
use super::source::means_nothing;
use crate::compare::Elements;

/// Where a tensor belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub case: String,
    pub step: usize,
    pub point: Point,
}

/// A tensor that has found its place, not loaded yet.
#[derive(Debug, Clone)]
pub struct Located {
    pub raw: RawTensor,
    pub recipes: Vec<Recipe>,
}

/// A tensor of the source that has no place, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    pub case: String,
    pub name: String,
    pub reason: String,
}

/// Names that mean the same point and have different contents, or one that may mean two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguous {
    pub names: Vec<String>,
    pub reason: String,
}

#[derive(Debug)]
pub struct Side {
    pub name: String,
    pub path: PathBuf,
    pub form: &'static str,
    pub points: BTreeMap<Key, Located>,
    pub unmapped: Vec<Unmapped>,
    /// Points that are there by name, in a shape that no recipe makes ours: why is among `unmapped`. They
    /// can't be compared, and what can't be is no PASS.
    pub misshapen: Vec<Key>,
    pub ambiguous: Vec<Ambiguous>,
    /// Further names of a point whose content is the same, which are left aside.
    pub repeated: Vec<String>,
}

impl Located {
    pub fn load(&self) -> Result<Tensor, SourceError> {
        let tensor = self.raw.load()?;
        // A plan was made for this very shape, so it fits.
        Ok(match self.recipes.is_empty() {
            true => tensor,
            false => recipe::apply(&self.recipes, tensor.clone()).unwrap_or(tensor),
        })
    }

    /// The same to be read a piece at a time: from its file, where nothing has to be moved.
    pub fn open(&self) -> Result<Box<dyn Elements>, SourceError> {
        if let Some(shape) = recipe::reshaped(&self.recipes, &self.raw.shape)
            && let Some(mapped) = self.raw.mapped()?.and_then(|mapped| mapped.reshaped(shape))
        {
            return Ok(Box::new(mapped));
        }
        Ok(Box::new(self.load()?))
    }

    /// The elements that are there by their place in our layout, where not all are.
    pub fn cells(&self) -> Option<Vec<(usize, f64)>> {
        let cells = self.raw.cells()?;
        let place = |i| recipe::place_after(&self.recipes, &self.raw.shape, i);
        Some(cells.values.iter().filter_map(|(i, x)| Some((place(*i)?, *x))).collect())
    }

    /// Whether two tensors of one point have the same content, where both show it.
    fn agrees(&self, other: &Located) -> Result<bool, SourceError> {
        let (Some(mine), Some(theirs)) = (self.cells(), other.cells()) else {
            return Ok(self.load()? == other.load()?);
        };
        let mine: BTreeMap<usize, f64> = mine.into_iter().collect();
        Ok(self.shape() == other.shape()
            && theirs.iter().all(|(at, x)| mine.get(at).is_none_or(|y| x == y)))
    }

    pub fn is_partial(&self) -> bool {
        self.raw.cells().is_some()
    }

    /// What printing may have taken from an element.
    pub fn rounding(&self) -> f64 {
        self.raw.cells().map_or(0.0, |cells| cells.rounding)
    }

    /// The shape that [`Located::load`] gives.
    pub fn shape(&self) -> Vec<usize> {
        recipe::shape_after(&self.recipes, &self.raw.shape)
            .unwrap_or_else(|| self.raw.shape.clone())
    }
}

/// A tensor whose name is understood and whose shape isn't yet.
#[derive(Debug, Clone)]
pub struct Named {
    pub key: Key,
    pub raw: RawTensor,
    pub layout: Layout,
    pub third: Option<usize>,
    pub order: Order,
    /// From a bundle, whose shapes are ours by contract.
    pub canonical: bool,
}

/// The names of a source, understood.
#[derive(Debug)]
pub struct Understood {
    raw: Raw,
    pub named: Vec<Named>,
    /// `hidden_states.N` with N ≥ 1: the case, N, the tensor.
    states: Vec<(RawTensor, usize)>,
    unmapped: Vec<Unmapped>,
    ambiguous: Vec<Ambiguous>,
}

impl Understood {
    pub fn of(mut raw: Raw) -> Understood {
        let tensors = std::mem::take(&mut raw.tensors);
        let unusable = std::mem::take(&mut raw.unusable).into_iter();
        let unusable =
            unusable.map(|(name, reason)| Unmapped { case: String::new(), name, reason });
        let mut this = Understood {
            raw,
            named: Vec::new(),
            states: Vec::new(),
            unmapped: unusable.collect(),
            ambiguous: Vec::new(),
        };
        for tensor in tensors {
            this.take(tensor);
        }
        this
    }

    fn take(&mut self, mut raw: RawTensor) {
        let mut name = raw.name.clone();
        let mut step = raw.own_step();
        let canonical = raw.is_canonical();
        // The tensor file of a bundle, given by itself, has keys `case/step/point`.
        if let [case, number, point] = name.split('/').collect::<Vec<_>>()[..]
            && let Ok(number) = number.parse::<usize>()
        {
            (raw.case, step) = (case.to_string(), Some(number));
            name = point.to_string();
        }
        let order = |ggml: bool| match (raw.cells(), ggml) {
            (Some(_), _) => Order::Printed,
            (None, true) => Order::Either,
            (None, false) => Order::Rows,
        };
        let mut named = |point, step, layout, third, ggml| {
            let key = Key { case: raw.case.clone(), step, point };
            let (order, raw) = (order(ggml), raw.clone());
            self.named.push(Named { key, raw, layout, third, order, canonical });
        };
        let refused = match parse_stem(&name) {
            _ if name.contains("#rows=") => {
                "some rows of a point, as goldens keep them; `golden check` compares those".into()
            }
            Some(Ok(file)) => return named(file.point, file.step, Layout::Ours, None, false),
            Some(Err(reason)) => reason,
            None => match meaning(&name) {
                Meaning::Points { points, layout, ggml, .. } => {
                    let merged = points.len() > 1;
                    for (which, point) in points.into_iter().enumerate() {
                        named(point, step.unwrap_or(0), layout, merged.then_some(which), ggml);
                    }
                    return;
                }
                Meaning::State { index } => return self.states.push((raw, index)),
                Meaning::Norm { point, reason } => match is_standardized(&raw) {
                    Ok(false) => return named(point, step.unwrap_or(0), Layout::Norm, None, false),
                    Ok(true) => reason,
                    Err(why) => why,
                },
                Meaning::Unknown if raw.is_named_by_its_file() => {
                    "what the file holds has no name, and it is called like the file; call that \
                     hidden_states.pt or attentions.pt, or save a dict"
                        .into()
                }
                Meaning::NotOurs { .. } | Meaning::Unknown => {
                    means_nothing(&name).unwrap_or_default()
                }
            },
        };
        let (case, name) = (raw.case, raw.name);
        self.unmapped.push(Unmapped { case, name, reason: refused });
    }

    pub fn dims(&self) -> Option<Dims> {
        self.raw.dims
    }

    /// One more than the highest layer that a name mentions.
    pub fn layers_seen(&self) -> Option<usize> {
        self.named.iter().filter_map(|n| n.key.point.layer).max().map(|layer| layer + 1)
    }

    /// The highest N of `hidden_states.N`, if all from 1 to N are there.
    fn last_state(&self) -> Option<usize> {
        let last = self.states.iter().map(|s| s.1).max()?;
        let all = (1..=last).all(|n| self.states.iter().any(|s| s.1 == n));
        all.then_some(last)
    }

    pub fn last_state_of_a_whole_set(&self) -> Option<usize> {
        // hidden_states.0 is named already, as the embeddings.
        let first = self.named.iter().any(|n| n.raw.name.starts_with("hidden_state"));
        self.last_state().filter(|_| first)
    }

    /// Places `hidden_states.N`: output of block N−1, or of ln_f for the last.
    pub fn place_states(&mut self, n_layer: Option<usize>) {
        for (raw, index) in std::mem::take(&mut self.states) {
            let point = match n_layer {
                Some(n) if index < n => Point::of_layer(Stage::Block, index - 1),
                Some(n) if index == n => Point::new(Stage::LnF),
                Some(n) => {
                    let reason = format!("a model of {n} layers has hidden_states.0 to .{n}");
                    let (case, name) = (raw.case, raw.name);
                    self.unmapped.push(Unmapped { case, name, reason });
                    continue;
                }
                None => {
                    let reason = format!(
                        "it is h.{} unless the model has {index} layers, when it is ln_f (the last \
                         hidden state is taken after ln_f); say how many with --config config.json",
                        index - 1
                    );
                    self.ambiguous.push(Ambiguous { names: vec![raw.name], reason });
                    continue;
                }
            };
            let key = Key { case: raw.case.clone(), step: 0, point };
            let layout = Layout::Ours;
            let named =
                Named { key, raw, layout, third: None, order: Order::Rows, canonical: false };
            self.named.push(named);
        }
    }

    /// Finds the recipes, now that as much as can be is known of the sizes.
    pub fn resolve(self, known: &Known) -> Result<Side, SourceError> {
        let Understood { raw, named, mut unmapped, mut ambiguous, .. } = self;
        let mut misshapen = Vec::new();
        let mut found: BTreeMap<Key, Vec<Located>> = BTreeMap::new();
        for n in named {
            let sizes = if n.canonical { Sizes::default() } else { known.sizes(&n.key) };
            let point = n.key.point;
            match recipe::plan(point, &n.raw.shape, n.layout, n.third, n.order, sizes) {
                Ok(recipes) => {
                    found.entry(n.key).or_default().push(Located { raw: n.raw, recipes });
                }
                Err(why) if why.contains("in two ways") => {
                    ambiguous.push(Ambiguous { names: vec![n.raw.name], reason: why });
                }
                Err(why) => {
                    let reason = format!("{point}: {why}");
                    misshapen.push(n.key);
                    let (case, name) = (n.raw.case, n.raw.name);
                    let row = Unmapped { case, name, reason };
                    // A merged tensor fails three times for one reason.
                    if !unmapped.iter().any(|u| u.name == row.name && u.case == row.case) {
                        unmapped.push(row);
                    }
                }
            }
        }
        let mut side = Side {
            name: raw.name,
            path: raw.path,
            form: raw.form,
            points: BTreeMap::new(),
            unmapped,
            misshapen,
            ambiguous,
            repeated: Vec::new(),
        };
        for (key, places) in found {
            side.settle(key, places)?;
        }
        Ok(side)
    }
}

/// Whether all rows have mean 0 and variance 1, as before a layer norm's gain and bias. The error is
/// a sentence.
fn is_standardized(raw: &RawTensor) -> Result<bool, String> {
    let width = raw.shape.last().copied().unwrap_or(0).max(1);
    let tensor = raw.load().map_err(|e| e.to_string())?;
    // A mean of rounding errors; gain and bias leave one of a thousand times that.
    let rounding = tensor.dtype().unit_roundoff().clamp(1e-6, 1e-3);
    Ok(tensor.to_f64().chunks(width).all(|row| {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        // σ²/(σ² + ε) is below 1 where a row's own variance is not far above ε.
        mean.abs() <= 4.0 * rounding && (0.5..1.0 + 8.0 * rounding).contains(&variance)
    }))
}

impl Side {
    /// Several names for one point are harmless if their contents are the same.
    fn settle(&mut self, key: Key, places: Vec<Located>) -> Result<(), SourceError> {
        let mut places = places;
        // Of what is printed, the one that shows the most.
        places
            .sort_by_key(|located| std::cmp::Reverse(located.raw.cells().map(|c| c.values.len())));
        let mut places = places.into_iter();
        let Some(first) = places.next() else { return Ok(()) };
        let rest: Vec<Located> = places.collect();
        if !rest.is_empty() {
            let mut differ = vec![first.raw.name.clone()];
            for other in &rest {
                match first.agrees(other)? {
                    true => {
                        self.repeated
                            .push(format!("{} is {} again", other.raw.name, first.raw.name));
                    }
                    false => differ.push(other.raw.name.clone()),
                }
            }
            if differ.len() > 1 {
                let reason = format!("they all mean {} and differ", describe(&key));
                self.ambiguous.push(Ambiguous { names: differ, reason });
                return Ok(());
            }
        }
        self.points.insert(key, first);
        Ok(())
    }

    /// The cases, empty for none.
    pub fn cases(&self) -> Vec<String> {
        let mut cases: Vec<String> = self.points.keys().map(|k| k.case.clone()).collect();
        cases.dedup();
        cases
    }

    /// What is there by the name of a place, and in another shape than any that is known.
    pub fn is_misshapen(&self, key: &Key) -> bool {
        self.misshapen.iter().any(|m| (m.point, m.step) == (key.point, key.step))
    }

    /// A tensor of which all elements are there.
    pub fn tensor(&self, key: &Key) -> Option<Result<Tensor, SourceError>> {
        self.points.get(key).filter(|located| !located.is_partial()).map(Located::load)
    }
}

/// A place in words: `h.3.attn.q, step 1, case hello`.
pub fn describe(key: &Key) -> String {
    let mut text = key.point.to_string();
    if key.step > 0 {
        text += &format!(", step {}", key.step);
    }
    if !key.case.is_empty() {
        text += &format!(", case {}", key.case);
    }
    text
}
