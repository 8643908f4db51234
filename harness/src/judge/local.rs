//! Local errors: a stage's output against the float64 recomputation of that stage from the
//! implementation's own captured inputs. Both sides of the comparison see the same input, so that
//! nothing is left between them but the stage's rounding, or its bug.

use half::f16;
use llorch_trace::tensor::unravel;
use llorch_trace::{Class, Dtype, Point, Stage};

use crate::compare::{Cells, Numbers, round};
use crate::evidence::{Case, Evidence};
use crate::oracle::bounds::Pair;
use crate::oracle::{BoundKind, Inputs, Replayed};
use crate::result::{Certificate, Local, Verdict};

/// An implementation's own tensors as inputs of the replay.
#[derive(Debug)]
pub struct Captured<'a> {
    pub evidence: &'a Evidence,
    pub case: &'a Case,
}

impl Inputs for Captured<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        let tensor = self.evidence.tensor(&self.case.name, step, point)?;
        Some(Numbers::of(&tensor).computed_in(self.evidence.computes))
    }

    /// What it says that it was fed, else what it should have been.
    fn ids(&self, step: usize) -> Vec<u32> {
        if let Some(shown) = self.tensor(step, Point::new(Stage::Tokens)) {
            return shown.values.iter().map(|id| id.max(0.0) as u32).collect();
        }
        self.case.fed(step)
    }

    fn past(&self, step: usize) -> usize {
        self.case.past(step)
    }
}

/// The local error of `given`, held to its bounds and to the checkpoint's class, which in deeper layers is
/// that of block 0: local errors don't add up. `cells` are the elements that mean anything.
pub fn measure(given: &Numbers, replayed: &Replayed, class: Class, cells: &Cells) -> Option<Local> {
    if given.shape != replayed.value.shape {
        return None;
    }
    // The class is made for f32; in less, what rounding to it may do is the one limit.
    let class = if given.is_narrow() { Class::Mixed(f64::INFINITY) } else { class };
    // The distance of the smallest numbers of f16, which has so few exponents that values of every day fall
    // below its normal ones.
    let least = if given.dtype == Dtype::F16 { f16::MIN_POSITIVE_SUBNORMAL.to_f64() } else { 0.0 };
    let mut sums = Sums::default();
    for i in (0..given.values.len()).filter(|&i| cells.contain(i)) {
        let (x, mut y) = (given.values[i], replayed.value.values[i]);
        if class == Class::Exact {
            // What is to be equal is so after the one rounding that it takes.
            y = round(y, given.dtype);
        }
        // What came in not finite is the fault of a stage before.
        if y.is_finite() || x == y {
            sums.take(i, x, y, allowed(class, x, y), replayed.bounds[i].plus(least));
        }
    }
    Some(sums.local(given, replayed))
}

fn allowed(class: Class, x: f64, y: f64) -> f64 {
    match class {
        Class::Exact => 0.0,
        Class::Mixed(t) => t * 1f64.max(x.abs()).max(y.abs()),
    }
}

#[derive(Default)]
struct Sums {
    total: usize,
    max_abs: f64,
    squares: f64,
    of_class: f64,
    of_band: f64,
    of_bound: f64,
    exceeding: usize,
    /// The element with the largest ratio to its band, and that with the largest to its bound; of equal
    /// ratios that which is off most.
    worst: Option<Worst>,
    beyond: Option<Worst>,
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Worst {
    ratio: f64,
    off: f64,
    at: usize,
}

impl Sums {
    fn take(&mut self, i: usize, x: f64, y: f64, class: f64, pair: Pair) {
        let off = if x == y { 0.0 } else { (x - y).abs() };
        let off = if off.is_nan() { f64::INFINITY } else { off };
        let of = |limit: f64| if off == 0.0 { 0.0 } else { off / limit };
        let (of_class, of_band, of_bound) = (of(class), of(pair.band), of(pair.bound));
        self.total += 1;
        self.exceeding += usize::from(of_bound > 1.0 || of_class > 1.0);
        self.max_abs = self.max_abs.max(off);
        self.squares += off * off;
        self.of_class = self.of_class.max(of_class);
        self.of_band = self.of_band.max(of_band);
        self.of_bound = self.of_bound.max(of_bound);
        for (known, ratio) in [(&mut self.worst, of_band), (&mut self.beyond, of_bound)] {
            let larger = |w: &Worst| (ratio, off) > (w.ratio, w.off);
            if known.as_ref().is_none_or(larger) {
                *known = Some(Worst { ratio, off, at: i });
            }
        }
    }

    fn local(self, given: &Numbers, replayed: &Replayed) -> Local {
        let finite = |v: f64| v.is_finite().then_some(v);
        // What is beyond its bound is shown where it is beyond it most: there stands the certificate.
        let shown = if self.of_bound > 1.0 { self.beyond } else { self.worst };
        let worst = shown.map_or(0, |w| w.at);
        let at = |n: &Numbers, i: usize| n.values.get(i).copied().and_then(finite);
        let bounds = |i: usize| replayed.bounds.get(i).copied().unwrap_or_default();
        let verdict = match () {
            _ if self.of_bound > 1.0 || self.of_class > 1.0 => Verdict::Fail,
            _ if self.of_band > 1.0 => Verdict::Warn,
            _ => Verdict::Pass,
        };
        let certificate = self.beyond.filter(|_| self.of_bound > 1.0).map(|w| Certificate {
            element: unravel(&given.shape, w.at),
            error: finite(w.off),
            bound: bounds(w.at).bound,
        });
        // Sums in f32 are what is commonly done in narrow dtypes, and no proof.
        let kind = if given.is_narrow() { BoundKind::Derived } else { replayed.kind };
        Local {
            max_abs: finite(self.max_abs),
            rms: finite((self.squares / self.total.max(1) as f64).sqrt()),
            worst: unravel(&given.shape, worst),
            worst_values: [at(given, worst), at(&replayed.value, worst)],
            band: bounds(worst).band,
            bound: finite(bounds(worst).bound),
            of_band: finite(self.of_band),
            of_bound: finite(self.of_bound),
            kind,
            exceeding: self.exceeding,
            ratio: None,
            verdict,
            certificate: certificate.filter(|_| kind != BoundKind::Derived),
        }
    }
}

/// A factor as people read it: 0, 0.31, 1.02, 41, 3.2e4.
pub fn times(v: f64) -> String {
    match v {
        0.0 => "0".into(),
        v if v < 0.01 => format!("{v:.0e}"),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 10_000.0 => format!("{v:.0}"),
        v => format!("{v:.1e}"),
    }
}

/// What a local error that is more than rounding is, in words.
pub fn describe(local: &Local) -> String {
    let size = local.max_abs.map_or("not finite".to_string(), |v| format!("{v:.1e}"));
    let times = |of: Option<f64>| of.map_or("infinitely".to_string(), |v| format!("{}×", times(v)));
    match (local.verdict, local.kind) {
        (Verdict::Fail, BoundKind::Exact) => {
            format!("this stage alone is off by {size}, where numbers are only moved")
        }
        (Verdict::Fail, kind) if local.of_bound.is_none_or(|v| v > 1.0) => {
            let bound = if kind == BoundKind::Proof { "proof" } else { "derived" };
            format!(
                "this stage alone is off by {size}, {} its {bound} bound: no rounding",
                times(local.of_bound)
            )
        }
        (Verdict::Fail, _) => format!("this stage alone is off by {size}, beyond the class"),
        (Verdict::Warn, _) => format!(
            "this stage alone is off by {size}, {} what rounding is expected to do",
            times(local.of_band)
        ),
        _ => format!("this stage alone is off by {size}, which is rounding"),
    }
}
