//! What waits for a review, as `golden check` tells it.

use std::path::Path;

use serde::Serialize;

use super::review::commit::PENDING;
use super::review::pending::Pending;
use super::review::place::{DEFAULT, Place};
use super::stop::Stop;
use crate::text::count;

/// Units that are named one by one in a line.
const NAMED: usize = 5;

#[derive(Debug, Serialize)]
pub struct Waiting {
    /// The folder with the accepted goldens and the pending ones.
    pub dir: String,
    pub recorded: Option<String>,
    pub units: Vec<String>,
    /// Why what is pending can't be told: damaged files, another process.
    pub problem: Option<String>,
    /// `--strict`: it fails the check.
    pub strict: bool,
}

impl Waiting {
    /// None where there is no folder to look into: after an installation nothing can be pending.
    pub fn look(dir: Option<&Path>, strict: bool) -> Result<Option<Waiting>, Stop> {
        let place = dir.unwrap_or(Path::new(DEFAULT));
        if dir.is_none() && !place.is_dir() {
            return Ok(None);
        }
        let mut waiting = Waiting {
            dir: place.display().to_string(),
            recorded: None,
            units: Vec::new(),
            problem: None,
            strict,
        };
        // Named, it must be there; else whatever is wrong with it is told and no more.
        if !place.is_dir() {
            Place::open(place)?;
        }
        match Place::enter(place).and_then(|held| Pending::read(&held.dir)) {
            Ok(Some(pending)) => {
                waiting.units = pending.units().map(|u| u.name.clone()).collect();
                waiting.recorded = Some(pending.record.recorded);
            }
            Ok(None) => {}
            Err(error) => waiting.problem = Some(error.message),
        }
        Ok(Some(waiting))
    }

    pub fn is_anything(&self) -> bool {
        !self.units.is_empty() || self.problem.is_some()
    }

    pub fn fails(&self) -> bool {
        self.strict && self.is_anything()
    }

    pub fn line(&self) -> Option<String> {
        if !self.is_anything() {
            return None;
        }
        let word = if self.strict { "FAIL pending" } else { "PENDING" };
        let folder = Path::new(&self.dir).join(PENDING);
        if let Some(problem) = &self.problem {
            return Some(format!("{word} {}: {problem}", folder.display()));
        }
        let names: Vec<&str> = self.units.iter().take(NAMED).map(String::as_str).collect();
        let more = self.units.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!(
            "{word} {} in {}, recorded {}: {}{more}; decide with `llorch-diff golden review`",
            count(self.units.len(), "unit"),
            folder.display(),
            self.recorded.as_deref().unwrap_or_default(),
            names.join(", ")
        ))
    }
}
