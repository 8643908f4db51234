//! Goldens that were recorded and wait for a review: `pending/`, a bundle for each that changes, and
//! `pending.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use llorch_trace::bundle::{MANIFEST, key};
use llorch_trace::hash::sha256_bytes;
use llorch_trace::{Bundle, Manifest};
use serde::{Deserialize, Serialize};

use super::changes::{self, Unit};
use super::commit::{PENDING, RECORD, manifest_sha256};
use crate::golden::bundles::NAMES;
use crate::golden::stop::Stop;

pub const SCHEMA: &str = "llorch.golden-pending/1";

/// `pending.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: String,
    /// When, in UTC.
    pub recorded: String,
    pub command: String,
    pub bundles: BTreeMap<String, Held>,
    /// Units that a review has rejected while others still wait.
    #[serde(default)]
    pub rejected: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Who recorded it: the versions.
    pub by: String,
    pub manifest_sha256: String,
    /// Of tensors.safetensors.
    pub tensors_sha256: String,
    /// Of the accepted manifest, when this was recorded.
    pub accepted_manifest_sha256: Option<String>,
}

impl Held {
    pub fn of(bundle: &Bundle, accepted: &Path) -> Result<Held, Stop> {
        Ok(Held {
            by: by(&bundle.manifest),
            manifest_sha256: manifest_sha256(&bundle.dir)?.unwrap_or_default(),
            tensors_sha256: bundle.manifest.sha256.clone(),
            accepted_manifest_sha256: manifest_sha256(accepted)?,
        })
    }
}

/// The versions that a bundle's manifest names.
pub fn by(manifest: &Manifest) -> String {
    manifest.provenance.get("by").and_then(|v| v.as_str()).unwrap_or("unknown").to_string()
}

/// An accepted bundle and the one that waits, with what nobody has decided yet.
#[derive(Debug)]
pub struct Pair {
    pub name: String,
    pub old: Option<Bundle>,
    pub new: Bundle,
    pub units: Vec<Unit>,
    /// Units of it that were rejected.
    pub rejected: usize,
}

#[derive(Debug)]
pub struct Pending {
    pub record: Record,
    pub pairs: Vec<Pair>,
}

impl Pending {
    /// None where nothing is pending. Whatever is damaged is an error that names the file.
    pub fn read(dir: &Path) -> Result<Option<Pending>, Stop> {
        let folder = dir.join(PENDING);
        if !folder.exists() {
            return Ok(None);
        }
        let record = read_record(&folder)?;
        let mut pairs = Vec::new();
        for (name, held) in &record.bundles {
            let place = folder.join(name);
            let found = manifest_sha256(&place)?;
            if found.as_ref() != Some(&held.manifest_sha256) {
                let found = found.unwrap_or_else(|| "no such file".into());
                let what = format!("sha256 {found}; {RECORD} says {}", held.manifest_sha256);
                return Err(damaged(&place.join(MANIFEST), what));
            }
            let new = whole(&place).map_err(|e| Stop { message: mend(e.message, &folder), ..e })?;
            let accepted = dir.join(name);
            let old = match accepted.exists() {
                true => Some(whole(&accepted)?),
                false => None,
            };
            let all = changes::units(name, old.as_ref(), &new).map_err(Stop::input)?;
            let before = all.len();
            let units: Vec<Unit> =
                all.into_iter().filter(|u| !record.rejected.contains(&u.name)).collect();
            let rejected = before - units.len();
            pairs.push(Pair { name: name.clone(), old, new, units, rejected });
        }
        Ok(Some(Pending { record, pairs }))
    }

    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.pairs.iter().flat_map(|pair| &pair.units)
    }
}

fn read_record(folder: &Path) -> Result<Record, Stop> {
    let path = folder.join(RECORD);
    let text = fs::read(&path).map_err(|e| damaged(&path, e))?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| damaged(&path, e))?;
    if record.schema != SCHEMA {
        return Err(damaged(&path, format!("schema {:?}; expected {SCHEMA:?}", record.schema)));
    }
    if let Some(name) = record.bundles.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(damaged(&path, format!("bundle {name:?}; expected {}", NAMES.join(" or "))));
    }
    Ok(record)
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Stop {
    let message = format!("failed to read {}: {what}", path.display());
    Stop::input(mend(message, path.parent().unwrap_or(path)))
}

/// What to do about it: pending goldens can always be recorded again.
fn mend(message: String, folder: &Path) -> String {
    let pending = folder.ancestors().find(|f| f.ends_with(PENDING)).unwrap_or(folder);
    format!("{message}; remove {} and record again (nothing accepted is in it)", pending.display())
}

/// A bundle whose files, tensors and manifest agree with each other.
pub fn whole(dir: &Path) -> Result<Bundle, Stop> {
    let bundle = Bundle::open(dir).map_err(Stop::input)?;
    bundle.verify().map_err(Stop::input)?;
    for e in &bundle.manifest.tensors {
        let tensor = bundle.get(&e.case, e.step, &e.point).map_err(Stop::input)?;
        let fits = tensor.shape == e.shape
            && tensor.dtype() == e.dtype
            && sha256_bytes(&tensor.data.to_le_bytes()) == e.sha256;
        if !fits {
            let name = key(&e.case, e.step, &e.point);
            let path = dir.join(MANIFEST);
            return Err(Stop::input(format!(
                "failed to read {}: its entry of {name} is not what the file beside it holds",
                path.display()
            )));
        }
    }
    Ok(bundle)
}
