//! The head: its weights and its input.

use llorch_trace::{Point, Stage};
use ndarray::{Array2, s};

use super::rounding::{NARROW, rounded};
use super::site::{Found, Site};
use crate::oracle::bounds::gamma;
use crate::oracle::replay::block_input;

/// Rows of the head's matrix at a time.
const ROWS: usize = 4096;

pub fn test(site: &Site<'_>, found: &mut Found) {
    if site.point.stage == Stage::LogitsLast {
        selection(site, found);
    }
    let Some(x) = input(site, Point::new(Stage::LnF)) else { return };
    let last = block_input(site.oracle.dims.n_layer);
    found.test("post_norm", "with what ln_f reads as its input", || {
        Some(gives(site, &input(site, last)?, &|w| w))
    });
    for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > site.u) {
        let narrow = rounded(&x, to);
        found.test(slug, format!("with the input rounded to {to}"), || {
            Some(gives(site, &narrow, &|w| w))
        });
        found.test(slug, format!("with the weights rounded to {to}"), || {
            Some(gives(site, &x, &|w| rounded(&w, to)))
        });
        found.test(slug, format!("with the input and weights rounded to {to}"), || {
            Some(gives(site, &narrow, &|w| rounded(&w, to)))
        });
    }
}

/// [T, E] of what the head reads, or its last row.
fn input(site: &Site<'_>, point: Point) -> Option<Array2<f64>> {
    let x = site.rows(point)?;
    let last = x.slice(s![-1.., ..]).to_owned();
    Some(if site.point.stage == Stage::LogitsLast { last } else { x })
}

/// Group by group, so that one that fails is found out by the first.
fn gives(site: &Site<'_>, x: &Array2<f64>, change: &dyn Fn(Array2<f64>) -> Array2<f64>) -> bool {
    let vocab = site.oracle.dims.vocab_size;
    if x.ncols() != site.oracle.dims.n_embd || x.nrows() * vocab != site.given.values.len() {
        return false;
    }
    let (target, absolute) = (site.target(), x.mapv(f64::abs));
    let bound = gamma(x.ncols(), site.u);
    (0..vocab).step_by(ROWS).all(|begin| {
        let rows = begin..vocab.min(begin + ROWS);
        let Ok(wte) = site.oracle.weights.rows("wte.weight", rows) else { return false };
        let wte = change(wte);
        let value = x.dot(&wte.t());
        let magnitude = absolute.dot(&wte.mapv(f64::abs).t());
        value.indexed_iter().all(|((t, j), value)| {
            target.element_fits(t * vocab + begin + j, *value, bound * magnitude[[t, j]])
        })
    })
}

/// Another row than the last, or that of another step.
fn selection(site: &Site<'_>, found: &mut Found) {
    let vocab = site.oracle.dims.vocab_size;
    if let Some(all) = site.inputs.tensor(site.step, Point::new(Stage::Logits)) {
        for row in 0..(all.values.len() / vocab).saturating_sub(1) {
            found.test(None, format!("with row {row} of logits"), || {
                let at = row * vocab;
                Some(site.target().fits(|i| all.values[at + i], |_| 0.0))
            });
        }
    }
    for step in 0..site.step {
        let Some(earlier) = site.inputs.tensor(step, site.point) else { continue };
        found.test(None, format!("with the logits of step {step}"), || {
            (earlier.values.len() == vocab)
                .then(|| site.target().fits(|i| earlier.values[i], |_| 0.0))
        });
    }
}
