//! A night as a page: what is new, the table of runs, links to their own pages. One file that needs
//! nothing from anywhere.

use askama::Template;

use super::markdown::{first, since};
use super::outcome::{Night, Outcome, date};
use crate::report::html::{Mark, REPORT_CSS};
use crate::report::numbers::seconds;
use crate::text::shell_word;

#[derive(Template)]
#[template(path = "nightly.html", escape = "html")]
struct Page<'a> {
    css: &'static str,
    mark: Mark,
    title: String,
    says: String,
    night: &'a Night,
    started: String,
    took: String,
    command: String,
    runs: Vec<RunRow<'a>>,
    changed: Vec<&'a Outcome>,
    unchecked: Vec<(String, String, String)>,
}

struct RunRow<'a> {
    run: &'a Outcome,
    mark: Mark,
    first: &'a str,
    since: String,
    took: String,
    who: String,
}

pub fn page(night: &Night) -> anyhow::Result<String> {
    let row = |run| RunRow {
        run,
        mark: run.verdict.into(),
        first: first(run),
        since: since(run),
        took: seconds(run.seconds),
        who: run.implementations.join(", "),
    };
    let unchecked = night.runs.iter().flat_map(|run| {
        run.unchecked.iter().map(|u| (run.name.clone(), u.what.clone(), u.reason.clone()))
    });
    let words = night.command.iter().skip(1).map(|word| shell_word(word));
    let command: Vec<String> = ["llorch-diff".to_string()].into_iter().chain(words).collect();
    let page = Page {
        css: REPORT_CSS,
        mark: night.verdict.into(),
        title: night.headline(),
        says: night.says(),
        night,
        started: date(&night.started),
        took: seconds(night.seconds),
        command: command.join(" "),
        runs: night.runs.iter().map(row).collect(),
        changed: night.changed().filter(|r| !r.news.is_empty()).collect(),
        unchecked: unchecked.collect(),
    };
    Ok(page.render()? + "\n")
}
