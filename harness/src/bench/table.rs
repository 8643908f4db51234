//! A bench for a terminal.

use std::fmt::Write;

use super::record::BenchResult;
use super::shown::{against_the_best, first_line, grids, left_out, legend, machine, of_the_limit};
use crate::report::Style;
use crate::report::table::{bold, new_table};

pub fn tables(result: &BenchResult) -> String {
    let style = Style::of_stdout(false);
    let mut out = format!("{}\n", first_line(result));
    let _ = writeln!(out, "{}\n", legend(result));
    for grid in grids(result) {
        let mut table = new_table(&style);
        table.set_header(bold(&grid.header, &style));
        for row in &grid.rows {
            table.add_row(row);
        }
        let _ = writeln!(out, "{}\n{table}\n", grid.job);
    }
    for line in machine(result) {
        let _ = writeln!(out, "{line}");
    }
    let share = format!("{} of the machine's limit:", result.subject);
    section(&mut out, &share, of_the_limit(result));
    section(&mut out, "against the best peer of each figure:", against_the_best(result));
    section(&mut out, "not in the tables:", left_out(result));
    out
}

fn section(out: &mut String, heading: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "{heading}");
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
}
