//! The one saved result of a run, `llorch.result/1`. Everything that is shown is rendered from it;
//! nothing is computed by a renderer. `docs/schemas/result.schema.json` is its JSON Schema.

use std::collections::BTreeMap;

use llorch_trace::Point;
use llorch_trace::protocol::{Sampling, Worth};
use serde::{Deserialize, Serialize};

use crate::guides::assess::Assessment;
use crate::guides::strategy::StrategyRecord;
use crate::judge::Overrides;
use crate::machine::Machine;
use crate::oracle::BoundKind;
use crate::partition::PartRecord;

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
    #[serde(default)]
    pub means: Means,
    /// On which it was made; absent where its parts were made on several kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Subject first, then references in the order of the jury.
    pub implementations: Vec<Implementation>,
    pub cases: Vec<CaseRecord>,
    /// Every pair, in data-flow order within a case and step.
    pub rows: Vec<Row>,
    /// Implementations that are wrong by the oracle, references too; the subject first.
    #[serde(default)]
    pub odd: Vec<Odd>,
    /// Tolerances by checkpoint that `judge` was asked to use in place of the contract's.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub tolerances: Overrides,
    pub unchecked: Vec<Unchecked>,
    /// Which level the run reached, what to look at next, and what the table looks like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assessment: Option<Assessment>,
    /// Present where `--strategy` chose what is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<StrategyRecord>,
    /// Present where stages were isolated: rows are then of stages that all read the same input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate: Option<IsolateRecord>,
    /// Present in one part of a run that was split between machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartRecord>,
}

/// `run --isolate`: what was put in front of which stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IsolateRecord {
    pub input: InputKind,
    /// Of random inputs.
    pub seed: Option<u64>,
    /// The user's file and its SHA-256.
    pub file: Option<String>,
    pub file_sha256: Option<String>,
    /// SHA-256 of a line `CASE STEP POINT SHA256` for each of `inputs`: equal where all inputs are.
    pub sha256: String,
    /// Runs of each case: a stage and the stage that reads it can't share one.
    pub runs: usize,
    pub stages: Vec<Point>,
    pub inputs: Vec<InputRecord>,
}

/// One tensor that was put in place; the .npy stands in `inputs/CASE/STEP_POINT.npy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    pub case: String,
    pub step: usize,
    pub point: Point,
    /// A file is one tensor; the others that its stage reads are the oracle's.
    pub source: InputKind,
    pub shape: Vec<usize>,
    /// Of the .npy file.
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// The oracle's own tensors.
    Oracle,
    Random,
    File,
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

/// What implementations were told to compute with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Means {
    /// `f32`, `f64`, `f16` or `bf16`.
    pub dtype: String,
    pub threads: usize,
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
    /// Of the lock file that it was installed from: the pinned one, or what `@latest` was resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_sha256: Option<String>,
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
    /// In rows of kind `oracle`: what this stage alone did, whatever came before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    /// Why there is no local error where one was asked for: an input was not captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_unchecked: Option<String>,
    /// In rows of kind `oracle`: max |replayed − oracle|, what the stages before handed down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<f64>,
    /// In the subject's rows of kind `oracle`: its RMS error over the largest of the admitted
    /// references'. A note, no verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// In pair rows that FAIL: which of the two is at fault, as far as the oracle can tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blame: Vec<String>,
    /// Those of the two whose declared deviation is in the figures: made here, or handed down from a
    /// stage before. What is so is no measure of rounding.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviates: Vec<String>,
    /// Whether the row passes by what an adapter declares; `reason` says it to people.
    #[serde(skip)]
    pub deviation: Option<Deviates>,
}

/// How a declared deviation makes a row pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deviates {
    /// It was declared for this point.
    Declared,
    /// It came in from a point for which it was.
    Inherited,
    /// One of the two computes in less than f32, and is right there by itself.
    Narrow,
}

/// An output less the float64 recomputation of its stage from the implementation's own inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// Null where a value is not finite and should be.
    pub max_abs: Option<f64>,
    pub rms: Option<f64>,
    /// The element that is furthest beyond what rounding may do.
    pub worst: Vec<usize>,
    /// Given and recomputed.
    pub worst_values: [Option<f64>; 2],
    /// At the worst element: what rounding is expected to do at most, and what it can do at all.
    /// The bound is null where a sum is too long for its precision to say anything.
    pub band: f64,
    pub bound: Option<f64>,
    /// The largest |local| / band and |local| / bound of all elements; null for infinite.
    pub of_band: Option<f64>,
    pub of_bound: Option<f64>,
    pub kind: BoundKind,
    /// Elements beyond the bound or the class.
    pub exceeding: usize,
    /// The subject's RMS over the largest of the admitted references'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    pub verdict: Verdict,
    /// Where the proof bound is exceeded: the element, and the two numbers that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
}

/// No order of summation in this precision gives this value from these inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    pub element: Vec<usize>,
    pub error: Option<f64>,
    pub bound: f64,
}

/// Who departs from the oracle, and where first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Odd {
    pub name: String,
    pub point: Point,
    /// Layers in which the same stage is wrong by itself.
    pub layers: Vec<usize>,
    pub checkpoint: u8,
    pub case: String,
    pub step: usize,
    pub reason: String,
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

/// Why a point is UNCHECKED that the subject gave and no reference did.
pub const NO_REFERENCE: &str = "no reference checked it";

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

impl Row {
    /// A row without figures: an exact one that passed, until something else is written into it.
    pub fn new(case: &str, step: usize, point: Point, kind: RowKind, a: &str, b: &str) -> Row {
        Row {
            case: case.to_string(),
            step,
            checkpoint: point.checkpoint().number,
            point,
            layer: point.layer,
            kind,
            a: a.to_string(),
            b: b.to_string(),
            metrics: None,
            tolerance: 0.0,
            verdict: Verdict::Pass,
            reason: String::new(),
            excerpt: None,
            local: None,
            local_unchecked: None,
            inherited: None,
            ratio: None,
            blame: Vec::new(),
            deviates: Vec::new(),
            deviation: None,
        }
    }

    /// What the row says of the subject: a FAIL or WARN that is another's says nothing.
    pub fn verdict_of(&self, subject: &str) -> Verdict {
        let anothers = match self.kind {
            RowKind::Pair => {
                (self.a != subject && self.b != subject)
                    || (!self.blame.is_empty() && !self.blame.iter().any(|name| name == subject))
            }
            RowKind::Oracle | RowKind::Own => self.a != subject,
        };
        match self.verdict {
            Verdict::Fail | Verdict::Warn if anothers => Verdict::Unchecked,
            verdict => verdict,
        }
    }
}

impl RunResult {
    pub fn subject(&self) -> Option<&Implementation> {
        self.implementations.iter().find(|i| i.role == Role::Subject)
    }

    /// Empty where there is none.
    pub fn subject_name(&self) -> &str {
        self.subject().map_or("", |s| s.name.as_str())
    }

    pub fn references(&self) -> impl Iterator<Item = &Implementation> {
        self.implementations.iter().filter(|i| i.role == Role::Reference)
    }
}
