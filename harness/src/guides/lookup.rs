//! From what a person writes to a guide.

use llorch_trace::points::CHECKPOINTS;
use llorch_trace::{Point, checkpoint};

use super::Guide;
use crate::run::RunError;

/// A guide, and the point by which it was asked for.
#[derive(Debug)]
pub struct Found {
    pub guide: &'static Guide,
    pub point: Option<Point>,
}

/// By number, slug or name of a checkpoint, or by a point: `h.3.attn.out`, also as reports write it
/// (`h.*.attn.out`) or without its layer.
pub fn find(text: &str) -> Result<Found, RunError> {
    let text = text.trim();
    if let Some(found) = checkpoint(text) {
        return Ok(Found { guide: super::of(found.number), point: None });
    }
    let first_layer = text.replacen("h.*", "h.0", 1).replacen("h.i", "h.0", 1);
    let spellings = [text.to_string(), first_layer, format!("h.0.{text}")];
    match spellings.iter().find_map(|name| name.parse::<Point>().ok()) {
        Some(point) => {
            Ok(Found { guide: super::of(point.checkpoint().number), point: Some(point) })
        }
        None => {
            let slugs: Vec<&str> = CHECKPOINTS.iter().map(|c| c.slug).collect();
            Err(RunError::Usage(format!(
                "failed to find {text:?}; expected a checkpoint (0 to 12, or {}) or a point such as \
                 h.3.attn.out (`llorch-diff points` lists them)",
                slugs.join(", ")
            )))
        }
    }
}
