//! Whose fault a difference is. A pair that differs shows that one of two is wrong; the rows of each
//! against the oracle and against itself show which.

use std::collections::{BTreeMap, BTreeSet};

use llorch_trace::{Point, Stage};

use super::deviations;
use crate::result::{Deviates, Row, RowKind, Verdict};

/// Writes into each pair that FAILs which of the two is wrong there or before it, in the same case. It
/// stays empty where neither is: then nobody is cleared. A pair that differs by what a declared
/// deviation handed down passes with that reason.
pub fn assign(rows: &mut [Row]) {
    let deviating: BTreeSet<(String, String, usize, Point)> = rows
        .iter()
        .filter(|r| r.kind == RowKind::Oracle && r.deviation == Some(Deviates::Inherited))
        .map(|r| (r.a.clone(), r.case.clone(), r.step, r.point))
        .collect();
    // The first place, as data flows, at which an implementation is wrong in a case.
    let mut first: BTreeMap<(String, String), (usize, Point)> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.kind != RowKind::Pair && r.verdict == Verdict::Fail) {
        let place = (row.step, row.point);
        let known = first.entry((row.a.clone(), row.case.clone())).or_insert(place);
        *known = (*known).min(place);
    }
    for row in rows.iter_mut().filter(|r| r.kind == RowKind::Pair && r.verdict == Verdict::Fail) {
        let wrong = |name: &String| {
            let place = first.get(&(name.clone(), row.case.clone()));
            // What is generated comes after every step; its own `step` is the first that differs.
            place
                .is_some_and(|p| row.point.stage == Stage::Generated || *p <= (row.step, row.point))
        };
        row.blame = [&row.a, &row.b].into_iter().filter(|n| wrong(n)).cloned().collect();
        // What has no row against the oracle is made of the last logits.
        let made_of = match row.point.stage {
            Stage::Argmax | Stage::NextProbs | Stage::Generated => Point::new(Stage::LogitsLast),
            _ => row.point,
        };
        let deviates = |name: &String| {
            deviating.contains(&(name.clone(), row.case.clone(), row.step, made_of))
        };
        if row.blame.is_empty() && (deviates(&row.a) || deviates(&row.b)) {
            deviations::inherit(row);
            row.excerpt = None;
        }
        if row.blame.len() == 1 {
            row.reason = format!("{}; {} is wrong by the oracle", row.reason, row.blame[0]);
        }
    }
}
