//! What is known of one reference: its pins, and what it showed in a run.

use std::collections::BTreeMap;

use llorch_trace::protocol::{Deviation, Unsupported, Worth};
use llorch_trace::{Point, Stage};

use crate::evidence::Evidence;
use crate::provision::status::versions;
use crate::provision::{ProvisionOptions, Provisioner};
use crate::references::{self, Reference, without_release};
use crate::result::{Row, RowKind, RunResult, Status};

/// A reference, or one of its variants, that took part or could have.
#[derive(Debug, Clone, PartialEq)]
pub struct Portrait {
    pub name: String,
    pub worth: Option<Worth>,
    /// What computes: as it says itself, else as the pins say.
    pub version: String,
    pub licence: String,
    pub summary: String,
    /// Why it shows nothing here: it was not in the run, or failed in it.
    pub absent: Option<String>,
    pub unsupported: Vec<Unsupported>,
    pub deviations: Vec<Deviation>,
    /// By stage, the largest over all layers, cases and steps.
    pub errors: BTreeMap<Stage, Errors>,
}

/// Largest |x − oracle|. Null where a value is not finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// Of all that was done up to there; absent where nothing but the stage is measured.
    pub total: Option<Option<f64>>,
    /// Of what the stage does by itself; absent where its inputs are not captured.
    pub local: Option<Option<f64>>,
}

/// Those that were in the run, in its order, then those that were not.
pub fn all(result: &RunResult, evidence: &[Evidence]) -> Vec<Portrait> {
    let known = references::all();
    let of = |name: &str| {
        let plain = without_release(name);
        let plain = plain.split(':').next().unwrap_or(plain);
        known.iter().find(|r| r.name == plain)
    };
    let mut portraits: Vec<Portrait> = Vec::new();
    for one in result.references() {
        let hello = evidence.iter().find(|e| e.name == one.name).and_then(|e| e.hello.as_ref());
        let facts = of(&one.name);
        let pinned = || facts.map_or_else(String::new, pins);
        portraits.push(Portrait {
            name: one.name.clone(),
            worth: one.worth.or_else(|| facts.map(|r| r.worth)),
            version: if one.version.is_empty() { pinned() } else { one.version.clone() },
            licence: facts.map_or_else(String::new, |r| r.licence.clone()),
            summary: facts.map_or_else(String::new, |r| r.summary.clone()),
            absent: (one.status == Status::Missing).then(|| one.reason.clone()),
            unsupported: hello.map_or_else(Vec::new, |h| h.unsupported.clone()),
            deviations: hello.map_or_else(Vec::new, |h| h.deviations.clone()),
            errors: errors(&result.rows, &one.name),
        });
    }
    for reference in known.iter().filter(|r| !r.hidden) {
        let plain = |p: &Portrait| p.name == reference.name;
        if !portraits.iter().any(plain) {
            portraits.push(Portrait {
                name: reference.name.clone(),
                worth: Some(reference.worth),
                version: pins(reference),
                licence: reference.licence.clone(),
                summary: reference.summary.clone(),
                absent: Some("it was not in this run".into()),
                unsupported: Vec::new(),
                deviations: Vec::new(),
                errors: BTreeMap::new(),
            });
        }
    }
    portraits
}

fn pins(reference: &Reference) -> String {
    versions(&Provisioner::new(ProvisionOptions { allow: false, ..Default::default() }), reference)
}

fn errors(rows: &[Row], name: &str) -> BTreeMap<Stage, Errors> {
    let mut found: BTreeMap<Stage, Errors> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.a == name) {
        let largest = row.metrics.as_ref().map(|m| m.max_abs);
        let (total, local) = match row.kind {
            RowKind::Oracle => (largest, row.local.as_ref().map(|l| l.max_abs)),
            // Probabilities are held to the float64 softmax of its own logits.
            RowKind::Own if row.point.stage == Stage::NextProbs => (None, largest),
            _ => continue,
        };
        let known = found.entry(row.point.stage).or_insert(Errors { total: None, local: None });
        known.total = larger(known.total, total);
        known.local = larger(known.local, local);
    }
    found
}

/// The larger of what was measured; what is not finite is larger than anything.
fn larger(a: Option<Option<f64>>, b: Option<Option<f64>>) -> Option<Option<f64>> {
    match (a, b) {
        (Some(Some(a)), Some(Some(b))) => Some(Some(a.max(b))),
        (Some(None), _) | (_, Some(None)) => Some(None),
        (a, b) => a.or(b),
    }
}

/// The points of a stage, as a glob.
pub fn glob(stage: Stage) -> String {
    let of_layer = Point::of_layer(stage, 0).to_string();
    match of_layer.strip_prefix("h.0") {
        Some(rest) => format!("h.*{rest}"),
        None => of_layer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_the_largest_and_what_was_not_measured_is_nothing() {
        assert_eq!(larger(Some(Some(1.0)), Some(Some(2.0))), Some(Some(2.0)));
        assert_eq!(larger(None, Some(Some(2.0))), Some(Some(2.0)));
        assert_eq!(larger(Some(None), Some(Some(2.0))), Some(None));
        assert_eq!(larger(None, None), None);
    }

    #[test]
    fn stages_are_named_by_the_glob_of_their_points() {
        assert_eq!(
            [Stage::Block, Stage::Q, Stage::LnF, Stage::NextProbs].map(glob),
            ["h.*", "h.*.attn.q", "ln_f", "next.probs"]
        );
    }
}
