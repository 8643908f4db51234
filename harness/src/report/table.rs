//! Tables for a terminal: a summary, then one table a checkpoint.

use std::fmt::Write;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width,
    presets,
};

use super::numbers::{error, index, list, row_values, seconds, tolerances, value_at};
use super::sentences::{
    at_widest, checkpoint_sentence, conclusion, first_line, hint, input_line, parties, place, wrong,
};
use super::view::{CheckpointView, Pair, PointLine, Widest, checkpoints, pairs, widest};
use super::{Exporter, Run, Style, stages};
use crate::result::{CaseRecord, Role, Row, RunResult, RunVerdict, Status, Verdict};

/// The form that a terminal shows.
pub struct Tables;

/// Failures shown in full below a checkpoint's table; the rest are counted.
const FAILURES_SHOWN: usize = 3;

impl Exporter for Tables {
    fn export(&self, run: &Run<'_>, style: &Style) -> anyhow::Result<String> {
        let result = run.result;
        let views = checkpoints(result);
        let mut out = String::new();
        let _ = writeln!(out, "{}\n", first_line(result, &views));
        summary(&mut out, result, &views, style);
        for view in &views {
            checkpoint(&mut out, result, view, style);
        }
        generations(&mut out, result, style);
        Ok(out)
    }
}

fn summary(out: &mut String, result: &RunResult, views: &[CheckpointView<'_>], style: &Style) {
    let m = &result.model;
    let revision = m.revision.as_ref().map(|r| format!(" at revision {r}")).unwrap_or_default();
    let kind = serde_json::to_value(m.kind).ok().and_then(|v| v.as_str().map(String::from));
    let _ =
        writeln!(out, "model {} ({}), {}{revision}", m.name, kind.unwrap_or_default(), m.source);
    let _ = writeln!(out, "weights sha256 {}", m.sha256);
    let cases: Vec<&str> = result.cases.iter().map(|c| c.name.as_str()).collect();
    let took =
        result.seconds.get("total").map(|s| format!(", {}", seconds(*s))).unwrap_or_default();
    let _ = writeln!(out, "cases {}{took}", list(&cases));
    if let Some(isolate) = &result.isolate {
        let _ = writeln!(out, "{}", input_line(isolate));
    }
    let _ = writeln!(out);

    let mut table = new_table(style);
    table.set_header(bold(&["implementation", "version", "worth", "status", "time"], style));
    for i in &result.implementations {
        let worth = match (i.role, i.worth) {
            (Role::Subject, _) => "subject".to_string(),
            (_, Some(w)) => w.to_string(),
            (_, None) => "-".into(),
        };
        let status = match i.status {
            Status::Ok => Cell::new("ok"),
            Status::Partial => colour(Cell::new("partial"), Color::Yellow, style),
            Status::Missing => colour(Cell::new("missing"), Color::Yellow, style),
            Status::Error => colour(Cell::new("error"), Color::Red, style),
        };
        let time = result.seconds.get(&i.name).map(|s| seconds(*s)).unwrap_or("-".into());
        let row = vec![
            Cell::new(&i.name),
            Cell::new(&i.version),
            Cell::new(worth),
            status,
            Cell::new(time),
        ];
        table.add_row(row);
    }
    let _ = writeln!(out, "{}", whole_words(table));
    for i in result.implementations.iter().filter(|i| !i.reason.is_empty()) {
        let _ = writeln!(out, "{}: {}", i.name, i.reason);
        if let Some(mend) = &i.mend {
            let _ = writeln!(out, "  mend it with: {mend}");
        }
    }

    let mut table = new_table(style);
    let header = ["#", "checkpoint", "verdict", "confirmed by", "largest error", "at"];
    table.set_header(bold(&header, style));
    let (with_ours, _) = pairs(result);
    for view in views {
        let largest = widest(&view.lines, &with_ours);
        let figure = largest.row.and_then(|r| r.metrics.as_ref()).map(|m| error(m.max_abs));
        table.add_row(vec![
            Cell::new(view.number).set_alignment(CellAlignment::Right),
            Cell::new(view.name),
            verdict_cell(view.verdict, style),
            Cell::new(format!("{} semantics, {} kernels", view.semantics, view.kernels)),
            Cell::new(figure.unwrap_or("-".into())),
            Cell::new(largest_or_first(result, view, &largest)),
        ]);
    }
    let _ = writeln!(out, "\n{}", whole_words(table));
    if !result.odd.is_empty() {
        let _ = writeln!(out, "\nWRONG BY THE FLOAT64 ORACLE");
        for odd in &result.odd {
            let _ = writeln!(out, "  {}", wrong(odd));
        }
    }
    if !result.unchecked.is_empty() {
        let _ = writeln!(out, "\nUNCHECKED");
        for u in &result.unchecked {
            let _ = writeln!(out, "  {}: {}", u.what, u.reason);
        }
    }
    let lines = conclusion(result);
    if !lines.is_empty() {
        let _ = writeln!(out);
    }
    for (heading, text) in lines {
        let _ = writeln!(out, "{heading} {text}");
    }
}

/// Where to look: the first failure in data-flow order, or the largest error where nothing failed.
fn largest_or_first(result: &RunResult, view: &CheckpointView<'_>, largest: &Widest<'_>) -> String {
    let subject = result.subject_name();
    if view.is_inherited(subject) {
        return "inherited: each stage here is right by itself".into();
    }
    match view.first_failure(subject) {
        Some(row) => format!("first at {}, {}", place(row), parties(row)),
        None => at_widest(largest),
    }
}

fn checkpoint(out: &mut String, result: &RunResult, view: &CheckpointView<'_>, style: &Style) {
    let _ = writeln!(out, "\nCheckpoint {} · {} · {}", view.number, view.name, view.verdict.name());
    let (with_ours, among) = pairs(result);
    // Beyond three references every pair would be too wide a table: their spread says as much.
    let spread = with_ours.len() > 3 && !style.pairs;
    let mut table = new_table(style);
    let mut header = vec!["point".to_string()];
    header.extend(with_ours.iter().map(|p| format!("{}\n{}", p.a, p.b)));
    match spread {
        true => header.push("references\nwidest pair".into()),
        false => header.extend(among.iter().map(|p| format!("{}\n{}", p.a, p.b))),
    }
    header.extend(["tolerance", "worst at", "verdict"].map(String::from));
    table.set_header(bold(&header, style));
    for line in &view.lines {
        let mut row = vec![Cell::new(label(line))];
        row.extend(with_ours.iter().map(|p| cell(line, p, style)));
        match spread {
            true => row.push(Cell::new(widest_pair(line, &among))),
            false => row.extend(among.iter().map(|p| cell(line, p, style))),
        }
        row.push(Cell::new(tolerances(&line.tolerances())));
        row.push(Cell::new(worst_at(line.worst)));
        row.push(verdict_cell(line.verdict, style));
        table.add_row(row);
    }
    let _ = writeln!(out, "{}", whole_words(table));
    against_the_oracle(out, result, view, style);
    let _ = writeln!(out, "{}", checkpoint_sentence(result, view));
    notes(out, view);
    failures(out, result, view);
}

/// Each implementation against float64: what it shows in all, and what each stage does by itself.
fn against_the_oracle(
    out: &mut String,
    result: &RunResult,
    view: &CheckpointView<'_>,
    style: &Style,
) {
    let Some((names, lines)) = stages::lines(result, view) else { return };
    let mut table = new_table(style);
    let mut header = vec!["against float64".to_string()];
    header.extend(names.iter().map(|name| format!("{name}\ntotal / local")));
    header.extend(["local ÷ noise\nlargest".into(), "ours ÷ references\ntotal / local".into()]);
    table.set_header(bold(&header, style));
    for line in lines {
        let mut row = vec![line.label];
        row.extend(line.cells);
        row.extend([line.noise, line.ratio]);
        table.add_row(row);
    }
    let _ = writeln!(out, "{}", whole_words(table));
}

fn label(line: &PointLine<'_>) -> String {
    match line.folded {
        1 => line.label.clone(),
        n => format!("{} ×{n}", line.label),
    }
}

fn cell(line: &PointLine<'_>, pair: &Pair, style: &Style) -> Cell {
    let Some((verdict, row)) = line.cell(pair) else { return Cell::new("-") };
    let figure = row.and_then(|r| r.metrics.as_ref()).map(|m| error(m.max_abs));
    match verdict {
        Verdict::Pass => {
            // Beyond the tolerance and excused: the note below says by what.
            let excused = row.and_then(|r| r.metrics.as_ref()).is_some_and(|m| m.exceeding > 0);
            let mark = if excused { "*" } else { "" };
            Cell::new(format!("{}{mark}", figure.unwrap_or("equal".into())))
        }
        Verdict::Unchecked => Cell::new("UNCHECKED"),
        Verdict::Warn => {
            colour(Cell::new(format!("{} WARN", figure.unwrap_or_default())), Color::Yellow, style)
        }
        Verdict::Fail => {
            let text = format!("{} FAIL", figure.unwrap_or_default());
            colour(Cell::new(text.trim_start()), Color::Red, style)
        }
        Verdict::Error => colour(Cell::new("ERROR"), Color::Red, style),
    }
}

fn widest_pair(line: &PointLine<'_>, among: &[Pair]) -> String {
    match widest(std::slice::from_ref(line), among).row {
        None => "-".into(),
        Some(r) => format!("{} {}–{}", error(r.metrics.as_ref().and_then(|m| m.max_abs)), r.a, r.b),
    }
}

fn worst_at(row: &Row) -> String {
    let at = row.metrics.as_ref().map(|m| index(&m.worst)).unwrap_or_default();
    let layer = row.layer.map(|l| format!("layer {l}, ")).unwrap_or_default();
    format!("{layer}{} step {} {at}", row.case, row.step).trim_end().to_string()
}

/// What passed for a reason.
fn notes(out: &mut String, view: &CheckpointView<'_>) {
    let noted = view.lines.iter().flat_map(|l| l.rows.iter());
    let mut seen: Vec<&str> = Vec::new();
    for row in
        noted.filter(|r| matches!(r.verdict, Verdict::Pass | Verdict::Warn) && !r.reason.is_empty())
    {
        if !seen.contains(&row.reason.as_str()) {
            let excused = row.metrics.as_ref().is_some_and(|m| m.exceeding > 0);
            let mark = if excused { "*" } else { "note:" };
            let _ = writeln!(out, "  {mark} {} at {}: {}", parties(row), place(row), row.reason);
            seen.push(&row.reason);
        }
    }
    let own = view.lines.iter().flat_map(|l| l.own());
    let (checked, failed) = own.fold((0, 0), |(n, f), r| {
        (n + 1, f + usize::from(matches!(r.verdict, Verdict::Fail | Verdict::Error)))
    });
    if checked > 0 && failed == 0 {
        let _ = writeln!(
            out,
            "  {checked} checks of implementations against themselves and the oracle: all pass"
        );
    }
}

fn failures(out: &mut String, result: &RunResult, view: &CheckpointView<'_>) {
    let subject = result.subject_name();
    let mut failed: Vec<&Row> = view.lines.iter().flat_map(|l| l.rows.iter().copied()).collect();
    failed.retain(|r| matches!(r.verdict, Verdict::Fail | Verdict::Error));
    // What is the subject's comes before what is another's; then as data flows.
    let anothers = |r: &Row| r.verdict_of(subject) == Verdict::Unchecked;
    failed.sort_by_key(|r| (anothers(r), r.step, r.point));
    for row in failed.iter().take(FAILURES_SHOWN) {
        let (verdict, parties) = (row.verdict.name(), parties(row));
        let _ = writeln!(out, "  {verdict} {parties} at {}: {}", place(row), row.reason);
        if let Some(m) = row.metrics.as_ref().filter(|_| row.verdict == Verdict::Fail) {
            let [a, b] = m.worst_values.map(|v| value_at(row.point, v));
            let _ = writeln!(out, "    worst {}: {a} against {b}", index(&m.worst));
        }
        if let Some(excerpt) = &row.excerpt {
            for line in row_values(row, excerpt) {
                let _ = writeln!(out, "    {line}");
            }
        }
        if let Some(hint) =
            hint(row).filter(|_| row.verdict == Verdict::Fail || row.reason.contains("shape"))
        {
            let _ = writeln!(out, "    hint: {hint}");
        }
    }
    if !failed.is_empty() {
        let _ = writeln!(out, "  more of this checkpoint: llorch-diff explain {}", view.number);
    }
    if failed.len() > FAILURES_SHOWN {
        let rest = failed.len() - FAILURES_SHOWN;
        let _ = writeln!(out, "  and {rest} more rows that fail here (--format json has them all)");
    }
    // Elements that were asked for with --values, where nothing failed.
    for row in view.lines.iter().map(|l| l.worst).filter(|r| r.verdict == Verdict::Pass) {
        if let Some(excerpt) = &row.excerpt {
            let _ = writeln!(out, "  {}", place(row));
            for line in row_values(row, excerpt) {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
}

fn generations(out: &mut String, result: &RunResult, style: &Style) {
    let mut table = new_table(style);
    table.set_header(bold(&["case", "implementation", "generated"], style));
    let mut rows = 0;
    // Of a checkpoint that the strategy left out nothing is shown.
    let left_out = result.strategy.as_ref().is_some_and(|s| s.left_out.contains(&12));
    let greedy = |c: &&CaseRecord| c.sampling.temperature == 0.0 && !left_out;
    for case in result.cases.iter().filter(greedy) {
        for i in &result.implementations {
            let Some(g) = case.generated.get(&i.name) else { continue };
            let text =
                g.text.as_ref().map(|t| format!("{t:?}")).unwrap_or_else(|| format!("{:?}", g.ids));
            table.add_row(vec![Cell::new(&case.name), Cell::new(&i.name), Cell::new(text)]);
            rows += 1;
        }
    }
    if rows > 0 {
        let _ = writeln!(out, "\nGenerated text\n{}", whole_words(table));
    }
}

/// Markdown; or as wide as the terminal, and so many columns where there is none.
pub(crate) fn plain_table(markdown: bool, columns: u16) -> Table {
    use std::io::IsTerminal;
    let mut table = Table::new();
    table.load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_BORDERS_ONLY });
    if !markdown {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        if !std::io::stdout().is_terminal() {
            table.set_width(columns);
        }
    }
    table
}

pub(crate) fn new_table(style: &Style) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    match style.width {
        Some(width) => table.set_width(width.max(60)),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    if style.colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    table
}

/// Lines break between words only: a point's name in two pieces can't be searched for. A terminal that
/// is narrower than that gets a table that is wider than itself.
pub(crate) fn whole_words(mut table: Table) -> Table {
    const PADDING: usize = 2;
    let mut longest = vec![0; table.column_count()];
    for row in table.header().into_iter().chain(table.row_iter()) {
        for (most, cell) in longest.iter_mut().zip(row.cell_iter()) {
            let words = cell.content().split_whitespace().map(|w| w.chars().count()).max();
            *most = words.unwrap_or(0).max(*most);
        }
    }
    for (column, most) in table.column_iter_mut().zip(longest) {
        let width = u16::try_from(most + PADDING).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
    table
}

pub(crate) fn bold<S: AsRef<str>>(names: &[S], style: &Style) -> Vec<Cell> {
    let cell = |n: &S| match style.colour {
        true => Cell::new(n.as_ref()).add_attribute(Attribute::Bold),
        false => Cell::new(n.as_ref()),
    };
    names.iter().map(cell).collect()
}

fn colour(cell: Cell, colour: Color, style: &Style) -> Cell {
    if style.colour { cell.fg(colour) } else { cell }
}

pub(crate) fn run_verdict_cell(verdict: RunVerdict, style: &Style) -> Cell {
    let cell = Cell::new(verdict.name());
    match verdict {
        RunVerdict::Pass => colour(cell, Color::Green, style),
        RunVerdict::Warn | RunVerdict::Incomplete => colour(cell, Color::Yellow, style),
        RunVerdict::Fail | RunVerdict::Error => colour(cell, Color::Red, style),
    }
}

pub(crate) fn verdict_cell(verdict: Verdict, style: &Style) -> Cell {
    let cell = Cell::new(verdict.name());
    match verdict {
        Verdict::Pass => colour(cell, Color::Green, style),
        Verdict::Warn | Verdict::Unchecked => colour(cell, Color::Yellow, style),
        Verdict::Fail | Verdict::Error => colour(cell, Color::Red, style),
    }
}
