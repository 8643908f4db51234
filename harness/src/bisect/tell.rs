//! What was found, in words and as `llorch.bisect/1`.

use llorch_trace::Point;
use serde_json::{Value, json};

use super::element::{Element, locate};
use super::search::Found;
use crate::report;
use crate::result::{Row, RowKind, RunResult, Status, Verdict};
use crate::saved::Collected;
use crate::suite::AD_HOC_NEW_TOKENS;
use crate::text::{listed, shell_word};

pub const SCHEMA: &str = "llorch.bisect/1";

pub fn text(result: &RunResult, collected: &Collected, found: &Found<'_>) -> String {
    let subject = result.subject().map_or("", |s| s.name.as_str());
    let mut lines = Vec::new();
    match found {
        Found::Cause(row) => {
            lines.push(format!("FIRST CAUSE {}", heading(row, locate(row, collected).as_ref())));
            lines.extend(evidence(result, collected, row));
        }
        Found::Between(after, row) => {
            let after = after.map_or("the input".to_string(), |point| point.to_string());
            lines.push(format!(
                "FIRST CAUSE between {after} and {}: nobody checked the points between",
                heading(row, locate(row, collected).as_ref())
            ));
            lines.extend(evidence(result, collected, row));
        }
        Found::Nothing { unchecked } => lines.extend(nothing_found(result, subject, unchecked)),
    }
    if let Found::Cause(row) | Found::Between(_, row) = found {
        lines.push(format!("reproduce with: {}", reproduce(result, row)));
    }
    lines.join("\n")
}

fn heading(row: &Row, element: Option<&Element>) -> String {
    let mut parts = vec![row.point.to_string()];
    parts.extend(row.layer.map(|layer| format!("layer {layer}")));
    parts.push(format!("step {}", row.step));
    parts.extend(element.and_then(Element::head).map(|n| format!("head {n}")));
    parts.extend(element.and_then(Element::token).map(|n| format!("token {n}")));
    parts.extend(element.and_then(Element::element).map(|n| format!("element {n}")));
    parts.join(" · ")
}

fn evidence(result: &RunResult, collected: &Collected, row: &Row) -> Vec<String> {
    let checkpoint = &llorch_trace::points::CHECKPOINTS[row.checkpoint as usize];
    let mut lines = vec![format!(
        "checkpoint {} {}, case {}, {} against {}",
        checkpoint.number,
        checkpoint.name,
        row.case,
        row.a,
        opponent(row)
    )];
    if let Some(element) = locate(row, collected) {
        let [a, b] = element.values;
        lines.push(format!(
            "first element that exceeds: {:?}, {a:.9e} against {b:.9e}",
            element.index
        ));
    }
    if let Some(m) = &row.metrics {
        let largest = m.max_abs.map_or("not finite".to_string(), |x| format!("{x:.2e}"));
        lines.push(format!(
            "largest difference {largest} at {:?}; {} of {} elements exceed {:.0e}",
            m.worst, m.exceeding, m.total, row.tolerance
        ));
    }
    if !row.reason.is_empty() {
        lines.push(row.reason.clone());
    }
    if let Some(excerpt) = &row.excerpt {
        lines.extend(report::values(excerpt, &row.a, &row.b));
    }
    lines.extend(others(result, row));
    lines
}

/// What the other references say at the same place.
fn others(result: &RunResult, row: &Row) -> Option<String> {
    let here = |r: &&Row| {
        r.kind == RowKind::Pair
            && r.a == row.a
            && r.b != row.b
            && (&r.case, r.step, r.point) == (&row.case, row.step, row.point)
    };
    let told: Vec<String> = result
        .rows
        .iter()
        .filter(here)
        .map(|r| match r.verdict {
            Verdict::Fail => format!("{} disagrees too", r.b),
            Verdict::Unchecked => format!("{} can't tell", r.b),
            Verdict::Error => format!("{} failed", r.b),
            Verdict::Pass | Verdict::Warn => format!("{} agrees with {}", r.b, r.a),
        })
        .collect();
    (!told.is_empty()).then(|| listed(&told))
}

fn opponent(row: &Row) -> &str {
    match row.kind {
        RowKind::Own => "itself",
        RowKind::Oracle => "the float64 oracle",
        RowKind::Pair => &row.b,
    }
}

fn nothing_found(result: &RunResult, subject: &str, unchecked: &[Point]) -> Vec<String> {
    let compared = result
        .rows
        .iter()
        .any(|r| r.a == subject && matches!(r.verdict, Verdict::Pass | Verdict::Warn));
    let failure = result.subject().filter(|s| s.status != Status::Ok).map(|s| s.reason.clone());
    let mut lines = Vec::new();
    match (&failure, compared) {
        (Some(reason), _) => lines.push(format!("NO VERDICT: {subject} failed: {reason}")),
        (None, false) => lines.push("NO VERDICT: nothing was compared".into()),
        (None, true) => lines.push("NO DIVERGENCE".into()),
    }
    if compared {
        lines.push(agreement(result, subject));
    }
    if !unchecked.is_empty() && compared {
        lines.push(format!("checked by nobody: {}", folded(unchecked)));
    }
    lines
}

/// Point names, a stage of several layers as one `h.*`.
fn folded(points: &[Point]) -> String {
    let mut names: Vec<String> = Vec::new();
    for point in points {
        let layers = points.iter().filter(|p| p.stage == point.stage && p.layer.is_some()).count();
        let name = match point.layer {
            Some(layer) if layers > 1 => {
                point.to_string().replacen(&format!("h.{layer}"), "h.*", 1)
            }
            _ => point.to_string(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

fn agreement(result: &RunResult, subject: &str) -> String {
    let compared = |r: &Row| !matches!(r.verdict, Verdict::Unchecked | Verdict::Error);
    let heard: Vec<String> = result
        .references()
        .filter(|r| {
            result.rows.iter().any(|row| row.a == subject && row.b == r.name && compared(row))
        })
        .map(|r| r.name.clone())
        .collect();
    let cases = result.cases.len();
    format!("{subject} agrees with {} in {cases} cases", listed(&heard))
}

/// The command that makes just this comparison again.
fn reproduce(result: &RunResult, row: &Row) -> String {
    let mut words = vec!["llorch-diff run".to_string()];
    let checkpoint = &llorch_trace::points::CHECKPOINTS[row.checkpoint as usize];
    words.push(format!("--checkpoint {}", checkpoint.slug));
    words.extend(row.layer.map(|layer| format!("--layer {layer}")));
    let case = result.cases.iter().find(|c| c.name == row.case);
    // `--prompt` runs ten greedy tokens: the same case only where that is what was run up to here.
    let prompt = case.filter(|c| c.sampling.temperature == 0.0 && row.step < AD_HOC_NEW_TOKENS);
    let same_generation =
        |max: usize| row.point.stage != llorch_trace::Stage::Generated || max <= AD_HOC_NEW_TOKENS;
    let prompt =
        prompt.filter(|c| same_generation(c.max_new_tokens)).and_then(|c| c.prompt.as_ref());
    words.extend(prompt.map(|text| format!("--prompt {}", shell_word(text))));
    if result.model.name != "nano" {
        words.push(format!("--model {}", shell_word(&result.model.name)));
    }
    let passed_on = ["--subject", "--ref", "--suite", "--dtype", "--threads"];
    words.extend(options(&result.command, &passed_on).into_iter().filter_map(|(name, value)| {
        let replaced = name == "--suite" && prompt.is_some();
        (!replaced).then(|| format!("{name} {}", shell_word(&value)))
    }));
    words.join(" ")
}

/// `--name value` and `--name=value` of a command line.
fn options(command: &[String], names: &[&'static str]) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut words = command.iter();
    while let Some(word) = words.next() {
        for name in names {
            if word == name {
                found.extend(words.next().map(|value| (*name, value.clone())));
                break;
            }
            if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                found.push((*name, value.to_string()));
                break;
            }
        }
    }
    found
}

pub fn json(result: &RunResult, collected: &Collected, found: &Found<'_>) -> Value {
    let row = match found {
        Found::Cause(row) | Found::Between(_, row) => Some(*row),
        Found::Nothing { .. } => None,
    };
    let causes: Vec<Value> = row.iter().map(|row| cause(row, collected)).collect();
    let between = match found {
        Found::Between(after, row) => json!([after.map(|p| p.to_string()), row.point.to_string()]),
        _ => Value::Null,
    };
    let unchecked = match found {
        Found::Nothing { unchecked } => unchecked.iter().map(Point::to_string).collect(),
        _ => Vec::new(),
    };
    json!({
        "schema": SCHEMA,
        "subject": result.subject().map(|s| s.name.clone()),
        "model": result.model.name,
        "references": result.references().map(|r| r.name.clone()).collect::<Vec<_>>(),
        "causes": causes,
        "between": between,
        "unchecked": unchecked,
        "reproduce": row.map(|row| reproduce(result, row)),
    })
}

fn cause(row: &Row, collected: &Collected) -> Value {
    let element = locate(row, collected);
    json!({
        "point": row.point,
        "layers": row.layer.into_iter().collect::<Vec<_>>(),
        "checkpoint": row.checkpoint,
        "step": row.step,
        "case": row.case,
        "against": row.b,
        "local": null,
        "bound": null,
        "ratio": null,
        "certificate": null,
        "head": element.as_ref().and_then(Element::head),
        "token": element.as_ref().and_then(Element::token),
        "element": element.as_ref().and_then(Element::element),
        "worst": row.metrics.as_ref().map(|m| m.worst.clone()).unwrap_or_default(),
        "max_abs": row.metrics.as_ref().and_then(|m| m.max_abs),
        "tolerance": row.tolerance,
        "reason": row.reason,
        "signature": null,
        "heals": null,
        "explains": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_from_the_command_line_in_both_forms() {
        let command: Vec<String> =
            ["llorch-diff", "run", "--ref", "hf", "--ref=a=b c", "--subject", "x y"]
                .map(String::from)
                .to_vec();
        let found = options(&command, &["--subject", "--ref"]);
        assert_eq!(
            found,
            [("--ref", "hf".into()), ("--ref", "a=b c".into()), ("--subject", "x y".into())]
        );
    }
}
