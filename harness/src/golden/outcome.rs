//! What checking a golden gave: rows that are shown and saved.

use serde::Serialize;

use super::waiting::Waiting;
use crate::result::{RunVerdict, Verdict};

pub const SCHEMA: &str = "llorch.golden/1";

#[derive(Debug, Serialize)]
pub struct GoldenResult {
    pub schema: &'static str,
    pub verdict: RunVerdict,
    pub subject: String,
    /// Whether published answers were asked of weights that are known to be the published ones.
    pub real_weights: bool,
    /// Goldens that travel with the program: nano's checkpoints, the tokenizer's strings.
    pub goldens: Vec<GoldenRow>,
    pub published: Vec<Answer>,
    /// Goldens that were recorded and wait for a review; none where there is no folder to look into.
    pub pending: Option<Waiting>,
}

/// A checkpoint against one golden, or a tokenizer against its strings.
#[derive(Debug, Clone, Serialize)]
pub struct GoldenRow {
    /// `nano hf-f32`, `tokenizer`.
    pub golden: String,
    pub what: String,
    pub compared: usize,
    /// Where it differs most: case, step, point.
    pub worst: String,
    pub max_abs: Option<f64>,
    pub tolerance: f64,
    pub verdict: Verdict,
    pub reason: String,
    /// UNCHECKED for want of something that could be had; not by the subject's nature.
    #[serde(skip)]
    pub missing: bool,
}

/// One known answer and what the weights at hand say.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The published model.
    pub of: String,
    pub id: String,
    pub kind: String,
    pub source: String,
    pub trust: String,
    pub verdict: Verdict,
    /// Why it is UNCHECKED or ERROR.
    pub reason: String,
    pub checks: Vec<Check>,
    /// As in [`GoldenRow`].
    #[serde(skip)]
    pub missing: bool,
}

/// One number or text of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub what: String,
    pub expected: String,
    pub found: String,
    /// |found − expected|, where they are numbers.
    pub difference: Option<f64>,
    /// Absolute; 0 is equality.
    pub tolerance: f64,
    pub passes: bool,
}

impl Check {
    pub fn number(what: impl Into<String>, expected: f64, found: f64, tolerance: f64) -> Check {
        let difference = (found - expected).abs();
        Check {
            what: what.into(),
            expected: format!("{expected}"),
            found: format!("{found:.7}"),
            difference: difference.is_finite().then_some(difference),
            tolerance,
            // A NaN passes nothing.
            passes: difference <= tolerance,
        }
    }

    pub fn equal<T: PartialEq + std::fmt::Debug>(
        what: impl Into<String>,
        expected: &T,
        found: &T,
    ) -> Check {
        Check {
            what: what.into(),
            expected: format!("{expected:?}"),
            found: format!("{found:?}"),
            difference: None,
            tolerance: 0.0,
            passes: expected == found,
        }
    }

    /// As many numbers as are expected, one after the other.
    pub fn numbers(what: &str, expected: &[f64], found: &[f64], tolerance: f64) -> Vec<Check> {
        if found.len() < expected.len() {
            return vec![Check::equal(format!("length of {what}"), &expected.len(), &found.len())];
        }
        let one = |(i, (e, f)): (usize, (&f64, &f64))| {
            Check::number(format!("{what}[{i}]"), *e, *f, tolerance)
        };
        expected.iter().zip(found).enumerate().map(one).collect()
    }

    /// How much of the tolerance is used; what does not pass comes first.
    pub fn severity(&self) -> f64 {
        match (self.passes, self.difference) {
            (false, None) => f64::INFINITY,
            (_, Some(d)) if self.tolerance > 0.0 => d / self.tolerance,
            (true, _) => 0.0,
            (false, Some(d)) => d,
        }
    }
}

impl Answer {
    /// The check that says most: the worst one.
    pub fn worst(&self) -> Option<&Check> {
        self.checks.iter().max_by(|a, b| {
            (!a.passes, a.severity())
                .partial_cmp(&(!b.passes, b.severity()))
                .unwrap_or(std::cmp::Ordering::Equal)
        })
    }
}

/// One verdict of all. Answers nobody could check lower it only where their weights were asked for.
pub fn conclude(goldens: &[GoldenRow], published: &[Answer], asked_for: bool) -> RunVerdict {
    let verdicts = || goldens.iter().map(|g| g.verdict).chain(published.iter().map(|a| a.verdict));
    let missing =
        goldens.iter().any(|g| g.missing) || (asked_for && published.iter().any(|a| a.missing));
    match () {
        _ if verdicts().any(|v| v == Verdict::Error) => RunVerdict::Error,
        _ if verdicts().any(|v| v == Verdict::Fail) => RunVerdict::Fail,
        _ if missing || verdicts().all(|v| v == Verdict::Unchecked) => RunVerdict::Incomplete,
        _ if verdicts().any(|v| v == Verdict::Warn) => RunVerdict::Warn,
        _ => RunVerdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_passes_nothing_and_short_tensors_are_said_to_be_short() {
        assert!(!Check::number("x", 1.0, f64::NAN, 1e9).passes);
        assert!(Check::number("x", 1.0, 1.05, 0.1).passes);
        let short = Check::numbers("row", &[1.0, 2.0], &[1.0], 0.1);
        assert_eq!((short.len(), short[0].passes, short[0].found.as_str()), (1, false, "1"));
    }

    #[test]
    fn the_worst_check_is_one_that_fails() {
        let answer = |checks| Answer {
            of: "gpt2".into(),
            id: "x".into(),
            kind: "logits".into(),
            source: "s".into(),
            trust: "test".into(),
            verdict: Verdict::Fail,
            reason: String::new(),
            checks,
            missing: false,
        };
        let near = Check::number("near", 1.0, 1.0999, 0.1);
        let far = Check::number("far", 1.0, 3.0, 0.1);
        let text = Check::equal("text", &"a", &"b");
        assert_eq!(answer(vec![near.clone(), far.clone()]).worst().unwrap().what, "far");
        assert_eq!(answer(vec![near, far, text]).worst().unwrap().what, "text");
    }
}
