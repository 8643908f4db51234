//! `next.probs`: the distribution of the next token, also after temperature, top-k and top-p.
//!
//! An implementation is held to the float64 softmax of its OWN logits/τ within 1e-6, plus
//! 2·p·u·max|logit|/τ where τ is not 1 (the rounded division by τ); two implementations to that plus
//! 2·p·Δ/τ, Δ being the largest difference of their logits, capped by what checkpoint 9 allows.
//! A token within the bound of the cut of a filter ([`crate::sampling::uncertain`]) may be kept by one
//! and dropped by the other; it is excused, and the rest compared as if it were not there.

use llorch_trace::{Point, Stage};

use super::{Place, deviations};
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::result::{Row, RowKind, Verdict};
use crate::sampling::{Slack, replay, uncertain};

/// Against the float64 replay of its own logits. None where those were not captured.
pub fn own(place: &Place<'_>, who: usize, probs: &Numbers) -> Option<Row> {
    let logits = place.tensor(who, Point::new(Stage::LogitsLast))?;
    if logits.shape != probs.shape {
        return None;
    }
    let replayed = replay(&logits.values, &place.case.sampling);
    let expected = Numbers::f64(probs.shape.clone(), replayed);
    let name = place.evidence[who].name.clone();
    let logits = (&logits, &logits);
    let row = judge(place, RowKind::Own, who, &name, probs, &expected, logits, 0.0);
    Some(deviations::excuse(place, &[who], (probs, &expected), row))
}

pub fn pair(place: &Place<'_>, a: usize, b: usize, x: &Numbers, y: &Numbers) -> Row {
    let name = &place.evidence[b].name;
    let point = Point::new(Stage::LogitsLast);
    let (Some(p), Some(q)) = (place.tensor(a, point), place.tensor(b, point)) else {
        // Without logits there is no Δ to excuse anything with.
        let compared =
            compare(x, y, Tolerance::Absolute(&|_| place.tolerance(place.point)), &Cells::All);
        return place.judged(RowKind::Pair, a, name, (x, y), compared);
    };
    if p.shape != x.shape || q.shape != x.shape {
        let reason = format!("logits.last {:?} against next.probs {:?}", p.shape, x.shape);
        return place.row(RowKind::Pair, a, name, Verdict::Error, reason);
    }
    let largest = |v: &Numbers| v.values.iter().fold(0.0f64, |m, l| m.max(l.abs()));
    let delta = p.values.iter().zip(&q.values).fold(0.0f64, |m, (l, r)| m.max((l - r).abs()));
    // Logits of less than f32 are held to no class, but to what their stage may do; that is judged there.
    let cap = match p.is_narrow() || q.is_narrow() {
        true => f64::INFINITY,
        false => place.tolerance(point) * 1f64.max(largest(&p)).max(largest(&q)),
    };
    judge(place, RowKind::Pair, a, name, x, y, (&p, &q), delta.min(cap))
}

/// Compares two distributions whose logits differ by at most `delta`.
fn judge(
    place: &Place<'_>,
    kind: RowKind,
    a: usize,
    b: &str,
    x: &Numbers,
    y: &Numbers,
    logits: (&Numbers, &Numbers),
    delta: f64,
) -> Row {
    if x.shape != y.shape {
        let compared = compare(x, y, Tolerance::Exact, &Cells::All);
        return place.judged(kind, a, b, (x, y), compared);
    }
    let tau = match place.case.sampling.temperature {
        0.0 => 1.0,
        t => t,
    };
    let u = x.dtype.unit_roundoff().max(logits.0.dtype.unit_roundoff());
    let largest = logits.0.values.iter().fold(0.0f64, |m, l| m.max(l.abs()));
    let division = if tau == 1.0 { 0.0 } else { u * largest / tau };
    // Probabilities may be stored in what is computed in.
    let stored = [x, y].into_iter().filter(|p| p.is_narrow()).map(|p| p.dtype.unit_roundoff());
    let relative = 2.0 * (division + delta / tau) + stored.fold(0.0, f64::max);
    let excusable = uncertain(&logits.0.values, &place.case.sampling, Slack { u, delta });
    let (x, y, excused) = match excuse(x, y, &excusable) {
        Ok(excused) => excused,
        Err(id) => {
            let reason = format!(
                "the filters keep different tokens: {id} is kept by one only, and lies further from the cut than \
                 rounding moves it"
            );
            return place.row(kind, a, b, Verdict::Fail, reason);
        }
    };
    let allowed = |i: usize| {
        place.tolerance(place.point) + relative * x.values[i].abs().max(y.values[i].abs())
    };
    let compared = compare(&x, &y, Tolerance::Absolute(&allowed), &Cells::All);
    let mut row = place.judged(kind, a, b, (&x, &y), compared);
    if excused > 0 && row.verdict == Verdict::Pass {
        row.reason = format!("{excused} token(s) at the cut of a filter excused");
    }
    row
}

/// Takes the tokens that only one side keeps out of both and renormalizes. The error is the id of a
/// token that is not excusable.
fn excuse(
    x: &Numbers,
    y: &Numbers,
    excusable: &[bool],
) -> Result<(Numbers, Numbers, usize), usize> {
    // Without a filter only underflow makes a probability 0, and that is no cut.
    let only_one: Vec<usize> =
        (0..x.values.len()).filter(|&i| (x.values[i] == 0.0) != (y.values[i] == 0.0)).collect();
    let tiny = |i: usize| x.values[i].max(y.values[i]) < f64::from(f32::MIN_POSITIVE);
    if only_one.iter().all(|&i| tiny(i)) {
        return Ok((x.clone(), y.clone(), 0));
    }
    if let Some(&far) = only_one.iter().find(|&&i| !excusable.get(i).copied().unwrap_or(false)) {
        return Err(far);
    }
    let without = |p: &Numbers| {
        let mut p = p.clone();
        only_one.iter().for_each(|&i| p.values[i] = 0.0);
        let sum: f64 = p.values.iter().sum();
        p.values.iter_mut().for_each(|v| *v /= sum);
        p
    };
    Ok((without(x), without(y), only_one.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_at_the_cut_is_excused_and_one_far_from_it_is_not() {
        let numbers = |v: &[f64]| Numbers::f64(vec![v.len()], v.to_vec());
        let (x, y) = (numbers(&[0.6, 0.4, 0.0]), numbers(&[1.0, 0.0, 0.0]));
        let (p, q, n) = excuse(&x, &y, &[false, true, false]).unwrap();
        assert_eq!((p.values, q.values, n), (vec![1.0, 0.0, 0.0], vec![1.0, 0.0, 0.0], 1));
        assert_eq!(excuse(&x, &y, &[true, false, true]).unwrap_err(), 1);
    }
}
