//! Token plus position: the positions that explain the rows.

use super::site::{Found, Site};

/// How far a shift is looked for.
const FAR: isize = 4;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let weights = &site.oracle.weights;
    let positions = site.oracle.dims.n_positions;
    let (ids, past) = (site.inputs.ids(site.step), site.inputs.past(site.step));
    let prompt = site.inputs.ids(0).len();
    let n = site.oracle.dims.n_embd;
    let Ok(wpe) = weights.matrix("wpe.weight") else { return };
    let tokens: Option<Vec<_>> = ids
        .iter()
        .map(|id| weights.rows("wte.weight", *id as usize..*id as usize + 1).ok())
        .collect();
    let Some(tokens) = tokens else { return };
    let fits = |position: &dyn Fn(usize) -> usize| {
        let at = |i: usize| wpe[[position(i / n).min(positions - 1), i % n]];
        let value = |i: usize| tokens[i / n][[0, i % n]] + at(i);
        let bound = |i: usize| 2.0 * site.u * (tokens[i / n][[0, i % n]].abs() + at(i).abs());
        site.target().fits(value, bound)
    };
    // In a decode step a shift of the one position fits these as well; they hold at other steps too.
    if site.step > 0 {
        found.test("positions_shifted", "with positions that restart at 0", || Some(fits(&|t| t)));
        found.test("positions_shifted", "with the position of the first decode step", || {
            Some(site.step > 1 && fits(&|t| prompt + t))
        });
    }
    // The nearest first: what would lie before position 0 is taken to stay there.
    for by in (1..=FAR).flat_map(|by| [by, -by]) {
        found.test("positions_shifted", format!("with positions shifted by {by:+}"), || {
            Some(fits(&|t| (past + t).saturating_add_signed(by).min(positions - 1)))
        });
    }
    let alone =
        |part: &dyn Fn(usize) -> f64| site.target().fits(part, |i| 2.0 * site.u * part(i).abs());
    found.test(None, "without the positions", || Some(alone(&|i| tokens[i / n][[0, i % n]])));
    found.test(None, "without the tokens", || Some(alone(&|i| wpe[[past + i / n, i % n]])));
    one_shifted(site, found, &wpe, &tokens, past);
}

/// One row alone has its neighbour's position.
fn one_shifted(
    site: &Site<'_>,
    found: &mut Found,
    wpe: &ndarray::Array2<f64>,
    tokens: &[ndarray::Array2<f64>],
    past: usize,
) {
    let n = site.oracle.dims.n_embd;
    let Some(row) = site.beyond().next().map(|i| i / n) else { return };
    if tokens.len() < 2 || site.beyond().any(|i| i / n != row) {
        return;
    }
    let fits = |position: usize| {
        let at = |i: usize| wpe[[if i / n == row { position } else { past + i / n }, i % n]];
        let value = |i: usize| tokens[i / n][[0, i % n]] + at(i);
        let bound = |i: usize| 2.0 * site.u * (tokens[i / n][[0, i % n]].abs() + at(i).abs());
        site.target().fits(value, bound)
    };
    for by in [1, -1] {
        let Some(position) = (past + row).checked_add_signed(by).filter(|p| *p < wpe.nrows())
        else {
            continue;
        };
        found.test("positions_shifted", format!("with one position shifted by {by:+}"), || {
            Some(fits(position))
        });
    }
}
