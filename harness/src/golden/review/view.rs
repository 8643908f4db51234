//! What is pending, as it is shown and as JSON has it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::changes::{Change, Key, Kind, TextChange, Unit};
use super::decide::{Decision, rejected_before};
use super::errors::{Error, Errors, Measure, Nearer};
use super::mixture::origins_of;
use super::pending::{Pair, Pending, by};
use crate::golden::stop::Stop;

pub const SCHEMA: &str = "llorch.golden-review/1";

#[derive(Debug, Serialize)]
pub struct Review {
    pub schema: &'static str,
    pub dir: String,
    /// When the pending ones were recorded and by which command; none where nothing is pending.
    pub recorded: Option<String>,
    pub command: Option<String>,
    pub bundles: Vec<BundleView>,
    /// By this command.
    pub decided: Vec<Decided>,
    /// Names of the units that are still pending at the end of this command.
    pub pending: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct BundleView {
    pub bundle: String,
    pub old: Option<Recorded>,
    pub new: Recorded,
    pub units: Vec<UnitView>,
}

/// Who recorded a bundle, and its tensors' hash.
#[derive(Debug, Serialize)]
pub struct Recorded {
    pub by: String,
    pub date: Option<String>,
    pub sha256: String,
}

#[derive(Debug, Serialize)]
pub struct UnitView {
    pub unit: String,
    pub kind: Kind,
    pub what: String,
    /// The versions that recorded its old tensors, with how many of them.
    pub old_by: BTreeMap<String, usize>,
    /// Why just this was rejected before.
    pub rejected_before: Option<String>,
    pub texts: Vec<TextChange>,
    /// Most changed first.
    pub tensors: Vec<TensorView>,
}

#[derive(Debug, Serialize)]
pub struct TensorView {
    pub case: String,
    pub step: usize,
    pub point: String,
    pub change: What,
    /// None where a value is not finite, or there are not two of one shape.
    pub max_change: Option<f64>,
    pub old_error: Option<f64>,
    pub new_error: Option<f64>,
    pub nearer: Option<&'static str>,
    /// The new one is further from the oracle than the point's tolerance allows.
    pub beyond_tolerance: bool,
    pub note: String,
    pub old_sha256: Option<String>,
    pub new_sha256: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Changed,
    New,
    Gone,
}

#[derive(Debug, Serialize)]
pub struct Decided {
    pub unit: String,
    pub decision: Decision,
    pub reason: String,
}

impl Review {
    pub fn nothing(dir: &Path) -> Review {
        Review {
            schema: SCHEMA,
            dir: dir.display().to_string(),
            recorded: None,
            command: None,
            bundles: Vec::new(),
            decided: Vec::new(),
            pending: Vec::new(),
        }
    }

    pub fn of(dir: &Path, pending: &Pending) -> Result<Review, Stop> {
        let measure = Measure::new()?;
        let mut bundles = Vec::new();
        for pair in pending.pairs.iter().filter(|pair| !pair.units.is_empty()) {
            let errors = measure.errors(pair)?;
            let units = pair.units.iter().map(|unit| unit_view(dir, pair, unit, &errors));
            bundles.push(BundleView {
                bundle: pair.name.clone(),
                old: pair.old.as_ref().map(recorded),
                new: recorded(&pair.new),
                units: units.collect(),
            });
        }
        Ok(Review {
            recorded: Some(pending.record.recorded.clone()),
            command: Some(pending.record.command.clone()),
            bundles,
            pending: pending.units().map(|u| u.name.clone()).collect(),
            ..Review::nothing(dir)
        })
    }

    pub fn units(&self) -> impl Iterator<Item = (&BundleView, &UnitView)> {
        self.bundles.iter().flat_map(|b| b.units.iter().map(move |u| (b, u)))
    }
}

fn recorded(bundle: &llorch_trace::Bundle) -> Recorded {
    let date = bundle.manifest.provenance.get("date").and_then(|v| v.as_str());
    Recorded {
        by: by(&bundle.manifest),
        date: date.map(str::to_string),
        sha256: bundle.manifest.sha256.clone(),
    }
}

fn unit_view(dir: &Path, pair: &Pair, unit: &Unit, errors: &BTreeMap<Key, Errors>) -> UnitView {
    let old_by = pair.old.as_ref().map(|old| origins_of(&old.manifest, unit)).unwrap_or_default();
    let before = rejected_before(dir, unit);
    UnitView {
        unit: unit.name.clone(),
        kind: unit.kind,
        what: unit.what.clone(),
        old_by,
        rejected_before: before.map(|line| format!("{}: {}", line.date, line.reason)),
        texts: unit.texts.clone(),
        tensors: unit
            .tensors
            .iter()
            .map(|c| tensor_view(c, errors.get(&c.key()).copied().unwrap_or_default()))
            .collect(),
    }
}

fn tensor_view(change: &Change, errors: Errors) -> TensorView {
    let finite = |x: f64| x.is_finite().then_some(x);
    let figure = |e: Option<Error>| e.and_then(|e| finite(e.most));
    let mut notes = Vec::new();
    if let (Some(old), Some(new)) = (&change.old, &change.new) {
        if old.dtype != new.dtype {
            notes.push(format!("{} becomes {}", old.dtype, new.dtype));
        }
        if old.shape != new.shape {
            notes.push(format!("shape {:?} becomes {:?}", old.shape, new.shape));
        }
    }
    let beyond = errors.new.is_some_and(|e| e.beyond);
    for (side, error) in [("old", errors.old), ("new", errors.new)] {
        match error {
            Some(e) if !e.most.is_finite() => {
                notes.push(format!("the {side} one is not finite, or misshapen"))
            }
            Some(e) if e.beyond => notes.push(format!("the {side} one is beyond the tolerance")),
            _ => {}
        }
    }
    TensorView {
        case: change.case.clone(),
        step: change.step,
        point: change.key.clone(),
        change: match (&change.old, &change.new) {
            (None, _) => What::New,
            (_, None) => What::Gone,
            _ => What::Changed,
        },
        max_change: change.most.and_then(finite),
        old_error: figure(errors.old),
        new_error: figure(errors.new),
        nearer: errors.nearer().map(|nearer| match nearer {
            Nearer::Old => "old",
            Nearer::New => "new",
            Nearer::Equal => "equal",
        }),
        beyond_tolerance: beyond,
        note: notes.join("; "),
        old_sha256: change.old.as_ref().map(|e| e.sha256.clone()),
        new_sha256: change.new.as_ref().map(|e| e.sha256.clone()),
    }
}
