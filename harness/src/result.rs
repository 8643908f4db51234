//! The one saved result of a run, `llorch.result/1`. Everything that is shown is rendered from it;
//! nothing is computed by a renderer. `docs/schemas/result.schema.json` is its JSON Schema.

use std::collections::BTreeMap;

use llorch_trace::Point;
use llorch_trace::protocol::{Sampling, Worth};
use serde::{Deserialize, Serialize};

pub const SCHEMA: &str = "llorch.result/1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    pub schema: String,
    pub verdict: RunVerdict,
    /// RFC 3339, UTC.
    pub started: String,
    /// Wall time by part: `total`, `oracle`, `provision`, and each implementation by name.
    pub seconds: BTreeMap<String, f64>,
    pub command: Vec<String>,
    pub model: ModelRecord,
    /// Subject first, then references in the order of the jury.
    pub implementations: Vec<Implementation>,
    pub cases: Vec<CaseRecord>,
    /// Every pair, in data-flow order within a case and step.
    pub rows: Vec<Row>,
    pub unchecked: Vec<Unchecked>,
}

/// The verdict of a whole run, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunVerdict {
    Pass,
    Warn,
    Incomplete,
    Fail,
    Error,
}

/// The verdict of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Pass,
    Unchecked,
    Warn,
    Fail,
    Error,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    pub name: String,
    pub kind: ModelKind,
    pub source: String,
    pub revision: Option<String>,
    /// SHA-256 of `model.safetensors`.
    pub sha256: String,
    pub config: serde_json::Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    Trained,
    Synthetic,
    Real,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Implementation {
    pub name: String,
    pub role: Role,
    pub version: String,
    pub worth: Option<Worth>,
    pub status: Status,
    /// Why the status is not `ok`; empty when it is.
    pub reason: String,
    /// The one command that mends it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    #[serde(default)]
    pub recipes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Subject,
    Reference,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Some cases or points are missing that it did not declare as unsupported.
    Partial,
    Missing,
    Error,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseRecord {
    pub name: String,
    pub prompt: Option<String>,
    pub ids: Vec<u32>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// The oracle's greedy continuation, which every implementation was fed in the decode steps.
    pub forced_ids: Vec<u32>,
    /// What each implementation generated when left to itself.
    pub generated: BTreeMap<String, Generation>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    pub ids: Vec<u32>,
    pub text: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowKind {
    /// Two implementations.
    Pair,
    /// An implementation against the float64 oracle.
    Oracle,
    /// An implementation against itself.
    #[serde(rename = "self")]
    Own,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub case: String,
    pub step: usize,
    pub checkpoint: u8,
    pub point: Point,
    pub layer: Option<usize>,
    pub kind: RowKind,
    pub a: String,
    /// The other implementation, `oracle`, or `a` again in `self` rows.
    pub b: String,
    /// Absent, as in an UNCHECKED row, or null where the value is not finite.
    #[serde(flatten)]
    pub metrics: Option<Metrics>,
    /// Relative to max(1, |a|, |b|); 0 is equality. Where it differs by element, the one at `worst`.
    pub tolerance: f64,
    pub verdict: Verdict,
    /// Empty for a plain PASS.
    pub reason: String,
    /// Some elements of both, around the worst one or from the first on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<Excerpt>,
}

/// How two tensors differ. Definitions are in docs/TOLERANCES.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub max_abs: Option<f64>,
    pub max_rel: Option<f64>,
    pub rel_l2: Option<f64>,
    pub rmse: Option<f64>,
    pub ulp_max: Option<u64>,
    /// Elements beyond the tolerance.
    pub exceeding: usize,
    pub total: usize,
    /// The index of the worst element along each axis.
    pub worst: Vec<usize>,
    /// Its values in a and b; null where not finite.
    pub worst_values: [Option<f64>; 2],
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Excerpt {
    /// Index of the first element shown.
    pub from: Vec<usize>,
    pub a: Vec<Option<f64>>,
    pub b: Vec<Option<f64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unchecked {
    pub what: String,
    pub kind: UncheckedKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UncheckedKind {
    /// By nature: shown, does not lower the verdict. Also tokens after an ambiguous one, and the
    /// line that says that no real weights were checked.
    Unsupported,
    /// Not installed, crashed, skipped: the run is INCOMPLETE.
    Missing,
}

impl RunVerdict {
    pub fn name(self) -> &'static str {
        match self {
            RunVerdict::Pass => "PASS",
            RunVerdict::Warn => "WARN",
            RunVerdict::Incomplete => "INCOMPLETE",
            RunVerdict::Fail => "FAIL",
            RunVerdict::Error => "ERROR",
        }
    }

    /// The documented exit code: 0 PASS and WARN, 1 FAIL, 4 INCOMPLETE, 5 ERROR.
    pub fn exit_code(self, deny_warnings: bool) -> u8 {
        match self {
            RunVerdict::Pass => 0,
            RunVerdict::Warn => deny_warnings.into(),
            RunVerdict::Fail => 1,
            RunVerdict::Incomplete => 4,
            RunVerdict::Error => 5,
        }
    }
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Unchecked => "UNCHECKED",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
            Verdict::Error => "ERROR",
        }
    }
}

impl RunResult {
    pub fn subject(&self) -> Option<&Implementation> {
        self.implementations.iter().find(|i| i.role == Role::Subject)
    }

    pub fn references(&self) -> impl Iterator<Item = &Implementation> {
        self.implementations.iter().filter(|i| i.role == Role::Reference)
    }
}
