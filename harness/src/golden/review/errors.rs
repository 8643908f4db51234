//! How far both sides of a change are from the float64 oracle.

use std::collections::BTreeMap;

use llorch_models::ResolveOptions;
use llorch_trace::{Bundle, Dtype, Stage};

use super::changes::{Change, Key};
use super::pending::Pair;
use crate::compare::{Numbers, Tolerance, compare};
use crate::golden::bundles::{self, GoldenKey};
use crate::golden::stop::Stop;
use crate::judge::point_tolerance;
use crate::oracle::{Oracle, Trace, argmax};
use crate::sampling::replay;

/// Of one tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Errors {
    pub old: Option<Error>,
    pub new: Option<Error>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Error {
    /// The largest |x − oracle|, of ids how many are wrong; infinite where a value is not finite.
    pub most: f64,
    /// Beyond the point's tolerance somewhere.
    pub beyond: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nearer {
    Old,
    New,
    Equal,
}

impl Errors {
    pub fn nearer(&self) -> Option<Nearer> {
        let (old, new) = (self.old?.most, self.new?.most);
        Some(match old.total_cmp(&new) {
            std::cmp::Ordering::Less => Nearer::Old,
            std::cmp::Ordering::Equal => Nearer::Equal,
            std::cmp::Ordering::Greater => Nearer::New,
        })
    }
}

/// The oracle on nano, as it is in this program.
#[derive(Debug)]
pub struct Measure {
    oracle: Oracle,
    weights: String,
}

impl Measure {
    pub fn new() -> Result<Measure, Stop> {
        let nano =
            llorch_models::resolve("nano", &ResolveOptions { offline: true, ..Default::default() })
                .map_err(|e| Stop { code: e.exit_code(), message: e.to_string() })?;
        let oracle = Oracle::open(&nano.dir).map_err(Stop::environment)?;
        Ok(Measure { oracle, weights: nano.weights_sha256().to_string() })
    }

    /// The errors of all tensors that change, by key. A side that was recorded from other weights
    /// than the oracle has, or that holds no such tensor, has none.
    pub fn errors(&self, pair: &Pair) -> Result<BTreeMap<Key, Errors>, Stop> {
        let mut by_case: BTreeMap<&str, Vec<&Change>> = BTreeMap::new();
        for change in pair.units.iter().flat_map(|u| &u.tensors) {
            by_case.entry(&change.case).or_default().push(change);
        }
        let mut all = BTreeMap::new();
        for (case, changes) in by_case {
            let old =
                pair.old.as_ref().map(|old| self.side(old, case, &changes, |c| c.old.is_some()));
            let new = self.side(&pair.new, case, &changes, |c| c.new.is_some())?;
            let old = old.transpose()?.unwrap_or_default();
            for change in changes {
                let key = change.key();
                let errors = Errors { old: old.get(&key).copied(), new: new.get(&key).copied() };
                all.insert(key, errors);
            }
        }
        Ok(all)
    }

    fn side(
        &self,
        bundle: &Bundle,
        case: &str,
        changes: &[&Change],
        held: impl Fn(&Change) -> bool,
    ) -> Result<BTreeMap<Key, Error>, Stop> {
        let mut errors = BTreeMap::new();
        let record = bundle.manifest.cases.get(case);
        let Some(record) = record.filter(|_| bundles::is_of(bundle, &self.weights)) else {
            return Ok(errors);
        };
        let last = changes.iter().map(|c| c.step).max().unwrap_or(0);
        let fed = record.generated.as_deref().unwrap_or_default();
        let fed = &fed[..last.min(fed.len())];
        let told = |e: &dyn std::fmt::Display| {
            Stop::input(format!("{}: case {case}: {e}", bundle.dir.display()))
        };
        let trace = self.oracle.trace(&record.ids, fed).map_err(|e| told(&e))?;
        for change in changes.iter().filter(|c| held(c)) {
            let key = GoldenKey::parse(&change.key).map_err(|e| told(&e))?;
            let tensor = bundle.get(case, change.step, &change.key).map_err(Stop::input)?;
            let side = Side { bundle, case, ids: &record.ids, fed, trace: &trace };
            if let Some(error) = side.error(change.step, &key, &Numbers::of(&tensor)) {
                errors.insert(change.key(), error);
            }
        }
        Ok(errors)
    }
}

/// One case of one bundle, and what the oracle says of it.
struct Side<'a> {
    bundle: &'a Bundle,
    case: &'a str,
    ids: &'a [u32],
    fed: &'a [u32],
    trace: &'a Trace,
}

impl Side<'_> {
    fn truth(&self, step: usize, key: &GoldenKey) -> Option<Numbers> {
        let ids = |ids: &[u32]| Numbers {
            shape: vec![ids.len()],
            dtype: Dtype::I64,
            values: ids.iter().map(|id| f64::from(*id)).collect(),
        };
        let logits = || {
            let last = llorch_trace::Point::new(Stage::LogitsLast);
            self.trace.get(step, last).map(|n| n.values)
        };
        match key.point.stage {
            Stage::Tokens if step == 0 => Some(ids(self.ids)),
            Stage::Tokens => self.fed.get(step - 1..step).map(ids),
            Stage::Argmax => {
                let best = logits().map(|l| argmax(&l))?;
                Some(Numbers { shape: vec![], ..ids(&[best]) })
            }
            Stage::NextProbs => {
                let probs = replay(&logits()?, &bundles::sampling(self.bundle, self.case));
                Some(Numbers::f64(vec![probs.len()], probs))
            }
            _ => self.trace.get(step, key.point),
        }
    }

    fn error(&self, step: usize, key: &GoldenKey, found: &Numbers) -> Option<Error> {
        let truth = key.select_numbers(self.truth(step, key)?).ok()?;
        let tokens = if step == 0 { self.ids.len() } else { 1 };
        let cells = key.cells(&truth.shape, tokens);
        let tolerance = match point_tolerance(key.point) {
            0.0 => Tolerance::Exact,
            t => Tolerance::Mixed(t),
        };
        // Another shape is beyond everything.
        let Ok(c) = compare(found, &truth, tolerance, &cells) else {
            return Some(Error { most: f64::INFINITY, beyond: true });
        };
        let wrong = c.metrics.exceeding;
        Some(match key.point.is_integer() {
            true => Error { most: wrong as f64, beyond: wrong > 0 },
            false => Error {
                most: c.metrics.max_abs.unwrap_or(f64::INFINITY),
                // What is left of the logits after top-k and top-p jumps where a token is on the edge.
                beyond: wrong > 0 && key.point.stage != Stage::NextProbs,
            },
        })
    }
}
