//! Rows of tensors of which only some elements are there, printed with few decimals: what is printed
//! can disagree, and never prove that the rest agrees.

use std::collections::BTreeMap;

use llorch_trace::Stage;
use llorch_trace::tensor::unravel;

use super::pairing::Options;
use super::raw::Result;
use super::side::{Key, Located, Side};
use crate::compare::{Cells, Numbers, Tolerance, compare, is_visible};
use crate::judge::point_tolerance;
use crate::result::{Excerpt, Row, RowKind, Verdict};

/// llama.cpp on the CPU reads GELU from a table in f16, which has 11 digits; its argument is
/// rounded to f16 as well.
const GELU_TABLE: f64 = 1.0 / 1024.0;

/// FAIL where a printed element is off by more than the point's tolerance and what printing rounds;
/// else UNCHECKED, with how many agree.
pub fn row(
    key: &Key,
    (a, b): (&Side, &Side),
    (x, y): (&Located, &Located),
    options: Options,
) -> Result<Row> {
    let tolerance = options.tolerance.unwrap_or_else(|| point_tolerance(key.point));
    let mut row = Row {
        tolerance,
        verdict: Verdict::Fail,
        ..Row::new(&key.case, key.step, key.point, RowKind::Pair, &a.name, &b.name)
    };
    let shape = x.shape();
    if shape != y.shape() {
        row.reason = format!("shapes differ: {shape:?} against {:?}", y.shape());
        return Ok(row);
    }
    let (left, right) = (elements(x)?, elements(y)?);
    let shown = |i: &usize| is_visible(key.point.stage, &shape, *i);
    let places: Vec<usize> = match (&left, &right) {
        (Elements::Some(cells), other) | (other, Elements::Some(cells)) => {
            cells.keys().copied().filter(|i| other.get(*i).is_some()).filter(shown).collect()
        }
        (Elements::All(_), Elements::All(_)) => Vec::new(),
    };
    if places.is_empty() {
        row.verdict = Verdict::Unchecked;
        row.reason = "partial: none of its elements that mean anything is printed".into();
        return Ok(row);
    }
    let values = |of: &Elements| places.iter().filter_map(|i| of.get(*i)).collect::<Vec<f64>>();
    let (p, q) = (values(&left), values(&right));
    let rounding = x.rounding() + y.rounding();
    row.tolerance += rounding;
    // A little more: half a digit is rounded either way, and decimals are no binary fractions.
    let allowed =
        |i: usize| tolerance * 1f64.max(p[i].abs()).max(q[i].abs()) + rounding * (1.0 + 1e-6);
    let numbers = |values: &Vec<f64>| Numbers::f64(vec![values.len()], values.clone());
    let compared =
        match compare(&numbers(&p), &numbers(&q), Tolerance::Absolute(&allowed), &Cells::All) {
            Ok(compared) => compared,
            Err(shapes) => {
                row.reason = shapes;
                return Ok(row);
            }
        };
    let worst = places.get(compared.worst).copied().unwrap_or(0);
    let (n, total) = (places.len(), shape.iter().product::<usize>());
    if compared.within() {
        row.verdict = Verdict::Unchecked;
        row.reason = format!(
            "partial: agrees at the {n} of {total} elements that are printed, within the tolerance and \
             {rounding:.0e} of rounding"
        );
    } else {
        row.reason = format!(
            "{} of the {n} elements that are printed exceed the tolerance and {rounding:.0e} of rounding",
            compared.metrics.exceeding
        );
        let table = |i: usize| (p[i] - q[i]).abs() <= allowed(i) + GELU_TABLE * p[i].abs();
        if key.point.stage == Stage::Act && (0..n).all(table) {
            row.reason += "; llama.cpp's CPU reads GELU from a table in f16, which alone can do this, \
                           and what follows inherits it";
        }
        let finite = |v: &[f64]| vec![v[compared.worst]].into_iter().map(finite).collect();
        row.excerpt = Some(Excerpt { from: unravel(&shape, worst), a: finite(&p), b: finite(&q) });
    }
    row.metrics = Some(compared.metrics);
    if let Some(metrics) = &mut row.metrics {
        metrics.worst = unravel(&shape, worst);
    }
    Ok(row)
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

enum Elements {
    All(Vec<f64>),
    Some(BTreeMap<usize, f64>),
}

impl Elements {
    fn get(&self, i: usize) -> Option<f64> {
        match self {
            Elements::All(values) => values.get(i).copied(),
            Elements::Some(cells) => cells.get(&i).copied(),
        }
    }
}

fn elements(located: &Located) -> Result<Elements> {
    Ok(match located.cells() {
        Some(cells) => Elements::Some(cells.into_iter().collect()),
        None => Elements::All(located.load()?.to_f64()),
    })
}
