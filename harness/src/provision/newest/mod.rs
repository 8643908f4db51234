//! References at another release than the pinned one: `hf@latest`.
//!
//! What the pins ask for is loosened and resolved anew, into a throw-away folder of the cache that holds
//! the lock file; from there on everything is as with the pinned release. Where the newest release is the
//! pinned one, that one's environment serves. A registry is asked once in a process; without a network the
//! last answer is used, and said to be that.
//!
//! ```text
//! <cache>/latest/hf-<hash of the lock file>/refs/hf/requirements.lock
//! <cache>/latest/candle-<hash of the sources>/adapters/candle/…, harness/trace/…
//! <cache>/latest/hf@latest.json          what it was resolved to last, and when
//! <cache>/latest/hf@latest.log           what uv or cargo said
//! ```

mod cargo;
mod loosen;
mod python;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use llorch_models::progress::Progress;

use super::lock;
use super::pins::{self, Pin};
use super::{Missing, ProvisionOptions, Provisioner, lock_path, say, setup_command};
use crate::references::{Kind, RefName, Reference, Release};
use crate::supervise::ToolFailure;
use crate::text::rfc3339;
use llorch_trace::hash::sha256_bytes;

/// A release that was asked for, and what it was resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    pub release: Release,
    /// The folder with its lock file; none where it is the pinned one.
    pub dir: Option<PathBuf>,
}

/// What a release was resolved to last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// `hf@latest`.
    pub name: String,
    /// RFC 3339.
    pub resolved: String,
    /// The folder below `latest`; none where it was the pinned one.
    dir: Option<String>,
    lock_sha256: String,
    /// `torch 2.15.0, transformers 5.23.0`.
    pub versions: String,
}

/// How many packages beside those that name the release are told when they differ.
const ALSO_TOLD: usize = 6;

pub(super) fn folder(provisioner: &Provisioner) -> PathBuf {
    provisioner.cache.join("latest")
}

/// What provisions this release: the registry is asked, or, where that is forbidden, memory.
pub(super) fn at(
    provisioner: &Provisioner,
    reference: &Reference,
    release: &Release,
) -> Result<Provisioner, Missing> {
    let of = |dir| Provisioner {
        newest: Some(Newest { release: release.clone(), dir }),
        ..provisioner.clone()
    };
    let asking = of(None);
    let dir = match provisioner.options {
        ProvisionOptions { allow: true, offline: false, .. } => ask_once(&asking, reference)?,
        _ => remember(&asking, reference)?,
    };
    let name = asking.called(reference);
    if let Some(dir) = &dir {
        lock::hold(dir)
            .map_err(|e| failed(&name, &format!("failed to use {}: {e}", dir.display())))?;
    }
    Ok(of(dir))
}

/// Of each release of each cache, what this process was answered. A tool in place of uv is another
/// registry, as far as anybody can tell.
type Answers = BTreeMap<(PathBuf, Option<PathBuf>, String), Result<Option<PathBuf>, Missing>>;

fn ask_once(asking: &Provisioner, reference: &Reference) -> Result<Option<PathBuf>, Missing> {
    static ANSWERS: Mutex<Answers> = Mutex::new(BTreeMap::new());
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (asking.cache.clone(), asking.uv.clone(), asking.called(reference));
    if let Some(answer) = answers.get(&key) {
        // `adapters prune` may have been here meanwhile.
        if !matches!(answer, Ok(Some(dir)) if !dir.is_dir()) {
            return answer.clone();
        }
    }
    let answer = ask(asking, reference);
    answers.insert(key, answer.clone());
    answer
}

fn ask(asking: &Provisioner, reference: &Reference) -> Result<Option<PathBuf>, Missing> {
    let name = asking.called(reference);
    let unwritten = |error: std::io::Error| {
        let folder = folder(asking);
        failed(&name, &format!("failed to write {}: {error}", folder.display()))
    };
    let bar = Progress::new(asking.options.quiet).open(&name, "asking for its newest release");
    let folder = folder(asking);
    std::fs::create_dir_all(&folder).map_err(unwritten)?;
    let fresh =
        tempfile::Builder::new().prefix(".resolve-").tempdir_in(&folder).map_err(unwritten)?;
    let _cleanup = crate::supervise::remove_on_interrupt(fresh.path());
    let log = folder.join(format!("{name}.log"));
    let _ = std::fs::remove_file(&log);
    let root = fresh.path().to_owned();
    let work = Work { asking, reference, root: &root, log: &log };
    match reference.kind {
        Kind::Python => python::resolve(&work, &bar)?,
        Kind::Cargo => cargo::resolve(&work, &bar)?,
    }
    let found = work.found();
    let (pinned, all) = (pins::all(reference, &|p| asking.text(p)), found.pins());
    // Registries add files to releases that are out already: versions decide, not hashes.
    let is_pinned = all.iter().all(|pin| pinned.contains(pin));
    say(&bar, &told(&found, reference, &pinned, is_pinned));
    let versions = found.versions();
    let dir = match is_pinned {
        true => None,
        false => Some(keep(fresh, folder.join(found.folder_name())).map_err(unwritten)?),
    };
    let lock = if is_pinned { asking.bytes(&lock_path(reference)) } else { None };
    let lock_sha256 = match (lock, &dir) {
        (Some(lock), _) => sha256_bytes(&lock),
        (None, Some(dir)) => {
            sha256_bytes(&std::fs::read(dir.join(lock_path(reference))).map_err(unwritten)?)
        }
        (None, None) => String::new(),
    };
    let record = Record {
        name: name.clone(),
        resolved: rfc3339(SystemTime::now()),
        dir: dir.as_ref().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned())),
        lock_sha256,
        versions,
    };
    write(&folder, &record).map_err(unwritten)?;
    Ok(dir)
}

/// One resolution under way.
struct Work<'a> {
    asking: &'a Provisioner,
    reference: &'a Reference,
    /// Where the files that stand in place of the pinned ones are written.
    root: &'a Path,
    log: &'a Path,
}

impl Work<'_> {
    fn name(&self) -> String {
        self.asking.called(self.reference)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Missing> {
        let file = self.root.join(path);
        let written = std::fs::create_dir_all(file.parent().unwrap_or(self.root))
            .and_then(|()| std::fs::write(&file, bytes));
        written
            .map_err(|e| failed(&self.name(), &format!("failed to write {}: {e}", file.display())))
    }

    /// A tool that gave no answer: its first error, the cause, and of cargo, which begins far away, the end.
    fn unanswered(&self, failure: &ToolFailure) -> Missing {
        let lines = failure.tail.lines().map(str::trim);
        let lines: Vec<&str> = lines
            .skip_while(|line| !line.starts_with("error"))
            .filter(|line| !line.is_empty() && *line != "Caused by:")
            .collect();
        let mut told: Vec<&str> = lines.iter().take(2).copied().collect();
        if self.reference.kind == Kind::Cargo {
            told.extend(lines.iter().skip(2).last());
        }
        let mut reason = match told.is_empty() {
            true => failure.brief(),
            false => told.join("; "),
        };
        reason.push_str(&format!(" (all of it in {})", self.log.display()));
        if let Some(record) = read(&folder(self.asking), &self.name()) {
            let last = format!("; --offline takes what it was on {}", record.resolved);
            reason.push_str(&last);
        }
        failed(&self.name(), &reason)
    }

    fn found(&self) -> Found<'_> {
        let newest = self
            .asking
            .newest
            .clone()
            .map(|newest| Newest { dir: Some(self.root.to_owned()), ..newest });
        Found {
            provisioner: Provisioner { newest, ..self.asking.clone() },
            reference: self.reference,
        }
    }
}

/// What came of it.
struct Found<'a> {
    provisioner: Provisioner,
    reference: &'a Reference,
}

impl Found<'_> {
    fn pins(&self) -> Vec<Pin> {
        pins::all(self.reference, &|path| self.provisioner.text(path))
    }

    fn telling(&self) -> Vec<Pin> {
        pins::telling(self.reference, &|path| self.provisioner.text(path))
    }

    fn versions(&self) -> String {
        join(&self.telling())
    }

    /// What its environments are called by, too.
    fn folder_name(&self) -> String {
        match self.reference.kind {
            Kind::Cargo => super::cargo::env_name(&self.provisioner, self.reference),
            Kind::Python => {
                let prefix = super::python::pins_prefix(&self.provisioner, self.reference);
                prefix.unwrap_or_default().trim_end_matches('-').to_owned()
            }
        }
    }
}

fn told(found: &Found<'_>, reference: &Reference, pinned: &[Pin], is_pinned: bool) -> String {
    let (release, telling) = (&found.provisioner.newest, found.telling());
    let what = match release.as_ref().map(|newest| &newest.release) {
        Some(Release::AsOf(day)) => format!("the newest releases of {day}"),
        _ => "its newest releases".into(),
    };
    if is_pinned {
        return format!("{what} are those that are pinned: {}", join(&telling));
    }
    let was = pins::telling(reference, &|path| {
        Provisioner { newest: None, ..found.provisioner.clone() }.text(path)
    });
    let others: Vec<Pin> = found
        .pins()
        .into_iter()
        .filter(|pin| !pinned.contains(pin) && !telling.contains(pin))
        .collect();
    let mut text = match was == telling {
        true => format!("{what} are {}, as pinned, on other packages", join(&telling)),
        false => format!("{what} are {} (pinned: {})", join(&telling), join(&was)),
    };
    if !others.is_empty() {
        text.push_str(&format!("; also changed: {}", join(&others[..others.len().min(ALSO_TOLD)])));
        if others.len() > ALSO_TOLD {
            text.push_str(&format!(" and {} more", others.len() - ALSO_TOLD));
        }
    }
    text
}

fn join(pins: &[Pin]) -> String {
    pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Gives what was resolved its name, unless it has been there before.
fn keep(fresh: tempfile::TempDir, dir: PathBuf) -> std::io::Result<PathBuf> {
    lock::hold(&dir)?;
    match std::fs::rename(fresh.path(), &dir) {
        Ok(()) => {
            let _ = fresh.keep(); // it has moved: nothing to remove
            Ok(dir)
        }
        Err(_) if dir.is_dir() => Ok(dir),
        Err(error) => Err(error),
    }
}

/// What it was resolved to when a registry was asked last.
fn remember(asking: &Provisioner, reference: &Reference) -> Result<Option<PathBuf>, Missing> {
    let name = asking.called(reference);
    let never = || {
        let why = match asking.options.allow {
            false => "it may not be installed here",
            true => "--offline forbids to ask for its newest release",
        };
        Missing {
            reason: format!("{name} was never resolved, and {why}"),
            mend: setup_command(&name),
        }
    };
    let folder = folder(asking);
    let record = read(&folder, &name).ok_or_else(never)?;
    let pinned = || asking.bytes(&lock_path(reference)).map(|lock| sha256_bytes(&lock));
    let dir = match &record.dir {
        Some(dir) => {
            Some(folder.join(dir)).filter(|dir| dir.is_dir()).ok_or_else(never).map(Some)?
        }
        // It was what was pinned then.
        None if pinned().as_ref() == Some(&record.lock_sha256) => None,
        None => return Err(never()),
    };
    let text = format!("not asked for anew; on {} it was {}", record.resolved, record.versions);
    Progress::new(asking.options.quiet).say(&format!("{name}: {text}"));
    Ok(dir)
}

fn write(folder: &Path, record: &Record) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, record)?;
    file.persist(folder.join(format!("{}.json", record.name))).map_err(|error| error.error)?;
    Ok(())
}

fn read(folder: &Path, name: &str) -> Option<Record> {
    let bytes = std::fs::read(folder.join(format!("{name}.json"))).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Every release that was ever resolved here, with what provisions it as it was.
pub fn known(provisioner: &Provisioner) -> Vec<(Record, Reference, Provisioner)> {
    let folder = folder(provisioner);
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            let name: RefName = file.strip_suffix(".json")?.parse().ok()?;
            let record = read(&folder, &name.to_string())?;
            let newest = Newest {
                release: name.release.clone()?,
                dir: record.dir.as_ref().map(|dir| folder.join(dir)),
            };
            let release = Provisioner { newest: Some(newest), ..provisioner.clone() };
            Some((record, name.resolve().ok()?, release))
        })
        .collect();
    found.sort_by(|(a, ..), (b, ..)| a.name.cmp(&b.name));
    found
}

fn failed(name: &str, reason: &str) -> Missing {
    Missing { reason: format!("{name} can't be resolved: {reason}"), mend: setup_command(name) }
}
