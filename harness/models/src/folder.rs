//! A model folder in Hugging Face layout that somebody else wrote.

use crate::error::ModelError;
use crate::hash::hash_file;
use crate::{FileHash, ModelKind, ResolvedModel, published, synth};
use safetensors::tensor::Metadata;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

/// The files that identify a model, where they exist.
const MODEL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// Checks a folder and hashes its files. A snapshot in a hub cache keeps its name and revision, once
/// its hash is checked.
pub fn resolve(name: &str, path: &Path, cache: &Path) -> Result<ResolvedModel, ModelError> {
    let dir = std::path::absolute(path).map_err(ModelError::io("find", path))?;
    let weights = check(&dir)?;
    let files = hash_files(&dir, cache)?;
    let mut model = ResolvedModel {
        name: name.to_owned(),
        kind: ModelKind::Trained,
        source: format!("folder {}", dir.display()),
        revision: None,
        dir,
        files,
    };
    if let Some(identity) = synth::identity(&weights) {
        model.kind = ModelKind::Synthetic;
        model.source = format!("{}, computed: {identity}", model.source);
        return Ok(model);
    }
    // Looked up through links too: a folder that leads into a hub cache is that snapshot.
    let real = model.dir.canonicalize().map_err(ModelError::io("find", path))?;
    let snapshot = snapshot_of(&real);
    let proven = snapshot.is_some() && weights_match_their_blob(&model)?;
    if let Some((repo, revision)) = snapshot.filter(|_| proven) {
        model.kind = published::kind(model.weights_sha256(), Some(&repo));
        model.source = format!("hub {repo}, cached in {}", model.dir.display());
        model.revision = Some(revision);
    } else {
        model.kind = published::kind(model.weights_sha256(), None);
    }
    Ok(model)
}

/// Hashes of the model files of `dir`, sorted by name.
pub(crate) fn hash_files(dir: &Path, cache: &Path) -> Result<Vec<FileHash>, ModelError> {
    let present = MODEL_FILES.iter().filter(|name| dir.join(name).is_file());
    present.map(|name| hash_file(dir, name, cache)).collect()
}

/// Whether `dir` can be loaded: `config.json` that parses, one whole `model.safetensors`, whose header is
/// returned.
pub(crate) fn check(dir: &Path) -> Result<Metadata, ModelError> {
    let wrong = |found: &str| ModelError::Folder {
        dir: dir.to_owned(),
        found: found.to_owned(),
        expected: "a folder with config.json and model.safetensors".to_owned(),
    };
    if !dir.is_dir() {
        return Err(wrong(if dir.exists() { "a file" } else { "no such folder" }));
    }
    check_weight_format(&dir.display().to_string(), |name| dir.join(name).is_file())?;
    let config = dir.join("config.json");
    if !config.is_file() {
        return Err(wrong("no config.json"));
    }
    let text = fs::read(&config).map_err(ModelError::io("read", &config))?;
    if !serde_json::from_slice::<serde_json::Value>(&text).is_ok_and(|value| value.is_object()) {
        return Err(wrong("a config.json that is not a JSON object"));
    }
    let weights = dir.join("model.safetensors");
    if !weights.is_file() {
        return Err(wrong("no model.safetensors"));
    }
    match check_length(&weights)? {
        Length::Whole(metadata) => Ok(metadata),
        Length::NotSafetensors => Err(wrong("a model.safetensors without a safetensors header")),
        Length::Wrong { found, expected } => Err(wrong(&format!(
            "a model.safetensors of {found} bytes whose header describes {expected} (truncated, or a Git LFS pointer?)"
        ))),
    }
}

/// Refuses weights in a form that no reference here reads, by name and with the way out.
/// `has` says whether the folder or repository called `place` has a file.
pub(crate) fn check_weight_format(
    place: &str,
    has: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    if has("model.safetensors") {
        return Ok(());
    }
    let found = if has("model.safetensors.index.json") {
        "weights split over several files (model.safetensors.index.json)"
    } else if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
        "only pytorch_model.bin, a pickle, which can run code when it is loaded"
    } else if has("tf_model.h5") || has("flax_model.msgpack") {
        "only TensorFlow or Flax weights"
    } else {
        return Ok(());
    };
    Err(ModelError::Format {
        place: place.to_owned(),
        found: found.to_owned(),
        remedy: format!(
            "convert it where transformers is installed: python -c 'from transformers import GPT2LMHeadModel as M; \
             M.from_pretrained(\"{place}\").save_pretrained(\"converted\", max_shard_size=\"50GB\")', copy the \
             tokenizer files beside, and name the folder `./converted`"
        ),
    })
}

enum Length {
    Whole(Metadata),
    NotSafetensors,
    Wrong { found: u64, expected: u64 },
}

/// Compares a safetensors file's length with what its header describes, reading only the header.
fn check_length(path: &Path) -> Result<Length, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io("open", path))?;
    let found = file.metadata().map_err(ModelError::io("read", path))?.len();
    let mut length = [0; 8];
    if file.read_exact(&mut length).is_err() {
        return Ok(Length::NotSafetensors);
    }
    let header_bytes = u64::from_le_bytes(length);
    // Checked before anything is allocated: a pointer file's text reads as an absurd number.
    if header_bytes > found.min(100_000_000) {
        return Ok(Length::NotSafetensors);
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(ModelError::io("read the header of", path))?;
    let Ok(metadata) = serde_json::from_slice::<Metadata>(&header) else {
        return Ok(Length::NotSafetensors);
    };
    let expected = 8 + header_bytes + metadata.data_len() as u64;
    Ok(if found == expected { Length::Whole(metadata) } else { Length::Wrong { found, expected } })
}

/// `…/models--org--name/snapshots/REVISION` → (`org/name`, `REVISION`).
fn snapshot_of(dir: &Path) -> Option<(String, String)> {
    let parts: Vec<&str> = dir
        .components()
        .filter_map(|part| match part {
            Component::Normal(text) => text.to_str(),
            _ => None,
        })
        .collect();
    let [.., repo, "snapshots", revision] = parts[..] else { return None };
    Some((repo.strip_prefix("models--")?.replacen("--", "/", 1), revision.to_owned()))
}

/// In a hub cache the weights are a link to a blob that is named by their sha256. Without such a
/// link nothing proves what the weights are.
pub(crate) fn weights_match_their_blob(model: &ResolvedModel) -> Result<bool, ModelError> {
    let path = model.dir.join("model.safetensors");
    let real = path.canonicalize().map_err(ModelError::io("find", &path))?;
    let blob = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_sha256 = blob.len() == 64 && blob.bytes().all(|b| b.is_ascii_hexdigit());
    if is_sha256 && blob != model.weights_sha256() {
        return Err(ModelError::WrongHash {
            path: real.clone(),
            found: model.weights_sha256().to_owned(),
            expected: blob.to_owned(),
            origin: "the name of the blob in the hub cache; remove the file and download it again"
                .to_owned(),
        });
    }
    Ok(is_sha256)
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
