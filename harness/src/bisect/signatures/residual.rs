//! A residual: what came in, plus what the sublayer made.

use llorch_trace::Stage;
use ndarray::Array2;

use super::rounding::{NARROW, rounded};
use super::site::{Found, Site};
use crate::oracle::bounds;
use crate::oracle::ops;
use crate::oracle::replay::block_input;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let first = site.point.stage == Stage::ResidMid;
    let came_in = block_input(site.layer());
    let kept = if first { came_in } else { site.own(Stage::ResidMid) };
    let (update, norm, name) = match first {
        true => (Stage::AttnOut, Stage::Ln1, "ln_1"),
        false => (Stage::MlpOut, Stage::Ln2, "ln_2"),
    };
    let (Some(a), Some(b)) = (site.rows(kept), site.rows(site.own(update))) else { return };
    if a.dim() != b.dim() {
        return;
    }
    let sum = |a: &Array2<f64>, b: &Array2<f64>| {
        let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
        let (a, b) = (a.as_slice()?, b.as_slice()?);
        let bound = |i: usize| 2.0 * site.u * (a[i].abs() + b[i].abs());
        (a.len() == site.given.values.len() && b.len() == a.len())
            .then(|| site.target().fits(|i| a[i] + b[i], bound))
    };
    let nothing = Array2::zeros(a.dim());
    found.test("residual_missing", "without the residual", || sum(&nothing, &b));
    found.test("post_norm", format!("with the residual taken behind {name}"), || {
        sum(&site.rows(site.own(norm))?, &b)
    });
    found.test(
        "post_norm",
        format!("with {name} after the sum instead of before the sublayer"),
        || normed(site, &(&a + &b), name),
    );
    found.test(None, "without the sublayer's output", || sum(&a, &nothing));
    found.test(None, "with the residual added twice", || sum(&(&a * 2.0), &b));
    found.test(None, "with the sublayer's output added twice", || sum(&a, &(&b * 2.0)));
    found.test(None, "with the sublayer's output taken away", || sum(&a, &(&b * -1.0)));
    if !first {
        found.test(None, "with what came into the block as the residual", || {
            sum(&site.rows(came_in)?, &b)
        });
    }
    for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > site.u) {
        found
            .test(slug, format!("with the residual rounded to {to}"), || sum(&rounded(&a, to), &b));
        found.test(slug, format!("with the sublayer's output rounded to {to}"), || {
            sum(&a, &rounded(&b, to))
        });
        found.test(slug, format!("with both terms rounded to {to}"), || {
            sum(&rounded(&a, to), &rounded(&b, to))
        });
    }
}

/// The norm of the sum.
fn normed(site: &Site<'_>, x: &Array2<f64>, name: &str) -> Option<bool> {
    let name = format!("h.{}.{name}", site.layer());
    let weight = site.oracle.weights.vector(&format!("{name}.weight")).ok()?;
    let bias = site.oracle.weights.vector(&format!("{name}.bias")).ok()?;
    let y = ops::layer_norm(x.view(), weight.view(), bias.view(), site.oracle.eps);
    // The sum was rounded before.
    let off =
        |row| bounds::layer_norm(row, weight.view(), bias.view(), site.oracle.eps, 2.0 * site.u);
    let bounds: Vec<_> = x.rows().into_iter().flat_map(off).collect();
    let n = x.ncols();
    (site.given.values.len() == x.len())
        .then(|| site.target().fits(|i| y[[i / n, i % n]], |i| bounds[i].bound))
}
