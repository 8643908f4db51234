//! The cache holds the k and v of all steps so far, in every layer after every step. A copy: exact
//! for everybody, after rounding to the coarser dtype where the cache is stored in another.

use llorch_trace::{Point, Stage, Tensor};

use super::finding::{Allowed, Finding, Here, named};
use super::runs::{Run, Subject};
use crate::compare::{coarser, round};

pub const RULE: &str = "exact: nothing is computed between them";

pub fn check(subject: &Subject, run: &Run<'_>, finding: &mut Finding) {
    for step in 0..run.case.steps() {
        for layer in 0..subject.dims.n_layer {
            for (cached, new) in [(Stage::CacheK, Stage::K), (Stage::CacheV, Stage::V)] {
                let (cached, new) = (Point::of_layer(cached, layer), Point::of_layer(new, layer));
                let parts = (0..=step).map(|n| subject.tensor(run.captured, n, new, finding));
                let parts: Option<Vec<&Tensor>> = parts.collect();
                let Some(cache) = subject.tensor(run.captured, step, cached, finding) else {
                    continue;
                };
                let Some(parts) = parts else { continue };
                let name = named(cached);
                let here = Here { case: &run.case.name, step, point: &name };
                compare(finding, here, cache, &parts);
            }
        }
    }
}

/// `cache` is [H, S, D], each part [H, T, D]; the T add up to S.
fn compare(finding: &mut Finding, here: Here<'_>, cache: &Tensor, parts: &[&Tensor]) {
    let [heads, positions, depth] = cache.shape[..] else { return };
    for head in 0..heads {
        let mut position = 0;
        for part in parts {
            let rows = part.shape.get(1).copied().unwrap_or(0);
            let dtype = coarser(cache.dtype(), part.dtype());
            for row in 0..rows.min(positions - position) {
                for d in 0..depth {
                    let at = (head * positions + position + row) * depth + d;
                    let found = round(cache.get(at), dtype);
                    let expected = round(part.get((head * rows + row) * depth + d), dtype);
                    let index = || cache.unravel(at);
                    finding.take(here, index, found, expected, Allowed::Bits);
                }
            }
            position += rows;
        }
    }
}
