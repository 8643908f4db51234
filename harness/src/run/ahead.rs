//! Stages of who has answered are recomputed while the others are still at work: an adapter that reads and writes, or has
//! one thread, leaves a core to it.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;

use llorch_trace::all_points;

use crate::evidence::{Evidence, Plan};
use crate::judge::{Beforehand, JudgeOptions};
use crate::oracle::Truth;
use crate::{machine, parallel};

/// Works on those that come until there are no more, or `enough` is so: on one thread, behind everything else.
pub fn recompute(
    plan: &Plan,
    truth: &Truth,
    options: &JudgeOptions,
    answered: Receiver<Evidence>,
    enough: &AtomicBool,
) -> Beforehand {
    let mut beforehand = Beforehand::default();
    // Adapters come first: what they hold in memory is theirs.
    if truth.oracle.is_none() || !options.stages || !has_room(plan) {
        return beforehand;
    }
    parallel::stay_behind();
    for one in answered {
        beforehand.add(plan, &one, truth, options, enough);
    }
    beforehand
}

/// Whether the oracle's own pass is a small part of the memory that is left. Where the system doesn't tell, it is taken
/// to be.
fn has_room(plan: &Plan) -> bool {
    const PART: u64 = 8;
    machine::available_memory().is_none_or(|left| trace_bytes(plan) <= left / PART)
}

/// What all stages of all cases take in float64.
fn trace_bytes(plan: &Plan) -> u64 {
    let points = all_points(plan.dims.n_layer);
    let of_case = |length: usize| {
        let elements = |shape: Vec<usize>| shape.iter().product::<usize>() as u64;
        points.iter().map(|p| elements(p.shape(&plan.dims, length, length))).sum::<u64>()
    };
    let lengths = plan.cases.iter().map(|case| case.ids.len() + case.steps() - 1);
    lengths.map(of_case).sum::<u64>() * size_of::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Case;
    use llorch_trace::Dims;
    use llorch_trace::protocol::Sampling;

    #[test]
    fn the_size_of_the_oracles_pass_is_that_of_its_stages() {
        let dims =
            Dims { n_layer: 2, n_head: 2, n_embd: 8, n_inner: 32, vocab_size: 50, n_positions: 16 };
        let case = Case {
            name: "c".into(),
            prompt: None,
            ids: vec![1, 2, 3],
            max_new_tokens: 0,
            sampling: Sampling::default(),
            forced_ids: vec![],
        };
        let plan = Plan { model_dir: "/nowhere".into(), dims, cases: vec![case], points: vec![] };
        let per_layer = 3 * (8 + 3 * 8 + 2 * 8 + 8 + 8 + 8 + 8 + 32 + 32 + 8 + 8) + 2 * 2 * 3 * 3;
        let found = trace_bytes(&plan) / 8;
        let whole = (2 * per_layer + 3 * (8 + 8 + 50)) as u64;
        // Ids and the last row's logits are few.
        assert!((whole..whole + 2 * 50 + 20).contains(&found), "{found}, {whole} without those");
    }
}
