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
    let handed_down = handed_down(rows);
    // The first place, as data flows, at which an implementation is wrong in a case.
    let mut first: BTreeMap<(String, String), (usize, Point)> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.kind != RowKind::Pair && r.verdict == Verdict::Fail) {
        let place = (row.step, row.point);
        let known = first.entry((row.a.clone(), row.case.clone())).or_insert(place);
        *known = (*known).min(place);
    }
    let of_oracle = rows.iter().filter(|r| r.kind == RowKind::Oracle);
    let deviating: BTreeSet<Place> =
        of_oracle.filter(|r| !r.deviates.is_empty()).map(|r| place(r, &r.a)).collect();
    for row in rows.iter_mut().filter(|r| r.kind == RowKind::Pair) {
        let both = [row.a.clone(), row.b.clone()];
        let here = |name: &String| deviating.contains(&place(row, name));
        let found: Vec<String> = both.into_iter().filter(here).collect();
        found.into_iter().for_each(|name| {
            if !row.deviates.contains(&name) {
                row.deviates.push(name);
            }
        });
    }
    for row in rows.iter_mut().filter(|r| r.kind == RowKind::Pair && r.verdict == Verdict::Fail) {
        let wrong = |name: &String| {
            let place = first.get(&(name.clone(), row.case.clone()));
            // What is generated comes after every step; its own `step` is the first that differs.
            place
                .is_some_and(|p| row.point.stage == Stage::Generated || *p <= (row.step, row.point))
        };
        row.blame = [&row.a, &row.b].into_iter().filter(|n| wrong(n)).cloned().collect();
        let deviates = |name: &String| handed_down.get(&place(row, name)).copied();
        let deviation = deviates(&row.a).or_else(|| deviates(&row.b));
        if let (true, Some(by_itself)) = (row.blame.is_empty(), deviation) {
            deviations::inherit(row, by_itself);
            row.excerpt = None;
        }
        if row.blame.len() == 1 {
            row.reason = format!("{}; {} is wrong by the oracle", row.reason, row.blame[0]);
        }
    }
}

/// An implementation, a case, a step and a point.
type Place = (String, String, usize, Point);

/// Where the figures of a row come from. What has no row against the oracle is made of the last logits.
fn place(row: &Row, name: &str) -> Place {
    let point = match row.point.stage {
        Stage::Argmax | Stage::NextProbs | Stage::Generated => Point::new(Stage::LogitsLast),
        _ => row.point,
    };
    (name.to_string(), row.case.clone(), row.step, point)
}

/// Where an implementation is off by what a declared deviation handed down, and what each stage there is by
/// itself: right, or deviating anew, within its bound.
fn handed_down(rows: &[Row]) -> BTreeMap<Place, Deviates> {
    let of_oracle = || rows.iter().filter(|r| r.kind == RowKind::Oracle);
    let mut first: BTreeMap<(&str, &str), (usize, Point)> = BTreeMap::new();
    for row in of_oracle().filter(|r| r.deviation == Some(Deviates::Declared)) {
        let place = (row.step, row.point);
        let known = first.entry((&row.a, &row.case)).or_insert(place);
        *known = (*known).min(place);
    }
    let mut found = BTreeMap::new();
    for row in of_oracle() {
        let after = |f: &(usize, Point)| *f < (row.step, row.point);
        let by_itself = match row.deviation {
            Some(Deviates::Declared) => {
                first.get(&(&row.a, &row.case)).is_some_and(after).then_some(Deviates::Declared)
            }
            Some(Deviates::Inherited) => Some(Deviates::Inherited),
            // Within the class of the oracle, and by itself right: what else is there came in, and may take a
            // pair beyond its class.
            None => {
                let right = row.local.as_ref().is_some_and(|l| l.verdict == Verdict::Pass);
                let after = first.get(&(&row.a, &row.case)).is_some_and(after);
                (right && after && row.verdict != Verdict::Fail).then_some(Deviates::Inherited)
            }
            Some(Deviates::Narrow) => None,
        };
        if let Some(by_itself) = by_itself {
            found.insert((row.a.clone(), row.case.clone(), row.step, row.point), by_itself);
        }
    }
    found
}
