//! Accepts or rejects units: all that are named by one decision, or nothing.

use std::path::Path;
use std::time::SystemTime;

use llorch_trace::hash::sha256_bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::changes::Unit;
use super::commit::{self, Journal, LOG, Swap, manifest_sha256};
use super::mixture;
use super::pending::{Pair, Pending, by};
use super::place::Place;
use crate::golden::stop::Stop;
use crate::text::rfc3339;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Accepted,
    Rejected,
}

pub const LOG_SCHEMA: &str = "llorch.golden-log/1";

/// A line of `reviews.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    pub schema: String,
    /// The same for all that was decided at once.
    pub review: String,
    /// When, in UTC.
    pub date: String,
    pub decision: Decision,
    pub reason: String,
    pub bundle: String,
    pub unit: String,
    /// How many tensors it changes.
    pub tensors: usize,
    /// When the new ones were recorded, in UTC.
    pub recorded: String,
    pub old: Option<Side>,
    pub new: Option<Side>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Side {
    /// Who recorded it: the versions.
    pub by: String,
    /// Of the unit's tensors: sha256 of the lines `case/step/point sha256`, sorted.
    pub tensors_sha256: Option<String>,
    /// Of the bundle's tensors.safetensors.
    pub bundle_sha256: String,
}

/// The units that `names` holds; the pending ones are read anew, as they lie there.
pub fn decide(
    place: &Place,
    names: &[String],
    decision: Decision,
    reason: &str,
) -> Result<(), Stop> {
    let dir = &place.dir;
    let Some(pending) = Pending::read(dir)? else { return Ok(()) };
    let chosen = |unit: &&Unit| names.contains(&unit.name);
    let stage = commit::stage(dir)?;
    let mut swaps = Vec::new();
    if decision == Decision::Accepted {
        for pair in &pending.pairs {
            let accepted: Vec<&Unit> = pair.units.iter().filter(chosen).collect();
            if accepted.is_empty() {
                continue;
            }
            let target = stage.join(&pair.name);
            mixture::write(pair, &accepted, &target)?;
            swaps.push(Swap {
                bundle: pair.name.clone(),
                old: manifest_sha256(&dir.join(&pair.name))?,
                new: manifest_sha256(&target)?.unwrap_or_default(),
            });
        }
    }
    let log = lines(&pending, names, decision, reason)?;
    let mut record = pending.record.clone();
    if decision == Decision::Rejected {
        record.rejected.extend(pending.units().filter(chosen).map(|u| u.name.clone()));
    }
    let rest = pending.units().filter(|u| !chosen(u)).count();
    let left = match rest {
        0 => None,
        _ => Some(serde_json::to_value(record).map_err(Stop::environment)?),
    };
    commit::commit(dir, &Journal::new(swaps, log, left))
}

fn lines(
    pending: &Pending,
    names: &[String],
    decision: Decision,
    reason: &str,
) -> Result<Vec<serde_json::Value>, Stop> {
    let now = SystemTime::now();
    let exact = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let review =
        sha256_bytes(json!([exact, std::process::id(), names, reason]).to_string().as_bytes());
    let mut lines = Vec::new();
    for pair in &pending.pairs {
        for unit in pair.units.iter().filter(|u| names.contains(&u.name)) {
            let line = Line {
                schema: LOG_SCHEMA.into(),
                review: review[..16].to_string(),
                date: rfc3339(now),
                decision,
                reason: reason.to_string(),
                bundle: pair.name.clone(),
                unit: unit.name.clone(),
                tensors: unit.tensors.len(),
                recorded: pending.record.recorded.clone(),
                old: old_side(pair, unit),
                new: Some(Side {
                    by: by(&pair.new.manifest),
                    tensors_sha256: unit.sha256(|c| c.new.as_ref()),
                    bundle_sha256: pair.new.manifest.sha256.clone(),
                }),
            };
            lines.push(serde_json::to_value(line).map_err(Stop::environment)?);
        }
    }
    Ok(lines)
}

fn old_side(pair: &Pair, unit: &Unit) -> Option<Side> {
    let old = pair.old.as_ref()?;
    let origins = mixture::origins_of(&old.manifest, unit);
    let names: Vec<String> = origins.into_keys().collect();
    Some(Side {
        by: if names.is_empty() { by(&old.manifest) } else { names.join("; ") },
        tensors_sha256: unit.sha256(|c| c.old.as_ref()),
        bundle_sha256: old.manifest.sha256.clone(),
    })
}

/// The last time that just these tensors were rejected.
pub fn rejected_before(dir: &Path, unit: &Unit) -> Option<Line> {
    let text = std::fs::read_to_string(dir.join(LOG)).ok()?;
    let new = unit.sha256(|c| c.new.as_ref());
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let same = |line: &Line| {
        line.decision == Decision::Rejected
            && line.unit == unit.name
            && line
                .new
                .as_ref()
                .is_some_and(|n| n.tensors_sha256.is_some() && n.tensors_sha256 == new)
    };
    lines.into_iter().find(same)
}
