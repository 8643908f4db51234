//! The report as text: the verdict in the first line, a table, then what to do about each failure.

use std::fmt::Write;

use comfy_table::Cell;

use super::report::{Report, Row};
use crate::report::Style;
use crate::report::table::{bold, new_table, verdict_cell, whole_words};
use crate::result::{RunVerdict, Verdict};
use crate::text::count;

pub fn text(report: &Report, style: &Style) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}\n", first_line(report));
    let mut table = new_table(style);
    table.set_header(bold(&["check", "verdict", "what holds when it passes"], style));
    for row in &report.rows {
        let verdict = verdict_cell(row.verdict, style);
        table.add_row(vec![Cell::new(row.check), verdict, Cell::new(row.says)]);
    }
    let _ = writeln!(out, "{}", whole_words(table));
    for row in with(report, Verdict::Fail) {
        failure(&mut out, row, style.width.unwrap_or(110).clamp(60, 110).into());
    }
    if with(report, Verdict::Unchecked).next().is_some() {
        let _ = writeln!(out, "\nUNCHECKED");
        let mut reasons: Vec<&str> = Vec::new();
        for row in with(report, Verdict::Unchecked) {
            if !reasons.contains(&row.reason.as_str()) {
                reasons.push(&row.reason);
            }
        }
        for reason in reasons {
            let same = with(report, Verdict::Unchecked).filter(|row| row.reason == reason);
            let names: Vec<&str> = same.map(|row| row.check).collect();
            let options =
                textwrap::Options::new(110).initial_indent("  ").subsequent_indent("    ");
            let line = format!("{}: {reason}", names.join(", "));
            let _ = writeln!(out, "{}", textwrap::fill(&line, options));
        }
    }
    out
}

fn with(report: &Report, verdict: Verdict) -> impl Iterator<Item = &Row> {
    report.rows.iter().filter(move |row| row.verdict == verdict)
}

fn first_line(report: &Report) -> String {
    let name = match report.adapter.name.as_str() {
        "" => &report.adapter.command,
        name => name,
    };
    let number = |verdict| with(report, verdict).count();
    let (passed, failed) = (number(Verdict::Pass), number(Verdict::Fail));
    let unchecked = match number(Verdict::Unchecked) {
        0 => String::new(),
        n => format!(" · {n} UNCHECKED"),
    };
    let what = match (report.verdict, with(report, Verdict::Fail).next()) {
        (RunVerdict::Fail, Some(first)) => {
            format!(
                "{name} fails {failed} of {}, first {}",
                count(passed + failed, "check"),
                first.check
            )
        }
        _ => format!("{name} keeps the protocol in all {}", count(passed, "check")),
    };
    let seconds = crate::report::numbers::seconds(report.seconds);
    format!(
        "{} · {what}{unchecked} · model {} · {seconds}",
        report.verdict.name(),
        report.model.name
    )
}

fn failure(out: &mut String, row: &Row, width: usize) {
    let _ = writeln!(out, "\nFAIL {}: {}", row.check, row.says);
    let mend = row.mend.as_ref().map(|mend| format!("{mend} ({})", row.document));
    let parts =
        [("sent", &row.sent), ("found", &row.found), ("expected", &row.expected), ("to do", &mend)];
    for (word, text) in parts {
        let Some(text) = text else { continue };
        let first = format!("  {word:8}  ");
        let options = textwrap::Options::new(width)
            .initial_indent(&first)
            .subsequent_indent("            ")
            .break_words(false)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        let _ = writeln!(out, "{}", textwrap::fill(text, options));
    }
}
