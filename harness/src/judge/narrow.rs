//! Who computes in less than f32: bf16, f16.
//!
//! The classes are made for f32, and how far narrow errors add up over the layers hangs on the model. So such
//! an implementation is held, stage by stage, to what rounding to its declared dtype may do there
//! (`oracle::bounds::relative`), and no total error of it is judged by a class. It is no measure for anybody
//! else: it never votes, and widens no margin but its own.

use llorch_trace::Dtype;

use super::Place;
use crate::compare::Numbers;
use crate::result::{Deviates, Row, Verdict};

/// A row against the oracle: its local error decides.
pub fn by_itself(x: &Numbers, mut row: Row) -> Row {
    if !x.is_narrow() || row.verdict == Verdict::Error {
        return row;
    }
    row.deviation = Some(Deviates::Narrow);
    match (&row.local, &row.local_unchecked) {
        (Some(local), _) if local.verdict == Verdict::Fail => row.verdict = Verdict::Fail,
        (Some(local), _) => {
            row.verdict = local.verdict;
            row.reason = reason(&row.a, x.dtype);
            row.excerpt = None;
        }
        (None, _) if row.verdict != Verdict::Fail => {}
        (None, why) => {
            let why = why.clone().unwrap_or_else(|| "nobody recomputes its stages".into());
            row.verdict = Verdict::Unchecked;
            row.reason = format!(
                "{} computes in {}, and its local error isn't known: {why}",
                row.a, x.dtype
            );
            row.excerpt = None;
        }
    }
    row
}

/// A pair that differs by more than the class: fine where each is right by itself against the oracle.
/// `rows` are those against the oracle at the same place.
pub fn pair(place: &Place<'_>, rows: &[Row], of: [(usize, &Numbers); 2], mut row: Row) -> Row {
    let Some((who, x)) = of.into_iter().find(|(_, x)| x.is_narrow()) else { return row };
    if row.verdict != Verdict::Fail {
        return row;
    }
    let verdict = |who: usize| {
        let name = &place.evidence[who].name;
        rows.iter().find(|r| r.a == *name).map_or(Verdict::Unchecked, |r| r.verdict)
    };
    let (name, dtype) = (&place.evidence[who].name, x.dtype);
    match of.map(|(who, _)| verdict(who)) {
        verdicts if verdicts.contains(&Verdict::Fail) => return row,
        verdicts if verdicts.contains(&Verdict::Unchecked) => {
            row.verdict = Verdict::Unchecked;
            row.reason = format!(
                "{name} computes in {dtype}, and no stage of float64 says what that may do here"
            );
        }
        _ => {
            row.verdict = Verdict::Pass;
            row.deviation = Some(Deviates::Narrow);
            row.reason = reason(name, dtype);
        }
    }
    row.excerpt = None;
    row
}

fn reason(name: &str, dtype: Dtype) -> String {
    format!("{name} computes in {dtype}: its stage is within what rounding to that may do")
}
