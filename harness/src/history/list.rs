//! The runs of a history as a table, the latest last.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment};
use serde_json::{Value, json};

use super::read::History;
use super::record::Record;
use crate::report::Style;
use crate::report::numbers::seconds;
use crate::report::table::{bold, new_table, run_verdict_cell, whole_words};
use crate::text::count;

pub fn table(history: &History, records: &[&Record], style: &Style) -> String {
    let mut out = String::new();
    let mut table = new_table(style);
    let header = [
        "run",
        "started",
        "verdict",
        "model",
        "cases",
        "precision",
        "compared",
        "first wrong",
        "time",
    ];
    table.set_header(bold(&header, style));
    for r in records {
        let named = r.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let total = r.seconds.get("total").copied().unwrap_or_default();
        table.add_row(vec![
            Cell::new(r.short()),
            Cell::new(r.started.replace('T', " ").trim_end_matches('Z')),
            run_verdict_cell(r.verdict, style),
            Cell::new(format!("{}{named}", r.model.name)),
            Cell::new(r.cases.count).set_alignment(CellAlignment::Right),
            Cell::new(&r.means.dtype),
            Cell::new(names(r)),
            Cell::new(r.odd.first().map_or(String::new(), |o| format!("{} {}", o.name, o.point))),
            Cell::new(seconds(total)).set_alignment(CellAlignment::Right),
        ]);
    }
    let _ = writeln!(out, "{}", whole_words(table));
    let more = match history.records.len() - records.len() {
        0 => String::new(),
        n => format!(", {n} more with --all"),
    };
    let more = match history.others {
        0 => more,
        n => format!("{more}; {n} of other models or names"),
    };
    let _ = writeln!(out, "{} in {}{more}", count(history.records.len(), "run"), history.place);
    out
}

fn names(record: &Record) -> String {
    let names: Vec<&str> = record.implementations.iter().map(|i| i.name.as_str()).collect();
    names.join(", ")
}

/// Without the figures, which `history show` gives.
pub fn json(history: &History, records: &[&Record]) -> Value {
    let one = |r: &&Record| {
        let mut value = serde_json::to_value(r).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            for figures in ["points", "figures", "pairs"] {
                fields.remove(figures);
            }
        }
        value
    };
    json!({
        "schema": "llorch.history-list/1",
        "place": history.place,
        "runs": records.iter().map(one).collect::<Vec<_>>(),
        "skipped": history.skipped,
    })
}
