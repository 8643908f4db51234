//! What is remembered of a run, `llorch.history/1`: one line of JSON.
//! `docs/schemas/history.schema.json` is its JSON Schema.

use std::collections::BTreeMap;

use llorch_trace::hash::sha256_bytes;
use llorch_trace::points::CHECKPOINTS;
use llorch_trace::{Bundle, Point};
use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;
use crate::guides::assess::Level;
use crate::machine::Machine;
use crate::report::view::checkpoints;
use crate::result::{
    Means, ModelKind, ModelRecord, Odd, Role, Row, RowKind, RunResult, RunVerdict, Status,
    Unchecked, Verdict,
};

pub const SCHEMA: &str = "llorch.history/1";

/// Of a SHA-256, as much as tells tensors apart: 12 hex digits are 48 bits.
const DIGEST: usize = 12;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: String,
    /// When it began and six digits that tell it from others: `2026-01-31T12:00:00Z-3f9a21`.
    pub id: String,
    /// RFC 3339, UTC.
    pub started: String,
    /// Of the run in a nightly's matrix; absent elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub verdict: RunVerdict,
    pub level: Option<Level>,
    pub command: Vec<String>,
    /// The version of llorch-diff.
    pub version: String,
    /// Null where the parts of the run were made on several kinds.
    pub machine: Option<Machine>,
    pub means: Means,
    pub model: Model,
    pub cases: Cases,
    /// The subject first.
    pub implementations: Vec<Implementation>,
    /// By number; those that were looked at.
    pub checkpoints: BTreeMap<u8, Verdict>,
    /// Who is wrong by the oracle, and where first.
    pub odd: Vec<Odd>,
    pub unchecked: Vec<Unchecked>,
    /// Of a nightly's published answers: those that are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// Wall time by part, as in the result.
    pub seconds: BTreeMap<String, f64>,
    /// The points of which figures follow, in data-flow order.
    pub points: Vec<Point>,
    /// By implementation.
    pub figures: BTreeMap<String, Figures>,
    pub pairs: Vec<Pair>,
}

/// The weights; the config is theirs. Where they could not be had there is only the name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub name: String,
    pub kind: Option<ModelKind>,
    pub revision: Option<String>,
    /// Of `model.safetensors`.
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cases {
    pub count: usize,
    /// Of all that a case is but its name: ids, new tokens, sampling, what was fed. Null of none.
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Implementation {
    pub name: String,
    pub role: Role,
    pub version: String,
    pub status: Status,
    pub reason: String,
}

/// One figure a point, in the order of the record's points; null where there is none, or where it is
/// not finite. Each is the largest of all cases and steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// max |implementation − oracle|.
    pub total: Vec<Option<f64>>,
    /// The stage's own error over what rounding is expected to do at most there.
    pub local: Vec<Option<f64>>,
    /// A digit a point of the worst verdict against the oracle and itself, see [`letter`].
    pub verdicts: String,
    /// The tensors' bits: the first digits of a SHA-256 over those of all cases and steps.
    pub bits: Vec<Option<String>>,
}

/// Two implementations against one another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    pub a: String,
    pub b: String,
    /// max |a − b|, as in [`Figures`].
    pub max_abs: Vec<Option<f64>>,
    pub verdicts: String,
}

impl Record {
    /// What a run found. Its tensors' bits come from the bundles, as far as there are any.
    pub fn new(result: &RunResult, evidence: &[Evidence]) -> Record {
        let mut points: Vec<Point> = result.rows.iter().map(|row| row.point).collect();
        points.sort();
        points.dedup();
        let bundle = |name: &str| {
            let of = evidence.iter().find(|e| e.name == name)?;
            of.bundle.as_ref()
        };
        let figures = |name: &String| (name.clone(), figures(result, &points, name, bundle(name)));
        let names: Vec<String> = result.implementations.iter().map(|i| i.name.clone()).collect();
        let mut record = Record {
            schema: SCHEMA.into(),
            id: String::new(),
            started: result.started.clone(),
            name: None,
            verdict: result.verdict,
            level: result.assessment.as_ref().and_then(|a| a.level),
            command: result.command.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            machine: result.machine.clone(),
            means: result.means.clone(),
            model: model(&result.model),
            cases: cases(result),
            implementations: result.implementations.iter().map(implementation).collect(),
            checkpoints: checkpoints(result).iter().map(|v| (v.number, v.verdict)).collect(),
            odd: result.odd.clone(),
            unchecked: result.unchecked.clone(),
            failures: Vec::new(),
            seconds: result.seconds.clone(),
            figures: names.iter().map(figures).collect(),
            pairs: pairs(result, &points, &names),
            points,
        };
        record.name_it();
        record
    }

    /// The UTC day on which it began, whose file it belongs in.
    pub fn day(&self) -> &str {
        self.started.get(..10).unwrap_or(&self.started)
    }

    /// As short as people say it: the six digits.
    pub fn short(&self) -> &str {
        self.id.rsplit('-').next().unwrap_or(&self.id)
    }

    pub fn subject(&self) -> &str {
        let subject = self.implementations.iter().find(|i| i.role == Role::Subject);
        subject.map_or("", |i| i.name.as_str())
    }

    pub fn implementation(&self, name: &str) -> Option<&Implementation> {
        self.implementations.iter().find(|i| i.name == name)
    }

    /// Where a point's figures stand.
    pub fn place(&self, point: Point) -> Option<usize> {
        self.points.iter().position(|p| *p == point)
    }

    /// What is remembered of something of which there are no figures: published answers, or a run of a
    /// nightly that could not be made.
    pub fn without_figures(
        name: &str,
        model: &str,
        verdict: RunVerdict,
        started: String,
    ) -> Record {
        let mut record = Record {
            schema: SCHEMA.into(),
            id: String::new(),
            started,
            name: Some(name.into()),
            verdict,
            level: None,
            command: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            machine: Some(Machine::here()),
            means: Means::default(),
            model: Model { name: model.into(), kind: None, revision: None, sha256: None },
            cases: Cases { count: 0, sha256: None },
            implementations: Vec::new(),
            checkpoints: BTreeMap::new(),
            odd: Vec::new(),
            unchecked: Vec::new(),
            failures: Vec::new(),
            seconds: BTreeMap::new(),
            points: Vec::new(),
            figures: BTreeMap::new(),
            pairs: Vec::new(),
        };
        record.name_it();
        record
    }

    /// Says anew what tells it from others.
    fn name_it(&mut self) {
        self.id = format!("{}-{}", self.started, own_digits(self));
    }

    /// Whether there are figures at all.
    pub fn has_figures(&self) -> bool {
        !self.points.is_empty()
    }

    /// Whether the figures of both are of the same weights, prompts, precision and kind of machine.
    pub fn is_comparable(&self, other: &Record) -> bool {
        self.has_figures()
            && other.has_figures()
            && self.model.sha256 == other.model.sha256
            && self.cases.sha256 == other.cases.sha256
            && self.means == other.means
            && self.machine == other.machine
    }
}

fn model(model: &ModelRecord) -> Model {
    Model {
        name: model.name.clone(),
        kind: Some(model.kind),
        revision: model.revision.clone(),
        sha256: Some(model.sha256.clone()),
    }
}

fn implementation(of: &crate::result::Implementation) -> Implementation {
    Implementation {
        name: of.name.clone(),
        role: of.role,
        version: of.version.clone(),
        status: of.status,
        reason: of.reason.clone(),
    }
}

fn cases(result: &RunResult) -> Cases {
    let one = |c: &crate::result::CaseRecord| {
        serde_json::json!([c.ids, c.max_new_tokens, c.sampling, c.forced_ids]).to_string()
    };
    let all: Vec<String> = result.cases.iter().map(one).collect();
    Cases { count: all.len(), sha256: Some(sha256_bytes(all.join("\n").as_bytes())) }
}

fn figures(result: &RunResult, points: &[Point], name: &str, bundle: Option<&Bundle>) -> Figures {
    let of = |row: &&Row| row.a == name && row.kind != RowKind::Pair;
    let rows: Vec<&Row> = result.rows.iter().filter(of).collect();
    let at = |point: Point| rows.iter().copied().filter(move |r| r.point == point);
    let oracle = |point: Point| at(point).filter(|r| r.kind == RowKind::Oracle);
    Figures {
        total: points.iter().map(|p| largest(oracle(*p).map(max_abs))).collect(),
        local: points.iter().map(|p| largest(oracle(*p).map(of_band))).collect(),
        verdicts: points.iter().map(|p| letter(at(*p).map(|r| r.verdict).max())).collect(),
        bits: bundle.map_or_else(|| vec![None; points.len()], |bundle| bits(bundle, points)),
    }
}

fn pairs(result: &RunResult, points: &[Point], names: &[String]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for a in names {
        for b in names {
            let of = |row: &&Row| row.kind == RowKind::Pair && row.a == *a && row.b == *b;
            let rows: Vec<&Row> = result.rows.iter().filter(of).collect();
            if rows.is_empty() {
                continue;
            }
            let at = |point: Point| rows.iter().copied().filter(move |r| r.point == point);
            pairs.push(Pair {
                a: a.clone(),
                b: b.clone(),
                max_abs: points.iter().map(|p| largest(at(*p).map(max_abs))).collect(),
                verdicts: points.iter().map(|p| letter(at(*p).map(|r| r.verdict).max())).collect(),
            });
        }
    }
    pairs
}

/// `None` without a figure; `Some(None)` for one that is not finite.
fn max_abs(row: &Row) -> Option<Option<f64>> {
    row.metrics.as_ref().map(|m| m.max_abs)
}

fn of_band(row: &Row) -> Option<Option<f64>> {
    row.local.as_ref().map(|l| l.of_band)
}

/// The largest, none where one of them is not finite.
fn largest(figures: impl Iterator<Item = Option<Option<f64>>>) -> Option<f64> {
    let figures: Option<Vec<f64>> = figures.flatten().collect();
    figures?.into_iter().reduce(f64::max)
}

/// The bits of a point's tensors in all cases and steps.
fn bits(bundle: &Bundle, points: &[Point]) -> Vec<Option<String>> {
    let mut of: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for entry in &bundle.manifest.tensors {
        let line = format!("{} {} {}", entry.case, entry.step, entry.sha256);
        of.entry(&entry.point).or_default().push(line);
    }
    let one = |point: &Point| {
        let lines = of.get_mut(point.to_string().as_str())?;
        lines.sort();
        let mut digest = sha256_bytes(lines.join("\n").as_bytes());
        digest.truncate(DIGEST);
        Some(digest)
    };
    points.iter().map(one).collect()
}

/// Verdicts as letters: `P`ASS, `W`ARN, `F`AIL, `E`RROR, `U`NCHECKED, `-` for no row.
pub fn letter(verdict: Option<Verdict>) -> char {
    verdict.map_or('-', |v| v.name().chars().next().unwrap_or('-'))
}

/// The checkpoint's name of a number in a record.
pub fn checkpoint_name(number: u8) -> &'static str {
    CHECKPOINTS.iter().find(|c| c.number == number).map_or("?", |c| c.slug)
}

/// Digits that no other run has: two of the same second differ in process or clock.
fn own_digits(record: &Record) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |since| since.as_nanos());
    let text = format!("{} {} {nanos}", record.command.join("\0"), std::process::id());
    let mut digits = sha256_bytes(text.as_bytes());
    digits.truncate(6);
    digits
}
