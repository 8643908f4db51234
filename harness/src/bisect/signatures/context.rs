//! probs · v: the values that were read, and how they were added.

use llorch_trace::Stage;
use ndarray::{Array3, s};

use super::rounding::{NARROW, rounded};
use super::site::{Found, Site};
use crate::oracle::bounds;
use crate::oracle::ops;
use crate::oracle::replay;

/// Rows of the cache that are tried one by one: enough for a prompt that shows something.
const ROWS: usize = 512;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(probs) = site.heads(site.own(Stage::Probs)) else { return };
    let Some(v) = replay::keys(&site.job(), Stage::CacheV, site.layer()) else { return };
    let (h, t, s) = probs.dim();
    if (v.dim().0, v.dim().1) != (h, s) || site.given.values.len() != h * t * v.dim().2 {
        return;
    }
    found.test("qkv_swapped", "with keys for values", || {
        let k = replay::keys(&site.job(), Stage::CacheK, site.layer())?;
        gives(site, &probs, &k)
    });
    rows(site, &probs, &v, found);
    found.test(None, "with scores for probabilities", || {
        let scores = site.heads(site.own(Stage::Scores))?;
        gives(site, &scores, &v)
    });
    for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > site.u) {
        let (p2, v2) = (rounded(&probs, to), rounded(&v, to));
        let ways = [
            ("values", &probs, &v2),
            ("probabilities", &p2, &v),
            ("probabilities and values", &p2, &v2),
        ];
        for (what, p, v) in ways {
            found.test(slug, format!("with the {what} rounded to {to}"), || gives(site, p, v));
        }
    }
}

fn gives(site: &Site<'_>, probs: &Array3<f64>, v: &Array3<f64>) -> Option<bool> {
    if (probs.dim().0, probs.dim().2) != (v.dim().0, v.dim().1) {
        return None;
    }
    let value = ops::context(probs.view(), v.view());
    let magnitude = ops::context(probs.mapv(f64::abs).view(), v.mapv(f64::abs).view());
    let (t, s) = site.sizes;
    let n = value.ncols();
    let at = |i: usize| [i / n, i % n];
    (value.len() == site.given.values.len()).then(|| {
        let bound =
            |i: usize| bounds::sum(ops::visible(i / n, t, s), site.u, magnitude[at(i)]).bound;
        site.target().fits(|i| value[at(i)], bound)
    })
}

/// Rows of the cache that the attention reads otherwise than the cache shows them.
fn rows(site: &Site<'_>, probs: &Array3<f64>, v: &Array3<f64>, found: &mut Found) {
    let n = v.dim().1;
    let prompt = site.inputs.ids(0).len();
    if n < 2
        || !["cache_stale", "cache_shifted", "cache_row_missing"]
            .iter()
            .any(|s| found.asks(Some(s)))
    {
        return;
    }
    // A single head's rows may be wrong, the others' right.
    let d = v.dim().2;
    let heads: Vec<usize> = (0..v.dim().0)
        .filter(|head| site.beyond().any(|i| i % (v.dim().0 * d) / d == *head))
        .collect();
    let with = |from: &dyn Fn(usize) -> Option<usize>| {
        let mut other = v.clone();
        for &head in &heads {
            for row in 0..n {
                let mut place = other.slice_mut(s![head, row, ..]);
                match from(row) {
                    Some(source) => place.assign(&v.slice(s![head, source, ..])),
                    None => place.fill(0.0),
                }
            }
        }
        gives(site, probs, &other)
    };
    for row in (0..n.min(ROWS)).rev() {
        if row > 0 {
            found.test(
                "cache_stale",
                format!("with an older row in the cache: row {row} that of {}", row - 1),
                || with(&|r| Some(if r == row { row - 1 } else { r })),
            );
        }
        found.test("cache_row_missing", format!("with row {row} of the cache missing"), || {
            with(&|r| (r != row).then_some(r))
        });
        if found.all.iter().any(|e| e.slug.is_some_and(|s| s.starts_with("cache"))) {
            return;
        }
    }
    if site.step > 0 && prompt > 0 {
        found.test("cache_stale", "with the prompt's last row for all later ones", || {
            with(&|r| Some(r.min(prompt - 1)))
        });
        found.test("cache_row_missing", "without the rows of the decode steps", || {
            with(&|r| (r < prompt).then_some(r))
        });
    }
    for by in [1, n - 1, 2, n - 2] {
        let told = if by <= n / 2 { by as isize } else { by as isize - n as isize };
        found.test("cache_shifted", format!("with the cache shifted by {told:+} rows"), || {
            with(&|r| Some((r + n - by) % n))
        });
    }
}
