//! The command line of `run`, and the part of it that `bisect` shares.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use llorch_trace::Dtype;

use super::RunError;
use super::means::{Means, Precision};
use crate::guides::strategy::Strategy;
use crate::history::recording;
use crate::history::store::Store;
use crate::isolate::Ask;
use crate::isolate::args::IsolateArgs;
use crate::lineup::{self, Member};
use crate::partition::{self, By, PartRecord, Partition};
use crate::plan::Filter;
use crate::provision::ProvisionOptions;
use crate::report::Shown;
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

    /// Run part K of N of all this; `llorch-diff merge` joins the parts
    #[arg(long, value_name = "K/N", conflicts_with_all = ["isolate", "fail_fast", "strategy"], requires = "out")]
    pub partition: Option<Partition>,

    /// What is given out to the parts
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = By::Case, requires = "partition")]
    pub partition_by: By,

    #[command(flatten)]
    pub history: recording::Place,

    #[command(flatten)]
    pub shown: Shown,
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

    /// Compare with this reference: NAME, NAME:VARIANT, either with @latest behind it for its newest
    /// release instead of the pinned one (hf@latest), or NAME=COMMAND for any program that speaks the
    /// adapter protocol, or all for every reference that `llorch-diff adapters list` shows, but those that
    /// take long to build; may be repeated [default: hf, tinygrad, candle and llamacpp]
    #[arg(long = "ref", value_name = "NAME[:VARIANT][@latest]|NAME=COMMAND|all")]
    pub references: Vec<String>,

    /// The implementation under test: a command that speaks the adapter protocol, split into words
    /// as a shell does it (NAME=value in front sets its environment), run without one; or the http:// address
    /// of a running llorch-cpud that serves this model, whose key, if it wants one, is read from the
    /// environment variable LLORCH_API_KEY [default: `llorch-cpud trace`]
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

    #[command(flatten)]
    pub precision: Precision,

    #[command(flatten)]
    pub means: Means,
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
    /// Elements to keep of each compared tensor, on PASS too.
    pub values: usize,
    /// Stages by themselves, on given inputs, instead of whole passes.
    pub isolate: Option<Ask>,
    /// Where the report stops.
    pub strategy: Option<Strategy>,
    /// Where this is a part of a run.
    pub partition: Option<PartRecord>,
    /// What does the same again.
    pub command: Vec<String>,
}

impl Args {
    /// The history that this run goes into. A part of a run and stages by themselves are no runs.
    pub fn recorded(&self) -> Result<Option<Box<dyn Store>>, RunError> {
        match self.partition.is_some() || self.isolate.isolate {
            true => Ok(None),
            false => self.history.to_record(),
        }
    }

    pub fn request(&self) -> Result<Request, RunError> {
        self.shown.check()?;
        let mut request = self.common.request(self.shown.values)?;
        let own_case = self.common.prompt.is_empty() && self.common.suite.is_none();
        request.isolate = self.isolate.ask(&request.filter, own_case);
        request.strategy = self.strategy;
        if let Some(part) = self.partition {
            request.partition = Some(partition::apply(&mut request, part, self.partition_by)?);
        }
        Ok(request)
    }
}

impl Common {
    pub fn request(&self, values: usize) -> Result<Request, RunError> {
        let suite = suite(self.suite.as_deref(), &self.prompt)?;
        Ok(Request {
            model: self.model.clone(),
            filter: Filter::new(&self.checkpoint, &self.layer)?,
            suite,
            subject: lineup::subject(self.subject.as_deref())?,
            references: lineup::references(&self.references)?,
            out: self.out.clone(),
            fail_fast: self.fail_fast,
            jobs: self.jobs.get(),
            threads: self.means.threads(),
            dtype: self.precision.dtype,
            provision: self.means.provision(),
            limits: self.means.limits(),
            values,
            isolate: None,
            strategy: None,
            partition: None,
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
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
