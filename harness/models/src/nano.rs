//! nano, the small trained GPT-2 that travels inside the binary.

use crate::cache::publish_dir;
use crate::error::ModelError;
use crate::hash::hash_file;
use crate::{FileHash, ModelKind, ResolvedModel};
use std::fs;
use std::path::Path;

/// A file of nano as it is in `golden/models/nano`.
#[derive(Debug)]
pub struct EmbeddedFile {
    pub name: &'static str,
    pub sha256: &'static str,
    pub bytes: &'static [u8],
}

/// nano's files, written by build.rs; empty if the folder was missing when this was built.
pub static FILES: &[EmbeddedFile] = include!(concat!(env!("OUT_DIR"), "/nano_files.rs"));

/// Extracts nano into the cache, unless it is there, and says where it is.
pub fn resolve(cache: &Path) -> Result<ResolvedModel, ModelError> {
    resolve_from(FILES, cache)
}

fn resolve_from(embedded: &[EmbeddedFile], cache: &Path) -> Result<ResolvedModel, ModelError> {
    let weights = find(embedded, "model.safetensors")?;
    find(embedded, "config.json")?;
    let dir = cache.join("models").join(format!("nano-{}", &weights.sha256[..16]));
    let is_good = |dir: &Path| embedded.iter().all(|file| is_intact(dir, file, cache));
    publish_dir(&dir, is_good, |fresh| {
        embedded.iter().try_for_each(|file| {
            let path = fresh.join(file.name);
            fs::write(&path, file.bytes).map_err(ModelError::cache(&path))
        })
    })?;
    let mut files: Vec<FileHash> = embedded
        .iter()
        .map(|file| FileHash {
            name: file.name.to_owned(),
            bytes: file.bytes.len() as u64,
            sha256: file.sha256.to_owned(),
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(ResolvedModel {
        name: "nano".to_owned(),
        kind: ModelKind::Trained,
        source: "embedded".to_owned(),
        revision: None,
        dir,
        files,
    })
}

/// nano's tokenizer files: the 50,257-token GPT-2 BPE, which the synthetic models carry too.
pub(crate) fn tokenizer_files() -> impl Iterator<Item = &'static EmbeddedFile> {
    FILES.iter().filter(|file| {
        matches!(
            file.name,
            "tokenizer.json" | "tokenizer_config.json" | "vocab.json" | "merges.txt"
        )
    })
}

fn find<'a>(
    embedded: &'a [EmbeddedFile],
    name: &'static str,
) -> Result<&'a EmbeddedFile, ModelError> {
    embedded.iter().find(|file| file.name == name).ok_or(ModelError::NoNano { missing: name })
}

/// Cheap where the hash is remembered: the size and the stamp.
fn is_intact(dir: &Path, file: &EmbeddedFile, cache: &Path) -> bool {
    let size = fs::metadata(dir.join(file.name)).map(|metadata| metadata.len());
    size.is_ok_and(|size| size == file.bytes.len() as u64)
        && hash_file(dir, file.name, cache).is_ok_and(|found| found.sha256 == file.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hex;
    use sha2::{Digest, Sha256};

    fn file(name: &'static str, bytes: &'static [u8]) -> EmbeddedFile {
        EmbeddedFile { name, sha256: hex(&Sha256::digest(bytes)).leak(), bytes }
    }

    fn stand_in() -> [EmbeddedFile; 3] {
        [
            file("model.safetensors", b"weights"),
            file("config.json", b"{}"),
            file("tokenizer.json", b"{}"),
        ]
    }

    #[test]
    fn it_is_extracted_once_and_mended_when_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let model = resolve_from(&stand_in(), cache.path()).unwrap();
        assert_eq!(model.weights_sha256(), hex(&Sha256::digest(b"weights")));
        assert!(model.has_tokenizer() && model.dir.is_absolute());
        let weights = model.dir.join("model.safetensors");
        let first = fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(resolve_from(&stand_in(), cache.path()).unwrap(), model);
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), first, "extracted again");

        fs::write(&weights, b"WEIGHTS").unwrap();
        assert_eq!(resolve_from(&stand_in(), cache.path()).unwrap(), model);
        assert_eq!(fs::read(&weights).unwrap(), b"weights");
        fs::remove_file(model.dir.join("config.json")).unwrap();
        resolve_from(&stand_in(), cache.path()).unwrap();
        assert!(model.dir.join("config.json").is_file());
    }

    #[test]
    fn a_build_without_nano_says_so() {
        let cache = tempfile::tempdir().unwrap();
        let error = resolve_from(&[], cache.path()).unwrap_err();
        assert!(error.to_string().contains("this build carries no nano"), "{error}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn the_embedded_hashes_are_those_of_the_embedded_bytes() {
        for file in FILES {
            assert_eq!(file.sha256, hex(&Sha256::digest(file.bytes)), "{}", file.name);
        }
    }
}
