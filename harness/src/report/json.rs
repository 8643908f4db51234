//! The result itself, as `result.json` holds it.

use super::{Exporter, Run, Style};

pub struct Json;

impl Exporter for Json {
    fn export(&self, run: &Run<'_>, _: &Style) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(run.result)? + "\n")
    }
}
