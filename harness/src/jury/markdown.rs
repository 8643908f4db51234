//! The jury as a page: who they are, how far off each is, what each can't show.

use std::collections::BTreeSet;
use std::fmt::Write;

use llorch_trace::Stage;

use super::portrait::{Errors, Portrait, glob};
use crate::report::numbers::{error, tolerance};
use crate::result::RunResult;

pub fn page(result: &RunResult, portraits: &[Portrait]) -> String {
    let mut out = String::from("# References\n\n");
    out.push_str(
        "<!-- Written by `llorch-diff adapters jury --to docs/REFERENCES.md`; changes by hand are lost. -->\n\n",
    );
    out.push_str(
        "Who `llorch-diff run` compares with, and what each is worth. *semantics*: upstream's own GPT-2 graph and \
         kernels. *kernels*: upstream's kernels under a graph written here, in which a misunderstanding of GPT-2 \
         that we share would not show. Pins, licences of all packages and notes are in `refs/NAME`.\n\n",
    );
    who(&mut out, portraits);
    how_far(&mut out, result, portraits);
    deviations(&mut out, portraits);
    what_not(&mut out, portraits);
    out
}

fn who(out: &mut String, portraits: &[Portrait]) {
    out.push_str("| reference | worth | version | licence | what it is |\n|---|---|---|---|---|\n");
    for p in portraits {
        let worth = p.worth.map_or_else(String::new, |w| w.to_string());
        let _ = writeln!(
            out,
            "| `{}` | {worth} | {} | {} | {} |",
            p.name,
            cell(&p.version),
            cell(&p.licence),
            cell(&p.summary)
        );
    }
    out.push('\n');
}

fn how_far(out: &mut String, result: &RunResult, portraits: &[Portrait]) {
    let shown: Vec<&Portrait> = portraits.iter().filter(|p| !p.errors.is_empty()).collect();
    let stages: BTreeSet<Stage> = shown.iter().flat_map(|p| p.errors.keys().copied()).collect();
    let cases: Vec<&str> = result.cases.iter().map(|c| c.name.as_str()).collect();
    let _ = writeln!(
        out,
        "## How far each is from float64\n\nLargest |x − oracle| over all layers, cases and steps, *total* / *local*: of all that was \
         computed up to there, and of what the stage does by itself, recomputed in float64 from what the \
         implementation had captured before it. The total of `next.probs` hangs on the sampler's settings; its \
         local error is that to the float64 softmax of its own logits. `-`: not captured, or an input is not.\n\n\
         Model {} (sha256 {}…), cases {}{}.\n",
        result.model.name,
        &result.model.sha256.get(..12).unwrap_or(&result.model.sha256),
        cases.join(", "),
        result.machine.as_ref().map(|m| format!(", on {}", m.kind())).unwrap_or_default(),
    );
    let names: Vec<String> = shown.iter().map(|p| format!("`{}`", p.name)).collect();
    let _ = writeln!(out, "| stage | {} |", names.join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(shown.len()));
    for stage in stages {
        let cells: Vec<String> = shown.iter().map(|p| both(p.errors.get(&stage))).collect();
        let _ = writeln!(out, "| `{}` | {} |", glob(stage), cells.join(" | "));
    }
    out.push('\n');
}

fn both(errors: Option<&Errors>) -> String {
    let figure = |of: Option<Option<f64>>| of.map_or_else(|| "-".to_owned(), error);
    match errors {
        None => "-".into(),
        Some(Errors { total, local }) => format!("{} / {}", figure(*total), figure(*local)),
    }
}

fn deviations(out: &mut String, portraits: &[Portrait]) {
    out.push_str(
        "## Declared deviations\n\nWhere an upstream departs from the mathematics by design: judged by its own \
         bound, named in every report, without a vote there. [TOLERANCES.md](TOLERANCES.md) says how.\n\n\
         | reference | point | bound | reason |\n|---|---|---|---|\n",
    );
    for p in portraits {
        for d in &p.deviations {
            let _ = writeln!(
                out,
                "| `{}` | `{}` | {} | {} |",
                p.name,
                d.point,
                tolerance(d.bound),
                cell(&d.reason)
            );
        }
    }
    out.push('\n');
}

fn what_not(out: &mut String, portraits: &[Portrait]) {
    out.push_str(
        "## What they can't show, and why\n\nThese are UNCHECKED in every report.\n\n\
         | reference | points | reason |\n|---|---|---|\n",
    );
    for p in portraits {
        if let Some(reason) = &p.absent {
            let _ = writeln!(out, "| `{}` | all | {} |", p.name, cell(reason));
        }
        // Globs with one reason stand in one line, in the order in which they are declared.
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for u in &p.unsupported {
            let point = format!("`{}`", u.point);
            match reasons.iter_mut().find(|(reason, _)| *reason == u.reason) {
                Some((_, points)) => points.push(point),
                None => reasons.push((&u.reason, vec![point])),
            }
        }
        for (reason, points) in reasons {
            let _ = writeln!(out, "| `{}` | {} | {} |", p.name, points.join(", "), cell(reason));
        }
    }
}

/// Text that can't end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
