//! Why a model could not be had.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model could not be had, each with what was looked for, found and expected.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "failed to understand the model name `{name}`: {reason}; expected nano, gpt2, gpt2-medium, gpt2-large, \
         gpt2-xl, distilgpt2, org/name of a hub repository, a folder, or synth:NAME[@SEED]"
    )]
    Name { name: String, reason: String },

    #[error("failed to open model folder {}: found {found}, expected {expected}", dir.display())]
    Folder { dir: PathBuf, found: String, expected: String },

    #[error("failed to use the weights in {place}: found {found}, expected one model.safetensors; {remedy}")]
    Format { place: String, found: String, remedy: String },

    #[error("failed to verify {}: found sha256 {found}, expected {expected} ({origin})", path.display())]
    WrongHash { path: PathBuf, found: String, expected: String, origin: String },

    #[error("failed to find nano: this build carries no nano (golden/models/nano had no {missing} when it was built)")]
    NoNano { missing: &'static str },

    #[error("failed to write the model cache at {}: {source}; set LLORCH_CACHE to a folder that can be written", path.display())]
    Cache { path: PathBuf, source: io::Error },

    #[error(
        "failed to make room for {what}: found {} MB free at {}, expected at least {} MB",
        free / 1_000_000, path.display(), needed.div_ceil(1_000_000)
    )]
    DiskFull { what: String, path: PathBuf, needed: u64, free: u64 },

    #[error("failed to {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl ModelError {
    /// The exit code of a program that stops for this: 2 where the argument is at fault, 3 where the
    /// environment is (network, disk, cache).
    pub fn exit_code(&self) -> u8 {
        match self {
            ModelError::Name { .. } | ModelError::Folder { .. } | ModelError::Format { .. } => 2,
            _ => 3,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::Io { action, path, source }
    }

    pub(crate) fn cache(path: &Path) -> impl FnOnce(io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::Cache { path, source }
    }
}
