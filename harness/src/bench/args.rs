//! The command line of `bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use llorch_trace::Precision;

use crate::lineup::{self, Member};
use crate::run::RunError;
use crate::run::means::{Access, at_least_one, cores};

/// The peers, each in the form in which its own users run it fastest.
pub const PEERS: [&str; 7] = [
    "llamacpp:fast",
    "onnxruntime:fast",
    "openvino:fast",
    "ctranslate2:fast",
    "hf:sdpa",
    "candle",
    "tinygrad",
];

/// Compare the speed of engines whose output is right
///
/// Every engine's logits are judged by the float64 oracle first. Then all are loaded and asked in turn, A B A B, so that a
/// neighbour's load hits all alike. Machine limits (memory bandwidth, multiply-adds) are measured in the
/// same run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model: nano, gpt2, gpt2-medium, …, synth:gpt2, any hub id, or a folder
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    model: String,

    /// Compare with this peer: a reference by name, NAME=COMMAND, or none; may be repeated
    /// [default: llamacpp:fast, onnxruntime:fast, openvino:fast, ctranslate2:fast, hf:sdpa, candle and tinygrad]
    #[arg(long = "ref", value_name = "NAME[:VARIANT]|NAME=COMMAND|none")]
    references: Vec<String>,

    /// The engine that the ratios are of: a command that speaks the adapter protocol [default: `llorch-cpud trace`]
    #[arg(long, value_name = "COMMAND")]
    subject: Option<String>,

    /// What is computed in; several, divided by commas. Who can't is left out, with the reason
    #[arg(long, value_name = "DTYPE,…", value_delimiter = ',', default_value = "f32,bf16,int8")]
    dtype: Vec<Precision>,

    /// Numbers of threads [default: 1 and all cores]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = at_least_one)]
    threads: Vec<NonZeroUsize>,

    /// Lengths of prompts, in tokens [default: 2 and 512, or what the model has room for]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = at_least_one)]
    prompt: Vec<NonZeroUsize>,

    /// Tokens that are decoded after each prompt
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_one)]
    decode: NonZeroUsize,

    /// Sequences that are decoded at once, by engines that can (capability `batch`); 1: none
    #[arg(long, value_name = "N", default_value = "8", value_parser = at_least_one)]
    batch: NonZeroUsize,

    /// How often each engine is asked
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    rounds: NonZeroUsize,

    /// The form of the result
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Md,
    Svg,
}

/// What is to be measured.
#[derive(Debug)]
pub struct Plan {
    pub model: String,
    pub subject: Member,
    pub peers: Vec<Member>,
    pub precisions: Vec<Precision>,
    pub threads: Vec<usize>,
    /// Empty where the model's room decides.
    pub prompts: Vec<usize>,
    pub decode: usize,
    pub batch: usize,
    pub rounds: usize,
    pub access: Access,
}

impl Args {
    pub fn plan(&self) -> Result<Plan, RunError> {
        if self.subject.as_deref().is_some_and(|s| s.starts_with("http")) {
            let what =
                "failed to bench a daemon: its speed is that of its clients too; name a command";
            return Err(RunError::Usage(what.into()));
        }
        let peers = match self.references.as_slice() {
            [] => lineup::references(&PEERS.map(String::from))?,
            named => lineup::references(named)?,
        };
        let threads = match self.threads.as_slice() {
            [] if cores() == 1 => vec![1],
            [] => vec![1, cores()],
            named => unique(named),
        };
        Ok(Plan {
            model: self.model.clone(),
            subject: lineup::subject(self.subject.as_deref())?,
            peers,
            precisions: in_order(&self.dtype),
            threads,
            prompts: unique(&self.prompt),
            decode: self.decode.get(),
            batch: self.batch.get(),
            rounds: self.rounds.get(),
            access: self.access.clone(),
        })
    }
}

fn unique(numbers: &[NonZeroUsize]) -> Vec<usize> {
    in_order(numbers).into_iter().map(NonZeroUsize::get).collect()
}

/// Each once, where it came first.
fn in_order<T: Copy + PartialEq>(all: &[T]) -> Vec<T> {
    let mut kept = Vec::new();
    for one in all {
        if !kept.contains(one) {
            kept.push(*one);
        }
    }
    kept
}
