//! What the oracle says of each implementation at a checkpoint: total and local errors side by side,
//! layers, steps and cases folded onto the largest.

use super::numbers::error;
use super::view::{CheckpointView, PointLine};
use crate::judge::times;
use crate::result::{Row, RowKind, RunResult, Status};

/// One line of the table for each kind of point.
pub struct StageLine {
    pub label: String,
    /// By implementation, in the order of the columns.
    pub cells: Vec<String>,
    /// The local error that is largest for what rounding does, and whose it is.
    pub noise: String,
    /// Ours over the references' errors: total and local.
    pub ratio: String,
}

/// The columns and the lines; None where the oracle had no say.
pub fn lines(
    result: &RunResult,
    view: &CheckpointView<'_>,
) -> Option<(Vec<String>, Vec<StageLine>)> {
    let present = result.implementations.iter().filter(|i| i.status != Status::Missing);
    let names: Vec<String> = present.map(|i| i.name.clone()).collect();
    let lines: Vec<StageLine> =
        view.lines.iter().filter_map(|line| stage(result, &names, line)).collect();
    (!lines.is_empty()).then_some((names, lines))
}

fn stage(result: &RunResult, names: &[String], line: &PointLine<'_>) -> Option<StageLine> {
    let rows: Vec<&Row> = line.rows.iter().copied().filter(|r| r.kind == RowKind::Oracle).collect();
    if !rows.iter().any(|r| r.local.is_some() || r.local_unchecked.is_some()) {
        return None;
    }
    let subject = result.subject_name();
    let of_noise = |r: &&&Row| {
        let local = r.local.as_ref();
        local.map_or(-1.0, |l| l.of_band.unwrap_or(f64::INFINITY))
    };
    let noisiest = rows.iter().max_by(|x, y| of_noise(x).total_cmp(&of_noise(y)));
    let noise = match noisiest.map(|r| (r, of_noise(&r))) {
        Some((row, v)) if v > 0.0 && v.is_finite() => format!("{} {}", times(v), row.a),
        Some((row, v)) if v > 0.0 => format!("∞ {}", row.a),
        Some((_, 0.0)) => "0".into(),
        _ => "-".into(),
    };
    let ours = || rows.iter().filter(|r| r.a == subject);
    let largest = |values: Vec<f64>| {
        values.into_iter().reduce(f64::max).map_or("-".to_string(), |v| format!("{}×", times(v)))
    };
    let total = largest(ours().filter_map(|r| r.ratio).collect());
    let local = largest(ours().filter_map(|r| r.local.as_ref()?.ratio).collect());
    Some(StageLine {
        label: line.label.clone(),
        cells: names.iter().map(|name| cell(&rows, name)).collect(),
        noise,
        ratio: if total == "-" && local == "-" { total } else { format!("{total} / {local}") },
    })
}

/// `1.2e-5 / 3.4e-7`: the largest total and the largest local error of an implementation.
fn cell(rows: &[&Row], name: &str) -> String {
    let own: Vec<&Row> = rows.iter().copied().filter(|r| r.a == name).collect();
    if own.is_empty() {
        return "-".into();
    }
    let largest = |of: &dyn Fn(&Row) -> Option<Option<f64>>| {
        let values = own.iter().filter_map(|r| of(r)).map(|v| v.unwrap_or(f64::INFINITY));
        values.reduce(f64::max).map(|v| error(v.is_finite().then_some(v)))
    };
    let total = largest(&|r| r.metrics.as_ref().map(|m| m.max_abs));
    let local = largest(&|r| r.local.as_ref().map(|l| l.max_abs));
    format!("{} / {}", total.unwrap_or("-".into()), local.unwrap_or("UNCHECKED".into()))
}
