//! Which stages are isolated, and which of them can share a run.
//!
//! What is captured at a point where something was put is what was put there. So a run can isolate a
//! stage only if the stage's output is not put in place in that run, and a stage's input is the output
//! of another stage: q reads ln_1, scores read q and the cache. Stages are given out to runs in the
//! order of data flow, each to the first run in which no output of one is an input of another. A whole
//! block takes three runs, all layers of a model no more.

use std::collections::BTreeSet;

use llorch_trace::points::glob_matches;
use llorch_trace::{Dims, Point, Stage, all_points};

use crate::oracle::replay::inputs_of;
use crate::plan::{Filter, PlanError};
use crate::run::RunError;

/// Without --checkpoint: those of a block.
const DEFAULT_CHECKPOINTS: std::ops::RangeInclusive<u8> = 1..=7;

/// The stages asked for, in data-flow order.
pub fn select(filter: &Filter, globs: &[String], dims: &Dims) -> Result<Vec<Point>, RunError> {
    if let Some(&found) = filter.layers.iter().find(|&&layer| layer >= dims.n_layer) {
        return Err(PlanError::Layer { found, last: dims.n_layer - 1 }.into());
    }
    let all = all_points(dims.n_layer).into_iter();
    let stages: Vec<Point> = all.filter(|p| !inputs_of(*p, dims.n_layer).is_empty()).collect();
    if let Some(glob) =
        globs.iter().find(|g| !stages.iter().any(|p| glob_matches(g, &p.to_string())))
    {
        return Err(RunError::Usage(format!(
            "failed to isolate {glob:?}: no stage that reads another fits it; `llorch-diff points` lists them"
        )));
    }
    let by_checkpoint = |p: &Point| {
        let number = p.checkpoint().number;
        // The output of a deeper block is of checkpoint 8; it is the same stage.
        let block = p.stage == Stage::Block && filter.checkpoints.contains(&7);
        match filter.checkpoints.is_empty() {
            true if globs.is_empty() => {
                DEFAULT_CHECKPOINTS.contains(&number) || p.stage == Stage::Block
            }
            true => true,
            false => filter.checkpoints.contains(&number) || block,
        }
    };
    let by_glob =
        |p: &Point| globs.is_empty() || globs.iter().any(|g| glob_matches(g, &p.to_string()));
    let by_layer = |p: &Point| match p.layer {
        None => true,
        Some(layer) if !filter.layers.is_empty() => filter.layers.contains(&layer),
        Some(layer) => !globs.is_empty() || layer == 0 || layer + 1 == dims.n_layer,
    };
    let chosen: Vec<Point> =
        stages.into_iter().filter(|p| by_checkpoint(p) && by_glob(p) && by_layer(p)).collect();
    match chosen.is_empty() {
        false => Ok(chosen),
        true => Err(RunError::Usage(
            "failed to isolate: what was asked for has no stage that reads another; isolated are checkpoints 1 to 9"
                .into(),
        )),
    }
}

/// The stages of each run.
pub fn runs(stages: &[Point], n_layer: usize) -> Vec<Vec<Point>> {
    #[derive(Default)]
    struct Run {
        stages: Vec<Point>,
        inputs: BTreeSet<Point>,
    }
    let mut runs: Vec<Run> = Vec::new();
    for &stage in stages {
        let inputs = inputs_of(stage, n_layer);
        let free = |run: &Run| {
            !run.inputs.contains(&stage) && !inputs.iter().any(|i| run.stages.contains(i))
        };
        let place = runs.iter().position(free).unwrap_or(runs.len());
        if place == runs.len() {
            runs.push(Run::default());
        }
        runs[place].stages.push(stage);
        runs[place].inputs.extend(inputs);
    }
    runs.into_iter().map(|run| run.stages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims =
        Dims { n_layer: 12, n_head: 4, n_embd: 8, n_inner: 32, vocab_size: 50257, n_positions: 32 };

    fn filter(checkpoints: &[&str], layers: &[usize]) -> Filter {
        let checkpoints: Vec<String> = checkpoints.iter().map(|c| c.to_string()).collect();
        Filter::new(&checkpoints, layers).unwrap()
    }

    fn names(checkpoints: &[&str], layers: &[usize], globs: &[&str]) -> Vec<String> {
        let globs: Vec<String> = globs.iter().map(|g| g.to_string()).collect();
        let chosen = select(&filter(checkpoints, layers), &globs, &DIMS).unwrap();
        chosen.iter().map(Point::to_string).collect()
    }

    #[test]
    fn the_first_and_the_last_layer_are_isolated_and_others_on_demand() {
        assert_eq!(names(&["ln"], &[], &[]), ["h.0.ln_1", "h.11.ln_1"]);
        assert_eq!(names(&["block"], &[3], &[]), ["h.3"]);
        assert_eq!(names(&[], &[], &[]).len(), 2 * 16);
        assert_eq!(names(&[], &[2], &["*attn.v"]), ["h.2.attn.v"]);
        assert_eq!(names(&[], &[], &["h.*.ln_2", "ln_f"]).len(), 13);
    }

    #[test]
    fn what_reads_nothing_or_is_nowhere_is_refused() {
        let refused = |checkpoints: &[&str], layers: &[usize], globs: &[&str]| {
            let globs: Vec<String> = globs.iter().map(|g| g.to_string()).collect();
            select(&filter(checkpoints, layers), &globs, &DIMS).unwrap_err()
        };
        for error in [
            refused(&["foundation"], &[], &[]),
            refused(&[], &[], &["h.0.soul"]),
            refused(&[], &[12], &[]),
            refused(&["ln"], &[1], &["h.2.*"]),
        ] {
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }

    #[test]
    fn no_run_captures_what_it_puts_in_place_and_three_do_for_a_whole_model() {
        let stages = select(
            &filter(&["1", "2", "3", "4", "5", "6", "7", "8"], &(0..12).collect::<Vec<_>>()),
            &[],
            &DIMS,
        )
        .unwrap();
        assert_eq!(stages.len(), 12 * 16 + 2);
        let runs = runs(&stages, DIMS.n_layer);
        assert_eq!(runs.len(), 3);
        for run in &runs {
            for stage in run {
                for input in inputs_of(*stage, DIMS.n_layer) {
                    assert!(!run.contains(&input), "{stage} reads {input}, captured in its run");
                }
            }
        }
        let mut all: Vec<Point> = runs.concat();
        all.sort();
        assert_eq!(all, stages);
    }
}
