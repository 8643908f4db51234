//! The report as text: the verdict in the first line, then a table.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment};

use super::finding::At;
use super::report::{Report, Row};
use crate::report::Style;
use crate::report::numbers::{error, index, seconds, value};
use crate::report::table::{bold, new_table, verdict_cell, whole_words};
use crate::result::{RunVerdict, Verdict};
use crate::text::{count, listed};

pub fn text(report: &Report, style: &Style) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}\n", first_line(report));
    let mut table = new_table(style);
    let header = ["invariant", "verdict", "comparisons", "largest difference", "where", "rule"];
    table.set_header(bold(&header, style));
    for row in &report.rows {
        table.add_row(vec![
            Cell::new(row.says),
            verdict_cell(row.verdict, style),
            Cell::new(grouped(row.comparisons)).set_alignment(CellAlignment::Right),
            Cell::new(largest(row)),
            Cell::new(place(row)),
            Cell::new(&row.rule),
        ]);
    }
    let _ = writeln!(out, "{}", whole_words(table));
    for row in report.rows.iter().filter(|r| !matches!(r.verdict, Verdict::Pass)) {
        failure(&mut out, row);
    }
    for row in report.rows.iter().filter(|r| r.verdict == Verdict::Pass && !r.reason.is_empty()) {
        let _ = writeln!(out, "note: {}: {}", row.says, row.reason);
    }
    if !report.unchecked.is_empty() {
        let _ = writeln!(out, "\nUNCHECKED");
        for u in &report.unchecked {
            let _ = writeln!(out, "  {}: {}", u.what, u.reason);
        }
    }
    out
}

fn first_line(report: &Report) -> String {
    let name = &report.subject.name;
    let of = |verdict: Verdict| -> Vec<String> {
        let rows = report.rows.iter().filter(|r| r.verdict == verdict);
        rows.map(|r| r.says.to_string()).collect()
    };
    let checked = report.rows.iter().filter(|r| r.comparisons > 0).count();
    let what = match report.verdict {
        RunVerdict::Pass | RunVerdict::Warn if checked == report.rows.len() => {
            format!("{name} keeps all {checked} invariants")
        }
        RunVerdict::Pass | RunVerdict::Warn | RunVerdict::Incomplete => {
            format!(
                "{name} keeps {checked} of {} invariants; the others are UNCHECKED",
                report.rows.len()
            )
        }
        RunVerdict::Fail => {
            let broken = of(Verdict::Fail);
            format!("{name} breaks {} of {checked} invariants: {}", broken.len(), listed(&broken))
        }
        RunVerdict::Error if checked == 0 => format!("nothing of {name} could be checked"),
        RunVerdict::Error => {
            format!("{name} could not be checked for: {}", listed(&of(Verdict::Error)))
        }
    };
    let total: u64 = report.rows.iter().map(|r| r.comparisons).sum();
    let cases = count(report.cases.len(), "case");
    format!(
        "{} · {what} · {} comparisons in {cases}, {} · model {}",
        report.verdict.name(),
        grouped(total),
        seconds(report.seconds),
        report.model.name
    )
}

/// With what is allowed at the worst place, where that is more than nothing.
fn largest(row: &Row) -> String {
    if row.comparisons == 0 {
        return "-".into();
    }
    let allowed = row.worst.as_ref().and_then(|w| w.allowed).filter(|a| *a > 0.0);
    let allowed = allowed.map(|a| format!(" (worst place allows {a:.1e})")).unwrap_or_default();
    format!("{}{allowed}", error(row.largest))
}

fn place(row: &Row) -> String {
    match (&row.first, &row.worst) {
        (Some(first), _) => format!("first at {}", at(first)),
        (None, Some(worst)) if row.largest != Some(0.0) => at(worst),
        _ => "-".into(),
    }
}

fn at(at: &At) -> String {
    let step = if at.step == 0 { "prefill".to_string() } else { format!("step {}", at.step) };
    let index = if at.index.is_empty() { String::new() } else { format!(" {}", index(&at.index)) };
    format!("case {}, {}, {step}{index}", at.case, at.point)
}

fn failure(out: &mut String, row: &Row) {
    if row.verdict == Verdict::Unchecked {
        return;
    }
    let _ = writeln!(out, "\n{} {}", row.verdict.name(), row.says);
    if row.exceeding > 0 {
        let (bad, all) = (grouped(row.exceeding), grouped(row.comparisons));
        let _ = writeln!(out, "  {bad} of {all} comparisons are beyond what is allowed");
    }
    for (word, place) in [("first", &row.first), ("worst", &row.worst)] {
        if let Some(p) = place.as_ref().filter(|p| p.found.is_some() || p.expected.is_some()) {
            let _ = writeln!(
                out,
                "  {word} at {}: {} where {} is due",
                at(p),
                value(p.found),
                value(p.expected)
            );
        }
    }
    if !row.reason.is_empty() {
        let _ = writeln!(out, "  {}", row.reason.replace("; ", "\n  "));
    }
}

/// `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!([grouped(0), grouped(999), grouped(1234567)], ["0", "999", "1,234,567"]);
    }
}
