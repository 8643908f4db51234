//! Where dumps lie: bundles, folders of loose `.npy`, `.npz`, `.safetensors`. Nothing is loaded
//! here; shapes come from headers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llorch_trace::bundle::{MANIFEST, TENSORS};
use llorch_trace::files::{SafetensorsFile, inspect_npy, read_npy};
use llorch_trace::{Bundle, Dims, Dtype, Tensor};
use serde::Serialize;

use super::alias::{Meaning, meaning};
use super::names::parse_stem;
use super::npz;
use crate::saved::RESULT;

/// A source that can't be used. The message names it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    File(#[from] llorch_trace::Error),
    #[error(transparent)]
    Npz(#[from] npz::NpzError),
    #[error("failed to read {}: {what}", path.display())]
    Refused { path: PathBuf, what: String },
}

type Result<T> = std::result::Result<T, SourceError>;

/// One implementation's tensors as they were found.
#[derive(Debug)]
pub struct Raw {
    /// The implementation, from a manifest, an `_IMPL` or the file's name.
    pub name: String,
    pub path: PathBuf,
    pub form: &'static str,
    pub tensors: Vec<RawTensor>,
    /// Sizes, where the source says them.
    pub dims: Option<Dims>,
}

#[derive(Debug, Clone)]
pub struct RawTensor {
    /// Empty where the source has no cases.
    pub case: String,
    /// As it is called in the source, without `.npy`.
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Npy(PathBuf),
    Npz(PathBuf),
    Safetensors(Arc<SafetensorsFile>),
    Bundle { bundle: Arc<Bundle>, step: usize },
}

impl RawTensor {
    pub fn load(&self) -> Result<Tensor> {
        Ok(match &self.place {
            Place::Npy(path) => read_npy(path)?,
            Place::Npz(path) => npz::read(path, &self.name)?,
            Place::Safetensors(file) => file.get(&self.name)?,
            Place::Bundle { bundle, step } => bundle.get(&self.case, *step, &self.name)?,
        })
    }

    /// The step that a bundle's entry has; a loose name says it itself.
    pub fn bundle_step(&self) -> Option<usize> {
        match &self.place {
            Place::Bundle { step, .. } => Some(*step),
            _ => None,
        }
    }
}

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
    let refuse = |what: &str| Err(SourceError::Refused { path: path.into(), what: what.into() });
    if path.is_dir() {
        return open_folder(path);
    }
    match path.extension().and_then(|e| e.to_str()).unwrap_or_default() {
        _ if !path.exists() => refuse("there is no such file or folder"),
        "npz" => Ok(Raw { form: "npz", tensors: npz_tensors(path)?, ..Raw::empty(path) }.into()),
        "safetensors" => {
            let file = Arc::new(SafetensorsFile::open(path)?);
            let mut tensors = Vec::new();
            for (name, dtype, shape) in file.list()? {
                let place = Place::Safetensors(file.clone());
                tensors.push(RawTensor { case: String::new(), name, dtype, shape, place });
            }
            Ok(Raw { form: "safetensors", tensors, ..Raw::empty(path) }.into())
        }
        "npy" => refuse("a single .npy has nothing to go with; give the folder that it is in"),
        "json" if path.file_name().is_some_and(|n| n == MANIFEST) => {
            open_folder(path.parent().unwrap_or(Path::new(".")))
        }
        "pt" | "pth" | "bin" | "pkl" | "pickle" => refuse(&format!(
            "a pickle can run code when it is read; convert it where torch is installed: python -c \
             'import torch, safetensors.torch as s; d = torch.load(\"{}\", weights_only=True); \
             s.save_file({{k: v.contiguous() for k, v in d.items()}}, \"dump.safetensors\")'",
            path.display()
        )),
        _ => refuse("expected a bundle, a folder of .npy files, a .npz or a .safetensors"),
    }
}

impl Raw {
    fn empty(path: &Path) -> Raw {
        let name = match path.is_dir() {
            true => path.file_name(),
            false => path.file_stem(),
        };
        // `.` and `..` have no name of their own.
        let own = name.map(|n| n.to_string_lossy().into_owned());
        let real = || Some(path.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned());
        let name = own.or_else(real).unwrap_or_else(|| "dump".into());
        Raw { name, path: path.into(), form: "", tensors: Vec::new(), dims: None }
    }
}

fn npz_tensors(path: &Path) -> Result<Vec<RawTensor>> {
    let place = Place::Npz(path.into());
    let tensor = |(name, dtype, shape)| RawTensor {
        case: String::new(),
        name,
        dtype,
        shape,
        place: place.clone(),
    };
    Ok(npz::list(path)?.into_iter().map(tensor).collect())
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
        let what = "it holds no bundle and no .npy file, nor do its subfolders".to_string();
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
    /// Names that mean nothing: of the source, the file, the tensor, and the reason.
    unknown: Vec<(Raw, PathBuf, RawTensor, String)>,
}

impl Loose {
    /// A file that means nothing is listed with the implementation whose name it ends in, else with
    /// the folder's own files, else by itself; it makes no source of its own beside others.
    fn settle(self) -> Opened {
        let Loose { named, own, unknown } = self;
        let mut opened = Opened { sources: named.into_values().collect(), left_out: Vec::new() };
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

/// Sorts the `.npy` files of one folder.
fn loose_files(source: &Path, folder: &Path, case: &str, found: &mut Loose) -> Result<()> {
    for path in entries(folder)? {
        if path.extension().is_none_or(|e| e != "npy") || !path.is_file() {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let empty = Raw { form: "folder", ..Raw::empty(source) };
        let (dtype, shape) = inspect_npy(&path)?;
        let place = Place::Npy(path.clone());
        let tensor = RawTensor { case: case.into(), name: stem.clone(), dtype, shape, place };
        let side = match (parse_stem(&stem), means_nothing(&stem)) {
            (Some(Ok(name)), _) => {
                let name = name.implementation;
                found.named.entry(name.clone()).or_insert(Raw { name, ..empty })
            }
            (_, Some(reason)) => {
                found.unknown.push((empty, path, tensor, reason));
                continue;
            }
            (_, None) => found.own.get_or_insert(empty),
        };
        side.tensors.push(tensor);
    }
    Ok(())
}

/// Why a name is none of our points, if it is none.
pub fn means_nothing(name: &str) -> Option<String> {
    if let Some(Err(reason)) = parse_stem(name) {
        return Some(reason);
    }
    match meaning(name) {
        Meaning::Points { .. } | Meaning::State { .. } => None,
        Meaning::NotOurs { family, reason } => Some(format!("{family}: {reason}")),
        Meaning::Unknown => Some("no program whose names are known calls a tensor so".into()),
    }
}
