//! What one check found, whichever check it is: how much was compared, the largest difference and
//! where, what could not be checked and why.

use llorch_trace::Point;
use serde::Serialize;

use crate::live::LiveError;
use crate::result::{UncheckedKind, Verdict};
use crate::supervise::FailureKind;

/// An invariant, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    Cache,
    Prefill,
    Sums,
    Masked,
    NextProbs,
    Causality,
    Repeat,
    Processes,
    Threads,
    NormMean,
    NormVariance,
    LastLogits,
    Argmax,
    Draws,
    Seed,
    FirstDraw,
}

impl Invariant {
    pub const ALL: [Invariant; 16] = [
        Invariant::Cache,
        Invariant::Prefill,
        Invariant::Sums,
        Invariant::Masked,
        Invariant::NextProbs,
        Invariant::Causality,
        Invariant::Repeat,
        Invariant::Processes,
        Invariant::Threads,
        Invariant::NormMean,
        Invariant::NormVariance,
        Invariant::LastLogits,
        Invariant::Argmax,
        Invariant::Draws,
        Invariant::Seed,
        Invariant::FirstDraw,
    ];

    /// Its name in JSON.
    pub fn slug(self) -> &'static str {
        match self {
            Invariant::Cache => "cache",
            Invariant::Prefill => "prefill",
            Invariant::Sums => "sums",
            Invariant::Masked => "masked",
            Invariant::NextProbs => "next_probs",
            Invariant::Causality => "causality",
            Invariant::Repeat => "repeat",
            Invariant::Processes => "processes",
            Invariant::Threads => "threads",
            Invariant::NormMean => "norm_mean",
            Invariant::NormVariance => "norm_variance",
            Invariant::LastLogits => "last_logits",
            Invariant::Argmax => "argmax",
            Invariant::Draws => "draws",
            Invariant::Seed => "seed",
            Invariant::FirstDraw => "first_draw",
        }
    }

    pub fn sentence(self) -> &'static str {
        match self {
            Invariant::Cache => "the cache is k and v of all steps so far",
            Invariant::Prefill => "prefill = token by token",
            Invariant::Sums => "attention's and next.probs sum to 1",
            Invariant::Masked => "masked cells are exactly 0",
            Invariant::NextProbs => "next.probs follow their own logits",
            Invariant::Causality => "later tokens change nothing before them",
            Invariant::Repeat => "run to run in one process",
            Invariant::Processes => "run to run in two processes",
            Invariant::Threads => "1 thread = N threads",
            Invariant::NormMean => "layer norms: mean 0",
            Invariant::NormVariance => "layer norms: variance σ²/(σ²+ε)",
            Invariant::LastLogits => "logits.last = last row of logits",
            Invariant::Argmax => "argmax = lowest index of the largest logit",
            Invariant::Draws => "draws follow the probabilities",
            Invariant::Seed => "same seed, same draws",
            Invariant::FirstDraw => "a run draws as draw does",
        }
    }
}

/// How far apart two values may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allowed {
    /// The same bits.
    Bits,
    /// |found − expected| at most this.
    Within(f64),
}

/// One place in what was captured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct At {
    pub case: String,
    pub step: usize,
    pub point: String,
    /// Along each axis of the point's tensor; empty where the whole tensor is meant.
    pub index: Vec<usize>,
    /// Null where it isn't finite.
    pub found: Option<f64>,
    pub expected: Option<f64>,
    /// How far apart they may be; 0 where the bits must be the same, null where they are judged
    /// together with others.
    pub allowed: Option<f64>,
}

/// Where values are compared: a tensor at a step of a case.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    pub case: &'a str,
    pub step: usize,
    pub point: &'a str,
}

/// What is known of one invariant so far.
#[derive(Debug, Clone, Default)]
pub struct Finding {
    /// Pairs of values compared.
    pub comparisons: u64,
    /// Those that are further apart than is allowed.
    pub exceeding: u64,
    /// The largest |found − expected|; infinite where one isn't finite.
    pub largest: f64,
    /// The value that is furthest from what is allowed.
    pub worst: Option<At>,
    /// The first that exceeds, in the order of steps and of the data flow.
    pub first: Option<At>,
    /// By which rule it was judged, and why by that.
    pub rule: String,
    /// Remarks, and what a failure means beyond its figures.
    pub notes: Vec<String>,
    pub unchecked: Vec<(UncheckedKind, String)>,
    pub errors: Vec<String>,
    /// |found − expected| over what is allowed, and the difference, of `worst`.
    worst_size: (f64, f64),
}

impl Finding {
    /// Compares two values; `index` is asked only where they are worth remembering.
    pub fn take(
        &mut self,
        here: Here<'_>,
        index: impl Fn() -> Vec<usize>,
        found: f64,
        expected: f64,
        allowed: Allowed,
    ) {
        self.comparisons += 1;
        let finite = found.is_finite() && expected.is_finite();
        let difference = if finite { (found - expected).abs() } else { f64::INFINITY };
        let (exceeds, bound) = match allowed {
            Allowed::Bits => (!finite || found.to_bits() != expected.to_bits(), 0.0),
            // A bound that isn't a number allows nothing.
            Allowed::Within(bound) => (difference > bound || bound.is_nan(), bound),
        };
        self.largest = self.largest.max(difference);
        let ratio = match () {
            _ if difference == 0.0 => f64::from(u8::from(exceeds)),
            _ if bound == 0.0 => difference * f64::MAX.sqrt(),
            _ => difference / bound,
        };
        self.exceeding += u64::from(exceeds);
        let is_first = exceeds && self.first.is_none();
        let is_worst = self.worst.is_none() || (ratio, difference) > self.worst_size;
        if !is_first && !is_worst {
            return;
        }
        let value = |v: f64| v.is_finite().then_some(v);
        let at = At {
            case: here.case.to_string(),
            step: here.step,
            point: here.point.to_string(),
            index: index(),
            found: value(found),
            expected: value(expected),
            allowed: bound.is_finite().then_some(bound),
        };
        if is_first {
            self.first = Some(at.clone());
        }
        if is_worst {
            (self.worst, self.worst_size) = (Some(at), (ratio, difference));
        }
    }

    /// One thing that holds or doesn't, and is no difference of two values.
    pub fn hold(&mut self, here: Here<'_>, holds: bool) {
        self.comparisons += 1;
        if holds {
            return;
        }
        self.exceeding += 1;
        let at = At {
            case: here.case.to_string(),
            step: here.step,
            point: here.point.to_string(),
            index: Vec::new(),
            found: None,
            expected: None,
            allowed: None,
        };
        self.first.get_or_insert(at);
    }

    /// By nature (`Unsupported`) or for lack of something (`Missing`) not checked; said once.
    pub fn uncheck(&mut self, kind: UncheckedKind, reason: impl Into<String>) {
        let entry = (kind, reason.into());
        if !self.unchecked.contains(&entry) {
            self.unchecked.push(entry);
        }
    }

    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub fn error(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.errors.contains(&what) {
            self.errors.push(what);
        }
    }

    /// A request that could not be answered.
    pub fn trouble(&mut self, error: &LiveError) {
        match error {
            LiveError::Adapter(failure) if failure.kind == FailureKind::Unsupported => {
                self.uncheck(UncheckedKind::Unsupported, failure.message.clone());
            }
            _ => self.error(error.to_string()),
        }
    }

    pub fn verdict(&self) -> Verdict {
        match () {
            _ if !self.errors.is_empty() => Verdict::Error,
            _ if self.exceeding > 0 => Verdict::Fail,
            _ if self.comparisons == 0 => Verdict::Unchecked,
            _ => Verdict::Pass,
        }
    }
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Findings([Finding; Invariant::ALL.len()]);

impl Default for Findings {
    fn default() -> Findings {
        Findings(std::array::from_fn(|_| Finding::default()))
    }
}

impl Findings {
    pub fn of(&mut self, invariant: Invariant) -> &mut Finding {
        // ALL is in the order of the enum; a test holds it to that.
        &mut self.0[invariant as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Invariant, &Finding)> {
        Invariant::ALL.into_iter().zip(&self.0)
    }
}

/// A point's name for [`Here`], made once for a tensor.
pub fn named(point: Point) -> String {
    point.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Here<'static> = Here { case: "a", step: 1, point: "h.0" };

    fn taken(pairs: &[(f64, f64)], allowed: Allowed) -> Finding {
        let mut finding = Finding::default();
        for (i, (a, b)) in pairs.iter().enumerate() {
            finding.take(HERE, || vec![i], *a, *b, allowed);
        }
        finding
    }

    #[test]
    fn the_list_is_in_the_order_of_the_enum() {
        for (i, invariant) in Invariant::ALL.into_iter().enumerate() {
            assert_eq!(invariant as usize, i, "{}", invariant.slug());
        }
    }

    #[test]
    fn bits_tell_zeros_apart_and_what_is_not_finite_never_agrees() {
        assert_eq!(taken(&[(1.0, 1.0)], Allowed::Bits).verdict(), Verdict::Pass);
        assert_eq!(taken(&[(0.0, -0.0)], Allowed::Bits).exceeding, 1);
        assert_eq!(taken(&[(0.0, -0.0)], Allowed::Within(0.0)).exceeding, 0);
        for (a, b) in [(f64::NAN, f64::NAN), (f64::INFINITY, f64::INFINITY), (1.0, f64::NAN)] {
            for allowed in [Allowed::Bits, Allowed::Within(1e9), Allowed::Within(f64::INFINITY)] {
                let wrong = taken(&[(a, b)], allowed).exceeding == 1;
                // An infinite bound says that nothing is known: then nothing is claimed.
                assert_eq!(wrong, allowed != Allowed::Within(f64::INFINITY), "{a} {b} {allowed:?}");
            }
        }
        assert_eq!(taken(&[(1.0, 1.0)], Allowed::Within(f64::NAN)).exceeding, 1);
    }

    #[test]
    fn the_first_that_exceeds_and_the_worst_are_remembered() {
        let finding =
            taken(&[(0.0, 0.5), (0.0, 2.0), (0.0, 5.0), (0.0, 3.0)], Allowed::Within(1.0));
        assert_eq!((finding.comparisons, finding.exceeding, finding.largest), (4, 3, 5.0));
        assert_eq!(finding.first.unwrap().index, [1]);
        assert_eq!(finding.worst.unwrap().index, [2]);
        assert_eq!(taken(&[], Allowed::Bits).verdict(), Verdict::Unchecked);
    }
}
