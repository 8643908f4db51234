//! Rows of kind `pair`: every two implementations, the subject first.

use llorch_trace::Stage;

use super::oracle_rows::OracleRows;
use super::{Place, deviations, narrow, probabilities, tokens};
use crate::compare::{Tolerance, compare};
use crate::result::{Row, RowKind, Verdict};

pub fn rows(place: &Place<'_>, oracle: &OracleRows, rows: &mut Vec<Row>) {
    let n = place.evidence.len();
    for a in 0..n {
        for b in a + 1..n {
            // Two that never ran say nothing about each other.
            let missing = |i: usize| place.evidence[i].missing.is_some();
            if !(missing(a) && missing(b)) {
                rows.push(pair(place, oracle, a, b));
            }
        }
    }
}

fn pair(place: &Place<'_>, oracle: &OracleRows, a: usize, b: usize) -> Row {
    let name = &place.evidence[b].name;
    let (x, y) = match place.both(a, b) {
        Ok(both) => both,
        Err(row) => return *row,
    };
    if place.point.stage == Stage::NextProbs {
        let row = probabilities::pair(place, a, b, x, y);
        return deviations::excuse(place, &[a, b], (x, y), row);
    }
    let tolerance = match place.tolerance(place.point) {
        0.0 => Tolerance::Exact,
        t => Tolerance::Mixed(t),
    };
    let compared = compare(x, y, tolerance, &place.cells());
    let row = place.judged(RowKind::Pair, a, name, (x, y), compared);
    let row = deviations::excuse(place, &[a, b], (x, y), row);
    match place.point.stage {
        Stage::Argmax if row.verdict == Verdict::Fail => tokens::excuse_argmax(place, oracle, row),
        Stage::Tokens => tokens::compare_tokenizers(place, a, b, row),
        _ => {
            let rows = oracle.at(&place.case.name, place.step, place.point);
            narrow::pair(place, rows, [(a, x), (b, y)], row)
        }
    }
}
