//! Rows of every pair of sides: what both have is compared, what one lacks is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::text::pattern;
use llorch_models::progress::Progress;
use llorch_trace::{Point, Stage};

use super::diagnose::{Labelled, explain};
use super::partial;
use super::raw::SourceError;
use super::side::{Key, Side};
use crate::compare::{Cells, Comparison, Elements, Numbers, Tolerance, compare, excerpt};
use crate::judge::point_tolerance;
use crate::parallel;
use crate::result::{Row, RowKind, Unchecked, UncheckedKind, Verdict};

/// Failing rows whose content is held against every other tensor; those after the first few follow
/// from them.
const EXPLAINED: usize = 40;

/// Elements around the worst one that a FAIL shows.
const SHOWN_ON_FAIL: usize = 8;

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Instead of each point's own.
    pub tolerance: Option<f64>,
    /// Elements to show in each row.
    pub values: usize,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub rows: Vec<Row>,
    pub unchecked: Vec<Unchecked>,
}

/// Compares `sides[a]` with `sides[b]`.
pub fn pair(
    a: &Side,
    b: &Side,
    options: Options,
    outcome: &mut Outcome,
) -> Result<(), SourceError> {
    let keys: BTreeSet<&Key> = a.points.keys().chain(b.points.keys()).collect();
    let mut only: BTreeMap<(&str, Stage, bool), BTreeSet<&Key>> = BTreeMap::new();
    let mut both = Vec::new();
    for key in keys {
        match (a.points.get(key), b.points.get(key)) {
            (Some(x), Some(y)) => both.push((key, x, y)),
            (x, _) => {
                let (holder, other) = if x.is_some() { (&a.name, b) } else { (&b.name, a) };
                let misshapen = other.is_misshapen(key);
                only.entry((holder, key.point.stage, misshapen)).or_default().insert(key);
            }
        }
    }
    let bar =
        Progress::new(false).steps(&format!("{} and {}", a.name, b.name), "tensor", both.len());
    let done = AtomicU64::new(0);
    let rows = parallel::map(&both, |&(key, x, y)| {
        let row = match x.is_partial() || y.is_partial() {
            true => partial::row(key, (a, b), (x, y), options),
            false => row(key, a, b, [&*x.open()?, &*y.open()?], options),
        };
        bar.set(done.fetch_add(1, Ordering::Relaxed) + 1);
        row
    });
    let mut explained = 0;
    for (row, (key, x, y)) in rows.into_iter().zip(both) {
        let mut row = row?;
        let whole = !x.is_partial() && !y.is_partial();
        if row.verdict == Verdict::Fail && whole && explained < EXPLAINED {
            explained += 1;
            let (x, y) = (Numbers::of(&*x.open()?), Numbers::of(&*y.open()?));
            let (x, y) = (Labelled { side: a, numbers: &x }, Labelled { side: b, numbers: &y });
            if let Some(sentence) = explain(key, x, y) {
                row.reason = format!("{}: {sentence}", row.reason);
            }
        }
        outcome.rows.push(row);
    }
    for ((holder, _, misshapen), keys) in only {
        let lacking = if holder == a.name { &b.name } else { &a.name };
        let there = match misshapen {
            true => "has it in a shape that can't be compared (see above)",
            false => "has no such tensor",
        };
        outcome.unchecked.push(Unchecked {
            what: fold(&keys),
            kind: if misshapen { UncheckedKind::Missing } else { UncheckedKind::Unsupported },
            reason: format!("only in {holder}; {lacking} {there}"),
        });
    }
    Ok(())
}

/// Many layers, steps and cases of one stage in a few words.
fn fold(keys: &BTreeSet<&Key>) -> String {
    let count = |what: BTreeSet<String>, one: &str| match what.len() {
        0 | 1 => String::new(),
        n => format!(", {n} {one}s"),
    };
    let Some(first) = keys.first() else { return String::new() };
    let layers: BTreeSet<String> =
        keys.iter().filter_map(|k| k.point.layer).map(|l| l.to_string()).collect();
    let name = if layers.len() > 1 { pattern(first.point) } else { first.point.to_string() };
    let steps = keys.iter().map(|k| k.step.to_string()).collect();
    let cases = keys.iter().map(|k| k.case.clone()).collect();
    let (layers, steps, cases) =
        (count(layers, "layer"), count(steps, "step"), count(cases, "case"));
    format!("{name}{layers}{steps}{cases}")
}

fn row(
    key: &Key,
    a: &Side,
    b: &Side,
    [x, y]: [&dyn Elements; 2],
    options: Options,
) -> Result<Row, SourceError> {
    let cells = Cells::of(key.point.stage, x.shape());
    let compared = match (options.tolerance, key.point.stage, point_tolerance(key.point)) {
        (Some(t), ..) if !key.point.is_integer() => {
            let tolerance = if t == 0.0 { Tolerance::Exact } else { Tolerance::Mixed(t) };
            compare(x, y, tolerance, &cells)
        }
        (_, Stage::NextProbs, t) => {
            let delta = logits_difference(key, a, b)?.unwrap_or(0.0);
            let p = |i: usize| x.element(i).abs().max(y.element(i).abs());
            compare(x, y, Tolerance::Absolute(&|i| t + 2.0 * p(i) * delta), &Cells::All)
        }
        (_, _, 0.0) => compare(x, y, Tolerance::Exact, &Cells::All),
        (_, _, t) => compare(x, y, Tolerance::Mixed(t), &cells),
    };
    let mut row = Row {
        tolerance: options.tolerance.unwrap_or_else(|| point_tolerance(key.point)),
        verdict: Verdict::Fail,
        ..Row::new(&key.case, key.step, key.point, RowKind::Pair, &a.name, &b.name)
    };
    let compared = match compared {
        Ok(compared) => compared,
        Err(shapes) => {
            row.reason = shapes;
            return Ok(row);
        }
    };
    row.tolerance = compared.tolerance;
    if compared.metrics.total == 0 {
        row.verdict = Verdict::Unchecked;
        row.reason = format!("{:?} has no elements that mean anything", x.shape());
        return Ok(row);
    }
    if compared.within() {
        row.verdict = Verdict::Pass;
    } else {
        row.reason = exceeding(&compared, a, b);
        if key.point.stage == Stage::Argmax {
            excuse_near_tie(key, a, b, &mut row)?;
        }
    }
    row.excerpt = match (row.verdict, options.values) {
        (_, n) if n > 0 => Some(excerpt(x, y, 0, 0, n)),
        (Verdict::Fail, _) => Some(excerpt(x, y, compared.worst, SHOWN_ON_FAIL / 2, SHOWN_ON_FAIL)),
        _ => None,
    };
    row.metrics = Some(compared.metrics);
    Ok(row)
}

fn exceeding(c: &Comparison, a: &Side, b: &Side) -> String {
    match c.non_finite {
        [0, 0] => {
            format!("{} of {} elements exceed the tolerance", c.metrics.exceeding, c.metrics.total)
        }
        [_, 0] => format!("{} has values that are not finite", a.name),
        [0, _] => format!("{} has values that are not finite", b.name),
        _ => format!("{} and {} have values that are not finite", a.name, b.name),
    }
}

/// Both sides' logits of the last position, where both have them in one form.
fn last_logits(key: &Key, a: &Side, b: &Side) -> Result<Option<(Numbers, Numbers)>, SourceError> {
    let of = |side: &Side| -> Result<Option<Numbers>, SourceError> {
        let at = |stage| Key { point: Point::new(stage), ..key.clone() };
        if let Some(last) = side.tensor(&at(Stage::LogitsLast)) {
            return Ok(Some(Numbers::of(&last?)));
        }
        let all = side.tensor(&at(Stage::Logits)).transpose()?;
        Ok(all.and_then(|all| Numbers::of(&all).last_row()))
    };
    Ok(of(a)?.zip(of(b)?).filter(|(x, y)| x.shape == y.shape))
}

/// Δ of the probabilities' tolerance, capped by what the logits themselves may differ by.
fn logits_difference(key: &Key, a: &Side, b: &Side) -> Result<Option<f64>, SourceError> {
    let point = Point::new(Stage::LogitsLast);
    Ok(last_logits(key, a, b)?.map(|(x, y)| {
        let pairs = || x.values.iter().zip(&y.values);
        let largest = pairs().fold(1f64, |m, (l, r)| m.max(l.abs()).max(r.abs()));
        let delta = pairs().fold(0f64, |m, (l, r)| m.max((l - r).abs()));
        delta.min(point_tolerance(point) * largest)
    }))
}

/// Two tokens that are nearly equal in both sides' logits: a WARN, since no oracle is asked here.
fn excuse_near_tie(key: &Key, a: &Side, b: &Side, row: &mut Row) -> Result<(), SourceError> {
    let (Some(delta), Some((x, y))) = (logits_difference(key, a, b)?, last_logits(key, a, b)?)
    else {
        return Ok(());
    };
    let chosen = |side: &Side| -> Result<Option<usize>, SourceError> {
        let tensor = side.tensor(key).transpose()?;
        Ok(tensor.filter(|t| t.len() == 1).map(|t| t.get(0) as usize))
    };
    let (Some(p), Some(q)) = (chosen(a)?, chosen(b)?) else { return Ok(()) };
    let gap = |l: &Numbers| Some((l.values.get(p)? - l.values.get(q)?).abs());
    let (Some(gap_a), Some(gap_b)) = (gap(&x), gap(&y)) else { return Ok(()) };
    let gap = gap_a.max(gap_b);
    if gap <= 2.0 * delta {
        row.verdict = Verdict::Warn;
        row.reason = format!(
            "tokens {p} and {q} are {gap:.2e} apart and the logits differ by {delta:.2e}: too close to call"
        );
    } else {
        row.reason =
            format!("tokens {p} and {q}, {gap:.2e} apart where the logits differ by {delta:.2e}");
    }
    Ok(())
}
