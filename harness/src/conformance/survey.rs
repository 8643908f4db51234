//! What came of one run, looked at tensor by tensor: several checks look at the same run, so that each
//! kind of mistake has a row of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llorch_trace::protocol::{DoneMessage, Sampling};
use llorch_trace::{Dtype, Point, Tensor};

use super::ask::{End, Ran};
use super::bench::Bench;
use super::check::Stop;
use crate::collect::tensors;
use crate::evidence::Case;

#[derive(Debug, Default)]
pub struct Survey {
    pub sent: String,
    pub done: DoneMessage,
    pub tensors: BTreeMap<(usize, Point), Tensor>,
    /// Names, steps, and what is missing or came twice.
    pub names: Vec<String>,
    pub shapes: Vec<String>,
    pub dtypes: Vec<String>,
    pub files: Vec<String>,
    pub values: Vec<String>,
    /// Tensors of a step after those of a later one.
    pub order: Vec<String>,
}

/// Reads what a run left, and removes it.
pub fn examine(bench: &Bench<'_>, ran: &Ran) -> Survey {
    examine_for(bench, ran, &bench.points())
}

/// The same where only `wanted` was asked for.
pub fn examine_for(bench: &Bench<'_>, ran: &Ran, wanted: &[Point]) -> Survey {
    let mut survey = Survey { sent: ran.sent.clone(), ..Survey::default() };
    if let End::Done(done) = &ran.end {
        survey.done = done.clone();
    }
    let case = case(ran);
    let (mut latest, mut files) = (0, Vec::<(PathBuf, Option<String>)>::new());
    for message in &ran.tensors {
        let at = format!("{} at step {}", message.point, message.step);
        let Ok(point) = message.point.parse::<Point>() else {
            survey.names.push(format!("{at}: no such point"));
            continue;
        };
        if !wanted.contains(&point) {
            survey.names.push(format!("{at}: it was not asked for, or is declared unsupported"));
            continue;
        }
        if message.step >= case.steps() {
            survey.names.push(format!("{at}: the run has steps 0 to {}", case.steps() - 1));
            continue;
        }
        if message.step < latest {
            survey.order.push(format!("{at} came after a tensor of step {latest}"));
        }
        latest = latest.max(message.step);
        let file = (message.file.clone(), message.key.clone());
        if files.contains(&file) {
            survey.files.push(format!("{at}: {} was announced before", file.0.display()));
        }
        files.push(file);
        let (t, s) = case.sizes(message.step);
        let expected = point.shape(&bench.setup.dims, t, s);
        if message.shape != expected {
            survey.shapes.push(format!("{at}: shape {:?}, expected {expected:?}", message.shape));
            continue;
        }
        if (message.dtype == Dtype::I64) != point.is_integer() {
            let wanted = if point.is_integer() { "i64" } else { "a float dtype" };
            survey.dtypes.push(format!("{at}: {}, expected {wanted}", message.dtype));
            continue;
        }
        match tensors::read(message, point, &case, &bench.setup.dims, &ran.out_dir) {
            Err((_, what)) => survey.files.push(format!("{at}: {what}")),
            Ok(tensor) => {
                if let Some(what) = tensors::first_non_finite(&tensor, point) {
                    survey.values.push(format!("{at}: {what}"));
                }
                if survey.tensors.insert((message.step, point), tensor).is_some() {
                    survey.names.push(format!("{at}: it came twice"));
                }
            }
        }
    }
    let came = |step: usize, point: &Point| {
        ran.tensors.iter().any(|m| m.step == step && m.point == point.to_string())
    };
    for step in 0..case.steps() {
        for point in wanted.iter().filter(|point| !came(step, point)) {
            survey.names.push(format!("{point} at step {step} did not come"));
        }
    }
    let _ = std::fs::remove_dir_all(&ran.out_dir);
    survey
}

/// What the request asked for, in the form that sizes are computed from.
fn case(ran: &Ran) -> Case {
    let number = |key: &str| ran.request[key].as_u64().unwrap_or(0) as usize;
    let ids: Vec<u32> = serde_json::from_value(ran.request["ids"].clone()).unwrap_or_default();
    Case {
        name: "survey".into(),
        prompt: None,
        ids,
        max_new_tokens: number("max_new_tokens"),
        sampling: Sampling::default(),
        forced_ids: Vec::new(),
    }
}

impl Survey {
    /// Everything that is wrong with the tensors, whatever its kind: for checks that are about
    /// something else and can't go on without them.
    pub fn sound(&self) -> Result<(), Stop> {
        let kinds = [&self.names, &self.shapes, &self.dtypes, &self.files, &self.values];
        match kinds.iter().flat_map(|kind| kind.iter()).next() {
            None => Ok(()),
            Some(what) => Err(Stop::wrong(&self.sent, what, "every tensor as it should be")),
        }
    }

    pub fn get(&self, step: usize, point: &str) -> Option<&Tensor> {
        self.tensors.get(&(step, point.parse().ok()?))
    }

    /// The first tensor whose bits differ, or that only one of the two has.
    pub fn first_difference(&self, other: &Survey) -> Option<String> {
        if self.tensors.len() != other.tensors.len() {
            return Some(format!("{} tensors, then {}", self.tensors.len(), other.tensors.len()));
        }
        for ((step, point), tensor) in &self.tensors {
            let at = format!("{point} at step {step}");
            let Some(again) = other.tensors.get(&(*step, *point)) else {
                return Some(format!("{at} came only once"));
            };
            if tensor.shape != again.shape || tensor.data.to_le_bytes() != again.data.to_le_bytes()
            {
                return Some(at);
            }
        }
        (self.done.generated != other.done.generated).then(|| {
            format!("generated {:?}, then {:?}", self.done.generated, other.done.generated)
        })
    }

    /// The largest difference relative to max(1, |a|, |b|), and where.
    pub fn largest_difference(&self, other: &Survey) -> (f64, String) {
        let mut largest = (0.0, String::new());
        for ((step, point), tensor) in &self.tensors {
            let Some(again) = other.tensors.get(&(*step, *point)) else { continue };
            let counts = |i: usize| crate::compare::is_visible(point.stage, &tensor.shape, i);
            for i in (0..tensor.len().min(again.len())).filter(|&i| counts(i)) {
                let (a, b) = (tensor.get(i), again.get(i));
                let off = (a - b).abs() / 1f64.max(a.abs()).max(b.abs());
                if off > largest.0 {
                    largest = (off, format!("{point} at step {step}: {a}, then {b}"));
                }
            }
        }
        largest
    }
}
