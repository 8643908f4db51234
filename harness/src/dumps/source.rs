//! Where dumps lie: bundles, folders of loose files, single files. Nothing is loaded here; shapes
//! come from headers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llorch_trace::bundle::{MANIFEST, TENSORS};
use llorch_trace::files::inspect_npy;
use llorch_trace::{Bundle, Dims};
use serde::Serialize;

use super::alias::{Meaning, meaning};
use super::file;
use super::names::parse_stem;
use super::raw::{Place, Raw, RawTensor, Result, SourceError};
use crate::saved::RESULT;

/// What a path holds.
#[derive(Debug, Default)]
pub struct Opened {
    /// More than one where a folder holds several implementations.
    pub sources: Vec<Raw>,
    pub left_out: Vec<LeftOut>,
}

/// A file or folder that is no source and part of none, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub path: PathBuf,
    pub reason: String,
}

impl From<Raw> for Opened {
    fn from(only: Raw) -> Opened {
        Opened { sources: vec![only], left_out: Vec::new() }
    }
}

/// Everything at a path.
pub fn open(path: &Path) -> Result<Opened> {
    match path.is_dir() {
        true => open_folder(path),
        false if path.file_name().is_some_and(|n| n == MANIFEST) => {
            open_folder(path.parent().unwrap_or(Path::new(".")))
        }
        false => Ok(file::open(path)?.into()),
    }
}

/// A bundle, bundles in subfolders (what a run leaves behind), or loose files, a folder a case.
fn open_folder(path: &Path) -> Result<Opened> {
    if path.join(MANIFEST).is_file() {
        return Ok(open_bundle(path)?.into());
    }
    if path.join(TENSORS).is_file() {
        let what =
            format!("it has {TENSORS} and no {MANIFEST}: the run that wrote it did not finish");
        return Err(SourceError::Refused { path: path.into(), what });
    }
    let bundles = bundles_below(path)?;
    if !bundles.is_empty() {
        let sources = bundles.iter().map(|dir| open_bundle(dir)).collect::<Result<_>>()?;
        return Ok(Opened { sources, left_out: oracle_of(path).into_iter().collect() });
    }
    let mut found = Loose::default();
    loose_files(path, path, "", &mut found)?;
    for folder in subfolders(path)? {
        let case = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        loose_files(path, &folder, &case, &mut found)?;
    }
    let opened = found.settle();
    if opened.sources.is_empty() {
        let what = nothing_in(path)?;
        return Err(SourceError::Refused { path: path.into(), what });
    }
    Ok(opened)
}

/// The oracle's bundle in the folder of a run: a few rows that judging it again needs, and no
/// implementation's tensors.
fn oracle_of(run: &Path) -> Option<LeftOut> {
    let path = run.join("oracle");
    let is_there = run.join(RESULT).is_file() && path.join(MANIFEST).is_file();
    let reason = "the run's own float64 oracle, no implementation; name it to compare with it";
    is_there.then(|| LeftOut { path, reason: reason.into() })
}

/// Implementations' folders with a manifest, at most two levels down: `DIR/hf`, `DIR/bundles/hf`.
pub fn bundles_below(path: &Path) -> Result<Vec<PathBuf>> {
    let oracle = oracle_of(path).map(|left_out| left_out.path);
    let mut found = Vec::new();
    for folder in subfolders(path)? {
        if oracle.as_ref() == Some(&folder) {
            continue;
        }
        if folder.join(MANIFEST).is_file() {
            found.push(folder);
            continue;
        }
        found.extend(subfolders(&folder)?.into_iter().filter(|f| f.join(MANIFEST).is_file()));
    }
    Ok(found)
}

fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let failed =
        |e: std::io::Error| SourceError::Refused { path: path.into(), what: e.to_string() };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    Ok(entries)
}

fn subfolders(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(path)?.into_iter().filter(|entry| entry.is_dir()).collect())
}

fn open_bundle(dir: &Path) -> Result<Raw> {
    let bundle = Arc::new(Bundle::open(dir)?);
    bundle.verify()?;
    let mut tensors = Vec::new();
    for entry in &bundle.manifest.tensors {
        if !bundle.contains(&entry.case, entry.step, &entry.point) {
            let what = format!(
                "its manifest lists {}/{}/{}, which {TENSORS} does not hold",
                entry.case, entry.step, entry.point
            );
            return Err(SourceError::Refused { path: dir.into(), what });
        }
        tensors.push(RawTensor {
            case: entry.case.clone(),
            name: entry.point.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            place: Place::Bundle { bundle: bundle.clone(), step: entry.step },
        });
    }
    let dims = bundle.manifest.model.get("config").and_then(|c| Dims::from_config(c).ok());
    let name = match bundle.manifest.implementation.as_str() {
        "" => Raw::empty(dir).name,
        name => name.to_string(),
    };
    Ok(Raw { name, form: "bundle", tensors, dims, ..Raw::empty(dir) })
}

/// The loose files of a folder, sorted by whose they are.
#[derive(Debug, Default)]
struct Loose {
    /// By the implementation that a file's name ends in.
    named: BTreeMap<String, Raw>,
    /// Names of another form that mean something: they belong to the folder itself.
    own: Option<Raw>,
    /// Files that hold more than a loose tensor.
    left_out: Vec<LeftOut>,
    /// Names that mean nothing: of the source, the file, the tensor, and the reason.
    unknown: Vec<(Raw, PathBuf, RawTensor, String)>,
}

impl Loose {
    fn take(&mut self, source: &Path, path: PathBuf, tensor: RawTensor) {
        let empty = Raw { form: "folder", ..Raw::empty(source) };
        let side = match (parse_stem(&tensor.name), means_nothing(&tensor.name)) {
            (Some(Ok(name)), _) => {
                let name = name.implementation;
                self.named.entry(name.clone()).or_insert(Raw { name, ..empty })
            }
            (_, Some(reason)) => return self.unknown.push((empty, path, tensor, reason)),
            (_, None) => self.own.get_or_insert(empty),
        };
        side.tensors.push(tensor);
    }

    /// A file that means nothing is listed with the implementation whose name it ends in, else with
    /// the folder's own files, else by itself; it makes no source of its own beside others.
    fn settle(self) -> Opened {
        let Loose { named, own, left_out, unknown } = self;
        let mut opened = Opened { sources: named.into_values().collect(), left_out };
        let belongs_to_folder = own.is_some() || opened.sources.is_empty();
        opened.sources.extend(own);
        for (empty, path, tensor, reason) in unknown {
            let ends_in = |side: &&mut Raw| tensor.name.ends_with(&format!("_{}", side.name));
            if let Some(side) = opened.sources.iter_mut().find(ends_in) {
                side.tensors.push(tensor);
            } else if !belongs_to_folder {
                opened.left_out.push(LeftOut { path, reason });
            } else if let Some(side) = opened.sources.last_mut() {
                side.tensors.push(tensor);
            } else {
                opened.sources.push(Raw { tensors: vec![tensor], ..empty });
            }
        }
        opened
    }
}

/// Sorts the `.npy` and `.pt` files of one folder.
fn loose_files(source: &Path, folder: &Path, case: &str, found: &mut Loose) -> Result<()> {
    for path in entries(folder)?.into_iter().filter(|path| path.is_file()) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => {
                let (dtype, shape) = inspect_npy(&path)?;
                let place = Place::Npy(path.clone());
                let tensor = RawTensor { case: case.into(), name: stem, dtype, shape, place };
                found.take(source, path, tensor);
            }
            Some("pt" | "pth") => match loose_torch(&path, &stem) {
                Ok(tensors) => {
                    for tensor in tensors {
                        let tensor = RawTensor { case: case.into(), ..tensor };
                        found.take(source, path.clone(), tensor);
                    }
                }
                Err(reason) => found.left_out.push(LeftOut { path, reason }),
            },
            _ => {}
        }
    }
    Ok(())
}

/// A tensor or a list of tensors, which the file's name names. The error is a sentence.
fn loose_torch(path: &Path, stem: &str) -> std::result::Result<Vec<RawTensor>, String> {
    let raw = file::torch_file(path).map_err(|e| e.to_string())?;
    if let Some((name, why)) = raw.unusable.first() {
        return Err(format!("{name}: {why}"));
    }
    let own = |tensor: &RawTensor| tensor.name.starts_with(stem);
    match raw.tensors.iter().all(own) {
        true => Ok(raw.tensors),
        false => {
            Err("it holds tensors with names of their own; name the file itself as a source".into())
        }
    }
}

/// What is said of a folder without loose tensors.
fn nothing_in(path: &Path) -> Result<String> {
    let mut text = "it holds no bundle and no .npy file, nor do its subfolders".to_string();
    let single = |file: &PathBuf| {
        let kind = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        file.is_file() && ["npz", "safetensors", "pt", "pth", "txt", "log"].contains(&kind)
    };
    let files: Vec<String> =
        entries(path)?.into_iter().filter(single).map(|file| file.display().to_string()).collect();
    if !files.is_empty() {
        text += &format!("; files of many tensors are sources by themselves: {}", files.join(" "));
    }
    Ok(text)
}

/// Why a name is none of our points, if it is none.
pub fn means_nothing(name: &str) -> Option<String> {
    if let Some(Err(reason)) = parse_stem(name) {
        return Some(reason);
    }
    match meaning(name) {
        Meaning::Points { .. } | Meaning::State { .. } | Meaning::Norm { .. } => None,
        Meaning::NotOurs { family, reason } => Some(format!("{family}: {reason}")),
        Meaning::Unknown => Some("no program whose names are known calls a tensor so".into()),
    }
}
