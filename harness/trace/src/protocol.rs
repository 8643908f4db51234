//! The adapter protocol, version 1: JSON Lines over standard input and output.
//!
//! `adapters/PROTOCOL.md` tells what each message means; this module is its form in Rust. Unknown
//! fields are ignored by both sides.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::precision::Precision;
use crate::tensor::Dtype;

pub const PROTOCOL_VERSION: u32 = 1;

/// Harness to adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    Hello { protocol: u32 },
    Load { model_dir: PathBuf, dtype: Precision, threads: usize },
    Tokenize { id: String, text: String },
    Run(RunRequest),
    Draw(DrawRequest),
    Cancel { id: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRequest {
    pub id: String,
    pub ids: Vec<u32>,
    /// Globs over point names.
    #[serde(default)]
    pub points: Vec<String>,
    /// N gives max(N, 1) steps; 0 is the prefill alone.
    #[serde(default)]
    pub max_new_tokens: usize,
    /// What to feed instead of the tokens chosen; N entries.
    #[serde(default)]
    pub forced_ids: Option<Vec<u32>>,
    #[serde(default)]
    pub sampling: Sampling,
    #[serde(default)]
    pub inject: Vec<Inject>,
    /// Empty where nothing is captured, and none was given.
    #[serde(default)]
    pub out_dir: PathBuf,
    /// More sequences, computed at the same time in the same way (capability `batch`). Nothing is captured then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Vec<u32>>,
    /// Whether `done` shall have a text. Without it no tokenizer need be loaded.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub text: bool,
}

impl Default for RunRequest {
    fn default() -> Self {
        RunRequest {
            id: String::new(),
            ids: Vec::new(),
            points: Vec::new(),
            max_new_tokens: 0,
            forced_ids: None,
            sampling: Sampling::default(),
            inject: Vec::new(),
            out_dir: PathBuf::new(),
            beside: Vec::new(),
            text: true,
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(yes: &bool) -> bool {
    *yes
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// 0 keeps every token.
    pub top_k: usize,
    /// 1 keeps every token.
    pub top_p: f64,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Replaces a point's value at one step before anything reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inject {
    pub point: String,
    pub step: usize,
    pub file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Draws tokens from logits that the harness gives, without running a model: what shows whether a
/// sampler follows its probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawRequest {
    pub id: String,
    /// One row of logits, `[V]`.
    pub logits: TensorFile,
    #[serde(default)]
    pub sampling: Sampling,
    /// How many tokens to draw, one after another from one generator, seeded once.
    pub draws: usize,
    pub out_dir: PathBuf,
}

/// The name of the one tensor that answers a `draw`, i64 `[draws]`. It is no point of the model.
pub const DRAWS: &str = "draws";

/// More draws than this in one request are a mistake.
pub const MOST_DRAWS: usize = 100_000_000;

/// A tensor in a file: a `.npy`, or the entry `key` of a `.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorFile {
    pub file: PathBuf,
    #[serde(default)]
    pub key: Option<String>,
}

/// Adapter to harness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Response {
    Hello(HelloResponse),
    Loaded {
        #[serde(default)]
        seconds: Option<f64>,
        /// What is computed in, where that isn't what was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dtype: Option<Precision>,
    },
    Tokens {
        id: String,
        ids: Vec<u32>,
    },
    Tensor(TensorMessage),
    Done(DoneMessage),
    Error(ErrorMessage),
}

/// What a reference's agreement is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Worth {
    /// Upstream's own GPT-2 graph.
    Semantics,
    /// Upstream's kernels under a graph of this project: a shared misunderstanding would not show.
    Kernels,
}

impl std::fmt::Display for Worth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Worth::Semantics => "semantics",
            Worth::Kernels => "kernels",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HelloResponse {
    pub protocol: u32,
    pub name: String,
    #[serde(default)]
    pub version: String,
    pub worth: Worth,
    #[serde(default)]
    pub capabilities: Vec<String>,
    #[serde(default)]
    pub unsupported: Vec<Unsupported>,
    /// How the native tensor becomes ours, by point glob.
    #[serde(default)]
    pub recipes: BTreeMap<String, String>,
    #[serde(default)]
    pub deviations: Vec<Deviation>,
}

impl HelloResponse {
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }

    /// The reason for which a point can't be captured, if it can't.
    pub fn unsupported_reason(&self, point: &str) -> Option<&str> {
        self.unsupported
            .iter()
            .find(|u| crate::points::glob_matches(&u.point, point))
            .map(|u| u.reason.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    pub point: String,
    pub reason: String,
}

/// A declared departure from the model's mathematics, with its own bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    pub point: String,
    pub bound: f64,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMessage {
    pub id: String,
    pub point: String,
    pub step: usize,
    /// Absolute, or relative to the run's `out_dir`.
    pub file: PathBuf,
    /// The tensor's name inside a `.safetensors` file.
    #[serde(default)]
    pub key: Option<String>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DoneMessage {
    pub id: String,
    #[serde(default)]
    pub generated: Vec<u32>,
    #[serde(default)]
    pub text: Option<String>,
    /// What the sequences of `beside` went on with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Vec<u32>>,
    #[serde(default)]
    pub seconds: Seconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Seconds {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorClass {
    Unsupported,
    Input,
    Resource,
    Internal,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    #[serde(default)]
    pub id: Option<String>,
    pub class: ErrorClass,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_messages_as_the_contract_prints_them() {
        let hello = r#"{"type":"hello","protocol":1,"name":"hf","version":"transformers 5.23.0","worth":"semantics",
            "capabilities":["capture"],"unsupported":[{"point":"h.*.attn.scores","reason":"…"}],
            "recipes":{"h.*.attn.q":"b t (three h d) -> three h t d"},
            "deviations":[{"point":"h.*.mlp.act","bound":1e-3,"reason":"table"}],"new_field":1}"#;
        let Response::Hello(hello) = serde_json::from_str(hello).unwrap() else { panic!() };
        assert!(hello.can("capture") && !hello.can("inject"));
        assert_eq!(hello.unsupported_reason("h.3.attn.scores"), Some("…"));

        let run = r#"{"type":"run","id":"b","ids":[15496,13],"points":["h.*.ln_1"],"max_new_tokens":10,
            "forced_ids":null,"sampling":{"temperature":0,"top_k":0,"top_p":1,"seed":0},
            "inject":[{"point":"h.3.attn.q","step":0,"file":"/x"}],"out_dir":"/o"}"#;
        let Request::Run(run) = serde_json::from_str(run).unwrap() else { panic!() };
        assert_eq!((run.sampling, run.inject.len()), (Sampling::default(), 1));

        let draw = r#"{"type":"draw","id":"d","logits":{"file":"/l.npy","key":null},
            "sampling":{"temperature":0.8,"top_k":40,"top_p":1,"seed":7},"draws":100000,"out_dir":"/o"}"#;
        let Request::Draw(draw) = serde_json::from_str(draw).unwrap() else { panic!() };
        assert_eq!((draw.draws, draw.sampling.seed, draw.logits.key), (100_000, 7, None));

        for line in [
            r#"{"type":"loaded","seconds":1.9}"#,
            r#"{"type":"tensor","id":"b","point":"h.0.ln_1","step":0,"file":"…","key":null,"dtype":"f32","shape":[2,768]}"#,
            r#"{"type":"done","id":"b","generated":[1],"text":null,"seconds":{}}"#,
            r#"{"type":"error","id":"b","class":"unsupported","message":"…"}"#,
        ] {
            serde_json::from_str::<Response>(line).unwrap();
        }
    }

    #[test]
    fn writes_the_type_first() {
        let load = Request::Load { model_dir: "/m".into(), dtype: Dtype::F32.into(), threads: 2 };
        assert_eq!(
            serde_json::to_string(&load).unwrap(),
            r#"{"type":"load","model_dir":"/m","dtype":"f32","threads":2}"#
        );
    }
}
