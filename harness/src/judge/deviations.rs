//! Declared deviations: what an adapter says beforehand about its upstream, with a bound and a reason.
//!
//! Such a row is judged by the declared bound instead of the class, and says so. Nothing else is: a
//! deviation widens no other row's tolerance.

use llorch_trace::protocol::Deviation;

use super::Place;
use crate::compare::{Numbers, Tolerance, compare};
use crate::result::{Deviates, Row, Verdict};

/// Turns a FAIL into a PASS with its reason, if one of `whose` declared it and it is within its bound.
pub fn excuse(place: &Place<'_>, whose: &[usize], numbers: (&Numbers, &Numbers), row: Row) -> Row {
    if row.verdict != Verdict::Fail {
        return row;
    }
    let declared = whose.iter().find_map(|&who| Some((who, find(place, who)?)));
    match declared.filter(|(_, d)| d.bound > row.tolerance) {
        Some((who, deviation)) => settle(place, who, deviation, numbers, row),
        None => row,
    }
}

/// The same of a row against the oracle: the declared bound holds what the stage does by itself.
pub fn excuse_local(place: &Place<'_>, who: usize, numbers: (&Numbers, &Numbers), row: Row) -> Row {
    let fails = row.local.as_ref().is_some_and(|l| l.verdict != Verdict::Pass);
    match find(place, who).filter(|_| fails) {
        Some(deviation) => settle(place, who, deviation, numbers, row),
        None => row,
    }
}

/// By the declared bound.
fn settle(
    place: &Place<'_>,
    who: usize,
    deviation: &Deviation,
    numbers: (&Numbers, &Numbers),
    mut row: Row,
) -> Row {
    let tolerance = Tolerance::Mixed(deviation.bound);
    let within = compare(numbers.0, numbers.1, tolerance, place.counts()).is_ok_and(|c| c.within());
    let (name, Deviation { bound, reason, .. }) = (&place.evidence[who].name, deviation);
    if within {
        row.verdict = Verdict::Pass;
        row.deviation = Some(Deviates::Declared);
        row.reason = format!("{name} declares a deviation within {bound:.0e}: {reason}");
        row.excerpt = None;
    } else {
        row.reason = format!("{}, and more than the {bound:.0e} that {name} declares", row.reason);
    }
    row
}

/// A row that is right by itself and off by what a declared deviation handed down.
pub fn inherit(row: &mut Row) {
    row.verdict = Verdict::Pass;
    row.deviation = Some(Deviates::Inherited);
    row.reason = "inherited from a declared deviation; this stage is right by itself".into();
}

fn find<'a>(place: &Place<'a>, who: usize) -> Option<&'a Deviation> {
    let hello = place.evidence[who].hello.as_ref()?;
    let name = place.point.to_string();
    hello.deviations.iter().find(|d| llorch_trace::points::glob_matches(&d.point, &name))
}
