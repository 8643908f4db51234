//! The result itself, as `result.json` holds it.

use super::{Renderer, Style};
use crate::result::RunResult;

pub struct JsonRenderer;

impl Renderer for JsonRenderer {
    fn render(&self, result: &RunResult, _: &Style) -> String {
        // The result is plain data: finite numbers, strings and lists.
        let mut text = serde_json::to_string_pretty(result).unwrap_or_else(|e| format!("\"{e}\""));
        text.push('\n');
        text
    }
}
