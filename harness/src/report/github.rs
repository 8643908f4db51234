//! What GitHub Actions shows of a run: an annotation for each first cause, and a step summary in Markdown.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::markdown;
use super::sentences::{Cause, first_cause, first_line, place, wrong};
use super::view::checkpoints;
use super::{Exporter, Run, Style};
use crate::result::{RunResult, RunVerdict, Status, UncheckedKind, Verdict};

pub struct Github;

impl Exporter for Github {
    /// What would be written: the annotations, then the summary.
    fn export(&self, run: &Run<'_>, style: &Style) -> anyhow::Result<String> {
        Ok(format!("{}\n{}", annotations(run.result), summary(run.result, style, LIMIT)))
    }
}

/// GitHub drops a step's summary that is larger than a MiB.
const LIMIT: usize = 1024 * 1024;
/// Kept free for the line that says what was left out.
const NOTE: usize = 512;

/// Whether this is a job of GitHub Actions.
pub fn is_here() -> bool {
    std::env::var("GITHUB_ACTIONS").is_ok_and(|v| v == "true")
}

/// Writes the annotations to `log` and appends the summary to the file that the job names.
pub fn tell(result: &RunResult, style: &Style, log: &mut dyn std::io::Write) -> anyhow::Result<()> {
    log.write_all(annotations(result).as_bytes())?;
    match std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) {
        Some(path) => append(Path::new(&path), result, style),
        None => Ok(()),
    }
}

fn append(path: &Path, result: &RunResult, style: &Style) -> anyhow::Result<()> {
    let failed = || format!("failed to write the step summary to {}", path.display());
    let mut file = File::options().append(true).create(true).open(path).with_context(failed)?;
    let taken = usize::try_from(file.metadata().with_context(failed)?.len()).unwrap_or(LIMIT);
    let text = summary(result, style, LIMIT.saturating_sub(taken));
    file.write_all(text.as_bytes()).with_context(failed)
}

/// Markdown in at most `limit` bytes. Sections of checkpoints that pass go first, and the last line says
/// what went.
fn summary(result: &RunResult, style: &Style, limit: usize) -> String {
    let views = checkpoints(result);
    let head = markdown::head(result, &views);
    let room = limit.saturating_sub(NOTE);
    if head.len() > room {
        return cut(&head, limit);
    }
    let sections: Vec<String> =
        views.iter().map(|view| markdown::checkpoint(result, view, style)).collect();
    let bad = |i: &usize| matches!(views[*i].verdict, Verdict::Fail | Verdict::Error);
    let (failed, passed): (Vec<usize>, Vec<usize>) = (0..views.len()).partition(bad);
    let mut left = room - head.len();
    let mut kept = vec![false; sections.len()];
    for i in failed.into_iter().chain(passed) {
        if let Some(rest) = left.checked_sub(sections[i].len()) {
            (left, kept[i]) = (rest, true);
        }
    }
    let mut out = head;
    for (section, _) in sections.iter().zip(&kept).filter(|(_, kept)| **kept) {
        out.push_str(section);
    }
    let gone: Vec<String> =
        views.iter().zip(&kept).filter(|(_, k)| !**k).map(|(v, _)| v.number.to_string()).collect();
    if !gone.is_empty() {
        out.push_str(&format!(
            "\n_Left out, to stay below GitHub's limit of 1 MiB: the tables of checkpoints {}. \
             `llorch-diff report DIR --format md` writes all of it._\n",
            gone.join(", ")
        ));
    }
    out
}

/// As many whole lines as fit, and one that says so.
fn cut(text: &str, limit: usize) -> String {
    let note = "\n_Left out, to stay below GitHub's limit of 1 MiB: all that follows. \
                `llorch-diff report DIR --format md` writes it._\n";
    let room = limit.saturating_sub(note.len());
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        if out.len() + line.len() > room {
            break;
        }
        out.push_str(line);
    }
    if out.len() + note.len() <= limit {
        out.push_str(note);
    }
    out
}

/// One line each: errors for what is the subject's, warnings for what is another's or missing.
fn annotations(result: &RunResult) -> String {
    let subject = result.subject_name();
    let mut out = String::new();
    let mut say = |level: &str, title: &str, message: &str| {
        out.push_str(&format!("::{level} title={}::{}\n", property(title), data(message)));
    };
    match first_cause(result) {
        Some(Cause::Stage(_)) => {
            for odd in result.odd.iter().filter(|odd| odd.name == subject) {
                let title = format!("{subject} is wrong first at {}", odd.point);
                say("error", &title, &wrong(odd));
            }
        }
        Some(Cause::Row(row)) => {
            let title = format!("{subject} is wrong first at {}", row.point);
            say("error", &title, &format!("{}–{} at {}: {}", row.a, row.b, place(row), row.reason));
        }
        None if result.verdict == RunVerdict::Error => {
            say(
                "error",
                "nothing can be said of the subject",
                &first_line(result, &checkpoints(result)),
            );
        }
        None => {}
    }
    for odd in result.odd.iter().filter(|odd| odd.name != subject) {
        say(
            "warning",
            &format!("{} is wrong by the oracle at {}", odd.name, odd.point),
            &wrong(odd),
        );
    }
    for u in result.unchecked.iter().filter(|u| u.kind == UncheckedKind::Missing) {
        say("warning", &format!("UNCHECKED: {}", u.what), &u.reason);
    }
    for i in result.references().filter(|i| i.status == Status::Error) {
        say("warning", &format!("{} did not come through", i.name), &i.reason);
    }
    out
}

/// A message as a workflow command must be given it.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// The same in a property, which a colon or comma would end.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{broken, honest};
    use super::*;
    use crate::result::{Unchecked, UncheckedKind};

    #[test]
    fn a_message_stays_one_line_and_a_title_ends_where_it_ends() {
        let mut result = broken();
        for row in &mut result.rows {
            row.reason = "100% wrong:\r\nsee, there".into();
        }
        let text = annotations(&result);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("::error title=ours is wrong first at h.1.attn.q::"), "{text}");
        assert!(text.contains("100%25 wrong:%0D%0Asee, there"), "{text}");
        assert_eq!(property("a: b, 5%"), "a%3A b%2C 5%25");
        assert_eq!(annotations(&honest()), "");
    }

    #[test]
    fn a_summary_that_is_too_long_drops_what_passes_first_and_says_so() {
        let result = broken();
        let whole = summary(&result, &Style::default(), LIMIT);
        assert!(!whole.contains("Left out"), "{whole}");
        let views = checkpoints(&result);
        let head = markdown::head(&result, &views).len();
        let short = summary(&result, &Style::default(), head + NOTE + 10);
        assert!(
            short.len() <= head + NOTE + 10 && short.contains("the tables of checkpoints 2."),
            "{short}"
        );

        let mut long = honest();
        long.unchecked = (0..40_000)
            .map(|i| Unchecked {
                what: format!("point {i}"),
                kind: UncheckedKind::Unsupported,
                reason: "for a reason that is somewhat long".into(),
            })
            .collect();
        let text = summary(&long, &Style::default(), LIMIT);
        assert!(text.len() <= LIMIT && text.len() > LIMIT - 1024, "{}", text.len());
        assert!(text.trim_end().ends_with("writes it._"));
        assert_eq!(summary(&long, &Style::default(), 0), "");
    }
}
