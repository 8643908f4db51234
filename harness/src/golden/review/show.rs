//! What is pending as text: tables, or Markdown.

use std::fmt::Write as _;

use comfy_table::Table;

use super::changes::Kind;
use super::decide::Decision;
use super::view::{BundleView, Review, TensorView, UnitView, What};
use crate::golden::show::new_table;
use crate::report::numbers::figure;
use crate::text::{count, shorten};

/// Tensors that a unit shows, unless all are asked for.
const SHOWN: usize = 3;

pub fn text(review: &Review, all: bool, markdown: bool) -> String {
    let mut out = String::new();
    let bold = if markdown { "**" } else { "" };
    let _ = writeln!(out, "{bold}{}{bold}", first_line(review));
    for bundle in &review.bundles {
        let _ = writeln!(out, "\n{}", versions(bundle));
        let mut table = table(markdown);
        for unit in &bundle.units {
            rows(&mut table, unit, all);
        }
        let _ = writeln!(out, "{}", table.trim_fmt());
        for unit in &bundle.units {
            out += &beside(unit);
        }
    }
    out += &decided(review);
    out
}

fn first_line(review: &Review) -> String {
    let units = review.units().count();
    let tensors = review.units().map(|(_, u)| u.tensors.len()).sum();
    let are = match (review.decided.is_empty(), units) {
        (true, 1) => "is",
        (true, _) => "are",
        (false, 1) => "was",
        (false, _) => "were",
    };
    match &review.recorded {
        None => format!("nothing is pending in {}", review.dir),
        Some(recorded) => format!(
            "{} {are} pending in {}: {}, recorded {recorded} by `{}`",
            count(units, "unit"),
            review.dir,
            count(tensors, "tensor"),
            review.command.as_deref().unwrap_or_default()
        ),
    }
}

/// Who recorded what is accepted and what waits.
pub fn versions(bundle: &BundleView) -> String {
    let old = bundle.old.as_ref().map_or("none".to_string(), |old| {
        format!("{} ({})", old.by, old.date.as_deref().unwrap_or("no date"))
    });
    let new = &bundle.new;
    let date = new.date.as_deref().unwrap_or("no date");
    format!("{}\n  old  {old}\n  new  {} ({date})", bundle.bundle, new.by)
}

/// One unit by itself, for who is asked about it.
pub fn unit(unit: &UnitView, all: bool) -> String {
    let mut table = table(false);
    rows(&mut table, unit, all);
    format!("{}\n{}", table.trim_fmt(), beside(unit))
}

fn table(markdown: bool) -> Table {
    let mut table = new_table(markdown);
    table.set_header([
        "unit",
        "case",
        "step",
        "tensor",
        "largest change",
        "error of old",
        "error of new",
        "nearer",
        "note",
    ]);
    table
}

fn rows(table: &mut Table, unit: &UnitView, all: bool) {
    let shown = if all { unit.tensors.len() } else { SHOWN };
    let mut name = unit.unit.as_str();
    if unit.tensors.is_empty() {
        table.add_row([name, "", "", "", "", "", "", "", "no tensor changes"]);
    }
    for tensor in unit.tensors.iter().take(shown) {
        table.add_row(row(std::mem::take(&mut name), unit.kind, tensor));
    }
    let rest = &unit.tensors[shown.min(unit.tensors.len())..];
    if !rest.is_empty() {
        let nearer = |which| rest.iter().filter(|t| t.nearer == Some(which)).count();
        let beyond = rest.iter().filter(|t| t.beyond_tolerance).count();
        let mut note = format!("of them {} nearer by old, {} by new", nearer("old"), nearer("new"));
        if beyond > 0 {
            let _ = write!(note, ", {beyond} beyond the tolerance");
        }
        let more = format!("{} more", rest.len());
        table.add_row(["", "", "", &more, "", "", "", "", &note]);
    }
}

fn row(name: &str, kind: Kind, t: &TensorView) -> [String; 9] {
    let change = match (t.change, t.max_change) {
        (What::New, _) => "new".into(),
        (What::Gone, _) => "gone".into(),
        (What::Changed, Some(most)) => figure(most),
        (What::Changed, None) => "no figure".into(),
    };
    // The unit's name says the point already; what is left of the key are its rows.
    let tensor = match (kind, t.point.split_once('#')) {
        (Kind::Point, Some((_, rows))) => rows.to_string(),
        (Kind::Point, None) => String::new(),
        _ => t.point.clone(),
    };
    let error = |e: Option<f64>| e.map_or("–".to_string(), figure);
    [
        name.to_string(),
        t.case.clone(),
        t.step.to_string(),
        tensor,
        change,
        error(t.old_error),
        error(t.new_error),
        t.nearer.unwrap_or("–").to_string(),
        t.note.clone(),
    ]
}

/// Generated text, other origins and earlier rejections of a unit.
fn beside(unit: &UnitView) -> String {
    let mut out = String::new();
    if unit.kind == Kind::Bundle {
        let _ =
            writeln!(out, "{}: {}; it is accepted or rejected as a whole", unit.unit, unit.what);
    }
    for text in &unit.texts {
        let quoted = |t: &Option<String>| match t {
            Some(t) => format!("{:?}", shorten(t, 120)),
            None => "nothing".into(),
        };
        let (old, new) = (quoted(&text.old), quoted(&text.new));
        let _ = writeln!(out, "{}: {} goes on with {new}, before with {old}", unit.unit, text.case);
    }
    if unit.kind == Kind::Case && unit.texts.is_empty() {
        let _ = writeln!(out, "{}: its ids, prompt or sampling change", unit.unit);
    }
    if unit.old_by.len() > 1 {
        let by: Vec<String> = unit.old_by.iter().map(|(by, n)| format!("{n} by {by}")).collect();
        let _ = writeln!(out, "{}: the old ones are {}", unit.unit, by.join("; "));
    }
    if let Some(before) = &unit.rejected_before {
        let _ = writeln!(out, "{}: just this was rejected before, {before}", unit.unit);
    }
    out
}

fn decided(review: &Review) -> String {
    let mut out = String::new();
    for decision in [Decision::Accepted, Decision::Rejected] {
        let all: Vec<_> = review.decided.iter().filter(|d| d.decision == decision).collect();
        let word = if decision == Decision::Accepted { "accepted" } else { "rejected" };
        if let Some(first) = all.first() {
            let _ = writeln!(out, "\n{word} {}: {}", count(all.len(), "unit"), first.reason);
        }
    }
    if !review.pending.is_empty() {
        let _ = writeln!(
            out,
            "\n{} pending; accept or reject at a terminal, or with --accept-all or --reject-all and --reason",
            match review.pending.len() {
                1 => "1 unit is".to_string(),
                n => format!("{n} units are"),
            }
        );
    }
    out
}
