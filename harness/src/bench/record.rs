//! What a bench leaves: `llorch.bench/1` (docs/schemas/bench.schema.json).

use std::collections::BTreeMap;

use llorch_trace::Precision;
use serde::{Deserialize, Serialize};

use super::measure::Job;
use super::truth::Check;
use crate::result::ModelRecord;

pub const SCHEMA: &str = "llorch.bench/1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    pub schema: String,
    /// Of llorch-diff.
    pub version: String,
    /// RFC 3339, UTC.
    pub started: String,
    pub seconds: f64,
    pub model: ModelRecord,
    pub machine: MachineRecord,
    pub settings: Settings,
    /// The engine that the ratios are of.
    pub subject: String,
    /// In the order in which they are shown, the subject first.
    pub engines: Vec<Engine>,
    pub rows: Vec<Row>,
    /// What is not in the rows, and why.
    pub unmeasured: Vec<Unmeasured>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRecord {
    pub system: String,
    pub cpu: String,
    pub cores: usize,
    /// By number of threads: 10⁹ bytes read a second, the median of the rounds.
    pub read_gb_s: BTreeMap<usize, f64>,
    /// By number of threads: 10⁹ f32 operations a second, the median of the rounds.
    pub f32_gflop_s: BTreeMap<usize, f64>,
    /// The same of products of bf16 with sums in f32.
    pub bf16_gflop_s: BTreeMap<usize, f64>,
    /// The same of products of bytes with sums in 32 bits.
    pub int8_gop_s: BTreeMap<usize, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub dtypes: Vec<Precision>,
    pub threads: Vec<usize>,
    pub prompts: Vec<usize>,
    pub decode: usize,
    /// Sequences of a batch.
    pub batch: usize,
    pub rounds: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Engine {
    pub name: String,
    pub version: String,
    pub checks: Vec<CheckRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckRecord {
    pub dtype: Precision,
    pub threads: usize,
    #[serde(flatten)]
    pub check: Check,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Seconds from the request to load the model to its answer.
    Load,
    /// Seconds from the start of the process to its first token, files in the page cache.
    FirstToken,
    /// Tokens of a prompt a second.
    Prefill,
    /// Tokens decoded after a prompt a second.
    Decode,
    /// The same for several sequences at once, all their tokens.
    BatchDecode,
    /// Bytes, the most that the process has had.
    PeakMemory,
}

impl Metric {
    pub fn unit(self) -> &'static str {
        match self {
            Metric::Load | Metric::FirstToken => "s",
            Metric::Prefill | Metric::Decode | Metric::BatchDecode => "tokens/s",
            Metric::PeakMemory => "bytes",
        }
    }

    /// With the length of its prompt, where it has one: `decode after 512`.
    pub fn of(self, prompt: usize) -> String {
        match self {
            Metric::Load => "load".into(),
            Metric::FirstToken => "first token".into(),
            Metric::Prefill => format!("prefill {prompt}"),
            Metric::Decode => format!("decode after {prompt}"),
            Metric::BatchDecode => format!("batch after {prompt}"),
            Metric::PeakMemory => "peak memory".into(),
        }
    }

    pub fn more_is_better(self) -> bool {
        matches!(self, Metric::Prefill | Metric::Decode | Metric::BatchDecode)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub engine: String,
    pub version: String,
    pub dtype: Precision,
    pub threads: usize,
    pub metric: Metric,
    /// Tokens in the prompt; 0 where there is none.
    pub prompt: usize,
    pub batch: usize,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
    pub unit: String,
    /// What part of the machine's limit it is, where that is known.
    pub of_limit: Option<f64>,
    /// How many times as good the subject is, measured beside it; none of the subject itself and of wrong output.
    pub ratio: Option<f64>,
    pub correct: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unmeasured {
    pub engine: String,
    pub dtype: Option<Precision>,
    pub threads: Option<usize>,
    /// `missing`: it isn't here. `unsupported`: it doesn't compute in that. `failed`: it broke. `wrong`: its output is
    /// not that of the model.
    pub why: Why,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    Missing,
    Unsupported,
    Failed,
    Wrong,
}

impl BenchResult {
    /// 1: the subject's output is wrong. 5: it failed. 3: nobody could be measured. 4: a peer is missing, broke or is
    /// wrong.
    pub fn exit_code(&self) -> u8 {
        let told = |why: Why, subject: bool| {
            self.unmeasured.iter().any(|u| u.why == why && (u.engine == self.subject) == subject)
        };
        if told(Why::Wrong, true) {
            1
        } else if told(Why::Failed, true) || told(Why::Missing, true) {
            5
        } else if self.rows.is_empty() {
            3
        } else if [Why::Wrong, Why::Failed, Why::Missing].iter().any(|why| told(*why, false)) {
            4
        } else {
            0
        }
    }

    /// A figure of all engines that have it.
    pub fn rows_of(&self, job: Job, metric: Metric, prompt: usize) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.is(job, metric, prompt))
    }

    pub fn row(&self, engine: &str, job: Job, metric: Metric, prompt: usize) -> Option<&Row> {
        self.rows_of(job, metric, prompt).find(|row| row.engine == engine)
    }
}

impl Row {
    pub fn is(&self, job: Job, metric: Metric, prompt: usize) -> bool {
        (self.dtype, self.threads) == (job.precision, job.threads)
            && (self.metric, self.prompt) == (metric, prompt)
    }

    /// What the machine allowed, in the row's unit.
    pub fn limit(&self) -> Option<f64> {
        Some(self.median / self.of_limit?)
    }
}

/// Of the samples, which must not be none.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[half - 1] + sorted[half]) / 2.0,
        _ => sorted[half],
    }
}
