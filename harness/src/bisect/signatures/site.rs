//! One stage at one place: what it read, what it gave, what it should have given.

use crate::compare::is_visible;
use llorch_trace::{Class, Point, Stage};
use ndarray::{Array2, Array3, ArrayD, Ix2, Ix3};

use crate::compare::{Numbers, round};
use crate::oracle::replay::array;
use crate::oracle::{Inputs, Job, Oracle, Replayed};

/// Of the error at an element that is beyond the honest bound, what a hypothesis may leave: one that
/// explains nothing but fits because its own bound is wide is no explanation.
const LEFT: f64 = 0.6;

#[allow(missing_debug_implementations, reason = "holds a trait object")]
pub struct Site<'a> {
    pub oracle: &'a Oracle,
    pub inputs: &'a dyn Inputs,
    pub step: usize,
    pub point: Point,
    pub given: Numbers,
    /// The stage recomputed as it should be.
    pub honest: Replayed,
    /// The unit roundoff of what is judged.
    pub u: f64,
    /// Tokens of this step, and visible keys.
    pub sizes: (usize, usize),
    /// By element: it counts, and it is beyond its bound or its class.
    pub counts: Vec<bool>,
    pub over: Vec<bool>,
    /// The error over the bound, or over what the class allows, whichever is larger.
    pub excess: Vec<f64>,
}

impl<'a> Site<'a> {
    /// None where the shapes don't fit, or nothing is beyond what rounding may do.
    pub fn new(
        oracle: &'a Oracle,
        inputs: &'a dyn Inputs,
        (step, point): (usize, Point),
        sizes: (usize, usize),
        given: Numbers,
        honest: Replayed,
    ) -> Option<Site<'a>> {
        if given.shape != honest.value.shape {
            return None;
        }
        let counts = |i: usize| is_visible(point.stage, &given.shape, i);
        let counts: Vec<bool> = (0..given.values.len()).map(counts).collect();
        let excess = excess(point, &given, &honest);
        let over: Vec<bool> = excess.iter().zip(&counts).map(|(e, c)| *e > 1.0 && *c).collect();
        let u = given.dtype.unit_roundoff();
        let site =
            Site { oracle, inputs, step, point, given, honest, u, sizes, counts, over, excess };
        site.over.contains(&true).then_some(site)
    }

    pub fn layer(&self) -> usize {
        self.point.layer.unwrap_or(0)
    }

    pub fn own(&self, stage: Stage) -> Point {
        Point::of_layer(stage, self.layer())
    }

    pub fn job(&self) -> Job<'a> {
        Job { step: self.step, inputs: self.inputs, u: self.u }
    }

    pub fn array(&self, point: Point) -> Option<ArrayD<f64>> {
        array(self.inputs.tensor(self.step, point)?)
    }

    /// A [T, ·] tensor of this step.
    pub fn rows(&self, point: Point) -> Option<Array2<f64>> {
        self.array(point)?.into_dimensionality::<Ix2>().ok()
    }

    /// An [H, ·, ·] tensor of this step.
    pub fn heads(&self, point: Point) -> Option<Array3<f64>> {
        self.array(point)?.into_dimensionality::<Ix3>().ok()
    }

    /// The head and the token of an element, where its tensor has them. A merged context has heads
    /// side by side; a cache has rows instead of tokens.
    pub fn place(&self, i: usize) -> (Option<usize>, Option<usize>) {
        place(&self.given.shape, self.point, self.oracle.dims.head_dim(), i)
    }

    /// The error of the honest recomputation at an element.
    pub fn error(&self, i: usize) -> f64 {
        self.given.values[i] - self.honest.value.values[i]
    }

    pub fn target(&self) -> Target<'_> {
        Target {
            given: &self.given.values,
            honest: &self.honest.value.values,
            counts: &self.counts,
            over: &self.over,
        }
    }

    /// The elements that are beyond.
    pub fn beyond(&self) -> impl Iterator<Item = usize> + '_ {
        self.over.iter().enumerate().filter_map(|(i, over)| over.then_some(i))
    }
}

/// How far beyond its bound or its class each element is: above 1 is beyond. As the judge has it.
fn excess(point: Point, given: &Numbers, honest: &Replayed) -> Vec<f64> {
    let class = point.checkpoint().class;
    let one = |i: usize| {
        let (x, mut y) = (given.values[i], honest.value.values[i]);
        if class == Class::Exact {
            y = round(y, given.dtype);
        }
        // What came in not finite is the fault of a stage before.
        if x == y || !y.is_finite() {
            return 0.0;
        }
        let allowed = match class {
            Class::Exact => 0.0,
            Class::Mixed(t) => t * 1f64.max(x.abs()).max(y.abs()),
        };
        let off = (x - y).abs();
        if off.is_nan() { f64::INFINITY } else { (off / honest.bounds[i].bound).max(off / allowed) }
    };
    (0..given.values.len()).map(one).collect()
}

/// See [`Site::place`].
pub fn place(
    shape: &[usize],
    point: Point,
    head_dim: usize,
    i: usize,
) -> (Option<usize>, Option<usize>) {
    match *shape {
        [_, t, d] if t * d > 0 => (Some(i / (t * d)), Some(i / d % t)),
        [_, n] if n > 0 => {
            let head = (point.stage == Stage::Context).then(|| i % n / head_dim.max(1));
            (head, Some(i / n))
        }
        _ => (None, None),
    }
}

/// What a hypothesis is held against, element by element in one order.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub given: &'a [f64],
    pub honest: &'a [f64],
    pub counts: &'a [bool],
    pub over: &'a [bool],
}

impl Target<'_> {
    /// Every element that counts is within the bound of the hypothesis, and those that are beyond the
    /// honest bound are explained by it.
    pub fn fits(&self, value: impl Fn(usize) -> f64, bound: impl Fn(usize) -> f64) -> bool {
        (0..self.given.len()).all(|i| !self.counts[i] || self.element_fits(i, value(i), bound(i)))
    }

    pub fn element_fits(&self, i: usize, value: f64, bound: f64) -> bool {
        let given = self.given[i];
        if given == value {
            return true;
        }
        let off = (given - value).abs();
        let left = off <= LEFT * (given - self.honest[i]).abs() || !self.honest[i].is_finite();
        off <= bound && (left || !self.over[i])
    }
}

/// What explains a site.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// One of the documented words; none where there is no word for it but a sentence.
    pub slug: Option<&'static str>,
    /// Goes on after "matches": `after transpose`, `with eps 1e-3`.
    pub text: String,
}

/// Collects what fits; the first is the likeliest.
#[derive(Debug, Default)]
pub struct Found {
    pub all: Vec<Explanation>,
    /// Only this one is asked for: that of another layer.
    only: Option<Explanation>,
}

impl Found {
    pub fn only(wanted: Option<&Explanation>) -> Found {
        Found { all: Vec::new(), only: wanted.cloned() }
    }

    /// Tests a hypothesis, unless another one is asked for.
    pub fn test(
        &mut self,
        slug: impl Into<Option<&'static str>>,
        text: impl Into<String>,
        fits: impl FnOnce() -> Option<bool>,
    ) {
        let found = Explanation { slug: slug.into(), text: text.into() };
        let asked = self.asks(found.slug)
            && self.only.as_ref().is_none_or(|o| o.slug.is_some() || o.text == found.text);
        if asked && fits() == Some(true) {
            self.all.push(found);
        }
    }

    pub fn add(&mut self, slug: impl Into<Option<&'static str>>, text: impl Into<String>) {
        self.test(slug, text, || Some(true));
    }

    /// Whether a family with this word is worth its work.
    pub fn asks(&self, slug: Option<&'static str>) -> bool {
        self.only.as_ref().is_none_or(|o| o.slug == slug)
    }
}
