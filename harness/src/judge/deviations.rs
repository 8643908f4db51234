//! Declared deviations: what an adapter says beforehand about its upstream, with a bound and a reason.
//!
//! Such a row is judged by the declared bound instead of the class, and says so. Nothing else is: a
//! deviation widens no other row's tolerance.

use llorch_trace::protocol::Deviation;

use super::Place;
use crate::compare::{Numbers, Tolerance, compare};
use crate::result::{Deviates, Row, Verdict};

/// 1e-3, 1.1e-3.
fn short(bound: f64) -> String {
    let one = format!("{bound:.0e}");
    if one.parse() == Ok(bound) { one } else { format!("{bound:.1e}") }
}

/// Turns a FAIL into a PASS with its reason, if one of `whose` declared it and it is within its bound; where
/// both did, within the two together.
pub fn excuse(place: &Place<'_>, whose: &[usize], numbers: (&Numbers, &Numbers), row: Row) -> Row {
    if row.verdict != Verdict::Fail {
        return row;
    }
    let declared: Vec<Declared<'_>> =
        whose.iter().filter_map(|&who| Some((who, find(place, who)?))).collect();
    let bound: f64 = declared.iter().map(|(_, d)| d.bound).sum();
    if bound > row.tolerance { settle(place, &declared, bound, numbers, row) } else { row }
}

/// The same of a row against the oracle: the declared bound holds what the stage does by itself.
pub fn excuse_local(place: &Place<'_>, who: usize, numbers: (&Numbers, &Numbers), row: Row) -> Row {
    let fails = row.local.as_ref().is_some_and(|l| l.verdict != Verdict::Pass);
    match find(place, who).filter(|_| fails) {
        Some(deviation) => settle(place, &[(who, deviation)], deviation.bound, numbers, row),
        None => row,
    }
}

/// Who declares what.
type Declared<'a> = (usize, &'a Deviation);

/// By the declared bound.
fn settle(
    place: &Place<'_>,
    declared: &[Declared<'_>],
    bound: f64,
    numbers: (&Numbers, &Numbers),
    mut row: Row,
) -> Row {
    let tolerance = Tolerance::Mixed(bound);
    let within = compare(numbers.0, numbers.1, tolerance, &place.cells()).is_ok_and(|c| c.within());
    let name = |who: usize| &place.evidence[who].name;
    if within {
        let each = |(who, d): &Declared<'_>| {
            let bound = short(d.bound);
            format!(
                "{} declares a deviation within {bound} · max(1, |x|): {}",
                name(*who),
                d.reason
            )
        };
        row.verdict = Verdict::Pass;
        row.deviation = Some(Deviates::Declared);
        row.deviates = declared.iter().map(|(who, _)| name(*who).clone()).collect();
        row.reason = declared.iter().map(each).collect::<Vec<_>>().join("; ");
        row.excerpt = None;
    } else {
        let names: Vec<String> = declared.iter().map(|(who, _)| name(*who).clone()).collect();
        let (who, verb) = match names.as_slice() {
            [one] => (one.clone(), "declares"),
            all => (all.join(" and "), "declare"),
        };
        let bound = short(bound);
        row.reason = format!("{}, and more than the {bound} that {who} {verb}", row.reason);
    }
    row
}

/// A row that is off by what a declared deviation handed down; by itself it is right, or deviates anew.
pub fn inherit(row: &mut Row, by_itself: Deviates) {
    row.verdict = Verdict::Pass;
    row.deviation = Some(Deviates::Inherited);
    let stage = match by_itself {
        Deviates::Declared => "this stage by itself is within what is declared",
        Deviates::Inherited | Deviates::Narrow => "this stage is right by itself",
    };
    row.reason = format!("inherited from a declared deviation; {stage}");
}

fn find<'a>(place: &Place<'a>, who: usize) -> Option<&'a Deviation> {
    let hello = place.evidence[who].hello.as_ref()?;
    let name = place.point.to_string();
    hello.deviations.iter().find(|d| llorch_trace::points::glob_matches(&d.point, &name))
}
