//! A bench as a page, for docs and pull requests.

use std::fmt::Write;

use super::record::BenchResult;
use super::shown::{against_the_best, first_line, grids, left_out, legend, machine, of_the_limit};
use crate::report::markdown::escape;

pub fn page(result: &BenchResult) -> String {
    let mut out = format!("# {}\n\n", escape(&first_line(result)));
    let _ = writeln!(out, "{}.\n", escape(&legend(result)));
    for grid in grids(result) {
        let cells = |row: &[String]| {
            let row: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
            format!("| {} |", row.join(" | "))
        };
        let _ = writeln!(out, "## {}\n\n{}", escape(&grid.job.to_string()), cells(&grid.header));
        let _ = writeln!(out, "|{}", " --- |".repeat(grid.header.len()));
        for row in &grid.rows {
            let _ = writeln!(out, "{}", cells(row));
        }
        let _ = writeln!(out);
    }
    list(&mut out, "Machine", machine(result));
    list(&mut out, "Of the machine's limit", of_the_limit(result));
    list(&mut out, "Against the best peer of each figure", against_the_best(result));
    list(&mut out, "Not in the tables", left_out(result));
    out
}

fn list(out: &mut String, heading: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "## {heading}\n");
    for line in lines {
        let _ = writeln!(out, "- {}", escape(&line));
    }
    let _ = writeln!(out);
}
