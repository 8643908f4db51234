//! Heads in another order, for q, k, v ([H, T, D]) and the merged context ([T, E]).

use std::collections::BTreeSet;

use llorch_trace::Stage;

use super::site::{Found, Site};

pub fn test(site: &Site<'_>, found: &mut Found) {
    permuted(site, found);
    let (h, d) = (site.oracle.dims.n_head, site.oracle.dims.head_dim());
    let (t, merged) = (site.sizes.0, site.point.stage == Stage::Context);
    if h < 2 || site.given.values.len() != h * t * d {
        return;
    }
    let fits = |source: &dyn Fn(usize, usize, usize) -> usize| {
        let from = |i: usize| {
            let (head, token, element) = split(i, (h, t, d), merged);
            source(head, token, element)
        };
        site.target()
            .fits(|i| site.honest.value.values[from(i)], |i| site.honest.bounds[from(i)].bound)
    };
    let at =
        |head: usize, token: usize, element: usize| join(head, token, element, (h, t, d), merged);
    let ways: [&dyn Fn(usize, usize, usize) -> usize; 4] = [
        // (D, head) for (head, D), and back.
        &|head, token, element| at((element * h + head) / d, token, (element * h + head) % d),
        &|head, token, element| {
            let e = head * d + element;
            at(e % h, token, e / h)
        },
        // The axes of heads and tokens not exchanged, in splitting or in merging.
        &|head, token, element| {
            let flat = (head * t + token) * d + element;
            at(flat % (h * d) / d, flat / (h * d), flat % d)
        },
        &|head, token, element| {
            let flat = (token * h + head) * d + element;
            at(flat / (t * d), flat / d % t, flat % d)
        },
    ];
    for way in ways {
        found.test("heads_interleaved", "with heads interleaved", || Some(fits(way)));
    }
}

/// Each head is another's, each one's once.
pub fn permuted(site: &Site<'_>, found: &mut Found) {
    if !found.asks(Some("heads_permuted")) {
        return;
    }
    let n = site.oracle.dims.n_head;
    let size = site.given.values.len() / n.max(1);
    let merged = site.point.stage == Stage::Context;
    let (t, d) = match site.given.shape[..] {
        [_, t, d] => (t, d),
        [t, e] => (t, e / n.max(1)),
        _ => return,
    };
    if n < 2 || size != t * d {
        return;
    }
    let target = site.target();
    let is = |head: usize, other: usize| {
        (0..size).all(|k| {
            let (token, element) = (k / d, k % d);
            let i = join(head, token, element, (n, t, d), merged);
            let from = join(other, token, element, (n, t, d), merged);
            !target.counts[i]
                || target.element_fits(
                    i,
                    site.honest.value.values[from],
                    site.honest.bounds[from].bound,
                )
        })
    };
    let order: Option<Vec<usize>> = (0..n)
        .map(|head| {
            // Itself first: heads of equal numbers are no permutation.
            std::iter::once(head).chain(0..n).find(|&other| is(head, other))
        })
        .collect();
    let Some(order) = order else { return };
    let distinct: BTreeSet<_> = order.iter().collect();
    if distinct.len() == n && order.iter().enumerate().any(|(i, o)| i != *o) {
        let told: Vec<String> = order.iter().map(usize::to_string).collect();
        let told = match n {
            0..=16 => format!("with heads in the order {}", told.join(" ")),
            _ => "with heads in another order".to_string(),
        };
        found.add("heads_permuted", told);
    }
}

/// Head, token and element of a flat index.
fn split(i: usize, (h, t, d): (usize, usize, usize), merged: bool) -> (usize, usize, usize) {
    match merged {
        true => (i / d % h, i / (h * d), i % d),
        false => (i / (t * d), i / d % t, i % d),
    }
}

fn join(
    head: usize,
    token: usize,
    element: usize,
    (h, t, d): (usize, usize, usize),
    merged: bool,
) -> usize {
    match merged {
        true => (token * h + head) * d + element,
        false => (head * t + token) * d + element,
    }
}
