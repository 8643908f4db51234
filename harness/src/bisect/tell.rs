//! The answer in words: where first, in one line; then why that is so.

use llorch_trace::{CHECKPOINTS, Class, Point};

use super::answer::Answer;
use super::causes::Cause;
use super::pairs;
use super::reproduce::reproduce;
use crate::report;
use crate::result::{Local, NO_REFERENCE, Row, RowKind, UncheckedKind, Verdict};
use crate::text::{count, layers, listed, pattern};

/// What stands in front of the command that finds just this again.
pub const REPRODUCE: &str = "reproduce with: ";

pub fn text(answer: &Answer<'_>) -> String {
    let mut lines = Vec::new();
    match (&answer.differs, answer.causes.split_first()) {
        (Some(differs), _) => {
            lines.push(format!("FIRST CAUSE {}", differing(answer, &differs.row)));
            lines.extend(row_evidence(&differs.row));
            lines.push(
                "the oracle doesn't know this model: differences are all there is to go by".into(),
            );
        }
        (None, Some((first, others))) => {
            lines.push(format!("FIRST CAUSE {}", heading(first)));
            lines.extend(evidence(answer, first));
            for other in others {
                lines.push(format!("NEXT CAUSE {}", heading(other)));
                lines.extend(outcome(answer, other));
            }
        }
        (None, None) => lines.extend(nothing(answer)),
    }
    if answer.first_row().is_some()
        && let Some(failure) = &answer.failure
    {
        lines.push(format!("{} failed beside: {failure}", answer.name));
    }
    for odd in answer.odd_references() {
        lines.push(format!("wrong by the float64 oracle: {}", report::wrong(odd)));
    }
    lines.extend(answer.notes.iter().cloned());
    let (points, all) = answer.collected.plan.looked_at();
    if points < all {
        lines.push(format!("only {points} of {all} points were looked at"));
    }
    lines.extend(unchecked(answer));
    lines.extend(
        answer.first_row().map(|row| format!("{REPRODUCE}{}", reproduce(answer.result, row))),
    );
    lines.join("\n")
}

/// `h.3.attn.out · layer 3 · step 0 · local 41× the references · above the rounding bound · head 7 ·
/// token 1 · matches after transpose`.
fn heading(cause: &Cause) -> String {
    let first = cause.first();
    let mut parts = Vec::new();
    if let Some((after, point)) = super::intervals::between(first) {
        let after = after.map_or("the input".to_string(), |p| p.to_string());
        parts.push(format!("between {after} and {}", stage_of(cause, point)));
    } else {
        parts.push(stage_of(cause, first.point));
    }
    if first.point.layer.is_some() {
        parts.push(layers(&cause.layers));
    }
    parts.push(format!("step {}", first.step));
    if let Some(local) = &first.row.local {
        parts.extend(sizes(local));
    }
    if let Some(zoom) = &cause.zoom {
        parts.extend(zoom.head().map(|n| format!("head {n}")));
        parts.extend(zoom.token().map(|n| format!("token {n}")));
    }
    parts.extend(cause.explanation.as_ref().map(|e| match (cause.varies, first.point.layer) {
        (true, Some(layer)) => format!("matches {} in layer {layer}", e.text),
        _ => format!("matches {}", e.text),
    }));
    parts.join(" · ")
}

/// `h.3.attn.out`, or `h.*.attn.out` where several layers are wrong.
fn stage_of(cause: &Cause, point: Point) -> String {
    match (point.layer, cause.layers.len()) {
        (Some(_), n) if n > 1 => pattern(point),
        _ => point.to_string(),
    }
}

fn sizes(local: &Local) -> Vec<String> {
    let times = |x: f64| {
        if x < 10.0 {
            format!("{x:.1}")
        } else if x < 1e4 {
            format!("{x:.0}")
        } else {
            format!("{x:.0e}")
        }
    };
    let of_bound = local.of_bound.filter(|_| local.bound.is_some_and(|b| b > 0.0));
    let size = match (local.max_abs, local.ratio, of_bound) {
        (None, _, _) => "local not finite".to_string(),
        (_, Some(ratio), _) => format!("local {}× the references", times(ratio)),
        (_, None, Some(of)) => format!("local {}× the bound", times(of)),
        (Some(size), None, None) => format!("local off by {size:.1e}"),
    };
    let above = match local.of_bound {
        Some(of) if of <= 1.0 => "beyond the class",
        _ => "above the rounding bound",
    };
    vec![size, above.to_string()]
}

fn evidence(answer: &Answer<'_>, cause: &Cause) -> Vec<String> {
    let first = cause.first();
    let row = &first.row;
    let checkpoint = &CHECKPOINTS[row.checkpoint as usize];
    let layer = match (cause.layers.len() > 1, first.point.layer) {
        (true, Some(layer)) => format!("layer {layer}, "),
        _ => String::new(),
    };
    let mut lines = vec![format!(
        "checkpoint {} {}, {layer}case {}, {} against the float64 oracle{}",
        checkpoint.number,
        checkpoint.name,
        row.case,
        row.a,
        extent(answer, cause)
    )];
    if let Some(local) = &row.local {
        lines.push(errors(row, local));
        lines.push(format!(
            "beyond: {}",
            cause
                .zoom
                .as_ref()
                .map_or_else(|| format!("{} elements", local.exceeding), |z| z.describe())
        ));
        lines.extend(certificate(local));
    }
    if !row.reason.is_empty() && row.local.is_none() {
        lines.push(row.reason.clone());
    }
    lines.extend(references(answer, row));
    match &cause.excerpt {
        Some(excerpt) => lines.extend(report::values(row.point, excerpt, &row.a, "recomputed")),
        None => lines.extend(row.excerpt.iter().flat_map(|e| report::row_values(row, e))),
    }
    if let (Some(_), (explained, tested)) = (&cause.explanation, cause.explained)
        && explained < tested
    {
        lines.push(format!("the signature explains {explained} of {tested} places"));
    }
    let testable = first.after.is_none() && !row.point.is_integer();
    if cause.explanation.is_none() && cause.explained.1 > 0 && testable {
        lines.push("no known mistake explains it within rounding".into());
    }
    lines.extend(rivals(cause));
    lines.extend(outcome(answer, cause));
    lines
}

/// Where else.
fn extent(answer: &Answer<'_>, cause: &Cause) -> String {
    let steps: std::collections::BTreeSet<usize> = cause.findings.iter().map(|f| f.step).collect();
    let cases: std::collections::BTreeSet<usize> = cause.findings.iter().map(|f| f.case).collect();
    let mut parts = Vec::new();
    if steps.len() > 1 {
        parts.push(format!("{} steps", steps.len()));
    }
    if cases.len() > 1 {
        parts.push(format!("{} of {} cases", cases.len(), answer.collected.plan.cases.len()));
    }
    let also: Vec<String> = cause.also.iter().map(|s| cause.beside(*s).to_string()).collect();
    if !also.is_empty() {
        parts.push(format!("also {}", listed(&also)));
    }
    if parts.is_empty() { String::new() } else { format!("; in {}", parts.join(", ")) }
}

fn errors(row: &Row, local: &Local) -> String {
    let [given, recomputed] = local.worst_values;
    let value = |v: Option<f64>| v.map_or("not finite".to_string(), |v| format!("{v:.9e}"));
    let inherited = row.inherited.map_or(String::new(), |v| format!(", inherited {v:.1e}"));
    let class = match row.point.checkpoint().class {
        Class::Exact => "exact".to_string(),
        Class::Mixed(t) => format!("{t:.0e}"),
    };
    format!(
        "local {}{inherited}, class {class}; furthest beyond rounding at {:?}: {} where {} is right, off by {}, \
         rounding bound {}",
        report::error(local.max_abs),
        local.worst,
        value(given),
        value(recomputed),
        report::error(given.zip(recomputed).map(|(a, b)| (a - b).abs())),
        local.bound.map_or("none".to_string(), |b| format!("{b:.1e}")),
    )
}

/// The figures that prove it.
fn certificate(local: &Local) -> Option<String> {
    let c = local.certificate.as_ref()?;
    let error = c.error.map_or("not finite".to_string(), |e| format!("{e:.3e}"));
    Some(format!(
        "certificate: at {:?} the error is {error} and the bound {:.3e}; no order of summation gives this value",
        c.element, c.bound
    ))
}

/// What the references have there.
fn references(answer: &Answer<'_>, row: &Row) -> Option<String> {
    let here = |r: &&Row| {
        r.kind == RowKind::Oracle
            && r.a != row.a
            && (&r.case, r.step, r.point) == (&row.case, row.step, row.point)
    };
    let told = |r: &Row| match (&r.local, r.verdict) {
        (Some(local), verdict) => {
            let wrong = if verdict == Verdict::Fail { ", wrong there too" } else { "" };
            format!("{} {}{wrong}", r.a, report::error(local.max_abs))
        }
        (None, _) => format!("{} is not known", r.a),
    };
    let told: Vec<String> = answer.result.rows.iter().filter(here).map(told).collect();
    (!told.is_empty()).then(|| format!("local there of {}", listed(&told)))
}

/// Other mistakes that would have given the same figures.
fn rivals(cause: &Cause) -> Option<String> {
    let texts: Vec<String> = cause.rivals.iter().map(|e| e.text.clone()).collect();
    (!texts.is_empty()).then(|| format!("it matches as well {}", texts.join("; ")))
}

/// What healing or explaining said.
fn outcome(answer: &Answer<'_>, cause: &Cause) -> Option<String> {
    let is_last = answer.causes.last().is_some_and(|last| std::ptr::eq(last, cause));
    Some(match (cause.heals, cause.explains) {
        (Some(true), _) if is_last => "heals: with the oracle's tensors put there, all that follows is right",
        (Some(true), _) => "heals: with the oracle's tensors put there, what follows is right up to the next cause",
        (Some(false), _) => "does not heal: with the oracle's tensors put there, something that follows is still wrong",
        (None, Some(true)) => "explains everything: from here on the oracle arrives at the subject's logits",
        (None, Some(false)) => "does not explain everything: from here on the oracle arrives at other logits",
        (None, None) => return None,
    }
    .to_string())
}

fn nothing(answer: &Answer<'_>) -> Vec<String> {
    let name = &answer.name;
    let mut lines = Vec::new();
    match (&answer.failure, answer.anything_compared()) {
        (Some(reason), _) => {
            lines.push(format!("NO VERDICT: {name} failed: {reason}"));
            if answer.anything_compared() {
                lines.push("what else it gave is right".into());
            }
            return lines;
        }
        (None, false) => return vec!["NO VERDICT: nothing was compared".into()],
        (None, true) => lines.push("NO DIVERGENCE".into()),
    }
    lines.push(agreement(answer));
    lines.extend(answer.open().iter().map(|what| format!("INCOMPLETE: {what}")));
    if !answer.unchecked.is_empty() {
        lines.push(format!("checked by nobody: {}", folded(&answer.unchecked)));
    }
    lines
}

fn agreement(answer: &Answer<'_>) -> String {
    let (result, subject) = (answer.result, &answer.name);
    let compared = |r: &&Row| !matches!(r.verdict, Verdict::Unchecked | Verdict::Error);
    let mut heard: Vec<String> = result
        .references()
        .filter(|r| {
            let here = |row: &&Row| row.a == *subject && row.b == r.name;
            !result.odd.iter().any(|odd| odd.name == r.name)
                && result.rows.iter().filter(compared).any(|row| here(&row))
        })
        .map(|r| r.name.clone())
        .collect();
    if answer.collected.truth.oracle.is_some() {
        heard.push("the float64 oracle".into());
    }
    let cases = count(result.cases.len(), "case");
    format!("{subject} agrees with {} in {cases}", listed(&heard))
}

/// The heading of a difference that no oracle explains.
fn differing(answer: &Answer<'_>, row: &Row) -> String {
    let between = answer.between().map(|(after, _)| {
        let after = after.map_or("the input".to_string(), |p| p.to_string());
        format!("between {after} and ")
    });
    let mut parts = vec![format!("{}{}", between.unwrap_or_default(), row.point)];
    parts.extend(row.layer.map(|layer| format!("layer {layer}")));
    parts.push(format!("step {}", row.step));
    let worst = row.metrics.as_ref().map_or(&[][..], |m| &m.worst);
    let (head, token, element) = pairs::axes(worst);
    parts.extend(head.map(|n| format!("head {n}")));
    parts.extend(token.map(|n| format!("token {n}")));
    parts.extend(element.map(|n| format!("element {n}")));
    parts.push(format!("unlike {}", if row.a == row.b { "itself" } else { &row.b }));
    parts.join(" · ")
}

fn row_evidence(row: &Row) -> Vec<String> {
    let mut lines = vec![format!("case {}", row.case)];
    if let Some(m) = &row.metrics {
        lines.push(format!(
            "largest difference {} at {:?}; {} of {} elements exceed {:.0e}",
            report::error(m.max_abs),
            m.worst,
            m.exceeding,
            m.total,
            row.tolerance
        ));
    }
    if !row.reason.is_empty() {
        lines.push(row.reason.clone());
    }
    lines.extend(row.excerpt.iter().flat_map(|e| report::row_values(row, e)));
    lines
}

/// Lines about what nobody looked at: real weights, references that are not there.
fn unchecked(answer: &Answer<'_>) -> Vec<String> {
    let tell = |u: &&crate::result::Unchecked| {
        u.kind == UncheckedKind::Missing || u.what == "real GPT-2 weights"
    };
    // Points that no reference checked are the oracle's to check.
    let of_references = |u: &&crate::result::Unchecked| u.reason != NO_REFERENCE;
    let lines = answer.result.unchecked.iter().filter(tell).filter(of_references);
    lines.map(|u| format!("UNCHECKED {}: {}", u.what, u.reason)).collect()
}

/// Point names, a stage of several layers as one `h.*`.
fn folded(points: &[Point]) -> String {
    let mut names: Vec<String> = Vec::new();
    for point in points {
        let layers = points.iter().filter(|p| p.stage == point.stage && p.layer.is_some()).count();
        let name = match point.layer {
            Some(_) if layers > 1 => pattern(*point),
            _ => point.to_string(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}
