//! A constant factor: the whole tensor, one head, one token, or one token of one head.

use super::site::{Found, Site};

pub fn test(site: &Site<'_>, found: &mut Found) {
    if !found.asks(Some("scaled")) && !found.asks(None) {
        return;
    }
    let (heads, tokens): (Vec<_>, Vec<_>) = site.beyond().map(|i| site.place(i)).unzip();
    // The one head, or token, in which all of it is.
    let same = |of: &[Option<usize>]| {
        let first = of.first().copied().flatten()?;
        of.iter().all(|p| *p == Some(first)).then_some(first)
    };
    let (head, token) = (same(&heads), same(&tokens));
    let mut regions = vec![(None, None)];
    regions.extend(head.map(|h| (Some(h), None)));
    regions.extend(token.map(|t| (None, Some(t))));
    regions.extend(head.zip(token).map(|(h, t)| (Some(h), Some(t))));
    for region in regions {
        let inside = |i: usize| {
            let (head, token) = site.place(i);
            region.0.is_none_or(|h| head == Some(h)) && region.1.is_none_or(|t| token == Some(t))
        };
        let Some(factor) = factor(site, inside) else { continue };
        let value = |i: usize| {
            let honest = site.honest.value.values[i];
            if inside(i) { factor * honest } else { honest }
        };
        let bound = |i: usize| {
            let bound = site.honest.bounds[i].bound;
            // The product is rounded, and so is the factor.
            if inside(i) { factor.abs() * bound + 2.0 * site.u * value(i).abs() } else { bound }
        };
        if factor == 0.0 {
            found.test(None, "with zeros", || Some(site.target().fits(value, bound)));
        } else {
            found.test("scaled", format!("after scaling by {}", short(factor)), || {
                Some(site.target().fits(value, bound))
            });
        }
    }
}

/// The factor with the least squares of what is left, over the elements of a region.
fn factor(site: &Site<'_>, inside: impl Fn(usize) -> bool) -> Option<f64> {
    let (mut products, mut squares) = (0.0, 0.0);
    for i in (0..site.given.values.len()).filter(|&i| site.counts[i] && inside(i)) {
        let (given, honest) = (site.given.values[i], site.honest.value.values[i]);
        if given.is_finite() && honest.is_finite() {
            products += given * honest;
            squares += honest * honest;
        }
    }
    let factor = products / squares;
    (factor.is_finite() && (factor - 1.0).abs() > 4.0 * site.u).then_some(factor)
}

/// The fewest decimals that are within what the factor can be known to: 1.001, 0.3333333, 2.
pub fn short(x: f64) -> String {
    let known = 4.0 * llorch_trace::Dtype::F32.unit_roundoff() * x.abs();
    let texts = (0..9).map(|digits| format!("{x:.digits$}"));
    let near = |text: &String| text.parse().is_ok_and(|v: f64| (v - x).abs() <= known);
    texts.into_iter().find(near).unwrap_or_else(|| format!("{x:e}"))
}
