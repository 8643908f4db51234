//! Rows of kind `oracle`: the last logits of each implementation against the float64 oracle. The
//! oracle also says which references are admitted where a choice of token is to be excused.

use llorch_trace::{Point, Stage};

use super::{Found, Place, point_tolerance};
use crate::compare::{Numbers, Tolerance, compare};
use crate::result::{Role, Row, RowKind};

pub fn rows(place: &Place<'_>, rows: &mut Vec<Row>) {
    if place.point.stage != Stage::LogitsLast {
        return;
    }
    let Some(truth) = logits(place) else { return };
    for (who, found) in place.found.iter().enumerate() {
        if let Found::Tensor(x) = found {
            let tolerance = Tolerance::Mixed(point_tolerance(place.point));
            let compared = compare(x, &truth, tolerance, |_| true);
            rows.push(place.judged(RowKind::Oracle, who, "oracle", (x, &truth), compared));
        }
    }
}

/// The oracle's logits of this step, `[V]`.
fn logits(place: &Place<'_>) -> Option<Numbers> {
    let logits = place.oracle?.logits.get(place.step)?;
    Some(Numbers::f64(vec![logits.len()], logits.clone()))
}

/// The largest |logits − oracle| among the references that pass the class at this step: what honest
/// rounding may do to a logit here. 0 where no reference is admitted. The subject has no say.
pub fn admitted_error(
    evidence: &[crate::evidence::Evidence],
    case: &str,
    step: usize,
    truth: &[f64],
) -> f64 {
    let point = Point::new(Stage::LogitsLast);
    let truth = Numbers::f64(vec![truth.len()], truth.to_vec());
    let errors = evidence.iter().filter(|e| e.role == Role::Reference).filter_map(|e| {
        let x = Numbers::of(&e.tensor(case, step, point)?);
        let tolerance = Tolerance::Mixed(point_tolerance(point));
        let c = compare(&x, &truth, tolerance, |_| true).ok()?;
        if c.within() { c.metrics.max_abs } else { None }
    });
    errors.fold(0.0, f64::max)
}
