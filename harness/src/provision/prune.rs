//! What of the cache the current pins don't use.
//!
//! Models are not looked at: they are downloads of the user's choice.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::lock::BuildLock;
use super::newest::{self, Newest};
use super::{Provisioner, cargo, disk, python, uv};
use crate::assets;
use crate::references::{Kind, Reference, Release};

/// A folder or file that can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub path: PathBuf,
    pub bytes: u64,
    /// It belongs to a newest release (`hf@latest`), which is resolved for a day.
    pub throw_away: bool,
}

/// What came of an attempt to remove a candidate.
#[derive(Debug)]
pub enum Outcome {
    Removed,
    /// Another llorch-diff builds or uses it.
    InUse,
    Failed(io::Error),
}

/// The folders of the cache that this module looks after.
const PLACES: [&str; 5] = ["envs", "build", "adapters", "uv", LATEST];
const LATEST: &str = "latest";

/// What can go: what no current pin names, or with `all` everything that can be made again. Newest
/// releases are no pins, and stand first.
pub fn candidates(
    provisioner: &Provisioner,
    references: &[Reference],
    all: bool,
) -> Vec<Candidate> {
    let keep = if all { HashSet::new() } else { in_use(provisioner, references) };
    let keep_prefixes: Vec<String> = if all {
        Vec::new()
    } else {
        references
            .iter()
            .filter_map(|reference| python::pins_prefix(provisioner, reference))
            .collect()
    };
    let throw_away = of_newest(provisioner, references);
    let mut found = Vec::new();
    for place in PLACES {
        let entries =
            std::fs::read_dir(provisioner.cache.join(place)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // A lock lives as long as its folder; a log belongs to the folder beside it.
            if name.ends_with(".lock") {
                continue;
            }
            let stem = name.strip_suffix(".log").unwrap_or(&name);
            let kept = keep.contains(&path.with_file_name(stem))
                || (place == "envs" && keep_prefixes.iter().any(|prefix| stem.starts_with(prefix)));
            if !kept {
                let throw_away =
                    place == LATEST || throw_away.iter().any(|prefix| stem.starts_with(prefix));
                found.push(Candidate { bytes: disk::size(&path), path, throw_away });
            }
        }
    }
    found.sort_by(|a, b| (!a.throw_away, &a.path).cmp(&(!b.throw_away, &b.path)));
    found
}

/// What the names of all that belongs to a newest release begin with.
fn of_newest(provisioner: &Provisioner, references: &[Reference]) -> HashSet<String> {
    let folders = std::fs::read_dir(newest::folder(provisioner)).into_iter().flatten().flatten();
    let folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    let mut prefixes = HashSet::new();
    for reference in references {
        let own = format!("{}-", reference.name);
        let is_own = |path: &&PathBuf| {
            path.is_dir() && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&own))
        };
        for dir in folders.iter().filter(is_own) {
            let newest = Newest { release: Release::Latest, dir: Some(dir.clone()) };
            let release = Provisioner { newest: Some(newest), ..provisioner.clone() };
            match reference.kind {
                Kind::Python => prefixes.extend(python::pins_prefix(&release, reference)),
                Kind::Cargo => prefixes.extend([
                    cargo::env_name(&release, reference),
                    cargo::target_name(&release, reference),
                ]),
            }
        }
    }
    prefixes
}

fn in_use(provisioner: &Provisioner, references: &[Reference]) -> HashSet<PathBuf> {
    let cache = &provisioner.cache;
    let mut keep = HashSet::from([cache.join("uv/cache")]);
    keep.extend(uv::own_dir(provisioner));
    if let Some(name) = assets::extracted_dir().file_name() {
        keep.insert(cache.join("adapters").join(name));
    }
    for reference in references.iter().filter(|reference| reference.kind == Kind::Cargo) {
        keep.insert(provisioner.envs().join(cargo::env_name(provisioner, reference)));
        keep.insert(cache.join("build").join(cargo::target_name(provisioner, reference)));
    }
    keep
}

/// Removes a candidate, unless somebody builds or uses it.
pub fn remove(candidate: &Candidate) -> Outcome {
    match try_remove(&candidate.path) {
        Ok(true) => Outcome::Removed,
        Ok(false) => Outcome::InUse,
        Err(error) => Outcome::Failed(error),
    }
}

fn try_remove(path: &Path) -> io::Result<bool> {
    if !path.is_dir() {
        std::fs::remove_file(path)?;
        return Ok(true);
    }
    let Some(_lock) = BuildLock::try_acquire(path)? else { return Ok(false) };
    // The name goes at once, so that an interruption leaves nothing that looks whole.
    let parent = path.parent().unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".pruned-").tempdir_in(parent)?;
    std::fs::rename(path, aside.path().join("old"))?;
    aside.close()?;
    Ok(true)
}
