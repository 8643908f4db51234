//! What every engine is asked before it is timed, and what the oracle says to the answer.
//!
//! The logits of a prompt's last token and of a few tokens decoded after it, told which, are held to the oracle's
//! in float64. The question is whether an engine computes this model at all, with all of its prompt and its whole
//! cache; stage by stage is `run`'s business.

use llorch_trace::{Class, Dtype, Point, Precision, Stage, Tensor};
use serde::{Deserialize, Serialize};

use super::measure::Job;
use crate::live::{Ask, Live};
use crate::oracle::{Oracle, OracleError, argmax, softmax};
use llorch_trace::protocol::Deviation;

/// Decoded tokens that are looked at after each prompt.
pub const STEPS: usize = 4;

/// How much more than independent rounding an engine may show, in layers that amplify what enters them.
const AMPLIFIED: f64 = 4.0;

/// What the oracle says of one prompt.
#[derive(Debug)]
pub struct Expected {
    pub ids: Vec<u32>,
    forced: Vec<u32>,
    /// By step: `[V]`.
    logits: Vec<Vec<f64>>,
}

/// How an engine's logits compare with the oracle's, over all prompts and steps that were looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub correct: bool,
    /// The largest |logit − oracle| / max(1, |oracle|).
    pub error: f64,
    /// The root of the mean square of what the logits are off, as a part of that of the logits themselves; both
    /// without their mean, which no probability depends on.
    pub noise: f64,
    /// What `error` (f32, f64) or `noise` (narrower) is held to.
    pub bound: f64,
    /// The mean of Σ p·ln(p/q) of the next token's probabilities, p the oracle's, in nats.
    pub kl: f64,
    /// e to the mean of −ln of the probability of the token that comes next, the oracle's likeliest.
    pub perplexity: f64,
    /// The oracle's own.
    pub oracle_perplexity: f64,
    /// At how many of `steps` the likeliest token is the oracle's.
    pub same_top: usize,
    pub steps: usize,
}

impl Expected {
    pub fn of(oracle: &Oracle, ids: Vec<u32>) -> Result<Expected, OracleError> {
        let found = oracle.continue_greedily(&ids, STEPS)?;
        Ok(Expected { ids, forced: found.ids, logits: found.logits })
    }

    /// What an engine answers to the same, `[V]` a step.
    pub fn ask(&self, live: &mut Live) -> Result<Vec<Vec<f64>>, String> {
        let point = Point::new(Stage::LogitsLast);
        let ask = Ask {
            ids: self.ids.clone(),
            points: vec![point.to_string()],
            max_new_tokens: STEPS,
            forced_ids: Some(self.forced.clone()),
            without_text: true,
            ..Ask::default()
        };
        let captured = live.run(ask).map_err(|error| error.to_string())?;
        (0..STEPS).map(|step| captured.get(step, point).map(Tensor::to_f64)).collect()
    }
}

/// Whether it is the noise that is held to a bound, and not the largest error.
pub fn is_narrow(precision: Precision) -> bool {
    !matches!(precision, Precision::Float(Dtype::F32 | Dtype::F64 | Dtype::I64))
}

impl Check {
    /// What is held to the bound.
    pub fn judged(&self, precision: Precision) -> f64 {
        if is_narrow(precision) { self.noise } else { self.error }
    }
}

/// Judges the answers to all prompts.
pub fn judge(
    job: Job,
    layers: usize,
    deviations: &[Deviation],
    expected: &[Expected],
    found: &[Vec<Vec<f64>>],
) -> Check {
    let pairs = || {
        let rows = expected.iter().zip(found);
        rows.flat_map(|(expected, found)| expected.logits.iter().zip(found))
    };
    let next = || expected.iter().flat_map(|e| &e.forced);
    let error = pairs().map(|(p, q)| mixed_error(p, q)).fold(0.0, f64::max);
    let noise = pairs().map(|(p, q)| relative_noise(p, q)).fold(0.0, f64::max);
    let steps = pairs().count();
    let bound = bound(job.precision, layers, deviations);
    let kl = pairs().map(|(p, q)| divergence(p, q)).sum::<f64>() / steps as f64;
    let mut check = Check {
        correct: false,
        error,
        noise,
        bound,
        kl,
        perplexity: perplexity(next(), found.iter().flatten()),
        oracle_perplexity: perplexity(next(), expected.iter().flat_map(|e| &e.logits)),
        same_top: pairs().filter(|(p, q)| argmax(p) == argmax(q)).count(),
        steps,
    };
    check.correct = check.judged(job.precision) <= bound;
    check
}

/// What the largest error, or the noise, is held to.
///
/// f32 and f64: the class of checkpoint 9, or what the engine declares. Narrower: each of a layer's four products rounds
/// its weights and its inputs, and the head's does. Taken as independent, 8·L + 2 roundings of relative size r add
/// up to √(8·L + 2)·r of noise.
fn bound(precision: Precision, layers: usize, deviations: &[Deviation]) -> f64 {
    let rounding = match precision {
        Precision::Float(Dtype::F32 | Dtype::F64 | Dtype::I64) => {
            let point = Point::new(Stage::LogitsLast);
            let class = match point.checkpoint().class {
                Class::Mixed(class) => class,
                Class::Exact => 0.0,
            };
            let declared = deviations.iter().filter(|d| d.point == point.to_string());
            return declared.map(|d| d.bound).fold(class, f64::max);
        }
        // Uniform within half a step either way: u/√3.
        Precision::Float(narrow) => narrow.unit_roundoff() / 3f64.sqrt(),
        // 127 steps for the largest of a group, which is six times its members' usual size.
        Precision::Int8 => 6.0 / 127.0 / 12f64.sqrt(),
    };
    AMPLIFIED * rounding * (8.0 * layers as f64 + 2.0).sqrt()
}

fn perplexity<'a>(
    tokens: impl Iterator<Item = &'a u32>,
    logits: impl Iterator<Item = &'a Vec<f64>>,
) -> f64 {
    let surprise: Vec<f64> =
        tokens.zip(logits).map(|(&token, logits)| -softmax(logits)[token as usize].ln()).collect();
    (surprise.iter().sum::<f64>() / surprise.len() as f64).exp()
}

/// The largest |found − expected| / max(1, |expected|); infinite where there is something else than numbers.
fn mixed_error(expected: &[f64], found: &[f64]) -> f64 {
    if expected.len() != found.len() || found.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let pairs = expected.iter().zip(found);
    pairs.map(|(p, q)| (q - p).abs() / p.abs().max(1.0)).fold(0.0, f64::max)
}

fn relative_noise(expected: &[f64], found: &[f64]) -> f64 {
    if expected.len() != found.len() || found.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY; // a NaN would get lost among maxima
    }
    let off: Vec<f64> = expected.iter().zip(found).map(|(p, q)| q - p).collect();
    spread(&off) / spread(expected)
}

/// The root of the mean square around the mean.
fn spread(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Σ p·ln(p/q) in nats, of the softmaxes.
fn divergence(expected: &[f64], found: &[f64]) -> f64 {
    let (p, q) = (softmax(expected), softmax(found));
    let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln());
    terms.sum::<f64>().max(0.0) // rounding may leave −1e-17
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: usize = 12;

    fn check(precision: Precision, change: impl Fn(usize, f64) -> f64) -> Check {
        let logits: Vec<f64> = (0..1000).map(|i| 3.0 * (i as f64).sin()).collect();
        let found = logits.iter().enumerate().map(|(i, x)| change(i, *x)).collect();
        let expected = [Expected { ids: vec![1], forced: vec![2], logits: vec![logits] }];
        judge(Job { precision, threads: 1 }, LAYERS, &[], &expected, &[vec![found]])
    }

    #[test]
    fn equal_logits_are_right_in_any_precision() {
        for precision in [Dtype::F32.into(), Dtype::BF16.into(), Precision::Int8] {
            let check = check(precision, |_, x| x);
            assert!(check.correct && check.kl == 0.0 && check.error == 0.0, "{check:?}");
            assert_eq!((check.same_top, check.steps), (1, 1));
        }
    }

    #[test]
    fn what_bf16_may_lose_is_too_much_for_f32() {
        let lossy = |i: usize, x: f64| x * (1.0 + 0.004 * ((i * 7) as f64).cos());
        assert!(!check(Dtype::F32.into(), lossy).correct);
        assert!(check(Dtype::BF16.into(), lossy).correct);
        let worse = |i: usize, x: f64| x * (1.0 + 0.2 * ((i * 7) as f64).cos());
        assert!(!check(Dtype::BF16.into(), worse).correct);
        assert!(check(Precision::Int8, worse).correct);
    }

    #[test]
    fn other_logits_are_wrong_in_any_precision() {
        for precision in [Dtype::F32.into(), Dtype::BF16.into(), Precision::Int8] {
            assert!(!check(precision, |i, _| (i as f64).cos()).correct);
            assert!(!check(precision, |_, _| f64::NAN).correct);
        }
    }

    #[test]
    fn a_constant_on_all_logits_is_no_noise_and_no_divergence() {
        let check = check(Dtype::BF16.into(), |_, x| x + 1.0);
        assert!(check.noise < 1e-12 && check.kl < 1e-12 && check.error > 0.2, "{check:?}");
    }
}
