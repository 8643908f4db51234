//! Which elements of a tensor belong to one token.

use llorch_trace::{Point, Stage, Tensor};

use super::finding::{Finding, Here, named};
use super::rule::Rule;
use crate::compare::is_visible;

/// A token's place in a tensor: `row` along the axis of tokens (of positions, for the cache), and
/// how many keys it sees.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub row: usize,
    pub visible: usize,
}

/// Flat indices of what belongs to that token, in a fixed order; of attention cells the visible ones
/// only. Empty for tensors that have no row for each token.
pub fn cells(stage: Stage, shape: &[usize], at: Row) -> Vec<usize> {
    let Row { row, visible } = at;
    match (stage, shape) {
        (Stage::LogitsLast | Stage::NextProbs | Stage::Argmax | Stage::Generated, _) => Vec::new(),
        (Stage::Scores | Stage::Probs, &[heads, rows, keys]) => (0..heads)
            .flat_map(|h| (0..visible.min(keys)).map(move |key| (h * rows + row) * keys + key))
            .collect(),
        (_, &[heads, rows, depth]) => {
            (0..heads).flat_map(|h| (0..depth).map(move |d| (h * rows + row) * depth + d)).collect()
        }
        (_, &[_, width]) => (row * width..(row + 1) * width).collect(),
        (_, &[_]) => vec![row],
        _ => Vec::new(),
    }
}

/// Compares what belongs to a token in two runs. `here` is where `a` comes from.
pub fn compare(
    finding: &mut Finding,
    rule: &Rule,
    (case, step, point): (&str, usize, Point),
    (a, a_at): (&Tensor, Row),
    (b, b_at): (&Tensor, Row),
) {
    if !rule.compares(point) {
        return;
    }
    let name = named(point);
    let here = Here { case, step, point: &name };
    let (x, y) = (cells(point.stage, &a.shape, a_at), cells(point.stage, &b.shape, b_at));
    for (&i, &j) in x.iter().zip(&y) {
        let (p, q) = (a.get(i), b.get(j));
        finding.take(here, || a.unravel(i), p, q, rule.allowed(point, p, q));
    }
}

/// Compares two whole tensors of one point and step; of attention cells the visible ones.
pub fn compare_whole(
    finding: &mut Finding,
    rule: &Rule,
    (case, step, point): (&str, usize, Point),
    a: &Tensor,
    b: &Tensor,
) {
    if !rule.compares(point) {
        return;
    }
    let name = named(point);
    let here = Here { case, step, point: &name };
    for i in 0..a.len().min(b.len()) {
        if is_visible(point.stage, &a.shape, i) {
            let (p, q) = (a.get(i), b.get(i));
            finding.take(here, || a.unravel(i), p, q, rule.allowed(point, p, q));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_cells_are_its_rows_of_every_head() {
        let at = |row, visible| Row { row, visible };
        assert_eq!(cells(Stage::Q, &[2, 3, 2], at(1, 9)), [2, 3, 8, 9]);
        assert_eq!(cells(Stage::CacheK, &[2, 3, 1], at(2, 9)), [2, 5]);
        assert_eq!(cells(Stage::Probs, &[2, 2, 3], at(0, 2)), [0, 1, 6, 7]);
        assert_eq!(cells(Stage::Ln1, &[3, 2], at(2, 9)), [4, 5]);
        assert_eq!(cells(Stage::Tokens, &[3], at(2, 9)), [2]);
        assert_eq!(cells(Stage::LogitsLast, &[5], at(0, 1)), [0; 0]);
        assert_eq!(cells(Stage::Argmax, &[], at(0, 1)), [0; 0]);
    }
}
