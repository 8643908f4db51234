//! What a run collected, before anything is judged: one [`Evidence`] per implementation. The judge
//! reads nothing else, so that a saved run can be judged again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llorch_trace::protocol::{HelloResponse, Sampling};
use llorch_trace::{Bundle, Dims, Dtype, MappedTensor, Point, PointSet};
use serde::{Deserialize, Serialize};

use crate::oracle::replay::inputs_of;
use crate::result::{Generation, Role};

/// One prompt and what is to be done with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// A word that may stand in a file name: letters, digits, `-` and `_`.
    pub name: String,
    /// The text, where the case was given as text.
    pub prompt: Option<String>,
    pub ids: Vec<u32>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// What is fed in the decode steps; `max_new_tokens` entries, the oracle's greedy choice.
    pub forced_ids: Vec<u32>,
}

impl Case {
    /// Steps with tensors: the prefill, and one for every token fed afterwards.
    pub fn steps(&self) -> usize {
        self.max_new_tokens.max(1)
    }

    /// The ids fed at a step: the prompt's, then one forced token a step.
    pub fn fed(&self, step: usize) -> Vec<u32> {
        match step.checked_sub(1) {
            None => self.ids.clone(),
            Some(before) => self.forced_ids.get(before).copied().into_iter().collect(),
        }
    }

    /// Positions before a step.
    pub fn past(&self, step: usize) -> usize {
        let (t, s) = self.sizes(step);
        s - t
    }

    /// (T, S) of a step: tokens of this step, keys visible.
    pub fn sizes(&self, step: usize) -> (usize, usize) {
        match step {
            0 => (self.ids.len(), self.ids.len()),
            n => (1, self.ids.len() + n),
        }
    }
}

/// What is to be compared.
#[derive(Debug, Clone)]
pub struct Plan {
    pub model_dir: PathBuf,
    pub dims: Dims,
    pub cases: Vec<Case>,
    /// The points asked for, in data-flow order; `generated` is among them if checkpoint 12 is.
    pub points: Vec<Point>,
}

impl Plan {
    /// How many points were asked for, and how many there are.
    pub fn looked_at(&self) -> (usize, usize) {
        // `generated` is no tensor's name.
        (self.points.len(), llorch_trace::all_points(self.dims.n_layer).len() + 1)
    }

    /// The points to be captured: those asked for, and those that judging them needs (the inputs of
    /// each stage, and what `self` rows and the tolerance of probabilities look at).
    pub fn captured(&self) -> PointSet {
        use llorch_trace::Stage;
        let mut wanted: Vec<Point> = Vec::new();
        for point in &self.points {
            wanted.push(*point);
            let needed: &[Stage] = match point.stage {
                Stage::CacheK => &[Stage::K],
                Stage::CacheV => &[Stage::V],
                Stage::Context => &[Stage::Scores],
                Stage::LogitsLast => &[Stage::Logits],
                // What excuses a choice between near equals.
                Stage::Argmax | Stage::NextProbs | Stage::Generated => &[Stage::LogitsLast],
                _ => &[],
            };
            let layer = point.layer.unwrap_or(0);
            wanted.extend(needed.iter().map(|s| Point::of_layer(*s, layer)));
            // What a stage reads, so that its local error can be told.
            wanted.extend(inputs_of(*point, self.dims.n_layer));
        }
        let mut names: Vec<String> =
            wanted.iter().filter(|p| p.stage != Stage::Generated).map(Point::to_string).collect();
        names.sort();
        names.dedup();
        PointSet::new(&names)
    }
}

/// Everything one implementation gave.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub name: String,
    pub role: Role,
    pub hello: Option<HelloResponse>,
    /// Of the lock file that it was installed from, where there is one.
    pub lock_sha256: Option<String>,
    /// What it computes in, once it has loaded a model.
    pub computes: Option<Dtype>,
    /// Tensors that passed collection, under case, step and point.
    pub bundle: Option<Bundle>,
    /// By case; absent where it was not asked or could not answer.
    pub generated: BTreeMap<String, Generation>,
    /// By case: what its tokenizer made of the prompt.
    pub tokenized: BTreeMap<String, Vec<u32>>,
    /// What its daemon gave over HTTP, where it has one and that was asked.
    pub served: Option<Served>,
    /// What went wrong, whole runs and single tensors.
    pub faults: Vec<Fault>,
    /// It could not be started at all: the reason and the command that mends it.
    pub missing: Option<(String, Option<String>)>,
    pub seconds: f64,
}

/// What a daemon gave over HTTP, by case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// What it made of the prompt.
    pub tokens: BTreeMap<String, Vec<u32>>,
    /// Its greedy completions.
    pub generated: BTreeMap<String, Generation>,
    /// Why it did not come up, did not answer, or did not end well.
    pub fault: Option<String>,
}

/// One thing that went wrong. `None` widens it: no point means the whole step, no step the whole
/// case, no case the whole implementation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    pub case: Option<String>,
    pub step: Option<usize>,
    pub point: Option<Point>,
    pub kind: FaultKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The implementation says, by its nature, that it can't.
    Unsupported,
    /// Time-out, crash, garbage, an error message: the process failed.
    Process,
    /// The tensor did not come, or its file is missing or short.
    MissingTensor,
    WrongShape,
    WrongDtype,
    NonFinite,
}

impl Evidence {
    /// What it computes in, if that is less than f32.
    pub fn narrow(&self) -> Option<Dtype> {
        self.computes.filter(|dtype| dtype.unit_roundoff() > Dtype::F32.unit_roundoff())
    }

    /// Whether its adapter declares that it differs somewhere by design.
    pub fn declares_deviations(&self) -> bool {
        self.hello.as_ref().is_some_and(|hello| !hello.deviations.is_empty())
    }

    /// The tensor where it was kept, if it was collected. A tensor that can't be read back is treated as absent by the
    /// judge, which then names the fault.
    pub fn tensor(&self, case: &str, step: usize, point: Point) -> Option<MappedTensor> {
        let bundle = self.bundle.as_ref()?;
        let name = point.to_string();
        if !bundle.contains(case, step, &name) {
            return None;
        }
        bundle.mapped(case, step, &name).ok()
    }

    /// The narrowest fault that covers this place.
    pub fn fault(&self, case: &str, step: usize, point: Point) -> Option<&Fault> {
        let covers = |f: &&Fault| {
            f.case.as_deref().is_none_or(|c| c == case)
                && f.step.is_none_or(|s| s == step)
                && f.point.is_none_or(|p| p == point)
        };
        let narrowness =
            |f: &&Fault| (f.point.is_some() as u8, f.step.is_some() as u8, f.case.is_some() as u8);
        self.faults.iter().filter(covers).max_by_key(narrowness)
    }
}
