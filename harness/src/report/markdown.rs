//! Markdown: the same content as the terminal's tables, for a pull request or an issue.

use std::fmt::Write;

use super::numbers::{error, index, tolerances, value_at};
use super::sentences::{
    at_widest, checkpoint_sentence, conclusion, first_line, hint, input_line, place, wrong,
};
use super::view::{CheckpointView, checkpoints, pairs, widest};
use super::{Exporter, Run, Style, stages};
use crate::result::{Role, RunResult, Verdict};

pub struct Markdown;

impl Exporter for Markdown {
    fn export(&self, run: &Run<'_>, style: &Style) -> anyhow::Result<String> {
        let views = checkpoints(run.result);
        let mut out = head(run.result, &views);
        for view in &views {
            out.push_str(&checkpoint(run.result, view, style));
        }
        Ok(out)
    }
}

/// What stands before the checkpoints' own tables: verdict, model, who took part, the summary.
pub(super) fn head(result: &RunResult, views: &[CheckpointView<'_>]) -> String {
    let mut out = format!("# {}\n\n", escape(&first_line(result, views)));
    let m = &result.model;
    let _ = writeln!(
        out,
        "Model `{}`, {}; weights sha256 `{}`.\n",
        m.name,
        escape(&m.source),
        m.sha256
    );
    if let Some(isolate) = &result.isolate {
        let line = input_line(isolate);
        let _ = writeln!(out, "{}.\n", escape(&line));
    }
    implementations(&mut out, result);
    summary(&mut out, result, views);
    out
}

fn implementations(out: &mut String, result: &RunResult) {
    table_head(out, &["implementation", "version", "worth", "status"]);
    for i in &result.implementations {
        let worth = match (i.role, i.worth) {
            (Role::Subject, _) => "subject".to_string(),
            (_, worth) => worth.map(|w| w.to_string()).unwrap_or("-".into()),
        };
        let status = serde_json::to_value(i.status).ok();
        let status = status.as_ref().and_then(|v| v.as_str()).unwrap_or_default();
        let reason = if i.reason.is_empty() { String::new() } else { format!(": {}", i.reason) };
        row(out, &[i.name.clone(), i.version.clone(), worth, format!("{status}{reason}")]);
    }
}

fn summary(out: &mut String, result: &RunResult, views: &[CheckpointView<'_>]) {
    let _ = writeln!(out);
    table_head(out, &["#", "checkpoint", "verdict", "semantics", "kernels", "largest error", "at"]);
    let subject = result.subject_name();
    let (with_ours, _) = pairs(result);
    for view in views {
        let largest = widest(&view.lines, &with_ours);
        let figure = largest.row.and_then(|r| r.metrics.as_ref()).map(|m| error(m.max_abs));
        row(
            out,
            &[
                view.number.to_string(),
                view.name.into(),
                view.verdict.name().into(),
                view.semantics.to_string(),
                view.kernels.to_string(),
                figure.unwrap_or("-".into()),
                match view.is_inherited(subject) {
                    true => "inherited: each stage here is right by itself".into(),
                    false => at_widest(&largest),
                },
            ],
        );
    }
    if !result.odd.is_empty() {
        let _ = writeln!(out, "\n## Wrong by the float64 oracle\n");
        for odd in &result.odd {
            let _ = writeln!(out, "- {}", escape(&wrong(odd)));
        }
    }
    if !result.unchecked.is_empty() {
        let _ = writeln!(out, "\n## UNCHECKED\n");
        for u in &result.unchecked {
            let _ = writeln!(out, "- {}: {}", escape(&u.what), escape(&u.reason));
        }
    }
    let lines = conclusion(result);
    if !lines.is_empty() {
        let _ = writeln!(out, "\n## What it amounts to\n");
    }
    for (heading, text) in lines {
        let heading = heading[..1].to_string() + &heading[1..].to_lowercase();
        let _ = writeln!(out, "- **{heading}**: {}", escape(&text));
    }
}

/// One checkpoint's section.
pub(super) fn checkpoint(result: &RunResult, view: &CheckpointView<'_>, style: &Style) -> String {
    let out = &mut String::new();
    let _ =
        writeln!(out, "\n## Checkpoint {}: {} ({})\n", view.number, view.name, view.verdict.name());
    let (mut columns, among) = pairs(result);
    if columns.len() <= 3 || style.pairs {
        columns.extend(among);
    }
    let mut header = vec!["point".to_string()];
    header.extend(columns.iter().map(|p| format!("{}–{}", p.a, p.b)));
    header.extend(["tolerance", "worst at", "verdict"].map(String::from));
    table_head(out, &header);
    for line in &view.lines {
        let mut cells = vec![format!("`{}` ×{}", line.label, line.folded)];
        cells.extend(columns.iter().map(|p| match line.cell(p) {
            None => "-".into(),
            Some((Verdict::Unchecked, _)) => "UNCHECKED".into(),
            Some((Verdict::Error, _)) => "ERROR".into(),
            Some((verdict, row)) => {
                let figure = row.and_then(|r| r.metrics.as_ref()).map(|m| error(m.max_abs));
                let figure = figure.unwrap_or("equal".into());
                if verdict == Verdict::Pass {
                    figure
                } else {
                    format!("{figure} {}", verdict.name())
                }
            }
        }));
        let worst = line.worst;
        let at = worst.metrics.as_ref().map(|m| index(&m.worst)).unwrap_or_default();
        cells.push(tolerances(&line.tolerances()));
        cells.push(format!("{} {at}", place(worst)).trim_end().into());
        cells.push(line.verdict.name().into());
        row(out, &cells);
    }
    if let Some((names, lines)) = stages::lines(result, view) {
        let mut header = vec!["against float64, total / local".to_string()];
        header.extend(names);
        header.extend(["local ÷ noise", "ours ÷ references"].map(String::from));
        let _ = writeln!(out);
        table_head(out, &header);
        for line in lines {
            let mut cells = vec![format!("`{}`", line.label)];
            cells.extend(line.cells);
            cells.extend([line.noise, line.ratio]);
            row(out, &cells);
        }
    }
    let _ = writeln!(out, "\n{}", escape(&checkpoint_sentence(result, view)));
    let failed = view.lines.iter().map(|l| l.worst);
    for r in failed.filter(|r| matches!(r.verdict, Verdict::Fail | Verdict::Error)) {
        let values = r.metrics.as_ref().map(|m| {
            let [a, b] = m.worst_values.map(|v| value_at(r.point, v));
            format!(" (worst {}: {a} against {b})", index(&m.worst))
        });
        let what = format!(
            "{} {}–{} at {}: {}{}",
            r.verdict.name(),
            r.a,
            r.b,
            place(r),
            r.reason,
            values.unwrap_or_default()
        );
        let _ = writeln!(out, "\n- {}", escape(&what));
        if let Some(hint) = hint(r).filter(|_| r.verdict == Verdict::Fail) {
            let explain = format!("`llorch-diff explain {}`", view.number);
            let _ = writeln!(out, "  Hint: {}; {explain}", escape(hint));
        }
    }
    std::mem::take(out)
}

fn table_head<S: AsRef<str>>(out: &mut String, names: &[S]) {
    let names: Vec<String> = names.iter().map(|n| n.as_ref().to_string()).collect();
    row(out, &names);
    let _ = writeln!(out, "|{}", " --- |".repeat(names.len()));
}

fn row(out: &mut String, cells: &[String]) {
    let cells: Vec<_> = cells.iter().map(|c| cell(c)).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

/// Text outside code: what would end a cell or begin emphasis.
pub(crate) fn escape(text: &str) -> String {
    cell(text).replace('*', "\\*")
}

/// A table's cell, which may hold code: there a backslash before `*` would show.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
