//! Probabilities: rows sum to 1, what is masked is 0, and `next.probs` are those of their own logits.
//! docs/TOLERANCES.md derives the bounds ("Invariants and draws").

use llorch_trace::{Point, Stage, Tensor};

use super::finding::{Allowed, Finding, Here, named};
use super::runs::{Run, Subject};
use crate::compare::is_visible;
use crate::judge::point_tolerance;
use crate::oracle::bounds::gamma;
use crate::sampling::{Slack, replay, uncertain};

pub const SUM_RULE: &str = "derived: γₙ₊₁ + 8u over n terms, in whatever order they are added";
pub const MASKED_RULE: &str = "exact: nothing of a later key";
pub const NEXT_RULE: &str = "1e-6 + 2·p·u·max|logit|/τ (checkpoint 11), or the bound it declares";

/// How far from 1 the sum of n probabilities of unit roundoff u may honestly be.
///
/// p = fl(e/ŝ), or fl(e·fl(1/ŝ)), with ŝ = Σe·(1 + θₙ₋₁) in whatever order: so Σp = 1 + θₙ₊₁. Errors
/// of exp cancel, since the same e is in the sum; 8u where it is computed twice (streaming softmax).
/// What underflows is lost: at most the smallest normal number each.
pub fn sum_bound(n: usize, u: f64) -> f64 {
    gamma(n + 1, u) + 8.0 * u + n as f64 * f64::from(f32::MIN_POSITIVE)
}

/// Attention's rows over the visible keys, and `next.probs` over what the filters keep.
pub fn sums(subject: &Subject, run: &Run<'_>, finding: &mut Finding) {
    for_each_attention(subject, run, finding, |finding, here, probs| {
        let [_, t, s] = probs.shape[..] else { return };
        for row in 0..probs.len() / s.max(1) {
            let visible = s - t + row % t + 1;
            let sum: f64 = (0..visible).map(|j| probs.get(row * s + j)).sum();
            let bound = sum_bound(visible, probs.dtype().unit_roundoff());
            finding.take(here, || vec![row / t, row % t], sum, 1.0, Allowed::Within(bound));
        }
    });
    for step in 0..run.case.steps() {
        let point = Point::new(Stage::NextProbs);
        let Some(probs) = subject.tensor(run.captured, step, point, finding) else { continue };
        let values = probs.to_f64();
        let kept = values.iter().filter(|p| **p != 0.0).count();
        let bound = sum_bound(kept, probs.dtype().unit_roundoff());
        let here = Here { case: &run.case.name, step, point: "next.probs" };
        finding.take(here, Vec::new, values.iter().sum(), 1.0, Allowed::Within(bound));
    }
}

pub fn masked(subject: &Subject, run: &Run<'_>, finding: &mut Finding) {
    for_each_attention(subject, run, finding, |finding, here, probs| {
        for i in (0..probs.len()).filter(|&i| !is_visible(Stage::Probs, &probs.shape, i)) {
            finding.take(here, || probs.unravel(i), probs.get(i), 0.0, Allowed::Within(0.0));
        }
    });
}

fn for_each_attention(
    subject: &Subject,
    run: &Run<'_>,
    finding: &mut Finding,
    mut f: impl FnMut(&mut Finding, Here<'_>, &Tensor),
) {
    for step in 0..run.case.steps() {
        for layer in 0..subject.dims.n_layer {
            let point = Point::of_layer(Stage::Probs, layer);
            let Some(probs) = subject.tensor(run.captured, step, point, finding) else { continue };
            let name = named(point);
            f(finding, Here { case: &run.case.name, step, point: &name }, probs);
        }
    }
}

/// Against the float64 replay of the same run's own logits: temperature, top-k, top-p, softmax.
pub fn next(subject: &Subject, run: &Run<'_>, finding: &mut Finding) {
    let sampling = subject.sampling(run.case);
    let point = Point::new(Stage::NextProbs);
    let declared = subject.hello.deviations.iter();
    let declared = declared.filter(|d| llorch_trace::points::glob_matches(&d.point, "next.probs"));
    let declared = declared.max_by(|x, y| x.bound.total_cmp(&y.bound));
    for step in 0..run.case.steps() {
        let last = Point::new(Stage::LogitsLast);
        let Some(probs) = subject.tensor(run.captured, step, point, finding) else { continue };
        let Some(logits) = subject.tensor(run.captured, step, last, finding) else { continue };
        if probs.len() != logits.len() {
            continue;
        }
        let u = probs.dtype().unit_roundoff().max(logits.dtype().unit_roundoff());
        let (logits, mut found) = (logits.to_f64(), probs.to_f64());
        let mut expected = replay(&logits, &sampling);
        let near = uncertain(&logits, &sampling, Slack { u, delta: 0.0 });
        excuse(&near, &mut found, &mut expected, finding);
        let tau = if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
        let largest = logits.iter().fold(0.0f64, |m, l| m.max(l.abs()));
        let relative = if tau == 1.0 { 0.0 } else { 2.0 * u * largest / tau };
        let here = Here { case: &run.case.name, step, point: "next.probs" };
        for (i, (&p, &q)) in found.iter().zip(&expected).enumerate() {
            let class = point_tolerance(point) + relative * p.abs().max(q.abs());
            let bound = declared.map_or(class, |d| d.bound.max(class));
            if let Some(d) = declared.filter(|_| (p - q).abs() > class) {
                finding.note(format!("beyond the class, within what it declares: {}", d.reason));
            }
            finding.take(here, || vec![i], p, q, Allowed::Within(bound));
        }
    }
}

/// Tokens at a cut that only one side keeps are taken out of both.
fn excuse(near: &[bool], found: &mut [f64], expected: &mut [f64], finding: &mut Finding) {
    let only_one = |i: usize| (found[i] == 0.0) != (expected[i] == 0.0);
    let excused: Vec<usize> = (0..near.len()).filter(|&i| near[i] && only_one(i)).collect();
    if excused.is_empty() {
        return;
    }
    finding.note("tokens at the cut of a filter excused");
    for values in [found, expected] {
        excused.iter().for_each(|&i| values[i] = 0.0);
        let sum: f64 = values.iter().sum();
        values.iter_mut().for_each(|v| *v /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 to 50,000 terms of a softmax in f32, summed in three orders.
    #[test]
    fn honest_sums_in_any_order_are_within_the_bound_and_a_factor_of_1_001_is_not() {
        for n in [1usize, 2, 64, 1024, 50_000] {
            let exp: Vec<f32> = (0..n).map(|i| (-((i * 37 % 101) as f32) / 9.0).exp()).collect();
            let plain: f32 = exp.iter().sum();
            let backwards: f32 = exp.iter().rev().sum();
            let lanes: f32 = (0..8).map(|l| exp.iter().skip(l).step_by(8).sum::<f32>()).sum();
            for total in [plain, backwards, lanes] {
                let inverse = 1.0 / total;
                let divided: f64 = exp.iter().map(|e| f64::from(e / total)).sum();
                let scaled: f64 = exp.iter().map(|e| f64::from(e * inverse)).sum();
                let bound = sum_bound(n, 2f64.powi(-24));
                assert!((divided - 1.0).abs() <= bound && (scaled - 1.0).abs() <= bound, "{n}");
                assert!(n > 10_000 || (1.001 * divided - 1.0).abs() > bound, "{n}");
            }
        }
    }
}
