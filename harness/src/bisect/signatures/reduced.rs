//! Sums of reduced precision. Their order isn't known, so their value isn't: what can be said is that
//! the errors are as large as those of sums in f16 or bf16, everywhere, and without a pattern.
//!
//! Each partial sum is rounded by up to u of its size. Terms of random sign make partial sums that grow
//! as a root, and errors of some 0.4·u·A, A the sum of absolute terms; terms of one sign make
//! √n/3·u·A. Pairwise sums lose less: log₂ n for n.

use llorch_trace::Stage;

use super::rounding::NARROW;
use super::site::{Found, Site};
use crate::oracle::bounds::gamma;
use crate::oracle::ops;

/// The least and the most that the RMS of error/A is, in units of u; the most times √n.
const LEAST: f64 = 0.03;
const MOST: f64 = 0.6;
/// What random-signed terms make, which tells f16 from bf16.
const USUAL: f64 = 0.4;
/// Of the elements so many are beyond the noise band.
const SPREAD: f64 = 0.4;
/// More than this of the error along the value itself, or alike in all rows, is a pattern.
const ALONG: f64 = 0.5;
const ALIKE: f64 = 3.0;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let dims = &site.oracle.dims;
    let (t, s) = site.sizes;
    let width = *site.given.shape.last().unwrap_or(&1);
    // Roundings on the longest path of an element.
    let n = |i: usize| match site.point.stage {
        Stage::Q | Stage::K | Stage::V | Stage::AttnOut | Stage::Fc => dims.n_embd + 1,
        Stage::MlpOut => dims.n_inner + 1,
        Stage::Scores => dims.head_dim() + 2,
        Stage::Context => ops::visible(i / width, t, s),
        Stage::Logits | Stage::LogitsLast => dims.n_embd,
        _ => 0,
    };
    if n(site.given.values.len() - 1) < 4 || !found.asks(Some("reduced_sum")) {
        return;
    }
    let mut sums = Pattern::default();
    let mut columns = vec![(0.0, 0usize); width];
    for i in (0..site.given.values.len()).filter(|&i| site.counts[i] && n(i) >= 4) {
        let (bound, error) = (site.honest.bounds[i], site.error(i));
        let magnitude = bound.bound / gamma(n(i), site.u);
        if !(magnitude > 0.0 && error.is_finite()) {
            continue;
        }
        let relative = error / magnitude;
        let value = site.honest.value.values[i] / magnitude;
        sums.count += 1;
        sums.beyond += usize::from(error.abs() > bound.band);
        sums.errors += relative * relative;
        sums.values += value * value;
        sums.along += relative * value;
        sums.roots += (n(i) as f64).sqrt();
        // The same column in all rows.
        columns[i % width].0 += relative;
        columns[i % width].1 += 1;
    }
    if sums.count < 16 {
        return;
    }
    let count = sums.count as f64;
    let size = (sums.errors / count).sqrt();
    let along = sums.along.abs() / (sums.errors * sums.values).sqrt();
    let alike = columns.iter().map(|(sum, _)| sum * sum).sum::<f64>() / sums.errors;
    let rows = columns.iter().map(|c| c.1).max().unwrap_or(1);
    let patterned = along > ALONG || (rows > 1 && alike > ALIKE.min(0.7 * rows as f64 + 0.3));
    if patterned || (sums.beyond as f64) < SPREAD * count {
        return;
    }
    let far = |u: f64| (size / u / USUAL).ln().abs();
    let within = |u: f64| size >= LEAST * u && size <= MOST * u * sums.roots / count;
    let best = NARROW
        .into_iter()
        .filter(|(to, _)| to.unit_roundoff() > site.u && within(to.unit_roundoff()))
        .min_by(|a, b| far(a.0.unit_roundoff()).total_cmp(&far(b.0.unit_roundoff())));
    if let Some((to, _)) = best {
        found.add("reduced_sum", format!("with sums in {to}, by the size of the errors"));
    }
}

#[derive(Default)]
struct Pattern {
    count: usize,
    beyond: usize,
    errors: f64,
    values: f64,
    along: f64,
    roots: f64,
}
