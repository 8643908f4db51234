//! A bundle: the tensors that one implementation gave in one run, in a folder.
//!
//! `tensors.safetensors` holds them under the key `case/step/point`; `manifest.json` says whose they
//! are. The manifest is written last, by rename: a folder without one is no bundle.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::SafetensorsFile;
use crate::hash::{sha256_bytes, sha256_file};
use crate::mapped::MappedTensor;
use crate::protocol::HelloResponse;
use crate::tensor::{Dtype, Tensor};

pub const SCHEMA: &str = "llorch.bundle/1";
pub const TENSORS: &str = "tensors.safetensors";
pub const MANIFEST: &str = "manifest.json";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: String,
    /// Who gave the tensors: `hf`, `candle:upstream`, `llorch-cpud`.
    pub implementation: String,
    /// The adapter's own words about itself, where there was an adapter.
    #[serde(default)]
    pub hello: Option<HelloResponse>,
    /// Which model and which weights; free form, written by the caller.
    #[serde(default)]
    pub model: serde_json::Value,
    /// SHA-256 of `tensors.safetensors`.
    pub sha256: String,
    pub tensors: Vec<Entry>,
    /// By case.
    #[serde(default)]
    pub cases: BTreeMap<String, CaseRecord>,
    /// Anything else that a producer wants to say: versions, command, date.
    #[serde(default)]
    pub provenance: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub case: String,
    pub step: usize,
    /// A point's name.
    pub point: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub sha256: String,
}

/// What a case was and what was generated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CaseRecord {
    pub ids: Vec<u32>,
    #[serde(default)]
    pub generated: Option<Vec<u32>>,
    #[serde(default)]
    pub text: Option<String>,
}

pub fn key(case: &str, step: usize, point: &str) -> String {
    format!("{case}/{step}/{point}")
}

/// An open bundle; tensors are read from a memory map when they are asked for.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    pub dir: PathBuf,
    tensors: SafetensorsFile,
}

impl Bundle {
    pub fn open(dir: &Path) -> Result<Bundle> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| Error::malformed(&path, e.to_string()))?;
        if manifest.schema != SCHEMA {
            let what = format!("schema {:?}; expected {SCHEMA:?}", manifest.schema);
            return Err(Error::malformed(&path, what));
        }
        let tensors = SafetensorsFile::open(&dir.join(TENSORS))?;
        Ok(Bundle { manifest, dir: dir.to_path_buf(), tensors })
    }

    pub fn contains(&self, case: &str, step: usize, point: &str) -> bool {
        self.tensors.contains(&key(case, step, point))
    }

    /// An error if the manifest does not list the tensor or the file does not hold it.
    pub fn get(&self, case: &str, step: usize, point: &str) -> Result<Tensor> {
        self.tensors.get(&key(case, step, point))
    }

    /// The same where it lies.
    pub fn mapped(&self, case: &str, step: usize, point: &str) -> Result<MappedTensor> {
        self.tensors.mapped(&key(case, step, point))
    }

    /// Compares the tensor file with the hash that the manifest gives.
    pub fn verify(&self) -> Result<()> {
        let path = self.dir.join(TENSORS);
        let found = sha256_bytes(self.tensors.bytes());
        if found == self.manifest.sha256 {
            return Ok(());
        }
        let what = format!("sha256 {found}; its manifest says {}", self.manifest.sha256);
        Err(Error::malformed(&path, what))
    }
}

/// Writes tensors as they come, so that a run of a large model is never held in memory.
#[derive(Debug)]
pub struct BundleWriter {
    dir: PathBuf,
    data: BufWriter<File>,
    entries: Vec<Entry>,
    keys: HashSet<String>,
}

impl BundleWriter {
    /// Creates the folder. A bundle that is there already stops being one until `finish`.
    pub fn create(dir: &Path) -> Result<BundleWriter> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let manifest = dir.join(MANIFEST);
        if manifest.exists() {
            std::fs::remove_file(&manifest).map_err(|e| Error::io("remove", &manifest, e))?;
        }
        let path = dir.join("tensors.part");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|e| Error::io("create", &path, e))?;
        let data = BufWriter::with_capacity(1 << 20, file);
        Ok(BundleWriter { dir: dir.to_path_buf(), data, entries: Vec::new(), keys: HashSet::new() })
    }

    /// A second tensor of the same name is an error: neither may silently win.
    pub fn add(&mut self, case: &str, step: usize, point: &str, tensor: &Tensor) -> Result<()> {
        let key = key(case, step, point);
        if !self.keys.insert(key.clone()) {
            return Err(Error::Name(format!("{key} was given twice")));
        }
        let bytes = tensor.data.to_le_bytes();
        let path = self.dir.join("tensors.part");
        self.data.write_all(&bytes).map_err(|e| Error::io("write", &path, e))?;
        self.entries.push(Entry {
            case: case.to_string(),
            step,
            point: point.to_string(),
            dtype: tensor.dtype(),
            shape: tensor.shape.clone(),
            sha256: sha256_bytes(&bytes),
        });
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Fills in `schema`, `sha256` and `tensors` of the manifest and closes the bundle.
    pub fn finish(self, manifest: Manifest) -> Result<Bundle> {
        let BundleWriter { dir, data, entries, .. } = self;
        let (part, path) = (dir.join("tensors.part"), dir.join(TENSORS));
        let failed = |e: std::io::Error| Error::io("write", &path, e);
        let mut data = data.into_inner().map_err(|e| failed(e.into_error()))?;
        data.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut out = BufWriter::new(File::create(&path).map_err(failed)?);
        out.write_all(&safetensors_header(&entries)).map_err(failed)?;
        std::io::copy(&mut data, &mut out).map_err(failed)?;
        out.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)?;
        std::fs::remove_file(&part).map_err(|e| Error::io("remove", &part, e))?;

        let sha256 = sha256_file(&path).map_err(failed)?;
        let manifest = Manifest { schema: SCHEMA.into(), sha256, tensors: entries, ..manifest };
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| failed(e.into()))?;
        let (last, temporary) = (dir.join(MANIFEST), dir.join("manifest.part"));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &last))
            .map_err(|e| Error::io("write", &last, e))?;
        Bundle::open(&dir)
    }
}

/// The format: 8 bytes of length, then JSON padded with spaces to a multiple of 8, then the data.
/// <https://github.com/huggingface/safetensors#format>
fn safetensors_header(entries: &[Entry]) -> Vec<u8> {
    let mut offset = 0;
    let mut header = serde_json::Map::new();
    for e in entries {
        let end = offset + e.shape.iter().product::<usize>() * e.dtype.size();
        let row = serde_json::json!({
            "dtype": e.dtype.name().to_uppercase(),
            "shape": e.shape,
            "data_offsets": [offset, end],
        });
        header.insert(key(&e.case, e.step, &e.point), row);
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(dir: &Path) -> Bundle {
        let mut writer = BundleWriter::create(dir).unwrap();
        writer.add("hello", 0, "h.0", &Tensor::f32(vec![1, 2], vec![1.0, f32::NAN])).unwrap();
        writer.add("hello", 1, "argmax", &Tensor::i64(vec![], vec![13])).unwrap();
        assert!(writer.add("hello", 0, "h.0", &Tensor::i64(vec![], vec![1])).is_err());
        writer.finish(Manifest { implementation: "hf".into(), ..Default::default() }).unwrap()
    }

    #[test]
    fn a_bundle_goes_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = two(dir.path());
        bundle.verify().unwrap();
        assert_eq!(bundle.manifest.implementation, "hf");
        assert_eq!(bundle.get("hello", 1, "argmax").unwrap(), Tensor::i64(vec![], vec![13]));
        assert!(bundle.get("hello", 0, "h.0").unwrap().get(1).is_nan());
        assert!(bundle.contains("hello", 0, "h.0") && !bundle.contains("hello", 2, "h.0"));
    }

    #[test]
    fn no_manifest_no_bundle() {
        let dir = tempfile::tempdir().unwrap();
        two(dir.path());
        drop(BundleWriter::create(dir.path()).unwrap());
        assert!(Bundle::open(dir.path()).is_err());
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = two(dir.path());
        let path = dir.path().join(TENSORS);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        drop(bundle);
        std::fs::write(&path, bytes).unwrap();
        let error = Bundle::open(dir.path()).unwrap().verify().unwrap_err().to_string();
        assert!(error.contains("sha256"), "{error}");
    }
}
