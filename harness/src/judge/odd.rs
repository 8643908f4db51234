//! Who is wrong, and where first: the subject, or a reference, whichever name it has.

use crate::evidence::Evidence;
use crate::result::{Odd, Role, Row, RowKind, Verdict};

/// One entry for each implementation with a FAIL against the oracle or itself, the subject first.
pub fn find(evidence: &[Evidence], rows: &[Row]) -> Vec<Odd> {
    let order = |e: &&Evidence| e.role != Role::Subject;
    let mut all: Vec<&Evidence> = evidence.iter().collect();
    all.sort_by_key(order);
    all.into_iter().filter_map(|e| first(&e.name, rows)).collect()
}

fn first(name: &str, rows: &[Row]) -> Option<Odd> {
    let wrong: Vec<&Row> = rows
        .iter()
        .filter(|r| r.kind != RowKind::Pair && r.a == name && r.verdict == Verdict::Fail)
        .collect();
    let by_itself = |r: &&&Row| match &r.local {
        Some(local) => local.verdict == Verdict::Fail,
        None => r.kind == RowKind::Own,
    };
    // A stage that is wrong by itself says more than one that was handed something wrong.
    let causes: Vec<&&Row> = wrong.iter().filter(by_itself).collect();
    let place = |r: &&&Row| (r.step, r.point);
    let row = causes.iter().copied().min_by_key(place).or(wrong.iter().min_by_key(place))?;
    let mut layers: Vec<usize> = match causes.is_empty() {
        true => row.layer.into_iter().collect(),
        false => causes
            .iter()
            .filter(|r| r.point.stage == row.point.stage)
            .filter_map(|r| r.layer)
            .collect(),
    };
    layers.sort_unstable();
    layers.dedup();
    Some(Odd {
        name: name.to_string(),
        point: row.point,
        layers,
        checkpoint: row.checkpoint,
        case: row.case.clone(),
        step: row.step,
        reason: row.reason.clone(),
    })
}
