//! The daemon against the engine that it serves: the same tokens at checkpoint 0, the same greedy text
//! at checkpoint 12. Rows of kind `self`.

use llorch_trace::{Point, Stage};

use super::tokens::first_difference;
use crate::evidence::{Case, Evidence, Plan, Served};
use crate::result::{Generation, Row, RowKind, Verdict};

pub fn rows(plan: &Plan, evidence: &[Evidence], case: &Case, rows: &mut Vec<Row>) {
    let wanted = |stage| plan.points.iter().any(|p| p.stage == stage);
    for e in evidence {
        let Some(served) = &e.served else { continue };
        if wanted(Stage::Tokens) {
            rows.extend(tokens(e, served, case));
        }
        if wanted(Stage::Generated) && case.sampling.temperature == 0.0 && case.max_new_tokens > 0 {
            rows.extend(generation(e, served, case));
        }
    }
}

fn tokens(e: &Evidence, served: &Served, case: &Case) -> Option<Row> {
    let row = |verdict, reason| Some(row(e, case, Stage::Tokens, 0, verdict, reason));
    match (served.tokens.get(&case.name), &served.fault) {
        (Some(ids), _) if *ids == case.ids => {
            row(Verdict::Pass, "the daemon gives the same over HTTP".into())
        }
        (Some(ids), _) => {
            let n = first_difference(ids, &case.ids).unwrap_or(0);
            let told = |ids: &[u32]| ids.get(n).map_or("nothing".to_string(), |id| id.to_string());
            let (found, expected) = (told(ids), told(&case.ids));
            let reason =
                format!("over HTTP token {n} of the prompt is {found}; {expected} was fed");
            row(Verdict::Fail, reason)
        }
        (None, Some(fault)) => row(Verdict::Error, format!("{}: {fault}", e.name)),
        // A case without text.
        (None, None) => None,
    }
}

fn generation(e: &Evidence, served: &Served, case: &Case) -> Option<Row> {
    let row = |step, verdict, reason| Some(row(e, case, Stage::Generated, step, verdict, reason));
    let Some(over_http) = served.generated.get(&case.name) else {
        let fault = served.fault.as_ref()?;
        return row(0, Verdict::Error, format!("{}: {fault}", e.name));
    };
    let own: &Generation = e.generated.get(&case.name)?;
    if let Some(n) = first_difference(&over_http.ids, &own.ids) {
        let reason =
            format!("over HTTP token {n} differs: {:?} against {:?}", over_http.ids, own.ids);
        return row(n, Verdict::Fail, reason);
    }
    match (&over_http.text, &own.text) {
        (Some(x), Some(y)) if x != y => {
            row(0, Verdict::Fail, format!("over HTTP the text is {x:?} against {y:?}"))
        }
        _ => row(0, Verdict::Pass, "the daemon gives the same over HTTP".into()),
    }
}

fn row(
    e: &Evidence,
    case: &Case,
    stage: Stage,
    step: usize,
    verdict: Verdict,
    reason: String,
) -> Row {
    let point = Point::new(stage);
    Row { verdict, reason, ..Row::new(&case.name, step, point, RowKind::Own, &e.name, &e.name) }
}
