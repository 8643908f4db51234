//! Where a model comes from.
//!
//! One call, [`resolve`], turns the name that a user typed into a [`ResolvedModel`]: a folder that
//! holds `config.json` and one `model.safetensors` (and tokenizer files where there is a
//! tokenizer), with its kind, source and hashes. The names:
//!
//! | name | what | kind |
//! |---|---|---|
//! | `nano` | the small trained model inside the binary | trained |
//! | `synth:gpt2`, `synth:gpt2-medium@7`, … | weights computed from a seed | synthetic |
//! | `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, `distilgpt2` | the published weights, from the hub | real |
//! | `org/name`, `org/name@revision` | any other repository of the hub | trained |
//! | a path | a folder in Hugging Face layout | trained; synthetic or real where its own content shows it |
//!
//! In reading order: [`name`] (which of these a name is), [`published`] (what counts as real),
//! [`nano`], [`folder`], [`hub`], [`synth`]; under them `cache` (publishing folders so that two processes and a Ctrl-C do no harm),
//! `hash` (sha256, remembered per file), [`progress`], and [`error`].
#![forbid(unsafe_code)]

/// Writes a line to stderr, which no progress bar tears. A reader that has gone is no reason to fail.
#[macro_export]
macro_rules! errln {
    ($($text:tt)*) => {
        $crate::progress::line(format_args!($($text)*))
    };
}

mod cache;
pub mod error;
pub mod folder;
mod hash;
pub mod hub;
pub mod name;
pub mod nano;
pub mod progress;
pub mod published;
pub mod synth;

pub use cache::{cache_dir, data_dir};
pub use error::ModelError;
pub use hash::{sha256_file, weights_sha256};

use hub::HubEnv;
use name::ModelName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// How a name is to be resolved.
#[derive(Debug, Clone, Default)]
pub struct ResolveOptions {
    /// Touch no network: only what is embedded, on disk, or computed.
    pub offline: bool,
    /// Show no progress on stderr.
    pub quiet: bool,
    /// Branch, tag or commit of a hub repository (default: the `@revision` of the name, or `main`).
    pub revision: Option<String>,
}

/// What the weights are worth as evidence about GPT-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Trained by somebody, but not known to be one of the five published GPT-2s.
    Trained,
    /// Computed from a seed.
    Synthetic,
    /// One of the five published GPT-2s, as the hub serves it.
    Real,
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModelKind::Trained => "trained",
            ModelKind::Synthetic => "synthetic",
            ModelKind::Real => "real",
        })
    }
}

/// One file of a model and what it was found to contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// A model that is on disk and ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedModel {
    /// The name as it was typed.
    pub name: String,
    pub kind: ModelKind,
    /// Where the weights come from, for a reader: `embedded`, `folder PATH`, `hub org/name`, `seed 7, recipe 1`.
    pub source: String,
    /// The commit of the hub repository, where that is known.
    pub revision: Option<String>,
    /// Absolute path of a folder with `config.json` and one `model.safetensors`.
    pub dir: PathBuf,
    /// Every model file in `dir`, sorted by name.
    pub files: Vec<FileHash>,
}

impl ResolvedModel {
    /// sha256 of `model.safetensors`, the identity of the weights.
    pub fn weights_sha256(&self) -> &str {
        self.file("model.safetensors").map_or("", |file| &file.sha256)
    }

    /// Whether `dir` holds a tokenizer: `tokenizer.json`, or `vocab.json` with `merges.txt`.
    pub fn has_tokenizer(&self) -> bool {
        let has = |name| self.file(name).is_some();
        has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))
    }

    fn file(&self, name: &str) -> Option<&FileHash> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// Turns a model's name into a folder that can be loaded, fetching or computing it if need be.
///
/// # Errors
/// Each names what was looked for, what was found and what was expected;
/// [`ModelError::exit_code`] tells a wrong argument (2) from an unfit environment (3).
pub fn resolve(name: &str, options: &ResolveOptions) -> Result<ResolvedModel, ModelError> {
    resolve_in(name, options, &cache_dir(), &HubEnv::from_env())
}

/// Whether a name can be one, before anything is looked up.
///
/// # Errors
/// As [`resolve`], with exit code 2.
pub fn check_name(name: &str) -> Result<(), ModelError> {
    match ModelName::parse(name)? {
        ModelName::Synth { size, .. } => synth::check_size(name, &size),
        _ => Ok(()),
    }
}

/// Whether a name may also be that of a folder: it is no reserved one.
pub fn may_be_a_folder(name: &str) -> bool {
    let reserved = published::by_name(name.split('@').next().unwrap_or(name)).is_some();
    name != "nano" && !name.starts_with("synth:") && !reserved
}

/// [`resolve`] with a cache and a hub of the caller's choice.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(
    name: &str,
    options: &ResolveOptions,
    cache: &Path,
    hub: &HubEnv,
) -> Result<ResolvedModel, ModelError> {
    match ModelName::parse(name)? {
        ModelName::Nano => nano::resolve(cache),
        ModelName::Synth { size, seed } => synth::resolve(name, &size, seed, options, cache),
        ModelName::Folder(path) => folder::resolve(name, &path, cache),
        ModelName::Hub { repo, revision } => {
            hub::resolve(name, &repo, revision.as_deref(), options, hub, cache)
        }
    }
}
