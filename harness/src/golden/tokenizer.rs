//! The tokenizer against 10,000 strings by other hands, `golden/tokenizer/gpt2.jsonl`.

use serde::Deserialize;

use super::outcome::GoldenRow;
use llorch_models::progress::Progress;

use crate::assets;
use crate::live::{Live, LiveError};
use crate::result::Verdict;

pub const FILE: &str = "golden/tokenizer/gpt2.jsonl";

/// golden/tokenizer/README.md tells the fields.
#[derive(Debug, Deserialize)]
struct Line {
    text: String,
    ids: Vec<u32>,
    /// Where the text holds `<|endoftext|>`: its ids if that is ordinary text.
    #[serde(default)]
    ids_as_text: Option<Vec<u32>>,
}

/// One row: how many strings the subject's tokenizer agrees on.
pub fn check(live: &mut Live) -> Result<GoldenRow, LiveError> {
    let bytes = assets::get(FILE).unwrap_or_default();
    let mut row = GoldenRow {
        golden: "tokenizer".into(),
        what: "strings by tiktoken".into(),
        compared: 0,
        worst: String::new(),
        max_abs: None,
        tolerance: 0.0,
        verdict: Verdict::Pass,
        reason: String::new(),
        missing: false,
    };
    if !live.hello().can("tokenize") {
        row.verdict = Verdict::Unchecked;
        row.reason = "the subject has no tokenizer".into();
        return Ok(row);
    }
    let mut wrong = 0;
    let lines = || bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let bar = Progress::new(false).steps("tokenizer", "string", lines().count());
    for line in lines() {
        bar.set(row.compared as u64);
        let line: Line = match serde_json::from_slice(line) {
            Ok(line) => line,
            Err(e) => {
                row.verdict = Verdict::Error;
                row.reason = format!("failed to read {FILE}, line {}: {e}", row.compared + 1);
                return Ok(row);
            }
        };
        row.compared += 1;
        let found = live.tokenize(&line.text)?;
        if found == line.ids || line.ids_as_text.as_ref() == Some(&found) {
            continue;
        }
        wrong += 1;
        if wrong == 1 {
            row.worst = format!("{:?}", shorten(&line.text));
            row.reason =
                format!("{:?}: ids {found:?}; expected {:?}", shorten(&line.text), line.ids);
        }
    }
    if wrong > 0 {
        row.verdict = Verdict::Fail;
        row.reason =
            format!("{wrong} of {} strings differ; the first is {}", row.compared, row.reason);
    }
    if row.compared == 0 {
        row.verdict = Verdict::Unchecked;
        row.missing = true;
        row.reason = format!("{FILE} is not in this build");
    }
    Ok(row)
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}
