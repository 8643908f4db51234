//! `next.probs`: the distribution of the next token, also after temperature, top-k and top-p.
//!
//! An implementation is held to the float64 softmax of its OWN logits/τ within 1e-6, plus
//! 2·p·u·max|logit|/τ where τ is not 1 (the rounded division by τ); two implementations to that plus
//! 2·p·Δ/τ, Δ being the largest difference of their logits, capped by what checkpoint 9 allows.
//! A token whose logit lies within that distance of the cut of a filter may be kept by one and
//! dropped by the other; it is excused, and the rest compared as if it were not there.

use llorch_trace::protocol::Sampling;
use llorch_trace::{Point, Stage};

use super::{Place, deviations, point_tolerance};
use crate::compare::{Numbers, Tolerance, compare};
use crate::oracle::softmax;
use crate::result::{Row, RowKind, Verdict};

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
            compare(x, y, Tolerance::Absolute(&|_| point_tolerance(place.point)), |_| true);
        return place.judged(RowKind::Pair, a, name, (x, y), compared);
    };
    if p.shape != x.shape || q.shape != x.shape {
        let reason = format!("logits.last {:?} against next.probs {:?}", p.shape, x.shape);
        return place.row(RowKind::Pair, a, name, Verdict::Error, reason);
    }
    let largest = |v: &Numbers| v.values.iter().fold(0.0f64, |m, l| m.max(l.abs()));
    let delta = p.values.iter().zip(&q.values).fold(0.0f64, |m, (l, r)| m.max((l - r).abs()));
    let cap = point_tolerance(point) * 1f64.max(largest(&p)).max(largest(&q));
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
        let compared = compare(x, y, Tolerance::Exact, |_| true);
        return place.judged(kind, a, b, (x, y), compared);
    }
    let tau = match place.case.sampling.temperature {
        0.0 => 1.0,
        t => t,
    };
    let u = x.dtype.unit_roundoff().max(logits.0.dtype.unit_roundoff());
    let largest = logits.0.values.iter().fold(0.0f64, |m, l| m.max(l.abs()));
    let division = if tau == 1.0 { 0.0 } else { u * largest / tau };
    let relative = 2.0 * (division + delta / tau);
    // How far a logit may be from a cut and still fall on either side of it: both sides move.
    let reach = 2.0 * (delta + u * largest);
    let (x, y, excused) = match excuse(x, y, logits, reach) {
        Ok(excused) => excused,
        Err(id) => {
            let reason = format!(
                "the filters keep different tokens: {id} is kept by one only, and lies {} from the cut",
                "further than rounding moves it"
            );
            return place.row(kind, a, b, Verdict::Fail, reason);
        }
    };
    let allowed = |i: usize| {
        point_tolerance(place.point) + relative * x.values[i].abs().max(y.values[i].abs())
    };
    let compared = compare(&x, &y, Tolerance::Absolute(&allowed), |_| true);
    let mut row = place.judged(kind, a, b, (&x, &y), compared);
    if excused > 0 && row.verdict == Verdict::Pass {
        row.reason = format!("{excused} token(s) at the cut of a filter excused");
    }
    row
}

/// Takes the tokens that only one side keeps out of both and renormalizes. The error is the id of a
/// token that lies too far from the cut for that.
fn excuse(
    x: &Numbers,
    y: &Numbers,
    logits: (&Numbers, &Numbers),
    reach: f64,
) -> Result<(Numbers, Numbers, usize), usize> {
    // Without a filter only underflow makes a probability 0, and that is no cut.
    let only_one: Vec<usize> =
        (0..x.values.len()).filter(|&i| (x.values[i] == 0.0) != (y.values[i] == 0.0)).collect();
    let tiny = |i: usize| x.values[i].max(y.values[i]) < f64::from(f32::MIN_POSITIVE);
    if only_one.iter().all(|&i| tiny(i)) {
        return Ok((x.clone(), y.clone(), 0));
    }
    let kept = |p: &Numbers, l: &Numbers| {
        let kept = p.values.iter().zip(&l.values).filter(|(p, _)| **p > 0.0);
        kept.fold(f64::INFINITY, |m, (_, l)| m.min(*l))
    };
    let cut = [kept(x, logits.0), kept(y, logits.1)];
    for &i in &only_one {
        // The side that drops it must have it close below its own cut.
        let (logit, cut) = match x.values[i] == 0.0 {
            true => (logits.0.values[i], cut[0]),
            false => (logits.1.values[i], cut[1]),
        };
        if (cut - logit).abs() > reach {
            return Err(i);
        }
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

/// Temperature, then top-k, then top-p, in float64; the order and the treatment of ties are those of
/// Hugging Face's logits warpers: top-k keeps every token equal to the k-th, top-p drops the tail
/// whose cumulative probability, summed from the least likely, is at most 1 − p, and keeps one.
pub fn replay(logits: &[f64], sampling: &Sampling) -> Vec<f64> {
    if sampling.temperature <= 0.0 {
        return softmax(logits);
    }
    let mut scores: Vec<f64> = logits.iter().map(|l| l / sampling.temperature).collect();
    if sampling.top_k > 0 && sampling.top_k < scores.len() {
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let kth = sorted[sampling.top_k - 1];
        scores.iter_mut().filter(|s| **s < kth).for_each(|s| *s = f64::NEG_INFINITY);
    }
    if sampling.top_p < 1.0 {
        let probs = softmax(&scores);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&i, &j| probs[i].total_cmp(&probs[j]));
        let mut sum = 0.0;
        for &i in &order[..order.len().saturating_sub(1)] {
            sum += probs[i];
            if sum > 1.0 - sampling.top_p {
                break;
            }
            scores[i] = f64::NEG_INFINITY;
        }
    }
    softmax(&scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_k: usize, top_p: f64) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 0 }
    }

    #[test]
    fn replay_filters_as_the_warpers_do() {
        let logits = [3.0f64.ln(), 2.0f64.ln(), 1.0f64.ln(), 1.0f64.ln()];
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12);
        let plain = replay(&logits, &sampling(1.0, 0, 1.0));
        assert!(close(&plain, &[3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 1.0 / 7.0]));
        assert!(close(&replay(&logits, &sampling(1.0, 2, 1.0)), &[0.6, 0.4, 0.0, 0.0]));
        // Equal to the third: both stay.
        assert!(close(&replay(&logits, &sampling(1.0, 3, 1.0)), &plain));
        assert!(close(&replay(&logits, &sampling(1.0, 0, 0.7)), &[0.6, 0.4, 0.0, 0.0]));
        assert!(close(&replay(&logits, &sampling(1.0, 0, 1e-9)), &[1.0, 0.0, 0.0, 0.0]));
        let cold = replay(&logits, &sampling(0.5, 0, 1.0));
        assert!(close(&cold, &[9.0 / 15.0, 4.0 / 15.0, 1.0 / 15.0, 1.0 / 15.0]));
    }

    #[test]
    fn a_token_at_the_cut_is_excused_and_one_far_from_it_is_not() {
        let numbers = |v: &[f64]| Numbers::f64(vec![v.len()], v.to_vec());
        let (x, y) = (numbers(&[0.6, 0.4, 0.0]), numbers(&[1.0, 0.0, 0.0]));
        let near = numbers(&[1.0, 1.0 - 1e-7, -5.0]);
        let (p, q, n) = excuse(&x, &y, (&near, &near), 1e-6).unwrap();
        assert_eq!((p.values, q.values, n), (vec![1.0, 0.0, 0.0], vec![1.0, 0.0, 0.0], 1));
        let far = numbers(&[1.0, 0.5, -5.0]);
        assert_eq!(excuse(&x, &y, (&far, &far), 1e-6).unwrap_err(), 1);
    }
}
