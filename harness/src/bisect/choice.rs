//! The choice of a token, in words.

use llorch_trace::{Point, Stage};

use super::memory::Memory;
use super::scan::Finding;
use crate::oracle::Inputs;

/// What the chosen token is instead of that with the largest logit.
pub fn explain(memory: &Memory<'_>, finding: &Finding) -> Option<String> {
    if finding.point.stage != Stage::Argmax {
        return None;
    }
    let chosen = memory.tensor(finding.step, finding.point)?.values.first().copied()?;
    let logits = memory.tensor(finding.step, Point::new(Stage::LogitsLast))?.values;
    let logit = *logits.get(chosen.max(0.0) as usize)?;
    let better = logits.iter().filter(|l| **l > logit).count();
    let last = logits.len().checked_sub(1)?;
    Some(match better {
        0 => "with the highest id of equal logits".to_string(),
        1 => "with the token of the second largest logit".to_string(),
        n if n == last => "with the token of the smallest logit".to_string(),
        n => format!("with the token of rank {}", n + 1),
    })
}
