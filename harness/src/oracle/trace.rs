//! Every stage of one case in float64. The whole sequence, prompt and fed tokens, is one pass
//! without steps; what a step would have shown is cut out of it, which causality allows.

use std::collections::BTreeMap;

use llorch_trace::{Point, Stage};
use ndarray::{ArrayD, Axis, Slice};

use super::{Oracle, Result, forward};
use crate::compare::Numbers;

#[derive(Debug)]
pub struct Trace {
    /// By point, all positions of the sequence.
    whole: BTreeMap<Point, ArrayD<f64>>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens in all.
    length: usize,
}

impl Trace {
    pub(super) fn run(oracle: &Oracle, ids: &[u32], fed: &[u32]) -> Result<Trace> {
        let all: Vec<u32> = ids.iter().chain(fed).copied().collect();
        let mut whole = BTreeMap::new();
        let mut cache = forward::Cache::new(&oracle.dims);
        let fed = forward::Fed { ids: &all, cache: &mut cache };
        let x = forward::blocks(oracle, &mut [fed], &mut |point, tensor| {
            whole.insert(point, tensor);
        })?;
        let logits = forward::head(oracle, x.view())?;
        whole.insert(Point::new(Stage::Logits), logits.into_dyn());
        Ok(Trace { whole, prompt: ids.len(), length: all.len() })
    }

    pub fn steps(&self) -> usize {
        self.length - self.prompt + 1
    }

    /// What the oracle has at a point of a step; None where it is no tensor (ids, probabilities
    /// after sampling) or there is no such step.
    pub fn get(&self, step: usize, point: Point) -> Option<Numbers> {
        if step >= self.steps() {
            return None;
        }
        let seen = self.prompt + step; // S
        let new = if step == 0 { 0..self.prompt } else { seen - 1..seen };
        let rows = Slice::from(new);
        let keys = Slice::from(0..seen);
        let of = |stage| self.whole.get(&Point { stage, ..point });
        let cut = match point.stage {
            Stage::CacheK => of(Stage::K)?.slice_axis(Axis(1), keys).to_owned(),
            Stage::CacheV => of(Stage::V)?.slice_axis(Axis(1), keys).to_owned(),
            Stage::Q | Stage::K | Stage::V => of(point.stage)?.slice_axis(Axis(1), rows).to_owned(),
            Stage::Scores | Stage::Probs => {
                let all = of(point.stage)?.slice_axis(Axis(1), rows);
                all.slice_axis(Axis(2), keys).to_owned()
            }
            Stage::LogitsLast => of(Stage::Logits)?.index_axis(Axis(0), seen - 1).to_owned(),
            _ => of(point.stage)?.slice_axis(Axis(0), rows).to_owned(),
        };
        Some(Numbers::of_array(cut))
    }
}
