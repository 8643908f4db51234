//! What a new recording changes, in the pieces that are accepted or rejected one by one.

use std::collections::BTreeMap;

use llorch_trace::bundle::Entry;
use llorch_trace::hash::sha256_bytes;
use llorch_trace::{Bundle, Manifest};
use serde::Serialize;

/// What is accepted or rejected as one.
///
/// Mostly a point of a bundle, with all its cases and steps. Tensors of a case whose ids or generated
/// text change go together, because each was computed after those tokens. Where the weights change,
/// the whole bundle does: tensors of two models in one bundle would be nonsense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Bundle,
    Case,
    Point,
}

#[derive(Debug, Clone)]
pub struct Unit {
    /// `hf-f32/h.2.attn.scores`, `hf-f32/case hello`, `hf-f32`.
    pub name: String,
    pub bundle: String,
    pub kind: Kind,
    /// The point or the case; why, of a bundle.
    pub what: String,
    /// Most first.
    pub tensors: Vec<Change>,
    pub texts: Vec<TextChange>,
}

/// One tensor: changed, or new where there is no old one, or gone.
#[derive(Debug, Clone)]
pub struct Change {
    pub case: String,
    pub step: usize,
    /// A point, perhaps with its rows.
    pub key: String,
    pub old: Option<Entry>,
    pub new: Option<Entry>,
    /// The largest |new − old|; infinite where a value is not finite, none where shapes differ.
    pub most: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct TextChange {
    pub case: String,
    pub old: Option<String>,
    pub new: Option<String>,
}

pub type Key = (String, usize, String);

impl Change {
    pub fn key(&self) -> Key {
        (self.case.clone(), self.step, self.key.clone())
    }
}

impl Unit {
    pub fn most(&self) -> f64 {
        self.tensors.iter().map(rank).fold(0.0, f64::max)
    }

    /// One hash for the tensors of one side: of the lines `case/step/point sha256`, sorted.
    pub fn sha256(&self, side: impl Fn(&Change) -> Option<&Entry>) -> Option<String> {
        let mut lines: Vec<String> =
            self.tensors.iter().filter_map(|c| side(c).map(|e| line(c, e))).collect();
        lines.sort();
        (!lines.is_empty()).then(|| sha256_bytes(lines.concat().as_bytes()))
    }
}

fn line(change: &Change, entry: &Entry) -> String {
    format!("{}/{}/{} {}\n", change.case, change.step, change.key, entry.sha256)
}

/// What can't be put into a figure comes first.
fn rank(change: &Change) -> f64 {
    change.most.unwrap_or(f64::INFINITY)
}

/// Nothing where no tensor, id or text changes, whoever recorded it and when.
pub fn units(bundle: &str, old: Option<&Bundle>, new: &Bundle) -> llorch_trace::Result<Vec<Unit>> {
    let changes = changes(old, new)?;
    let empty = Manifest::default();
    let before = old.map_or(&empty, |old| &old.manifest);
    let after = &new.manifest;
    let whole = match old {
        None => Some("a bundle that was not there"),
        Some(_) if before.model != after.model => Some("recorded from other weights"),
        Some(_) if before.implementation != after.implementation => Some("another implementation"),
        Some(_) => None,
    };
    let all = before.cases.keys().chain(after.cases.keys());
    let mut moved: Vec<&String> = all.filter(|c| !same_case(before, after, c)).collect();
    moved.sort();
    moved.dedup();
    let mut found: BTreeMap<(Kind, String), Unit> = BTreeMap::new();
    let unit = |kind: Kind, what: &str| {
        let name = match kind {
            Kind::Bundle => bundle.to_string(),
            Kind::Case => format!("{bundle}/case {what}"),
            Kind::Point => format!("{bundle}/{what}"),
        };
        let (bundle, what) = (bundle.to_string(), what.to_string());
        let empty =
            Unit { name, bundle, kind, what: what.clone(), tensors: Vec::new(), texts: Vec::new() };
        (kind, what, empty)
    };
    for case in &moved {
        let (kind, what, empty) = match whole {
            Some(why) => unit(Kind::Bundle, why),
            None => unit(Kind::Case, case),
        };
        let text = |m: &Manifest| m.cases.get(*case).and_then(|r| r.text.clone());
        let texts = TextChange { case: case.to_string(), old: text(before), new: text(after) };
        let entry = found.entry((kind, what)).or_insert(empty);
        if texts.old != texts.new {
            entry.texts.push(texts);
        }
    }
    for change in changes {
        let (kind, what, empty) = match whole {
            Some(why) => unit(Kind::Bundle, why),
            None if moved.contains(&&change.case) => unit(Kind::Case, &change.case),
            None => unit(Kind::Point, change.key.split('#').next().unwrap_or(&change.key)),
        };
        found.entry((kind, what)).or_insert(empty).tensors.push(change);
    }
    if let Some(why) = whole
        && found.is_empty()
    {
        let (kind, what, empty) = unit(Kind::Bundle, why);
        found.insert((kind, what), empty);
    }
    let mut units: Vec<Unit> = found.into_values().collect();
    for unit in &mut units {
        unit.tensors.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    }
    units.sort_by(|a, b| a.kind.cmp(&b.kind).then(b.most().total_cmp(&a.most())));
    Ok(units)
}

/// Whether a case is what it was: its ids, what was generated, and what it was asked.
fn same_case(before: &Manifest, after: &Manifest, case: &str) -> bool {
    let asked = |m: &Manifest, field: &str| {
        m.provenance.get("cases").and_then(|c| c.get(case)?.get(field).cloned())
    };
    before.cases.get(case) == after.cases.get(case)
        && ["prompt", "sampling"].iter().all(|f| asked(before, f) == asked(after, f))
}

fn changes(old: Option<&Bundle>, new: &Bundle) -> llorch_trace::Result<Vec<Change>> {
    let entries = |bundle: Option<&Bundle>| -> BTreeMap<Key, Entry> {
        let all = bundle.map(|b| b.manifest.tensors.iter()).into_iter().flatten();
        all.map(|e| ((e.case.clone(), e.step, e.point.clone()), e.clone())).collect()
    };
    let (before, mut after) = (entries(old), entries(Some(new)));
    let mut changes = Vec::new();
    for ((case, step, key), entry) in before {
        let other = after.remove(&(case.clone(), step, key.clone()));
        let same = |o: &Entry| {
            o.sha256 == entry.sha256 && o.shape == entry.shape && o.dtype == entry.dtype
        };
        if other.as_ref().is_some_and(same) {
            continue;
        }
        let most = match (&other, old) {
            (Some(_), Some(old)) => {
                distance(&old.get(&case, step, &key)?, &new.get(&case, step, &key)?)
            }
            _ => None,
        };
        changes.push(Change { case, step, key, old: Some(entry), new: other, most });
    }
    let added = after.into_iter().map(|((case, step, key), entry)| Change {
        case,
        step,
        key,
        old: None,
        new: Some(entry),
        most: None,
    });
    changes.extend(added);
    Ok(changes)
}

fn distance(a: &llorch_trace::Tensor, b: &llorch_trace::Tensor) -> Option<f64> {
    if a.shape != b.shape {
        return None;
    }
    // Unequal NaNs or infinities have no difference; they come first.
    let each =
        (0..a.len()).map(|i| if a.get(i) == b.get(i) { 0.0 } else { (a.get(i) - b.get(i)).abs() });
    Some(each.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }))
}
