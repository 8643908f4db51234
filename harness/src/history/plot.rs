//! A series in a terminal: a mark an implementation and run, errors on a logarithmic scale.

use std::fmt::Write;

use comfy_table::Cell;

use super::diff::is_unusual;
use super::series::{Error, Line, Series};
use crate::report::Style;
use crate::report::numbers::error;
use crate::report::table::{bold, new_table, whole_words};
use crate::text::count;

const HEIGHT: usize = 12;
/// Room for `1e-6 ┤`.
const LEFT: usize = 7;

pub fn text(series: &Series<'_>, style: &Style) -> String {
    let mut out = String::new();
    let what = series.error.says();
    let _ = writeln!(out, "{}: {what}, the largest of all cases and steps", series.title());
    if let Some(last) = series.runs.last() {
        let machine = last.machine.as_ref().map(|m| m.kind()).unwrap_or_default();
        let model = &last.model.name;
        let cases = count(last.cases.count, "case");
        let _ = writeln!(out, "{model}, {cases}, {}, {machine}", last.means.dtype);
    }
    let marks = marks(&series.lines);
    let _ = writeln!(out);
    chart(&mut out, series, &marks, style.width.map_or(100, usize::from));
    let _ = writeln!(out, "\n{}", legend(series, &marks, style));
    for line in &series.lines {
        for (run, old, new) in &line.versions {
            let date = &series.runs[*run].started[..10];
            let _ = writeln!(out, "{date}  {}: {old} → {new}", line.name);
        }
    }
    if series.left_out > 0 {
        let runs = count(series.left_out, "run");
        let _ = writeln!(out, "left out: {runs} of other weights, cases, precision or machines");
    }
    out
}

fn chart(out: &mut String, series: &Series<'_>, marks: &[char], width: usize) {
    let scale = Scale::of(series);
    let columns = series.runs.len();
    let each = (width.saturating_sub(LEFT) / columns.max(1)).clamp(1, 3);
    let fitting = (width.saturating_sub(LEFT) / each).min(columns);
    let skipped = columns - fitting;
    let mut grid = vec![vec![' '; fitting * each]; HEIGHT];
    for (line, mark) in series.lines.iter().zip(marks) {
        for (column, value) in line.values.iter().skip(skipped).enumerate() {
            let Some(row) = value.map(|v| scale.row(v)) else { continue };
            let cell = &mut grid[row][column * each];
            *cell = if *cell == ' ' { *mark } else { '*' };
        }
    }
    for (row, cells) in grid.iter().enumerate() {
        let line: String = cells.iter().collect();
        let _ = writeln!(out, "{:>5} ┤{}", scale.label(row), line.trim_end());
    }
    let date = |i: usize| series.runs.get(i).map_or("", |r| &r.started[..10]);
    let (first, last) = (date(skipped), date(columns - 1));
    let axis = "─".repeat((fitting * each).max(1));
    let _ = writeln!(out, "{:>5} └{axis}", "");
    let gap = (fitting * each).saturating_sub(last.len());
    match columns {
        // One column has one date.
        0 | 1 => drop(writeln!(out, "{:LEFT$}{last}", "")),
        _ if gap > first.len() => drop(writeln!(out, "{:LEFT$}{first:<gap$}{last}", "")),
        _ => drop(writeln!(out, "{:LEFT$}{first} to {last}", "")),
    }
}

/// Rows from the top down; zero has the last one.
struct Scale {
    low: f64,
    high: f64,
    zero: bool,
}

impl Scale {
    fn of(series: &Series<'_>) -> Scale {
        let (low, high) = series.decades();
        Scale { low, high, zero: series.figures().any(|v| v == 0.0) }
    }

    fn rows(&self) -> usize {
        HEIGHT - usize::from(self.zero)
    }

    fn row(&self, value: f64) -> usize {
        if value <= 0.0 {
            return HEIGHT - 1;
        }
        let part = (self.high - value.log10()) / (self.high - self.low);
        ((part * (self.rows() - 1) as f64).round() as usize).min(self.rows() - 1)
    }

    /// At the row of each decade.
    fn label(&self, row: usize) -> String {
        if self.zero && row == HEIGHT - 1 {
            return "0".into();
        }
        let decades = self.low as i32..=self.high as i32;
        // Where there is room: 2 and 5 of each decade as well.
        let between: &[i32] = if self.high - self.low <= 2.0 { &[1, 2, 5] } else { &[1] };
        let labels = decades.flat_map(|d| between.iter().map(move |n| (*n, d)));
        let value = |(n, d): (i32, i32)| f64::from(n) * 10f64.powi(d);
        let inside = |v: f64| v.log10() <= self.high + 1e-9;
        let mut here = labels.filter(|l| inside(value(*l)) && self.row(value(*l)) == row);
        here.next().map_or(String::new(), |(n, d)| format!("{n}e{d}"))
    }
}

/// The first letter of each name that is not taken yet.
fn marks(lines: &[Line]) -> Vec<char> {
    let mut taken = Vec::new();
    for line in lines {
        let letters = line.name.chars().filter(|c| c.is_alphanumeric());
        let spare = ('A'..='Z').chain('0'..='9');
        let mark = letters.chain(spare).find(|c| !taken.contains(c));
        taken.push(mark.unwrap_or('?'));
    }
    taken
}

fn legend(series: &Series<'_>, marks: &[char], style: &Style) -> String {
    let figure = |v: Option<f64>| match (v, series.error) {
        (None, _) => "–".into(),
        (Some(v), Error::Local) => format!("{v:.2}"),
        (v, _) => error(v),
    };
    let mut table = new_table(style);
    table.set_header(bold(&["mark", "who", "last", "usually", "±", "runs", ""], style));
    for (line, mark) in series.lines.iter().zip(marks) {
        let last = line.values.last().copied().flatten();
        let usual = line.usual;
        let said = match (last, usual) {
            (Some(last), Some(usual)) if is_unusual(last, usual) => "beyond what is usual",
            (Some(_), Some(_)) => "usual",
            (Some(_), None) => "too few runs to say what is usual",
            (None, _) => "no figure",
        };
        table.add_row(vec![
            Cell::new(mark),
            Cell::new(&line.name),
            Cell::new(figure(last)),
            Cell::new(figure(usual.map(|u| u.median))),
            Cell::new(figure(usual.map(|u| u.deviation()))),
            Cell::new(line.values.iter().flatten().count()),
            Cell::new(said),
        ]);
    }
    format!("{}\n`*` where marks fall together", whole_words(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::read::History;
    use crate::history::series;
    use crate::history::testing::Past;

    #[test]
    fn the_plot_shows_a_mark_a_run_and_says_what_is_unusual() {
        let mut records: Vec<_> = (0..6).map(|n| Past::default().record(n)).collect();
        let last = Past { hf: "transformers 5.1.0", errors: [0.0, 9e-4, 3e-6], ..Past::default() };
        records.push(last.record(6));
        let history = History { place: "x".into(), records, others: 0, skipped: Vec::new() };
        let series = series::of(&history, "h.0.ln_1", Error::Total, 30).unwrap();
        let text = text(&series, &Style::default());
        let row = |label: &str| {
            text.lines().find(|l| l.trim_start().starts_with(label)).unwrap().to_string()
        };
        assert_eq!(row("1e-6 ┤"), " 1e-6 ┤l  l  l  l  l  l  l", "{text}");
        assert!(text.matches('h').count() >= 7);
        assert!(
            text.contains("beyond what is usual")
                && text.contains("2026-01-07  hf: transformers 5.0.0 → transformers 5.1.0"),
            "{text}"
        );
    }
}
