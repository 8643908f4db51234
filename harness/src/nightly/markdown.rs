//! A night in Markdown: for a step summary, an issue, a mail. What is new comes first.

use std::fmt::Write;

use super::outcome::{Night, Outcome};
use crate::report::markdown::escape;
use crate::report::numbers::seconds;

/// GitHub refuses an issue's body from 65,536 characters on.
const MOST: usize = 60_000;

pub fn summary(night: &Night) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "# {}\n", escape(&night.headline()));
    list(&mut out, "New failures", &night.news.new_failures);
    list(&mut out, "Mended", &night.news.mended);
    for run in night.changed().filter(|r| !r.news.is_empty()) {
        list(&mut out, &format!("Changed: {}", run.name), &run.news);
    }
    let _ =
        writeln!(out, "| run | verdict | first wrong, or why not | since the last night | time |");
    let _ = writeln!(out, "|---|---|---|---|---:|");
    for run in &night.runs {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            escape(&run.name),
            run.verdict.name(),
            escape(first(run)),
            escape(&since(run)),
            seconds(run.seconds)
        );
    }
    let unchecked: Vec<String> = night
        .runs
        .iter()
        .flat_map(|r| {
            r.unchecked.iter().map(move |u| format!("{}: {}: {}", r.name, u.what, u.reason))
        })
        .collect();
    let _ = writeln!(out);
    list(&mut out, "UNCHECKED", &unchecked);
    let _ = writeln!(out, "{} in {}", night.started, seconds(night.seconds));
    cut(out)
}

/// What is wrong first, or why nothing ran.
pub fn first(run: &Outcome) -> &str {
    match (run.failures.first(), &run.report) {
        (Some(failure), _) => failure,
        (None, None) => run.detail(),
        (None, Some(_)) => "",
    }
}

pub fn since(run: &Outcome) -> String {
    match &run.changes {
        None => "first time".into(),
        Some(changes) if changes.nothing_changed => "nothing changed".into(),
        Some(_) => crate::text::count(run.news.len(), "change"),
    }
}

fn list(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "**{}**\n", escape(title));
    for line in lines {
        let _ = writeln!(out, "- {}", escape(line));
    }
    let _ = writeln!(out);
}

fn cut(text: String) -> String {
    if text.len() <= MOST {
        return text;
    }
    let mut end = MOST;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let end = text[..end].rfind('\n').unwrap_or(end);
    format!("{}\n\n… cut here; the whole is in the night's folder.\n", &text[..end])
}
