//! Changes in words.

use std::fmt::Write;

use super::diff::{Change, Changes, Checkpoint, Errors};
use super::record::{Record, checkpoint_name};
use crate::report::numbers::{error, seconds};
use crate::report::wrong;
use crate::result::Verdict;
use crate::text::count;

/// Both runs in a line each, then what changed.
pub fn text(changes: &Changes, old: &Record, new: &Record) -> String {
    let mut out = String::new();
    for (which, record) in [("old", old), ("new", new)] {
        let (verdict, model) = (record.verdict.name(), &record.model.name);
        let _ = writeln!(out, "{which}  {}  {verdict}  {model}", record.id);
    }
    let _ = writeln!(out);
    for line in lines(changes, new) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// A line for each change; `nothing changed` where there is none but times.
pub fn lines(changes: &Changes, new: &Record) -> Vec<String> {
    let mut lines = Vec::new();
    if changes.nothing_changed {
        lines.push("nothing changed".to_string());
    }
    if let Some([old, new]) = changes.verdict {
        lines.push(format!("verdict: {} → {}", old.name(), new.name()));
    }
    lines.extend(changes.causes.iter().map(|odd| format!("new cause: {}", wrong(odd))));
    lines.extend(changes.causes_gone.iter().map(|odd| format!("gone: {}", wrong(odd))));
    lines.extend(changes.failures.iter().map(|f| format!("newly wrong: {f}")));
    lines.extend(changes.failures_gone.iter().map(|f| format!("right again: {f}")));
    for c in &changes.circumstances {
        lines.push(format!("{}: {} → {}", c.what, c.old, c.new));
    }
    for i in &changes.implementations {
        let why = new.implementation(&i.name).map(|now| now.reason.as_str()).unwrap_or_default();
        lines.push(match (&i.old, &i.new) {
            (Some(old), Some(new)) if !why.is_empty() => {
                format!("{}: {old} → {new}: {why}", i.name)
            }
            (Some(old), Some(new)) => format!("{}: {old} → {new}", i.name),
            (None, Some(new)) => format!("{}: joined, {new}", i.name),
            (_, None) => format!("{}: was not asked", i.name),
        });
    }
    for u in &changes.unchecked {
        lines.push(format!("newly UNCHECKED: {}: {}", u.what, u.reason));
    }
    lines.extend(changes.unchecked_gone.iter().map(|u| format!("checked again: {}", u.what)));
    lines.extend(checkpoints(&changes.checkpoints));
    for v in &changes.verdicts {
        let first = v.points.first().map(ToString::to_string).unwrap_or_default();
        let points = count(v.points.len(), "point");
        let (old, new) = (named(v.old), named(v.new));
        lines.push(format!("{}: another verdict at {points}, first {first}: {old} → {new}", v.who));
    }
    for b in &changes.bits {
        let first = b.points.first().map(ToString::to_string).unwrap_or_default();
        let (n, of) = (b.points.len(), b.of);
        lines.push(format!(
            "{}: its numbers change at {n} of {of} points, first at {first}",
            b.name
        ));
    }
    lines.extend(changes.errors.iter().map(errors));
    for t in &changes.times {
        let usual = seconds(t.usual.median);
        let (old, new) = (seconds(t.old), seconds(t.new));
        lines.push(format!("time of {}: {old} → {new}, usually {usual} (a note)", t.part));
    }
    lines
}

/// Neighbours that change alike in one line.
fn checkpoints(all: &[Checkpoint]) -> Vec<String> {
    let verdict = |v: Option<Verdict>| v.map_or("not looked at", Verdict::name);
    let alike = |a: &Checkpoint, b: &Checkpoint| {
        (a.old, a.new) == (b.old, b.new) && a.number + 1 == b.number
    };
    let line = |group: &[Checkpoint]| {
        let (first, last) = (group.first()?, group.last()?);
        let which = match group.len() {
            1 => format!("checkpoint {} {}", first.number, checkpoint_name(first.number)),
            _ => format!("checkpoints {} to {}", first.number, last.number),
        };
        Some(format!("{which}: {} → {}", verdict(first.old), verdict(first.new)))
    };
    all.chunk_by(alike).filter_map(line).collect()
}

fn named(letter: char) -> &'static str {
    match letter {
        'P' => "PASS",
        'W' => "WARN",
        'F' => "FAIL",
        'E' => "ERROR",
        'U' => "UNCHECKED",
        _ => "no figure",
    }
}

fn errors(of: &Errors) -> String {
    let mut text = format!(
        "{}: {} error off what is usual at {} of {} points",
        of.name,
        of.error,
        of.points.len(),
        of.of
    );
    if let Some(first) = of.points.first() {
        let _ = write!(text, ", first {}", change(of, first));
    }
    let factor = |c: &&Change| match (c.old, c.new) {
        (Some(old), Some(new)) if old > 0.0 && new > 0.0 => (new / old).max(old / new),
        _ => f64::INFINITY,
    };
    let most = of.points.iter().max_by(|a, b| factor(a).total_cmp(&factor(b)));
    if let Some(most) = most.filter(|most| Some(*most) != of.points.first()) {
        let _ = write!(text, ", most {}", change(of, most));
    }
    text
}

/// `h.0.ln_1 2.0e-6 → 4.1e-6, usually 2.0e-6 ± 1.1e-7`.
fn change(of: &Errors, c: &Change) -> String {
    let figure = |v: Option<f64>| match of.error {
        // Of what rounding is expected to do at most.
        "local" => v.map_or("not finite".into(), |v| format!("{v:.2}×")),
        _ => error(v),
    };
    let usual = c.usual.map(|u| {
        let (median, spread) = (figure(Some(u.median)), figure(Some(u.deviation())));
        format!(" (usually {median} ± {spread}, {})", count(u.runs, "run"))
    });
    format!("{} {} → {}{}", c.point, figure(c.old), figure(c.new), usual.unwrap_or_default())
}
