//! Declared deviations: what an adapter says beforehand about its upstream, with a bound and a reason.
//!
//! Such a row is judged by the declared bound instead of the class, and says so. Nothing else is: a
//! deviation widens no other row's tolerance.

use llorch_trace::protocol::Deviation;

use super::Place;
use crate::compare::{Numbers, Tolerance, compare};
use crate::result::{Row, Verdict};

/// Turns a FAIL into a PASS with its reason, if one of `whose` declared it and it is within its bound.
pub fn excuse(
    place: &Place<'_>,
    whose: &[usize],
    numbers: (&Numbers, &Numbers),
    mut row: Row,
) -> Row {
    if row.verdict != Verdict::Fail {
        return row;
    }
    let declared = whose.iter().find_map(|&who| Some((who, find(place, who)?)));
    let Some((who, deviation)) = declared.filter(|(_, d)| d.bound > row.tolerance) else {
        return row;
    };
    let tolerance = Tolerance::Mixed(deviation.bound);
    let within = compare(numbers.0, numbers.1, tolerance, place.counts()).is_ok_and(|c| c.within());
    let name = &place.evidence[who].name;
    let Deviation { bound, reason, .. } = deviation;
    if within {
        row.verdict = Verdict::Pass;
        row.reason = format!("{name} {DECLARES} {bound:.0e}: {reason}");
        row.excerpt = None;
    } else {
        row.reason = format!("{}, and more than the {bound:.0e} that {name} declares", row.reason);
    }
    row
}

/// What stands in the reason of a row that a declared deviation excuses.
pub const DECLARES: &str = "declares a deviation within";

/// The same of a row against the oracle: the declared bound holds what the stage does by itself.
pub fn excuse_local(
    place: &Place<'_>,
    who: usize,
    numbers: (&Numbers, &Numbers),
    mut row: Row,
) -> Row {
    let fails = |row: &Row| row.local.as_ref().is_some_and(|l| l.verdict != Verdict::Pass);
    let Some(deviation) = find(place, who).filter(|_| fails(&row)) else { return row };
    let tolerance = Tolerance::Mixed(deviation.bound);
    let within = compare(numbers.0, numbers.1, tolerance, place.counts()).is_ok_and(|c| c.within());
    let (name, Deviation { bound, reason, .. }) = (&place.evidence[who].name, deviation);
    if within {
        row.verdict = Verdict::Pass;
        row.reason = format!("{name} {DECLARES} {bound:.0e}: {reason}");
        row.excerpt = None;
    } else {
        row.reason = format!("{}, and more than the {bound:.0e} that {name} declares", row.reason);
    }
    row
}

fn find<'a>(place: &Place<'a>, who: usize) -> Option<&'a Deviation> {
    let hello = place.evidence[who].hello.as_ref()?;
    let name = place.point.to_string();
    hello.deviations.iter().find(|d| llorch_trace::points::glob_matches(&d.point, &name))
}
