//! `llorch-diff run --isolate`: each stage by itself. The same tensor is put in front of a stage in
//! every implementation, and what comes out is compared: nothing that happened before can blur it.
//!
//! Reading order: [`args`] is what may be asked, [`stages`] which stages that means and which of them
//! share a run, [`input`] the tensors that are put in place ([`random`] draws some of them), and
//! [`Isolation`] what collection and judge are told. `judge::isolated` judges what came back.

pub mod args;
pub mod input;
pub mod random;
pub mod stages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llorch_trace::protocol::{HelloResponse, Inject};
use llorch_trace::{Dims, Point, Stage};

pub use args::Ask;
pub use input::Source;

use crate::compare::Numbers;
use crate::evidence::{Case, Plan};
use crate::oracle::Inputs;
use crate::oracle::replay::inputs_of;
use crate::result::{InputRecord, IsolateRecord};

/// Where the tensors stand that are put in place, below a run's folder.
pub const FOLDER: &str = "inputs";

/// What is put where, and which stages share a run.
#[derive(Debug)]
pub struct Isolation {
    pub record: IsolateRecord,
    /// By run, the stages that it isolates.
    pub runs: Vec<Vec<Point>>,
    inputs: BTreeMap<(String, usize, Point), Placed>,
    n_layer: usize,
}

#[derive(Debug)]
struct Placed {
    file: PathBuf,
    numbers: Numbers,
}

impl Isolation {
    /// Reads the tensors that a run had put in place; `out` is its folder.
    pub fn reopen(out: &Path, record: &IsolateRecord, dims: &Dims) -> Result<Isolation, String> {
        let mut inputs = BTreeMap::new();
        for r in &record.inputs {
            let file = input::path(out, &r.case, r.step, r.point);
            let tensor = llorch_trace::files::read_npy(&file).map_err(|e| e.to_string())?;
            if tensor.shape != r.shape {
                let (found, expected) = (&tensor.shape, &r.shape);
                let file = file.display();
                return Err(format!("{file} holds shape {found:?}; expected {expected:?}"));
            }
            let placed = Placed { file, numbers: Numbers::of(&tensor) };
            inputs.insert((r.case.clone(), r.step, r.point), placed);
        }
        let n_layer = dims.n_layer;
        let runs = stages::runs(&record.stages, n_layer);
        Ok(Isolation { record: record.clone(), runs, inputs, n_layer })
    }

    /// Why this stage can't be isolated in an implementation that can inject at all.
    pub fn obstacle(&self, hello: &HelloResponse, stage: Point) -> Option<String> {
        inputs_of(stage, self.n_layer).into_iter().find_map(|input| {
            let name = input.to_string();
            let reason = hello.unsupported_reason(&name)?;
            Some(format!("nothing can be put at {name}: {reason}"))
        })
    }

    /// The injections that isolate `stages` in the first `steps` steps of a case.
    pub fn injections(&self, case: &Case, stages: &[Point], steps: usize) -> Vec<Inject> {
        let mut points: Vec<Point> =
            stages.iter().flat_map(|stage| inputs_of(*stage, self.n_layer)).collect();
        points.sort();
        points.dedup();
        let mut all = Vec::new();
        for step in 0..steps {
            for point in &points {
                if let Some(placed) = self.placed(case, step, *point) {
                    let (point, file) = (point.to_string(), placed.file.clone());
                    all.push(Inject { point, step, file, key: None });
                }
            }
        }
        all
    }

    /// What the stages of a case read, in every implementation.
    pub fn given<'a>(&'a self, case: &'a Case) -> Given<'a> {
        Given { isolation: self, case }
    }

    /// Inputs that GPT-2 itself has: those that the classes were made for.
    pub fn is_of_gpt2(&self) -> bool {
        self.record.input == crate::result::InputKind::Oracle
    }

    fn placed(&self, case: &Case, step: usize, point: Point) -> Option<&Placed> {
        self.inputs.get(&(case.name.clone(), step, point))
    }

    fn new(record: IsolateRecord, runs: Vec<Vec<Point>>, plan: &Plan) -> Isolation {
        Isolation { record, runs, inputs: BTreeMap::new(), n_layer: plan.dims.n_layer }
    }

    fn put(&mut self, record: InputRecord, file: PathBuf, numbers: Numbers) {
        let key = (record.case.clone(), record.step, record.point);
        self.inputs.insert(key, Placed { file, numbers });
        self.record.inputs.push(record);
    }
}

/// The inputs of a case, as the replay asks for them.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    isolation: &'a Isolation,
    case: &'a Case,
}

impl Inputs for Given<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        self.isolation.placed(self.case, step, point).map(|placed| placed.numbers.clone())
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        self.case.fed(step)
    }

    fn past(&self, step: usize) -> usize {
        self.case.past(step)
    }
}

/// What a masked cell holds: −∞ before softmax, 0 after it, whatever was drawn or read.
pub(crate) fn masked_value(stage: Stage) -> Option<f64> {
    match stage {
        Stage::Scores => Some(f64::NEG_INFINITY),
        Stage::Probs => Some(0.0),
        _ => None,
    }
}
