//! A result in words.

use super::numbers::{error, list};
use super::view::{CheckpointView, Pair, Widest, confirmed, pairs, widest};
use crate::text::{count, pattern};
use llorch_models::published;

use crate::result::{
    InputKind, IsolateRecord, ModelKind, Odd, Row, RowKind, RunResult, RunVerdict, Status, Verdict,
};

/// The first line of every report.
pub fn verdict_line(result: &RunResult, checkpoints: usize, passed: usize) -> String {
    // What a strategy left out was asked for as well.
    let checkpoints = checkpoints + result.strategy.as_ref().map_or(0, |s| s.left_out.len());
    let subject = result.subject().map(|s| s.name.as_str()).unwrap_or("no subject");
    let what = words(result, checkpoints, passed);
    let mut line = format!("{} · {what} · model {}", result.verdict.name(), result.model.name);
    let wrong: Vec<&str> =
        result.odd.iter().map(|odd| odd.name.as_str()).filter(|name| *name != subject).collect();
    if !wrong.is_empty() {
        line.push_str(&format!(" · wrong by the oracle: {}", list(&wrong)));
    }
    let asked = result.tolerances.iter();
    let asked: Vec<String> = asked.map(|(number, t)| format!("{t:.0e} at {number}")).collect();
    if !asked.is_empty() {
        let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
        line.push_str(&format!(" · by tolerances that were asked for: {}", list(&asked)));
    }
    match result.model.kind {
        ModelKind::Real => {}
        kind => {
            if kind == ModelKind::Synthetic {
                line.push_str(" (synthetic)");
            }
            line.push_str(" · real GPT-2 weights: UNCHECKED ");
            line.push_str(&match published::by_name(&result.model.name) {
                // Advice to ask for what was asked for would be none.
                Some(p) => format!("(these are not {}'s: see below)", p.name),
                None => "(check them with `llorch-diff run --model gpt2`)".into(),
            });
        }
    }
    line
}

/// `, in layers 0 and 3`; nothing where no stage is of a layer.
fn in_layers(isolate: &IsolateRecord) -> String {
    let mut layers: Vec<usize> = isolate.stages.iter().filter_map(|p| p.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    match layers[..] {
        [] => String::new(),
        _ => format!(", in {}", crate::text::layers(&layers)),
    }
}

/// What the first line states, after the verdict and before the remarks.
fn words(result: &RunResult, checkpoints: usize, passed: usize) -> String {
    let subject = result.subject().map(|s| s.name.as_str()).unwrap_or("no subject");
    let ran: Vec<&str> = result
        .references()
        .filter(|i| !matches!(i.status, Status::Missing))
        .map(|i| i.name.as_str())
        .collect();
    let against = if ran.is_empty() { "no reference".into() } else { list(&ran) };
    let what = match result.verdict {
        RunVerdict::Pass | RunVerdict::Warn => {
            let confirmed = confirmed(result);
            // All of them are wrong themselves, so that the oracle alone has checked it.
            match confirmed.iter().all(|(_, n)| *n == 0) && !result.odd.is_empty() {
                true => {
                    format!("{subject} is right by the float64 oracle; no reference confirms it")
                }
                false => format!("{subject} matches {}", matches(result, checkpoints, passed)),
            }
        }
        RunVerdict::Fail => {
            let first = first_cause(result).map(|cause| match cause {
                Cause::Stage(odd) => {
                    format!(", first at {} (case {}{})", where_of(odd), odd.case, step_of(odd.step))
                }
                Cause::Row(row) => format!(", first at {}", place(row)),
            });
            format!(
                "{subject} against {against}: {} passed{}",
                of(passed, checkpoints),
                first.unwrap_or_default()
            )
        }
        RunVerdict::Incomplete => {
            format!(
                "{subject} against {against}: {} passed, something was not checked",
                of(passed, checkpoints)
            )
        }
        RunVerdict::Error => match result.subject().filter(|s| s.status != Status::Ok) {
            Some(s) => format!("{subject}: {}", s.reason.lines().next().unwrap_or_default()),
            None => "nothing was compared".into(),
        },
    };
    match &result.isolate {
        Some(isolate) => {
            format!("stages by themselves{}, on {}: {what}", in_layers(isolate), input(isolate))
        }
        None => what,
    }
}

/// What isolated stages were given, in few words.
fn input(isolate: &IsolateRecord) -> String {
    match (isolate.input, isolate.seed, &isolate.file) {
        (InputKind::Random, Some(seed), _) => format!("random tensors (seed {seed})"),
        (InputKind::File, _, Some(file)) => file.clone(),
        _ => "the oracle's tensors".into(),
    }
}

/// The same in full.
pub fn input_line(isolate: &IsolateRecord) -> String {
    let file = isolate.file_sha256.as_ref().map(|s| format!(" (sha256 {s})")).unwrap_or_default();
    let (tensors, runs) = (isolate.inputs.len(), isolate.runs);
    format!(
        "input {}{file}: {} put in place, rounded to f32, in {} of each case; sha256 {}",
        input(isolate),
        count(tensors, "tensor"),
        count(runs, "run"),
        isolate.sha256
    )
}

/// `hf and candle at all 13 checkpoints, candle:upstream at 4; 2 UNCHECKED`.
fn matches(result: &RunResult, checkpoints: usize, passed: usize) -> String {
    let confirmed = confirmed(result);
    let mut parts: Vec<String> = Vec::new();
    for group in confirmed.chunk_by(|x, y| x.1 == y.1) {
        let names: Vec<&str> = group.iter().map(|(name, _)| *name).collect();
        parts.push(match group[0].1 {
            0 => format!("nothing of {}", list(&names)),
            n if parts.is_empty() => format!("{} at {}", list(&names), of(n, checkpoints)),
            n => format!("{} at {n}", list(&names)),
        });
    }
    let mut text = if parts.is_empty() { "no reference".into() } else { parts.join(", ") };
    if passed < checkpoints {
        text.push_str(&format!("; {} UNCHECKED", checkpoints - passed));
    }
    text
}

fn of(passed: usize, checkpoints: usize) -> String {
    match (passed, checkpoints) {
        (1, 1) => "the checkpoint that was asked for".into(),
        (13, 13) => "all 13 checkpoints".into(),
        (p, c) => format!("{p} of {c} checkpoints"),
    }
}

/// `bad: h.*.ln_1 in layers 0, 1, 2 and 3, checkpoint 1 (case hello, prefill): this stage alone …`.
pub fn wrong(odd: &Odd) -> String {
    let (name, number, case) = (&odd.name, odd.checkpoint, &odd.case);
    let place = format!("checkpoint {number} (case {case}{})", step_of(odd.step));
    format!("{name}: {}, {place}: {}", where_of(odd), odd.reason)
}

/// `h.3.attn.out`, or `h.*.attn.out in layers 1 and 3` where the same stage is wrong in several.
pub fn where_of(odd: &Odd) -> String {
    match (odd.point.layer, &odd.layers[..]) {
        (Some(_), layers @ [_, _, ..]) => {
            let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
            let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
            format!("{} in layers {}", pattern(odd.point), list(&layers))
        }
        _ => odd.point.to_string(),
    }
}

pub fn step_of(step: usize) -> String {
    if step == 0 { ", prefill".into() } else { format!(", step {step}") }
}

/// Where a run that FAILs goes wrong first.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// A stage that is wrong by itself.
    Stage(&'a Odd),
    /// A row that fails, where the oracle names nobody.
    Row(&'a Row),
}

/// The subject's first cause, by the rule of every report.
pub fn first_cause(result: &RunResult) -> Option<Cause<'_>> {
    if result.verdict != RunVerdict::Fail {
        return None;
    }
    let subject = result.subject_name();
    let odd = result.odd.iter().find(|odd| odd.name == subject).map(Cause::Stage);
    odd.or_else(|| first_failure(result).map(Cause::Row))
}

/// The verdict line of a whole result.
pub fn first_line(result: &RunResult, views: &[CheckpointView<'_>]) -> String {
    verdict_line(result, views.len(), passed(views))
}

/// The same without verdict and remarks.
pub fn statement(result: &RunResult, views: &[CheckpointView<'_>]) -> String {
    words(result, views.len(), passed(views))
}

fn passed(views: &[CheckpointView<'_>]) -> usize {
    views.iter().filter(|v| matches!(v.verdict, Verdict::Pass | Verdict::Warn)).count()
}

/// The first row in data-flow order that failed, and is not another's fault.
fn first_failure(result: &RunResult) -> Option<&Row> {
    let subject = result.subject_name();
    let failed = result.rows.iter().filter(|r| r.verdict_of(subject) == Verdict::Fail);
    failed.min_by(|x, y| x.step.cmp(&y.step).then(x.point.cmp(&y.point)))
}

/// `h.3.attn.out in case hello, step 2`.
pub fn place(row: &Row) -> String {
    let step = if row.step == 0 { "prefill".into() } else { format!("step {}", row.step) };
    format!("{} (case {}, {step})", row.point, row.case)
}

/// Who is held against whom.
pub fn parties(row: &Row) -> String {
    match row.kind {
        RowKind::Own => format!("{} against itself", row.a),
        _ => format!("{}–{}", row.a, row.b),
    }
}

/// The sentence below a checkpoint's table.
pub fn checkpoint_sentence(result: &RunResult, view: &CheckpointView<'_>) -> String {
    let (with_ours, among) = pairs(result);
    let subject = result.subject_name();
    let mut parts = Vec::new();
    let by = |wanted: fn(Verdict) -> bool| -> Vec<&str> {
        let worst = |p: &&Pair| {
            let cells = view.lines.iter().filter_map(|l| l.cell(p)).map(|c| c.0);
            let checked: Vec<_> = cells.collect();
            let bad = checked.iter().filter(|v| **v != Verdict::Unchecked).max();
            wanted(*bad.unwrap_or(&Verdict::Unchecked))
        };
        with_ours.iter().filter(worst).map(|p| p.b.as_str()).collect()
    };
    let matches = by(|v| matches!(v, Verdict::Pass | Verdict::Warn));
    let differs = by(|v| v == Verdict::Fail);
    let broken = by(|v| v == Verdict::Error);
    if !matches.is_empty() {
        parts.push(format!("{subject} matches {}", list(&matches)));
    }
    if !differs.is_empty() {
        parts.push(format!("{subject} differs from {}", list(&differs)));
    }
    if !broken.is_empty() {
        parts.push(format!("no comparison with {}", list(&broken)));
    }
    if parts.is_empty() {
        parts.push(format!("{subject} was checked by no reference"));
    }
    let widest = widest(&view.lines, &among);
    if let Some(row) = widest.row {
        let error = row.metrics.as_ref().and_then(|m| m.max_abs);
        parts.push(match error {
            Some(0.0) => "the references agree bit for bit".into(),
            _ => format!(
                "the references agree within {}, widest {}–{} at {}",
                self::error(error),
                row.a,
                row.b,
                row.point
            ),
        });
    }
    if let Some((who, size)) = widest.declared() {
        parts.push(format!("with {}, as declared, within {}", names(who), error(Some(size))));
    }
    // A norm before its gain and bias is held to what any norm is, not to another tensor.
    let own = view.lines.iter().flat_map(|l| l.rows.iter());
    let own = own.filter(|r| r.kind == RowKind::Own && !is_norm(r));
    let mut inconsistent: Vec<&str> =
        own.filter(|r| r.verdict == Verdict::Fail).map(|r| r.a.as_str()).collect();
    inconsistent.dedup();
    if !inconsistent.is_empty() {
        parts.push(format!("{} contradicts itself", list(&inconsistent)));
    }
    format!("{}.", parts.join("; "))
}

fn is_norm(row: &Row) -> bool {
    use llorch_trace::Stage;
    matches!(row.point.stage, Stage::Ln1 | Stage::Ln2 | Stage::LnF)
}

/// Whose largest error it is and where; then the larger one that somebody declares.
pub fn at_widest(widest: &Widest<'_>) -> String {
    let row = widest.row.map(|r| format!("{}, {}", r.b, place(r)));
    let declared = widest
        .declared()
        .map(|(who, size)| format!("{} {}, as declared", names(who), error(Some(size))));
    let parts: Vec<String> = [row, declared].into_iter().flatten().collect();
    if parts.is_empty() { "-".into() } else { parts.join("; ") }
}

/// `x and y`.
fn names(of: &[String]) -> String {
    list(&of.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What to look at first, for a row that failed.
pub fn hint(row: &Row) -> Option<&'static str> {
    if row.reason.contains("shapes differ") {
        return Some("the shape comes first: values mean nothing before it is right");
    }
    if row.reason.contains("not finite") {
        return Some(
            "look for a division by zero, an overflow in exp, or memory that was not written",
        );
    }
    if row.kind == RowKind::Own && !is_norm(row) {
        return Some(
            "this needs no reference: the implementation's own tensors contradict each other",
        );
    }
    crate::guides::hint(row.point.stage)
}

/// What the whole run amounts to, the last lines of a summary: what other releases change, what the failures make likely, where the
/// strategy stopped, the level, the next checkpoint. A heading and a text each.
pub fn conclusion(result: &RunResult) -> Vec<(&'static str, String)> {
    let mut lines: Vec<(&'static str, String)> = Vec::new();
    lines.extend(super::releases::sentences(result).into_iter().map(|line| ("RELEASE", line)));
    if let Some(strategy) = &result.strategy {
        let (looked, all) = (strategy.looked_at.len(), strategy.left_out.len());
        let of = format!("looked at {looked} of {}", looked + all);
        let name = strategy.name.name();
        lines.push(("STRATEGY", format!("{name}: {of}; {}", strategy.reason)));
    }
    let Some(assessment) = &result.assessment else { return lines };
    if let Some(likely) = &assessment.likely {
        // Measured is which stage; why it is wrong is a guess either way.
        let basis = match likely.stage_is_known {
            true => "a hint; the stage itself is measured",
            false => "a guess from which checkpoints fail",
        };
        lines.push(("LIKELY CAUSE", format!("{} ({basis})", likely.cause)));
        lines.push(("LOOK AT", likely.look.clone()));
    }
    lines.extend(assessment.level_line().map(|line| ("LEVEL", line)));
    lines.extend(assessment.next_line().map(|line| ("NEXT", line)));
    lines
}
