//! Goldens and published answers as text: tables, or Markdown.

use std::fmt::Write as _;

use comfy_table::Table;

use super::outcome::{Answer, Check, GoldenResult};
use crate::report::numbers::figure;
use crate::report::table::plain_table;
use crate::result::Verdict;

pub fn text(result: &GoldenResult, markdown: bool) -> String {
    let mut out = String::new();
    let bold = if markdown { "**" } else { "" };
    let real = match result.real_weights {
        true => "",
        false => {
            " · real GPT-2 weights: UNCHECKED (check them with `llorch-diff golden check --model gpt2`)"
        }
    };
    let _ = writeln!(
        out,
        "{bold}{}{bold} {}: {}{real}\n",
        result.verdict.name(),
        result.subject,
        summary(result)
    );
    if !result.goldens.is_empty() {
        let mut table = new_table(markdown);
        table.set_header([
            "golden",
            "checkpoint",
            "compared",
            "worst at",
            "largest difference",
            "tolerance",
            "verdict",
        ]);
        for row in &result.goldens {
            table.add_row([
                row.golden.clone(),
                row.what.clone(),
                row.compared.to_string(),
                row.worst.clone(),
                row.max_abs.map_or("–".into(), figure),
                if row.compared == 0 { "–".into() } else { tolerance(row.tolerance) },
                row.verdict.name().into(),
            ]);
        }
        let _ = writeln!(out, "{}\n", table.trim_fmt());
    }
    if !result.published.is_empty() {
        let mut table = new_table(markdown);
        table.set_header([
            "model",
            "published answer",
            "of",
            "expected",
            "found",
            "difference",
            "tolerance",
            "verdict",
        ]);
        for answer in &result.published {
            table.add_row(published_row(answer));
        }
        let _ = writeln!(out, "{}\n", table.trim_fmt());
    }
    out += &reasons(result);
    if let Some(line) = result.pending.as_ref().and_then(|pending| pending.line()) {
        let _ = writeln!(out, "{line}");
    }
    out
}

fn summary(result: &GoldenResult) -> String {
    let count = |verdict| result.published.iter().filter(|a| a.verdict == verdict).count();
    let (passed, failed, unchecked) =
        (count(Verdict::Pass), count(Verdict::Fail), count(Verdict::Unchecked));
    let mut parts = Vec::new();
    if !result.goldens.is_empty() {
        let good = result.goldens.iter().filter(|g| g.verdict == Verdict::Pass).count();
        parts.push(format!("{good} of {} goldens", result.goldens.len()));
    }
    if !result.published.is_empty() {
        let mut text = format!("{passed} of {} published answers", result.published.len());
        if failed > 0 {
            let _ = write!(text, ", {failed} fail");
        }
        if unchecked > 0 {
            let _ = write!(text, ", {unchecked} UNCHECKED");
        }
        parts.push(text);
    }
    if let Some(waiting) = result.pending.as_ref().filter(|p| p.is_anything()) {
        parts.push(match waiting.units.len() {
            0 => "pending goldens can't be told".into(),
            n => format!("{} pending", crate::text::count(n, "unit")),
        });
    }
    parts.join("; ")
}

/// As `golden` prints tables: Markdown, or as wide as the terminal.
pub fn new_table(markdown: bool) -> Table {
    plain_table(markdown, 140)
}

/// The worst number or text of an answer stands for it.
fn published_row(answer: &Answer) -> [String; 8] {
    let text = |f: fn(&Check) -> String| answer.worst().map_or(String::new(), f);
    [
        answer.of.clone(),
        answer.id.clone(),
        answer.worst().map_or(answer.kind.clone(), |c| c.what.clone()),
        text(|c| shorten(&c.expected)),
        text(|c| shorten(&c.found)),
        text(|c| c.difference.map_or(String::new(), figure)),
        text(|c| tolerance(c.tolerance)),
        answer.verdict.name().into(),
    ]
}

/// Each reason once, with how many it holds for.
fn reasons(result: &GoldenResult) -> String {
    let mut out = String::new();
    let goldens =
        result.goldens.iter().map(|r| (r.verdict, &r.reason, format!("{}, {}", r.golden, r.what)));
    let published = result.published.iter().map(|a| (a.verdict, &a.reason, a.id.clone()));
    let mut said: Vec<(Verdict, &str, String, usize)> = Vec::new();
    for (verdict, reason, what) in goldens.chain(published).filter(|(_, r, _)| !r.is_empty()) {
        match said.iter_mut().find(|(v, r, ..)| *v == verdict && r == reason) {
            Some((.., more)) => *more += 1,
            None => said.push((verdict, reason, what, 0)),
        }
    }
    for (verdict, reason, what, more) in said {
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = writeln!(out, "{} {what}{more}: {reason}", verdict.name());
    }
    let failed = result.published.iter().filter(|a| a.verdict == Verdict::Fail).count();
    if failed > 0 {
        let _ = writeln!(
            out,
            "{failed} published answers don't hold: these are not the published weights, or the subject is wrong"
        );
    }
    out
}

fn tolerance(t: f64) -> String {
    if t == 0.0 { "exact".into() } else { format!("{t:.1e}") }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(48) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}
