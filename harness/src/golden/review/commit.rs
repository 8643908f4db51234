//! One decision on the disk: what is written down first, what is done then, and how the next command
//! finishes it if this one is killed in between.
//!
//! Everything is prepared in `.review/`. As long as `.review/commit.json` is not there nothing has
//! happened, and what lies there is thrown away. Once it is there the decision stands: bundles change
//! places with the prepared ones, the log gets its lines, the pending ones are written down or removed,
//! and doing any of it twice does nothing more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use llorch_trace::bundle::MANIFEST;
use llorch_trace::hash::sha256_file;
use serde::{Deserialize, Serialize};

use super::disk;
use crate::golden::stop::Stop;

pub const PENDING: &str = "pending";
pub const RECORD: &str = "pending.json";
pub const LOG: &str = "reviews.jsonl";
const STAGE: &str = ".review";
const JOURNAL: &str = "commit.json";
const SCHEMA: &str = "llorch.golden-commit/1";
/// Folders in which a recording is made: left behind where one was killed.
pub const RECORDING: &str = ".recording-";

#[derive(Debug, Serialize, Deserialize)]
pub struct Journal {
    schema: String,
    swaps: Vec<Swap>,
    /// Lines of the review log.
    log: Vec<serde_json::Value>,
    /// What `pending.json` says from now on; none: nothing is pending any more.
    pending: Option<serde_json::Value>,
}

/// A bundle that is replaced by the one of that name in `.review/`; known by its manifest's sha256.
#[derive(Debug, Serialize, Deserialize)]
pub struct Swap {
    pub bundle: String,
    pub old: Option<String>,
    pub new: String,
}

impl Journal {
    pub fn new(
        swaps: Vec<Swap>,
        log: Vec<serde_json::Value>,
        pending: Option<serde_json::Value>,
    ) -> Journal {
        Journal { schema: SCHEMA.into(), swaps, log, pending }
    }
}

/// Where bundles are prepared, empty.
pub fn stage(dir: &Path) -> Result<PathBuf, Stop> {
    let stage = dir.join(STAGE);
    disk::remove_folder(&stage)
        .and_then(|()| fs::create_dir(&stage))
        .map_err(|e| failed("prepare", &stage, &e))?;
    Ok(stage)
}

/// Makes what is prepared in `.review/` the accepted state.
pub fn commit(dir: &Path, journal: &Journal) -> Result<(), Stop> {
    let path = dir.join(STAGE).join(JOURNAL);
    let text = serde_json::to_vec_pretty(journal).map_err(Stop::environment)?;
    disk::write(&path, &text).map_err(|e| failed("write", &path, &e))?;
    finish(dir, journal)
}

/// Finishes or undoes what was interrupted; true if there was a decision to finish.
pub fn recover(dir: &Path) -> Result<bool, Stop> {
    for entry in fs::read_dir(dir).map_err(|e| failed("read", dir, &e))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(RECORDING) {
            let path = entry.path();
            disk::remove_folder(&path).map_err(|e| failed("remove", &path, &e))?;
        }
    }
    let stage = dir.join(STAGE);
    let path = stage.join(JOURNAL);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            disk::remove_folder(&stage).map_err(|e| failed("remove", &stage, &e))?;
            return Ok(false);
        }
        Err(e) => return Err(failed("read", &path, &e)),
    };
    let journal: Journal = serde_json::from_slice(&text).map_err(|e| damaged(&path, e))?;
    if journal.schema != SCHEMA {
        return Err(damaged(&path, format!("schema {:?}; expected {SCHEMA:?}", journal.schema)));
    }
    finish(dir, &journal)?;
    Ok(true)
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Stop {
    Stop::input(format!(
        "failed to read {}: {what}; it says how an interrupted review ends. Look at the bundles beside it, \
         then remove the folder it is in",
        path.display()
    ))
}

fn finish(dir: &Path, journal: &Journal) -> Result<(), Stop> {
    for swap in &journal.swaps {
        take_place(dir, swap)?;
    }
    append(&dir.join(LOG), &journal.log)?;
    let pending = dir.join(PENDING);
    match &journal.pending {
        Some(record) => {
            let path = pending.join(RECORD);
            let text = serde_json::to_vec_pretty(record).map_err(Stop::environment)?;
            disk::write(&path, &text).map_err(|e| failed("write", &path, &e))?;
        }
        // In one step: a half-removed folder would look like a damaged one.
        None if pending.exists() => {
            disk::rename(&pending, &dir.join(STAGE).join(PENDING))
                .map_err(|e| failed("remove", &pending, &e))?;
        }
        None => {}
    }
    let stage = dir.join(STAGE);
    disk::remove_file(&stage.join(JOURNAL))
        .and_then(|()| disk::remove_folder(&stage))
        .map_err(|e| failed("remove", &stage, &e))
}

/// The prepared bundle in the place of the old one, which ends in `.review/`.
fn take_place(dir: &Path, swap: &Swap) -> Result<(), Stop> {
    let (place, staged) = (dir.join(&swap.bundle), dir.join(STAGE).join(&swap.bundle));
    let aside = dir.join(STAGE).join(format!("{}.old", swap.bundle));
    let lies_there = manifest_sha256(&place)?;
    if lies_there.as_deref() == Some(&swap.new) {
        return Ok(());
    }
    if lies_there.is_some() && lies_there != swap.old {
        return Err(Stop::input(format!(
            "{} is neither what the interrupted review began with nor what it accepted; \
             {} holds the latter: put back the one you want, then remove {}",
            place.display(),
            staged.display(),
            dir.join(STAGE).display()
        )));
    }
    disk::replace(&place, &staged, &aside).map_err(|e| failed("replace", &place, &e))
}

pub fn manifest_sha256(bundle: &Path) -> Result<Option<String>, Stop> {
    let path = bundle.join(MANIFEST);
    match sha256_file(&path) {
        Ok(sha256) => Ok(Some(sha256)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &path, &e)),
    }
}

/// The lines at the end of the log, once: all lines of a decision have its id.
fn append(path: &Path, lines: &[serde_json::Value]) -> Result<(), Stop> {
    let mut text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(failed("read", path, &e)),
    };
    let id = |line: &serde_json::Value| line["review"].as_str().map(str::to_owned);
    let Some(decision) = lines.first().and_then(id) else { return Ok(()) };
    let mut written = text.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok());
    if written.any(|line| id(&line).as_ref() == Some(&decision)) {
        return Ok(());
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    for line in lines {
        text.extend(line.to_string().into_bytes());
        text.push(b'\n');
    }
    disk::write(path, &text).map_err(|e| failed("write", path, &e))
}

pub fn failed(action: &str, path: &Path, error: &dyn std::fmt::Display) -> Stop {
    Stop::environment(format!("failed to {action} {}: {error}", path.display()))
}
