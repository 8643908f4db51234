//! Where in a tensor two implementations part first: head, token, element.

use llorch_trace::Tensor;

use crate::evidence::Evidence;
use crate::result::Row;
use crate::saved::Collected;

/// The first element that exceeds, in the order head, token, channel; which is the order in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// The index along each axis.
    pub index: Vec<usize>,
    pub values: [f64; 2],
    /// Shape of the tensor, which tells what the axes are.
    pub shape: Vec<usize>,
}

impl Element {
    /// [H, T, ·] tensors have a head.
    pub fn head(&self) -> Option<usize> {
        (self.index.len() == 3).then(|| self.index[0])
    }

    /// [H, T, ·] and [T, ·] tensors have a token of this step.
    pub fn token(&self) -> Option<usize> {
        self.index.len().checked_sub(2).map(|axis| self.index[axis])
    }

    pub fn element(&self) -> Option<usize> {
        self.index.last().copied()
    }
}

/// Reads both tensors of the row again; without them, the worst element that the row knows.
pub fn locate(row: &Row, collected: &Collected) -> Option<Element> {
    let worst = || {
        let metrics = row.metrics.as_ref()?;
        let values = metrics.worst_values.map(|v| v.unwrap_or(f64::NAN));
        Some(Element { index: metrics.worst.clone(), values, shape: Vec::new() })
    };
    first_exceeding(row, collected).or_else(worst)
}

fn first_exceeding(row: &Row, collected: &Collected) -> Option<Element> {
    let a = tensor(&row.a, row, collected)?;
    let b = tensor(&row.b, row, collected)?;
    if a.shape != b.shape || row.a == row.b {
        return None;
    }
    let case = collected.plan.cases.iter().find(|c| c.name == row.case)?;
    let (t, s) = case.sizes(row.step);
    let causal = row.point.stage.is_causal();
    let counts = |i: usize| !causal || i % s <= s - t + (i / s) % t;
    let at = (0..a.len()).find(|&i| counts(i) && exceeds(a.get(i), b.get(i), row.tolerance))?;
    Some(Element { index: a.unravel(at), values: [a.get(at), b.get(at)], shape: a.shape.clone() })
}

/// In the form of the classes; two that are equally infinite agree.
fn exceeds(a: f64, b: f64, tolerance: f64) -> bool {
    if a == b {
        return false;
    }
    let within = (a - b).abs() <= tolerance * 1f64.max(a.abs()).max(b.abs());
    !(a.is_finite() && b.is_finite() && within)
}

fn tensor(name: &str, row: &Row, collected: &Collected) -> Option<Tensor> {
    if name == "oracle" {
        let logits = collected.truth.continuations.get(&row.case)?.logits.get(row.step)?.clone();
        return Some(Tensor::f64(vec![logits.len()], logits));
    }
    let who: &Evidence = collected.evidence.iter().find(|e| e.name == name)?;
    who.tensor(&row.case, row.step, row.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_named_by_rank() {
        let of = |index: Vec<usize>| Element { index, values: [0.0; 2], shape: vec![] };
        let scores = of(vec![7, 1, 12]);
        assert_eq!((scores.head(), scores.token(), scores.element()), (Some(7), Some(1), Some(12)));
        let row = of(vec![1, 12]);
        assert_eq!((row.head(), row.token(), row.element()), (None, Some(1), Some(12)));
        assert_eq!((of(vec![5]).token(), of(vec![]).element()), (None, None));
    }

    #[test]
    fn what_is_not_finite_exceeds_unless_both_are_alike() {
        assert!(exceeds(f64::NAN, 1.0, 1.0) && exceeds(f64::INFINITY, 1.0, 1.0));
        assert!(!exceeds(f64::INFINITY, f64::INFINITY, 0.0) && !exceeds(1000.0, 1000.05, 1e-4));
        assert!(exceeds(1.0, 1.1, 1e-4));
    }
}
