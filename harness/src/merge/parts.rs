//! The parts, and why some can't be joined.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::partition::{By, PartRecord};
use crate::result::{ModelRecord, RunResult};
use crate::run::RunError;
use crate::saved::{self, Collected};

#[derive(Debug)]
pub struct Part {
    pub dir: PathBuf,
    pub record: PartRecord,
    pub result: RunResult,
    pub collected: Collected,
}

/// In order of their numbers; all of one run, none twice, made with the same weights and the same
/// versions of everybody.
pub fn open(dirs: &[PathBuf]) -> Result<Vec<Part>, RunError> {
    let mut parts: Vec<Part> = dirs.iter().map(|dir| one(dir)).collect::<Result<_, _>>()?;
    parts.sort_by_key(|p| p.record.partition.part);
    for pair in parts.windows(2) {
        if pair[0].record.partition == pair[1].record.partition {
            let what = format!("both are {}; expected each part once", pair[0].record.partition);
            return Err(unlike(&pair[0].dir, &pair[1].dir, &what));
        }
    }
    if let Some((first, others)) = parts.split_first() {
        others.iter().try_for_each(|other| fits(first, other))?;
    }
    versions(&parts)?;
    Ok(parts)
}

fn one(dir: &Path) -> Result<Part, RunError> {
    let usage = |what: String| RunError::Usage(what);
    let (result, collected) = saved::open(dir).map_err(|error| usage(error.to_string()))?;
    let Some(record) = result.partition.clone() else {
        return Err(usage(format!(
            "failed to join {}: found a whole run; expected one that was made with --partition K/N",
            dir.display()
        )));
    };
    Ok(Part { dir: dir.to_path_buf(), record, result, collected })
}

/// Whether both are of one run.
fn fits(first: &Part, other: &Part) -> Result<(), RunError> {
    let (a, b) = (&first.record, &other.record);
    let what = match () {
        _ if a.partition.of != b.partition.of => {
            format!("they are {} and {}", a.partition, b.partition)
        }
        _ if !same_model(&first.result.model, &other.result.model) => {
            let told = |p: &Part| {
                format!("{} with weights {}", p.result.model.name, p.result.model.sha256)
            };
            format!("their models differ: {} and {}", told(first), told(other))
        }
        _ if a.by != b.by || a.plan != b.plan => {
            "they were asked for different things; expected the same command but for K".to_string()
        }
        _ if first.collected.plan.points != other.collected.plan.points => {
            "they looked at different points".to_string()
        }
        _ => return Ok(()),
    };
    Err(unlike(&first.dir, &other.dir, &what))
}

/// The same weights under the same name.
fn same_model(a: &ModelRecord, b: &ModelRecord) -> bool {
    (&a.name, &a.sha256, &a.config) == (&b.name, &b.sha256, &b.config)
}

/// An implementation is the same in all parts in which it spoke.
fn versions(parts: &[Part]) -> Result<(), RunError> {
    let mut known: BTreeMap<&str, (&Part, &llorch_trace::protocol::HelloResponse)> =
        BTreeMap::new();
    let mut locks: BTreeMap<&str, (&Part, &str)> = BTreeMap::new();
    for part in parts {
        for e in &part.collected.evidence {
            let Some(hello) = &e.hello else { continue };
            let (first, expected) = *known.entry(&e.name).or_insert((part, hello));
            if hello.version != expected.version {
                let what = format!("{} is {} and {}", e.name, expected.version, hello.version);
                return Err(unlike(&first.dir, &part.dir, &what));
            }
            if hello != expected {
                let what = format!("{} describes itself differently", e.name);
                return Err(unlike(&first.dir, &part.dir, &what));
            }
            // What it stands on beside the versions that it tells.
            let Some(lock) = &e.lock_sha256 else { continue };
            let (first, expected) = *locks.entry(&e.name).or_insert((part, lock));
            if lock != expected {
                let what = format!(
                    "{} was installed from the lock files {expected:.12}… and {lock:.12}…",
                    e.name
                );
                return Err(unlike(&first.dir, &part.dir, &what));
            }
        }
    }
    // Split by reference, the subject ran in every part, and must have given the same each time.
    let mut subjects = parts.iter().filter(|p| p.record.by == By::Reference);
    let Some(first) = subjects.next() else { return Ok(()) };
    let given = |p: &Part| {
        let subject = &p.collected.evidence[0];
        let tensors = subject.bundle.as_ref().map(|b| b.manifest.sha256.clone());
        (tensors, subject.generated.clone(), subject.tokenized.clone())
    };
    match subjects.find(|p| given(p) != given(first)) {
        Some(other) => {
            let what = format!(
                "{} gave other tensors or tokens; split by case instead",
                first.collected.evidence[0].name
            );
            Err(unlike(&first.dir, &other.dir, &what))
        }
        None => Ok(()),
    }
}

fn unlike(a: &Path, b: &Path, what: &str) -> RunError {
    RunError::Usage(format!("failed to join {} and {}: {what}", a.display(), b.display()))
}
