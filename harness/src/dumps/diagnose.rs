//! Why two tensors of one name differ: the label may not fit the content.
//!
//! The usual case is Hugging Face's `hidden_states`, whose last entry is taken after ln_f though it
//! reads like the last block. So where a comparison fails, each tensor is held against the other
//! side's tensors of other names, transposed, and multiplied by a constant.

use llorch_trace::Stage;

use super::side::{Key, Side};
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::judge::point_tolerance;

/// How close a content must come to count as the same: relative, over the whole tensor, so that a
/// tensor of small numbers does not match every other one.
const SAME: f64 = 1e-4;

/// And how much closer than the label it must come.
const BETTER: f64 = 0.1;

/// One tensor and the side that it is from.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    pub side: &'a Side,
    pub numbers: &'a Numbers,
}

/// A sentence, if the content explains itself.
pub fn explain(key: &Key, a: Labelled<'_>, b: Labelled<'_>) -> Option<String> {
    let labelled = distance(a.numbers, b.numbers).unwrap_or(f64::INFINITY);
    elsewhere(key, a, b.side, labelled)
        .or_else(|| elsewhere(key, b, a.side, labelled))
        .or_else(|| transposed(key, a, b, labelled))
        .or_else(|| scaled(key, a, b, labelled))
}

/// The point of `other` whose content `this` has.
fn elsewhere(key: &Key, this: Labelled<'_>, other: &Side, labelled: f64) -> Option<String> {
    let mut best: Option<(f64, &Key)> = None;
    for (place, located) in &other.points {
        let same_run = place.case == key.case && place.step == key.step;
        let other_shape = located.is_partial() || located.shape() != this.numbers.shape;
        if !same_run || place.point == key.point || other_shape {
            continue;
        }
        let candidate = Numbers::of(&located.load().ok()?);
        let Some(d) = matches(place, this.numbers, &candidate) else { continue };
        if d < labelled * BETTER && best.is_none_or(|(least, _)| d < least) {
            best = Some((d, place));
        }
    }
    let (_, found) = best?;
    let mut text = format!(
        "labelled {} by {}, but its content is {} of {}",
        key.point, this.side.name, found.point, other.name
    );
    if found.point.stage == Stage::LnF && key.point.stage == Stage::Block {
        text += " (Hugging Face's last hidden state is taken after ln_f)";
    }
    Some(text)
}

/// The relative distance, if the contents are the same.
fn matches(place: &Key, a: &Numbers, b: &Numbers) -> Option<f64> {
    let tolerance = point_tolerance(place.point).max(1e-6);
    let compared =
        compare(a, b, Tolerance::Mixed(tolerance), &Cells::of(place.point.stage, &a.shape)).ok()?;
    let d = compared.metrics.rel_l2?;
    (compared.within() && d <= SAME).then_some(d)
}

fn distance(a: &Numbers, b: &Numbers) -> Option<f64> {
    compare(a, b, Tolerance::Mixed(1.0), &Cells::All).ok()?.metrics.rel_l2
}

fn transposed(key: &Key, a: Labelled<'_>, b: Labelled<'_>, labelled: f64) -> Option<String> {
    let turned = transpose(a.numbers)?;
    if turned.shape != b.numbers.shape {
        return None;
    }
    let d = matches(key, &turned, b.numbers)?;
    let axes = if a.numbers.shape.len() == 2 { "its two axes" } else { "its last two axes" };
    (d < labelled * BETTER).then(|| {
        format!("{} of {} is that of {} with {axes} exchanged", key.point, a.side.name, b.side.name)
    })
}

fn transpose(n: &Numbers) -> Option<Numbers> {
    let [front @ .., rows, columns] = n.shape.as_slice() else { return None };
    let (rows, columns, block) = (*rows, *columns, rows * columns);
    if block == 0 {
        return None;
    }
    let from = |i: usize| i / block * block + i % rows * columns + i % block / rows;
    let values =
        (0..n.values.len()).map(|i| n.values.get(from(i)).copied()).collect::<Option<_>>()?;
    let shape = front.iter().copied().chain([columns, rows]).collect();
    Some(Numbers { shape, dtype: n.dtype, values })
}

/// A constant factor, by least squares over the cells that count: scores that were never scaled, say.
fn scaled(key: &Key, a: Labelled<'_>, b: Labelled<'_>, labelled: f64) -> Option<String> {
    let (x, y) = (a.numbers, b.numbers);
    if x.shape != y.shape || key.point.is_integer() {
        return None;
    }
    let counted = Cells::of(key.point.stage, &x.shape);
    let cells =
        || (0..x.values.len()).filter(|i| counted.contain(*i)).map(|i| (x.values[i], y.values[i]));
    let (product, square) = cells().fold((0.0, 0.0), |(p, s), (x, y)| (p + x * y, s + y * y));
    let factor = product / square;
    // One cell is a multiple of any other.
    if !factor.is_finite() || factor == 0.0 || (factor - 1.0).abs() < 1e-3 || cells().count() < 4 {
        return None;
    }
    let values = y.values.iter().map(|v| v * factor).collect();
    let d = matches(key, x, &Numbers { values, ..y.clone() })?;
    // Said with the larger one first: 8 times, not 0.125 times.
    let (more, less, times) = match factor.abs() >= 1.0 {
        true => (a.side, b.side, factor),
        false => (b.side, a.side, 1.0 / factor),
    };
    (d < labelled * BETTER).then(|| {
        format!("{} of {} is {times:.6} times that of {}", key.point, more.name, less.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_exchanges_the_last_two_axes() {
        let n = Numbers::f64(vec![2, 2, 3], (0..12).map(f64::from).collect());
        let t = transpose(&n).unwrap();
        assert_eq!(t.shape, [2, 3, 2]);
        assert_eq!(t.values, [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
        assert!(transpose(&Numbers::f64(vec![3], vec![0.; 3])).is_none());
    }
}
