//! Numbers that went through f16 or bf16 on the way.

use llorch_trace::{Dtype, Stage};
use ndarray::{Array, Dimension};

use super::site::{Found, Site};
use crate::compare::round;

pub const NARROW: [(Dtype, &str); 2] = [(Dtype::F16, "rounded_f16"), (Dtype::BF16, "rounded_bf16")];

/// The same numbers after rounding to a narrow dtype.
pub fn rounded<D: Dimension>(x: &Array<f64, D>, to: Dtype) -> Array<f64, D> {
    x.mapv(|v| round(v, to))
}

/// The output was rounded: every element is one of the narrow dtype's numbers, and within half a step
/// of it from where it should be.
pub fn output(site: &Site<'_>, found: &mut Found) {
    for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > site.u) {
        let stored = if matches!(site.point.stage, Stage::CacheK | Stage::CacheV) {
            "storage"
        } else {
            "output"
        };
        found.test(slug, format!("with the {stored} rounded to {to}"), || {
            Some(output_fits(
                site,
                to,
                |i| site.honest.value.values[i],
                |i| site.honest.bounds[i].bound,
            ))
        });
    }
}

/// Whether rounding `value` to a narrow dtype gives what was given.
pub fn output_fits(
    site: &Site<'_>,
    to: Dtype,
    value: impl Fn(usize) -> f64,
    bound: impl Fn(usize) -> f64,
) -> bool {
    (0..site.given.values.len()).filter(|&i| site.counts[i]).all(|i| {
        let (given, value) = (site.given.values[i], value(i));
        let step = value.abs() * to.unit_roundoff() * 1.001 + smallest_step(to) / 2.0;
        given == value || (round(given, to) == given && (given - value).abs() <= step + bound(i))
    })
}

/// The distance of the smallest numbers of a dtype.
fn smallest_step(to: Dtype) -> f64 {
    if to == Dtype::F16 { 2f64.powi(-24) } else { 2f64.powi(-133) }
}
