//! What an engineer should know of each checkpoint, as data: one file a checkpoint in `data/`, embedded
//! in the program.
//!
//! [`guide`] is the form of a file, [`lookup`] finds one by number, name or point. [`page`] renders it as
//! Markdown (`docs/checkpoints` holds what it gives), [`screen`] for a terminal; [`explain`] is the
//! command. [`patterns`] reads a likely cause off a table that failed, [`assess`] says which level a run
//! has reached and what to look at next, [`strategy`] stops a run's report early.

pub mod assess;
pub mod explain;
pub mod guide;
mod lookup;
pub mod page;
pub mod patterns;
mod screen;
pub mod strategy;

use std::sync::OnceLock;

use llorch_trace::Stage;

pub use guide::{Criticality, Guide};
pub use lookup::{Found, find};

const FILES: [&str; 13] = [
    include_str!("data/00-foundation.toml"),
    include_str!("data/01-ln.toml"),
    include_str!("data/02-qkv.toml"),
    include_str!("data/03-cache.toml"),
    include_str!("data/04-scores.toml"),
    include_str!("data/05-attn.toml"),
    include_str!("data/06-ffn.toml"),
    include_str!("data/07-block.toml"),
    include_str!("data/08-logits.toml"),
    include_str!("data/09-last.toml"),
    include_str!("data/10-argmax.toml"),
    include_str!("data/11-softmax.toml"),
    include_str!("data/12-e2e.toml"),
];

/// All guides, in the order of the checkpoints.
pub fn all() -> &'static [Guide] {
    static GUIDES: OnceLock<Vec<Guide>> = OnceLock::new();
    GUIDES.get_or_init(|| {
        // They are part of the program; a test reads every one.
        let read = |text: &&str| toml::from_str(text).unwrap_or_else(|e| panic!("{e}"));
        FILES.iter().map(read).collect()
    })
}

pub fn of(number: u8) -> &'static Guide {
    &all()[usize::from(number)]
}

/// What to look at first where this stage is wrong.
pub fn hint(stage: Stage) -> Option<&'static str> {
    let name = stage_name(stage);
    all().iter().flat_map(|g| &g.hint).find(|h| h.stages.contains(&name)).map(|h| h.text.as_str())
}

/// The name of a stage without its layer, `attn.q`; `block` for a block's own output.
pub fn stage_name(stage: Stage) -> String {
    let name = llorch_trace::Point::of_layer(stage, 0).to_string();
    match name.strip_prefix("h.0") {
        Some("") => "block".into(),
        Some(rest) => rest.trim_start_matches('.').to_string(),
        None => name,
    }
}

#[cfg(test)]
mod assess_tests;
#[cfg(test)]
mod tests;
