//! Where dumps lie: bundles, folders of loose `.npy`, `.npz`, `.safetensors`. Nothing is loaded
//! here; shapes come from headers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llorch_trace::bundle::{MANIFEST, TENSORS};
use llorch_trace::files::{SafetensorsFile, inspect_npy, read_npy};
use llorch_trace::{Bundle, Dims, Dtype, Tensor};

use super::names::parse_stem;
use super::npz;

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

/// Everything in a source; more than one `Raw` where a folder holds several implementations.
pub fn open(path: &Path) -> Result<Vec<Raw>> {
    let refuse = |what: &str| Err(SourceError::Refused { path: path.into(), what: what.into() });
    if path.is_dir() {
        return open_folder(path);
    }
    match path.extension().and_then(|e| e.to_str()).unwrap_or_default() {
        _ if !path.exists() => refuse("there is no such file or folder"),
        "npz" => Ok(vec![Raw { form: "npz", tensors: npz_tensors(path)?, ..Raw::empty(path) }]),
        "safetensors" => {
            let file = Arc::new(SafetensorsFile::open(path)?);
            let mut tensors = Vec::new();
            for (name, dtype, shape) in file.list()? {
                let place = Place::Safetensors(file.clone());
                tensors.push(RawTensor { case: String::new(), name, dtype, shape, place });
            }
            Ok(vec![Raw { form: "safetensors", tensors, ..Raw::empty(path) }])
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
fn open_folder(path: &Path) -> Result<Vec<Raw>> {
    if path.join(MANIFEST).is_file() {
        return Ok(vec![open_bundle(path)?]);
    }
    if path.join(TENSORS).is_file() {
        let what =
            format!("it has {TENSORS} and no {MANIFEST}: the run that wrote it did not finish");
        return Err(SourceError::Refused { path: path.into(), what });
    }
    let bundles = bundles_below(path)?;
    if !bundles.is_empty() {
        return bundles.iter().map(|dir| open_bundle(dir)).collect();
    }
    let mut found = BTreeMap::new();
    let mut misnamed = loose_files(path, path, "", &mut found)?;
    for folder in subfolders(path)? {
        let case = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        misnamed.extend(loose_files(path, &folder, &case, &mut found)?);
    }
    for tensor in misnamed {
        let owner = |(name, _): &(&String, &mut Raw)| tensor.name.ends_with(&format!("_{name}"));
        let side = match found.iter_mut().find(owner) {
            Some((_, side)) => side,
            None => match found.first_entry() {
                Some(first) => first.into_mut(),
                None => {
                    found.entry(String::new()).or_insert(Raw { form: "folder", ..Raw::empty(path) })
                }
            },
        };
        side.tensors.push(tensor);
    }
    if found.is_empty() {
        let what = "it holds no bundle and no .npy file, nor do its subfolders".to_string();
        return Err(SourceError::Refused { path: path.into(), what });
    }
    Ok(found.into_values().collect())
}

/// Folders with a manifest, at most two levels down: `DIR/hf`, `DIR/bundles/hf`.
pub fn bundles_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in subfolders(path)? {
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

/// Sorts the `.npy` files of one folder by the implementation that their names end in; those of
/// another form belong to the folder itself. Handed back: those that are named like checkpoints and
/// mean none, which are listed with the implementation that they seem to be of.
fn loose_files(
    source: &Path,
    folder: &Path,
    case: &str,
    found: &mut BTreeMap<String, Raw>,
) -> Result<Vec<RawTensor>> {
    let mut misnamed = Vec::new();
    for path in entries(folder)? {
        if path.extension().is_none_or(|e| e != "npy") || !path.is_file() {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let empty = Raw { form: "folder", ..Raw::empty(source) };
        let (dtype, shape) = inspect_npy(&path)?;
        let place = Place::Npy(path);
        let tensor = RawTensor { case: case.into(), name: stem.clone(), dtype, shape, place };
        let implementation = match parse_stem(&stem) {
            Some(Ok(name)) => name.implementation,
            Some(Err(_)) => {
                misnamed.push(tensor);
                continue;
            }
            None => empty.name.clone(),
        };
        let side =
            found.entry(implementation.clone()).or_insert(Raw { name: implementation, ..empty });
        side.tensors.push(tensor);
    }
    Ok(misnamed)
}
