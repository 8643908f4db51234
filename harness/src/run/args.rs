//! The command line of `run`, and the part of it that `bisect` shares.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llorch_trace::Dtype;

use super::RunError;
use crate::guides::strategy::Strategy;
use crate::isolate::Ask;
use crate::isolate::args::IsolateArgs;
use crate::lineup::{self, Member};
use crate::plan::Filter;
use crate::provision::ProvisionOptions;
use crate::report::Format;
use crate::report::target::{self, Target};
use crate::suite::Suite;
use crate::supervise::Limits;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,

    #[command(flatten)]
    pub isolate: IsolateArgs,

    /// Report checkpoint by checkpoint in this order, and stop where it stops. Everything is collected
    /// once; what is left out is UNCHECKED
    #[arg(long, value_enum)]
    pub strategy: Option<Strategy>,

    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Write a report too, in any form of `llorch-diff report`; several with commas, or repeated
    #[arg(long, value_name = "FORMAT=PATH", value_delimiter = ',')]
    pub report: Vec<Target>,

    /// Show the first N elements of each compared tensor, on PASS too
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub values: usize,

    /// Show every pair, also where there are more than three references
    #[arg(long)]
    pub pairs: bool,

    /// Exit with 1 on WARN
    #[arg(long)]
    pub deny_warnings: bool,
}

/// What is compared, who takes part, and how far they may go.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Model: nano, gpt2, gpt2-medium, …, synth:gpt2, any hub id, or a folder
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,

    /// Only this checkpoint: number, slug or name; may be repeated
    #[arg(long, value_name = "CHECKPOINT")]
    pub checkpoint: Vec<String>,

    /// Only this layer, counted from 0; may be repeated. Points that have no layer are compared only
    /// if --checkpoint names theirs
    #[arg(long, value_name = "LAYER")]
    pub layer: Vec<usize>,

    /// Run this prompt instead of the canonical suite, 10 new tokens; may be repeated
    #[arg(long, value_name = "TEXT", conflicts_with = "suite")]
    pub prompt: Vec<String>,

    /// Run the cases of this TOML file instead of the canonical suite
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,

    /// Compare with this reference: NAME, NAME:VARIANT, or NAME=COMMAND for any program that speaks
    /// the adapter protocol; may be repeated [default: hf, tinygrad and candle]
    #[arg(long = "ref", value_name = "NAME[:VARIANT]|NAME=COMMAND")]
    pub references: Vec<String>,

    /// The implementation under test: a command that speaks the adapter protocol, split into words
    /// as a shell does it (NAME=value in front sets its environment), run without one; or the http:// address of a running llorch-cpud, of which
    /// only tokens and generation can be judged [default: `llorch-cpud trace`]
    #[arg(long, value_name = "COMMAND|URL")]
    pub subject: Option<String>,

    /// Leave result.json, the tensors and the adapters' stderr in this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Stop after the first reference with which the subject disagrees
    #[arg(long)]
    pub fail_fast: bool,

    /// References that run at the same time; each holds the model in memory
    #[arg(long, value_name = "N", default_value = "1")]
    pub jobs: NonZeroUsize,

    /// Threads that each implementation computes with [default: all cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<NonZeroUsize>,

    /// What is computed in: f32, f64, f16 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = float)]
    pub dtype: Dtype,

    /// Never touch the network
    #[arg(long)]
    pub offline: bool,

    /// Install nothing; a reference that isn't installed is UNCHECKED
    #[arg(long)]
    pub no_provision: bool,

    /// Time for hello, for load and for each case [default: 120, 600 and 900]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Say nothing on stderr but errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// A run, understood: every mistake that can be found without running anything has been.
#[derive(Debug)]
pub struct Request {
    pub model: String,
    pub filter: Filter,
    pub suite: Suite,
    pub subject: Member,
    pub references: Vec<Member>,
    pub out: Option<PathBuf>,
    pub fail_fast: bool,
    pub jobs: usize,
    pub threads: usize,
    pub dtype: Dtype,
    pub provision: ProvisionOptions,
    pub limits: Limits,
    pub quiet: bool,
    /// Elements to keep of each compared tensor, on PASS too.
    pub values: usize,
    /// Stages by themselves, on given inputs, instead of whole passes.
    pub isolate: Option<Ask>,
    /// Where the report stops.
    pub strategy: Option<Strategy>,
}

impl Args {
    pub fn request(&self) -> Result<Request, RunError> {
        target::check(&self.report)?;
        let mut request = self.common.request(self.values)?;
        let own_case = self.common.prompt.is_empty() && self.common.suite.is_none();
        request.isolate = self.isolate.ask(&request.filter, own_case);
        request.strategy = self.strategy;
        Ok(request)
    }
}

impl Common {
    pub fn request(&self, values: usize) -> Result<Request, RunError> {
        let suite = suite(self.suite.as_deref(), &self.prompt)?;
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut limits = Limits::default();
        if let Some(time) = self.timeout {
            (limits.hello, limits.load, limits.case) = (time, time, time);
        }
        Ok(Request {
            model: self.model.clone(),
            filter: Filter::new(&self.checkpoint, &self.layer)?,
            suite,
            subject: lineup::subject(self.subject.as_deref())?,
            references: lineup::references(&self.references)?,
            out: self.out.clone(),
            fail_fast: self.fail_fast,
            jobs: self.jobs.get(),
            threads: self.threads.map_or_else(cores, NonZeroUsize::get),
            dtype: self.dtype,
            provision: ProvisionOptions {
                offline: self.offline,
                quiet: self.quiet,
                allow: !self.no_provision,
            },
            limits,
            quiet: self.quiet,
            values,
            isolate: None,
            strategy: None,
        })
    }
}

/// The cases of a file, or of prompts, or the canonical ones.
pub(crate) fn suite(file: Option<&Path>, prompts: &[String]) -> Result<Suite, RunError> {
    match file {
        Some(path) => Ok(Suite::read(path)?),
        None if prompts.is_empty() => Ok(Suite::canonical()?),
        None if prompts.iter().any(String::is_empty) => {
            Err(RunError::Usage("failed to read --prompt: it is empty".into()))
        }
        None => Ok(Suite::of_prompts(prompts)),
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a whole number from 1 on".to_string())
}

pub(crate) fn float(text: &str) -> Result<Dtype, String> {
    match text.parse::<Dtype>() {
        Ok(dtype) if dtype != Dtype::I64 => Ok(dtype),
        _ => Err("expected f32, f64, f16 or bf16".into()),
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a number of seconds above 0".into()),
    }
}
