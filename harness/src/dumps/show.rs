//! A comparison as text: a table, or Markdown.

use std::fmt::Write as _;
use std::io::Write as _;

use comfy_table::{CellAlignment, ColumnConstraint};
use llorch_trace::Stage;

use super::compare::{Compared, SourceRecord};
use crate::report::numbers::figure;
use crate::report::table::plain_table;
use crate::result::{Row, Verdict};
use crate::text::pattern;

/// Names listed of a source's tensors that have no place.
const LISTED: usize = 6;

/// Failing rows whose elements are shown.
const ELEMENTS_SHOWN: usize = 3;

pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `| head` is no failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

pub fn text(compared: &Compared, all: bool, markdown: bool) -> String {
    let mut out = String::new();
    let bold = if markdown { "**" } else { "" };
    let _ = writeln!(out, "{bold}{}{bold} {}", compared.verdict.name(), summary(compared));
    out.push('\n');
    for source in &compared.sources {
        let _ = writeln!(
            out,
            "{}{}: {}, {} ({} of {} tensors compared)",
            if markdown { "- " } else { "" },
            source.name,
            source.form,
            source.path.display(),
            source.compared,
            source.tensors
        );
    }
    for one in &compared.left_out {
        let bullet = if markdown { "- " } else { "" };
        let _ = writeln!(out, "{bullet}not compared: {}: {}", one.path.display(), one.reason);
    }
    out.push('\n');
    if !compared.rows.is_empty() {
        out += &table(compared, all, markdown);
        out.push('\n');
    }
    out += &failures(compared);
    out += &partial(compared);
    for source in &compared.sources {
        out += &notes(source, markdown);
    }
    if !compared.unchecked.is_empty() {
        out.push_str("\nUNCHECKED\n");
        for line in unchecked(compared) {
            let _ = writeln!(out, "{}{line}", if markdown { "- " } else { "  " });
        }
    }
    out
}

fn summary(compared: &Compared) -> String {
    let nothing: Vec<&str> =
        compared.sources.iter().filter(|s| s.compared == 0).map(|s| s.name.as_str()).collect();
    let rows = &compared.rows;
    let failed = rows.iter().filter(|r| r.verdict == Verdict::Fail).count();
    let mut text = match (rows.iter().find(|r| r.verdict == Verdict::Fail), rows.len()) {
        (Some(first), n) => format!(
            "{failed} of {n} comparisons; the first in data-flow order is {} ({}–{})",
            whereabouts(first),
            first.a,
            first.b
        ),
        (None, 0) => "nothing was compared".to_string(),
        (None, n) => {
            let unchecked = rows.iter().filter(|r| r.verdict == Verdict::Unchecked).count();
            match (unchecked, rows.iter().filter(|r| is_partial(r)).count()) {
                (0, _) => format!("{n} comparisons"),
                (unchecked, 0) => format!("{n} comparisons, {unchecked} of nothing"),
                (_, partial) => format!(
                    "{n} comparisons, {partial} of them partial: they agree where elements are printed, and \
                     the other elements are UNCHECKED"
                ),
            }
        }
    };
    if !nothing.is_empty() && !rows.is_empty() {
        let _ = write!(text, "; nothing of {} could be compared", nothing.join(", "));
    }
    text
}

/// Points that are lacking in the same way share a line: `tokens, argmax, 7 steps: only in hf; …`.
fn unchecked(compared: &Compared) -> Vec<String> {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for u in &compared.unchecked {
        let (name, how_many) =
            u.what.split_once(", ").map_or((u.what.as_str(), ""), |(n, h)| (n, h));
        let tail = match how_many {
            "" => format!(": {}", u.reason),
            _ => format!(", {how_many}: {}", u.reason),
        };
        match groups.iter_mut().find(|(other, _)| *other == tail) {
            Some((_, names)) => names.push(name),
            None => groups.push((tail, vec![name])),
        }
    }
    groups.into_iter().map(|(tail, names)| format!("{}{tail}", names.join(", "))).collect()
}

/// `h.3.attn.q, step 1, case hello`.
fn whereabouts(row: &Row) -> String {
    let mut text = row.point.to_string();
    if row.step > 0 {
        let _ = write!(text, ", step {}", row.step);
    }
    if !row.case.is_empty() {
        let _ = write!(text, ", case {}", row.case);
    }
    text
}

/// One line of the table: the worst row, and how many there are like it.
struct Line<'a> {
    row: &'a Row,
    places: usize,
    failed: usize,
}

/// Rows of one stage and pair fold into the worst of them.
fn lines(rows: &[Row], all: bool) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for row in rows {
        let failed = usize::from(row.verdict == Verdict::Fail);
        let same = |line: &&mut Line<'_>| {
            line.row.point.stage == row.point.stage
                && line.row.checkpoint == row.checkpoint
                && (&line.row.a, &line.row.b) == (&row.a, &row.b)
        };
        match lines.iter_mut().find(same).filter(|_| !all) {
            Some(line) => {
                line.places += 1;
                line.failed += failed;
                if severity(row) > severity(line.row) {
                    line.row = row;
                }
            }
            None => lines.push(Line { row, places: 1, failed }),
        }
    }
    // By checkpoint and stage, not by case: the first of each stage came with the first case.
    lines.sort_by_key(|l| (l.row.checkpoint, l.row.point.stage));
    lines
}

/// Verdict first, then how much of the tolerance is used.
fn severity(row: &Row) -> (Verdict, f64) {
    let used = row.metrics.as_ref().map_or(f64::INFINITY, |m| match m.max_abs {
        Some(d) if row.tolerance > 0.0 => d / row.tolerance,
        Some(d) => d,
        None => f64::INFINITY,
    });
    (row.verdict, used)
}

fn table(compared: &Compared, all: bool, markdown: bool) -> String {
    let mut table = plain_table(markdown, 120);
    let place = if all { "step, case" } else { "worst at" };
    let one_case = compared.rows.iter().all(|row| row.case == compared.rows[0].case);
    table.set_header([
        "#",
        "point",
        "pair",
        place,
        "largest difference",
        "rel L2",
        "tolerance",
        "at",
        "verdict",
    ]);
    for line in lines(&compared.rows, all) {
        let row = line.row;
        let metric = |f: fn(&crate::result::Metrics) -> Option<f64>| match &row.metrics {
            Some(m) => f(m).map_or("not finite".into(), figure),
            None => "–".into(),
        };
        let folded = if line.places > 1 { pattern(row.point) } else { row.point.to_string() };
        let mut place = Vec::new();
        place.extend(row.layer.filter(|_| line.places > 1).map(|layer| format!("layer {layer}")));
        place.extend((row.step > 0).then(|| format!("step {}", row.step)));
        place.extend((!one_case && !row.case.is_empty()).then(|| row.case.clone()));
        let mut place = place.join(", ");
        if line.places > 1 {
            let _ = write!(place, "{}of {}", if place.is_empty() { "" } else { " " }, line.places);
        }
        let verdict = match line.failed {
            n if n > 0 && line.places > 1 => format!("FAIL {n}/{}", line.places),
            _ => row.verdict.name().to_string(),
        };
        table.add_row([
            format!("{}", row.checkpoint),
            folded,
            format!("{}–{}", row.a, row.b),
            place,
            metric(|m| m.max_abs),
            metric(|m| m.rel_l2),
            tolerance(row),
            row.metrics.as_ref().map_or(String::new(), |m| format!("{:?}", m.worst)),
            verdict,
        ]);
    }
    for column in [1, 2, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    for column in [4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

fn tolerance(row: &Row) -> String {
    match row.tolerance {
        0.0 => "exact".into(),
        t if row.point.stage == Stage::NextProbs => figure(t),
        t => match format!("{t:e}") {
            long if long.len() > 6 => figure(t),
            short => short,
        },
    }
}

/// Reasons, each once and with its first place, and the elements of the first few failures.
fn failures(compared: &Compared) -> String {
    let mut out = String::new();
    let mut said: Vec<String> = Vec::new();
    let mut shown = 0;
    for row in &compared.rows {
        let wanted = matches!(row.verdict, Verdict::Fail | Verdict::Warn);
        if wanted && !row.reason.is_empty() && said.len() < 20 {
            let line = format!(
                "{} {} {}–{}: {}",
                row.verdict.name(),
                whereabouts(row),
                row.a,
                row.b,
                row.reason
            );
            let _ = writeln!(out, "{line}");
            said.push(line);
        }
        let Some(e) = &row.excerpt else { continue };
        let asked = row.verdict != Verdict::Fail;
        if asked || shown < ELEMENTS_SHOWN {
            shown += usize::from(!asked);
            let numbers = |v: &[Option<f64>]| {
                // Only masked cells of scores are -inf in an honest dump.
                let masked = row.point.stage.is_causal() && !row.reason.contains("not finite");
                let none = if masked { "masked" } else { "not finite" };
                let show = |x: &Option<f64>| x.map_or(none.into(), |x| format!("{x:.7}"));
                v.iter().map(show).collect::<Vec<_>>().join("  ")
            };
            let _ = writeln!(out, "    {} from {:?}", whereabouts(row), e.from);
            let width = row.a.chars().count().max(row.b.chars().count());
            let _ = writeln!(out, "    {:width$}  {}", row.a, numbers(&e.a));
            let _ = writeln!(out, "    {:width$}  {}", row.b, numbers(&e.b));
        }
    }
    let failed =
        compared.rows.iter().filter(|r| matches!(r.verdict, Verdict::Fail | Verdict::Warn)).count();
    if failed > said.len() {
        let _ = writeln!(
            out,
            "and {} more rows; --all or --format json lists them",
            failed - said.len()
        );
    }
    out
}

/// Of which only some elements were printed; what is UNCHECKED besides has none that mean anything.
fn is_partial(row: &Row) -> bool {
    row.verdict == Verdict::Unchecked && row.reason.starts_with("partial")
}

/// What the UNCHECKED rows of each pair amount to.
fn partial(compared: &Compared) -> String {
    let mut pairs: Vec<(&str, &str, usize, usize)> = Vec::new();
    for row in compared.rows.iter().filter(|row| is_partial(row)) {
        let elements = row.metrics.as_ref().map_or(0, |m| m.total);
        match pairs.iter_mut().find(|(a, b, ..)| (*a, *b) == (&row.a, &row.b)) {
            Some((_, _, rows, n)) => (*rows, *n) = (*rows + 1, *n + elements),
            None => pairs.push((&row.a, &row.b, 1, elements)),
        }
    }
    let mut out = String::new();
    for (a, b, rows, n) in pairs {
        let _ = writeln!(
            out,
            "UNCHECKED {a}–{b}: {rows} rows are partial: they agree at the {n} elements that are printed, \
             within the tolerance and what printing rounds"
        );
    }
    let empty = |row: &&Row| row.verdict == Verdict::Unchecked && !is_partial(row);
    for Row { a, b, point, reason, .. } in compared.rows.iter().filter(empty) {
        let _ = writeln!(out, "UNCHECKED {a}–{b}: {point}: {reason}");
    }
    out
}

fn notes(source: &SourceRecord, markdown: bool) -> String {
    let mut out = String::new();
    let bullet = if markdown { "- " } else { "  " };
    if !source.recipes.is_empty() {
        let _ = writeln!(out, "\n{}: how its tensors became ours", source.name);
        for (point, recipe) in &source.recipes {
            let _ = writeln!(out, "{bullet}{point}: {recipe}");
        }
    }
    if !source.unmapped.is_empty() {
        let _ = writeln!(out, "\n{}: tensors without a place among our points", source.name);
        for (reason, names) in &source.unmapped {
            let more = names.len().saturating_sub(LISTED);
            let mut list = names[..names.len() - more].join(", ");
            if more > 0 {
                let _ = write!(list, " and {more} more");
            }
            let _ = writeln!(out, "{bullet}{list}: {reason}");
        }
    }
    if let [first, rest @ ..] = source.repeated.as_slice() {
        let more =
            if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let _ = writeln!(out, "\n{}: left aside: {first}{more}", source.name);
    }
    out
}
