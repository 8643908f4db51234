//! The answer as `llorch.bisect/1`; docs/schemas/bisect.schema.json says what the fields are.

use serde_json::{Value, json};

use super::answer::Answer;
use super::causes::Cause;
use super::pairs::{self, Differs};
use super::reproduce::reproduce;
use crate::result::{Metrics, Row};
use llorch_trace::Point;

pub const SCHEMA: &str = "llorch.bisect/1";

pub fn json(answer: &Answer<'_>) -> Value {
    let causes: Vec<Value> = match &answer.differs {
        Some(differs) => vec![difference(differs)],
        None => answer.causes.iter().map(|c| cause(answer, c)).collect(),
    };
    let first = answer.first_row();
    json!({
        "schema": SCHEMA,
        "subject": answer.name,
        "model": answer.result.model.name,
        "references": answer.result.references().map(|r| r.name.clone()).collect::<Vec<_>>(),
        "causes": causes,
        "between": answer.between().map(|(after, point)| json!([after, point])),
        "unchecked": answer.unchecked,
        "incomplete": answer.open(),
        "looked_at": answer.collected.plan.looked_at(),
        "failure": answer.failure,
        "odd": answer.odd_references().collect::<Vec<_>>(),
        "notes": answer.notes,
        "reproduce": first.map(|row| reproduce(answer.result, row)),
    })
}

impl Answer<'_> {
    /// The row that says where it goes wrong first.
    pub fn first_row(&self) -> Option<&Row> {
        match &self.differs {
            Some(differs) => Some(&differs.row),
            None => self.causes.first().map(|c| &c.first().row),
        }
    }
}

fn cause(answer: &Answer<'_>, cause: &Cause) -> Value {
    let first = cause.first();
    let (row, local) = (&first.row, first.row.local.as_ref());
    let metrics = row.metrics.as_ref();
    let steps: std::collections::BTreeSet<usize> = cause.findings.iter().map(|f| f.step).collect();
    let cases: std::collections::BTreeSet<usize> = cause.findings.iter().map(|f| f.case).collect();
    let case = |i: &usize| answer.collected.plan.cases.get(*i).map(|c| c.name.clone());
    let also: Vec<Point> = cause.also.iter().map(|s| cause.beside(*s)).collect();
    let worst = local.map(|l| l.worst.clone()).or(metrics.map(|m| m.worst.clone()));
    json!({
        "point": first.point,
        "layers": cause.layers,
        "also": also,
        "checkpoint": row.checkpoint,
        "step": first.step,
        "steps": steps,
        "case": row.case,
        "cases": cases.iter().filter_map(case).collect::<Vec<_>>(),
        "against": row.b,
        "local": local.and_then(|l| l.max_abs),
        "inherited": row.inherited,
        "bound": local.and_then(|l| l.bound),
        "of_bound": local.and_then(|l| l.of_bound),
        "ratio": local.and_then(|l| l.ratio),
        "certificate": local.and_then(|l| l.certificate.clone()),
        "head": cause.zoom.as_ref().and_then(|z| z.head()),
        "token": cause.zoom.as_ref().and_then(|z| z.token()),
        "channel": cause.zoom.as_ref().and_then(|z| z.channel()),
        "element": worst.as_ref().and_then(|w| w.last().copied()),
        "worst": worst.unwrap_or_default(),
        "worst_values": local.map(|l| l.worst_values).or(metrics.map(|m| m.worst_values)),
        "max_abs": max_abs(metrics),
        "tolerance": row.tolerance,
        "reason": row.reason,
        "signature": cause.explanation.as_ref().and_then(|e| e.slug),
        "signature_detail": cause.explanation.as_ref().map(|e| format!("matches {}", e.text)),
        "heals": cause.heals,
        "explains": cause.explains,
    })
}

/// All that is known of a difference without an oracle.
fn difference(differs: &Differs) -> Value {
    let row = &differs.row;
    let metrics = row.metrics.as_ref();
    let (head, token, element) = pairs::axes(metrics.map_or(&[][..], |m| &m.worst));
    json!({
        "point": row.point,
        "layers": row.layer.into_iter().collect::<Vec<_>>(),
        "checkpoint": row.checkpoint,
        "step": row.step,
        "case": row.case,
        "against": row.b,
        "local": null,
        "bound": null,
        "ratio": null,
        "certificate": null,
        "head": head,
        "token": token,
        "element": element,
        "worst": metrics.map(|m| m.worst.clone()).unwrap_or_default(),
        "max_abs": max_abs(metrics),
        "tolerance": row.tolerance,
        "reason": row.reason,
        "signature": null,
        "heals": null,
        "explains": null,
    })
}

fn max_abs(metrics: Option<&Metrics>) -> Option<f64> {
    metrics.and_then(|m| m.max_abs)
}
