//! Errors along the data flow: for each point, the largest of each implementation over cases and steps.

use std::collections::BTreeMap;

use llorch_trace::Point;
use serde::Serialize;

use crate::result::{Role, Row, RowKind, RunResult, Status};

/// An error; None where a value is not finite.
pub type Figure = Option<f64>;

#[derive(Debug)]
pub struct Flow {
    pub points: Vec<FlowPoint>,
    /// The subject first.
    pub series: Vec<Series>,
    /// False where the oracle had no say: series are then the subject's pairs.
    pub by_oracle: bool,
}

#[derive(Debug)]
pub struct FlowPoint {
    pub point: Point,
    pub tolerance: f64,
}

#[derive(Debug)]
pub struct Series {
    pub name: String,
    pub is_subject: bool,
    /// By point; None where there is no row.
    pub errors: Vec<Errors>,
}

/// What `result.json` says of one implementation at one point, the largest of all cases and steps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Errors {
    pub total: Option<Figure>,
    pub local: Option<Figure>,
    pub inherited: Option<Figure>,
}

pub fn flow(result: &RunResult) -> Flow {
    let by_oracle = result.rows.iter().any(|r| r.kind == RowKind::Oracle);
    let subject = result.subject_name();
    let kind = if by_oracle { RowKind::Oracle } else { RowKind::Pair };
    // Without the oracle a reference's line is its distance from the subject.
    let whose = |r: &'_ Row| -> Option<String> {
        match by_oracle {
            true => Some(r.a.clone()),
            false => (r.a == subject).then(|| r.b.clone()),
        }
    };
    let mut points: BTreeMap<Point, f64> = BTreeMap::new();
    let mut errors: BTreeMap<(String, Point), Errors> = BTreeMap::new();
    for row in result.rows.iter().filter(|r| r.kind == kind) {
        let (Some(name), Some(metrics)) = (whose(row), &row.metrics) else { continue };
        let tolerance = points.entry(row.point).or_insert(row.tolerance);
        *tolerance = tolerance.max(row.tolerance);
        let found = errors.entry((name, row.point)).or_default();
        larger(&mut found.total, metrics.max_abs);
        if let Some(local) = &row.local {
            larger(&mut found.local, local.max_abs);
        }
        if let Some(inherited) = row.inherited {
            larger(&mut found.inherited, Some(inherited));
        }
    }
    let present = |i: &&crate::result::Implementation| {
        i.status != Status::Missing && (by_oracle || i.role == Role::Reference)
    };
    let series = result.implementations.iter().filter(present).map(|i| Series {
        name: i.name.clone(),
        is_subject: i.role == Role::Subject,
        errors: points
            .keys()
            .map(|p| errors.get(&(i.name.clone(), *p)).copied().unwrap_or_default())
            .collect(),
    });
    Flow {
        series: series.filter(|s| s.errors.iter().any(|e| e.total.is_some())).collect(),
        points: points
            .into_iter()
            .map(|(point, tolerance)| FlowPoint { point, tolerance })
            .collect(),
        by_oracle,
    }
}

/// What is not finite is larger than all else.
fn larger(kept: &mut Option<Figure>, found: Figure) {
    let size = |f: Figure| f.unwrap_or(f64::INFINITY);
    if kept.is_none_or(|k| size(found) > size(k)) {
        *kept = Some(found);
    }
}

impl Flow {
    /// The smallest and the largest of the references at a point.
    pub fn band(&self, i: usize, of: fn(&Errors) -> Option<Figure>) -> Option<(f64, f64)> {
        let references = self.series.iter().filter(|s| !s.is_subject);
        let values = references.filter_map(|s| of(&s.errors[i])).flatten();
        values.fold(None, |band, v| match band {
            None => Some((v, v)),
            Some((low, high)) => Some((v.min(low), v.max(high))),
        })
    }

    /// For the page's script: the same figures as result.json has.
    pub fn json(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct OnePoint {
            p: String,
            c: u8,
            t: f64,
        }
        let figure = |f: Option<Figure>| match f {
            None => serde_json::Value::Null,
            Some(None) => "not finite".into(),
            Some(Some(v)) => v.into(),
        };
        let points: Vec<OnePoint> = self
            .points
            .iter()
            .map(|p| OnePoint {
                p: p.point.to_string(),
                c: p.point.checkpoint().number,
                t: p.tolerance,
            })
            .collect();
        let series: Vec<_> = self
            .series
            .iter()
            .map(|s| {
                let of = |of: fn(&Errors) -> Option<Figure>| -> Vec<_> {
                    s.errors.iter().map(|e| figure(of(e))).collect()
                };
                serde_json::json!({
                    "name": s.name,
                    "total": of(|e| e.total),
                    "local": of(|e| e.local),
                    "inherited": of(|e| e.inherited),
                })
            })
            .collect();
        serde_json::json!({"points": points, "series": series, "by_oracle": self.by_oracle})
    }
}
