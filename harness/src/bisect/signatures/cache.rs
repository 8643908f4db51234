//! The cache of keys or values against the same run's own: rows that are stale, shifted, missing,
//! rounded, another layer's, the other tensor's.

use llorch_trace::{Point, Stage};
use ndarray::{Array3, Axis, concatenate};

use super::heads;
use super::keys::{Holds, classify};
use super::site::{Found, Site};
use crate::compare::Numbers;
use crate::oracle::Inputs;
use crate::oracle::replay::array;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(given) = three(site.given.clone()) else { return };
    let Some(should) = three(site.honest.value.clone()) else { return };
    // What was wrong at an earlier step stays wrong: held against the cache of the step before with
    // this step's row behind it, only what is new shows.
    let carried = carried(site).unwrap_or_else(|| should.clone());
    let wrong = wrong_heads(&given, &should);
    for base in [&should, &carried] {
        rows(&given, base, &wrong, found);
    }
    heads::permuted(site, found);
    let is = |other: &Array3<f64>| {
        let row = |x: &Array3<f64>, s: usize| x.index_axis(Axis(1), s).to_owned();
        let right =
            |s: usize| row(&given, s) == row(&carried, s) || row(&given, s) == row(&should, s);
        let (n, fits) = (given.dim().1, other.dim() == given.dim());
        let strange: Vec<usize> = (0..n).filter(|&s| !right(s)).collect();
        Some(
            fits && !strange.is_empty() && strange.iter().all(|&s| row(&given, s) == row(other, s)),
        )
    };
    let (key, name) = match site.point.stage {
        Stage::CacheK => (Stage::CacheV, "values"),
        _ => (Stage::CacheK, "keys"),
    };
    found.test("qkv_swapped", format!("with {name} in its place"), || {
        is(&own_rows(site, site.own(key))?)
    });
    for layer in (0..site.oracle.dims.n_layer).filter(|l| *l != site.layer()) {
        let other = Point::of_layer(site.point.stage, layer);
        found.test("other_layer", format!("with the cache of layer {layer}"), || {
            is(&own_rows(site, other)?)
        });
    }
}

/// Which rows stand where, of the heads that are wrong.
fn rows(given: &Array3<f64>, base: &Array3<f64>, heads: &[usize], found: &mut Found) {
    if given.dim() != base.dim() {
        return;
    }
    let row = |x: &Array3<f64>, s: usize| x.index_axis(Axis(1), s).select(Axis(0), heads);
    let n = given.dim().1;
    let holds: Vec<Holds> = (0..n)
        .map(|s| {
            let here = row(given, s);
            if here == row(base, s) {
                return Holds::Row(s);
            }
            // The nearest older row first.
            let mut others = (0..s).rev().chain(s + 1..n);
            match others.find(|&from| here == row(base, from)) {
                Some(from) => Holds::Row(from),
                None if here.iter().all(|v| *v == 0.0) => Holds::Zero,
                None => Holds::Unknown,
            }
        })
        .collect();
    classify(&holds, found);
}

fn wrong_heads(given: &Array3<f64>, should: &Array3<f64>) -> Vec<usize> {
    let differs = |h: &usize| given.index_axis(Axis(0), *h) != should.index_axis(Axis(0), *h);
    (0..given.dim().0).filter(differs).collect()
}

fn three(numbers: Numbers) -> Option<Array3<f64>> {
    array(numbers)?.into_dimensionality().ok()
}

/// The cache that the step before left, and this step's own rows.
fn carried(site: &Site<'_>) -> Option<Array3<f64>> {
    let before = site.step.checked_sub(1)?;
    let own = if site.point.stage == Stage::CacheK { Stage::K } else { Stage::V };
    let past = three(site.inputs.tensor(before, site.point)?)?;
    let new = three(site.inputs.tensor(site.step, site.own(own))?)?;
    concatenate(Axis(1), &[past.view(), new.view()]).ok()
}

/// What the cache of a point should hold: the rows of its own k or v at all steps.
fn own_rows(site: &Site<'_>, cache: Point) -> Option<Array3<f64>> {
    let own = if cache.stage == Stage::CacheK { Stage::K } else { Stage::V };
    let own = Point { stage: own, ..cache };
    let part = |step| {
        array(Inputs::tensor(site.inputs, step, own)?)?.into_dimensionality::<ndarray::Ix3>().ok()
    };
    let parts: Vec<_> = (0..=site.step).map(part).collect::<Option<_>>()?;
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    concatenate(Axis(1), &views).ok()
}

/// The cache is wrong, but nothing is wrong with what this step did to it.
pub fn is_carried_over(site: &Site<'_>) -> bool {
    let given = three(site.given.clone());
    given.is_some() && given == carried(site)
}
