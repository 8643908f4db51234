//! The result, `llorch.adapter-check/1`: one row a check and one verdict.
//! `docs/schemas/adapter-check.schema.json` is its JSON Schema.

use serde::Serialize;

use crate::result::{ModelRecord, RunVerdict, Verdict};

pub const SCHEMA: &str = "llorch.adapter-check/1";

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub verdict: RunVerdict,
    /// RFC 3339, UTC.
    pub started: String,
    pub seconds: f64,
    pub command: Vec<String>,
    pub adapter: AdapterRecord,
    pub model: ModelRecord,
    pub rows: Vec<Row>,
}

/// What the adapter says of itself; empty where it said nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterRecord {
    pub command: String,
    pub name: String,
    pub version: String,
    pub capabilities: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub check: &'static str,
    pub says: &'static str,
    pub verdict: Verdict,
    /// The file and section that ask for it.
    pub document: String,
    /// Of a FAIL: what was sent, what came, what was due, what to do. Else null.
    pub sent: Option<String>,
    pub found: Option<String>,
    pub expected: Option<String>,
    pub mend: Option<String>,
    /// Why it is UNCHECKED; else empty.
    pub reason: String,
}

/// FAIL with any failure, ERROR where nothing was checked. What isn't declared lowers nothing.
pub fn verdict(rows: &[Row]) -> RunVerdict {
    let any = |verdict| rows.iter().any(|row| row.verdict == verdict);
    match () {
        _ if any(Verdict::Fail) => RunVerdict::Fail,
        _ if any(Verdict::Pass) => RunVerdict::Pass,
        _ => RunVerdict::Error,
    }
}
