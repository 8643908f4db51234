//! Scores: the scale, the mask, and the keys that were read.

use llorch_trace::Stage;
use ndarray::{Array3, Axis};

use super::heads;
use super::keys::{Holds, classify};
use super::rounding::{NARROW, rounded};
use super::site::{Found, Site};
use crate::oracle::bounds;
use crate::oracle::ops;
use crate::oracle::replay;

/// Below this a score is a mask's, whatever number it puts there.
const MASKED: f64 = -1e4;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(q) = site.heads(site.own(Stage::Q)) else { return };
    let Some(k) = replay::keys(&site.job(), Stage::CacheK, site.layer()) else { return };
    if (q.dim().0, q.dim().2) != (k.dim().0, k.dim().2) || q.dim().1 != site.sizes.0 {
        return;
    }
    scales(site, found);
    mask(site, found);
    read_keys(site, &q, &k, found);
    found.test("transposed", "after transpose", || {
        let all = every_cell(&k, &q, site.oracle.scale(site.layer()));
        gives(site, &all, &every_cell(&k.mapv(f64::abs), &q.mapv(f64::abs), 1.0), q.dim().2)
    });
    heads::permuted(site, found);
    for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > site.u) {
        let (q2, k2) = (rounded(&q, to), rounded(&k, to));
        for (what, q, k) in [("q", &q2, &k), ("k", &q, &k2), ("q and k", &q2, &k2)] {
            found.test(slug, format!("with {what} rounded to {to}"), || {
                let scale = site.oracle.scale(site.layer());
                let all = every_cell(q, k, scale);
                let magnitude = every_cell(&q.mapv(f64::abs), &k.mapv(f64::abs), scale);
                gives(site, &all, &magnitude, q.dim().2)
            });
        }
    }
}

/// q · kᵀ · scale with nothing masked, [H, T, S].
fn every_cell(q: &Array3<f64>, k: &Array3<f64>, scale: f64) -> Array3<f64> {
    let ((h, t, _), s) = (q.dim(), k.dim().1);
    let mut all = Array3::zeros((h, t, s));
    for head in 0..h {
        let cells = q.index_axis(Axis(0), head).dot(&k.index_axis(Axis(0), head).t()) * scale;
        all.index_axis_mut(Axis(0), head).assign(&cells);
    }
    all
}

fn gives(site: &Site<'_>, value: &Array3<f64>, magnitude: &Array3<f64>, d: usize) -> Option<bool> {
    let (value, magnitude) = (value.as_standard_layout(), magnitude.as_standard_layout());
    let (value, magnitude) = (value.as_slice()?, magnitude.as_slice()?);
    (value.len() == site.given.values.len()).then(|| {
        let bound = |i: usize| bounds::sum(d + 2, site.u, magnitude[i]).bound;
        site.target().fits(|i| value[i], bound)
    })
}

fn scales(site: &Site<'_>, found: &mut Found) {
    let dims = &site.oracle.dims;
    let scale = site.oracle.scale(site.layer());
    let by = |factor: f64| {
        let honest = |i: usize| site.honest.value.values[i] * factor;
        Some(site.target().fits(honest, |i| site.honest.bounds[i].bound * factor))
    };
    found.test("scale_missing", "without the scale 1/√D", || by(1.0 / scale));
    found.test("scale_doubled", "with the scale 1/√D twice", || by(scale));
    found.test("scale_by_width", "with the scale 1/√E", || {
        by(1.0 / (dims.n_embd as f64).sqrt() / scale)
    });
    // What scale_attn_by_inverse_layer_idx asks for, done or left undone against the config.
    let number = site.layer() as f64 + 1.0;
    match (site.layer(), site.oracle.scale_by_layer) {
        (0, _) => {}
        (_, false) => {
            found.test("scale_by_layer", "with scores divided by the layer's number", || {
                by(1.0 / number)
            })
        }
        (_, true) => {
            found.test("scale_by_layer", "without dividing by the layer's number", || by(number))
        }
    }
}

/// Cells that should be visible are masked, and the rest is right.
fn mask(site: &Site<'_>, found: &mut Found) {
    let (t, s) = site.sizes;
    let values = &site.given.values;
    let masked = |i: usize| values[i] <= MASKED && site.honest.value.values[i] > MASKED;
    let right = (0..values.len()).filter(|&i| site.counts[i]).all(|i| {
        let off = (values[i] - site.honest.value.values[i]).abs();
        masked(i) || off <= site.honest.bounds[i].bound
    });
    let any = (0..values.len()).any(|i| site.counts[i] && masked(i));
    if !right || !any {
        return;
    }
    // How many keys each query sees, and how many it should.
    let seen: Vec<(usize, usize)> = (0..values.len() / s.max(1))
        .map(|row| {
            let should = ops::visible(row % t, t, s);
            ((0..should).filter(|&key| !masked(row * s + key)).count(), should)
        })
        .collect();
    let fewer =
        |by: usize| seen.iter().all(|(sees, should)| *sees == should.saturating_sub(by).max(1));
    match (1..4).find(|&by| fewer(by)) {
        Some(by) => {
            found.add("mask_shifted", format!("with the mask shifted by {by}: {by} key(s) too few"))
        }
        None => found.add("mask_shifted", "with a mask that hides visible keys"),
    }
}

/// The keys that were read, column by column: the cache may show others.
fn read_keys(site: &Site<'_>, q: &Array3<f64>, k: &Array3<f64>, found: &mut Found) {
    if !["cache_stale", "cache_shifted", "cache_row_missing"].iter().any(|s| found.asks(Some(s))) {
        return;
    }
    let (h, t, s) = (q.dim().0, q.dim().1, k.dim().1);
    let scale = site.oracle.scale(site.layer());
    let all = every_cell(q, k, scale);
    let magnitude = every_cell(&q.mapv(f64::abs), &k.mapv(f64::abs), scale);
    let d = q.dim().2;
    let wrong: Vec<usize> =
        (0..h).filter(|head| site.beyond().any(|i| site.place(i).0 == Some(*head))).collect();
    let cells = |key: usize| {
        wrong
            .iter()
            .flat_map(move |head| (0..t).map(move |row| (*head, row, (head * t + row) * s + key)))
    };
    let is = |key: usize, other: usize| {
        cells(key).filter(|c| site.counts[c.2]).all(|(head, row, i)| {
            let bound = bounds::sum(d + 2, site.u, magnitude[[head, row, other]]).bound;
            (site.given.values[i] - all[[head, row, other]]).abs() <= bound
        })
    };
    let zero =
        |key: usize| cells(key).filter(|c| site.counts[c.2]).all(|c| site.given.values[c.2] == 0.0);
    let holds: Vec<Holds> = (0..s)
        .map(|key| match () {
            _ if is(key, key) => Holds::Row(key),
            _ if zero(key) => Holds::Zero,
            _ => {
                let mut others = (0..key).rev().chain(key + 1..s);
                others.find(|&other| is(key, other)).map_or(Holds::Unknown, Holds::Row)
            }
        })
        .collect();
    classify(&holds, found);
}
