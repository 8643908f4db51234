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

    #[error(
        "failed to use the weights in {place}: found {found}, expected one model.safetensors; {remedy}"
    )]
    Format { place: String, found: String, remedy: String },

    #[error("failed to verify {}: found {found}, expected {expected} ({origin})", path.display())]
    WrongHash { path: PathBuf, found: String, expected: String, origin: String },

    #[error(
        "failed to find nano: this build carries no nano (golden/models/nano had no {missing} when it was built)"
    )]
    NoNano { missing: &'static str },

    #[error("failed to write the model cache at {}: {source}; set LLORCH_CACHE to a folder that can be written", path.display())]
    Cache { path: PathBuf, source: io::Error },

    #[error(
        "failed to make room for {what}: found {} MB free at {}, expected at least {} MB",
        free / 1_000_000, path.display(), needed.div_ceil(1_000_000)
    )]
    DiskFull { what: String, path: PathBuf, needed: u64, free: u64 },

    #[error(
        "failed to reach {endpoint}: {reason}; check the network and HF_ENDPOINT, or use a model that needs neither: nano, synth:gpt2, a folder"
    )]
    Network { endpoint: String, reason: String },

    #[error("failed to find {what} at {endpoint}: found {found}, expected {expected}")]
    NotFound { what: String, endpoint: String, found: String, expected: String },

    #[error(
        "failed to get {what} from {endpoint}: found HTTP {status}, access is refused; {remedy}"
    )]
    Refused { what: String, endpoint: String, status: u16, remedy: String },

    #[error(
        "failed to download {what} from {endpoint}: found {found} bytes, expected {expected}; {remedy}"
    )]
    Truncated { what: String, endpoint: String, found: u64, expected: u64, remedy: String },

    #[error("failed to understand {endpoint}: found {found}, expected {expected}")]
    Answer { endpoint: String, found: String, expected: String },

    #[error(
        "failed to find {what} offline: found {found} in the hub cache {}, expected {expected}; \
         run once without --offline and HF_HUB_OFFLINE, or set HF_HUB_CACHE to the cache that has it", cache.display()
    )]
    Offline { what: String, cache: PathBuf, found: String, expected: String },

    #[error("failed to write the hub cache at {}: {source}; set HF_HUB_CACHE to a folder that can be written", path.display())]
    HubCache { path: PathBuf, source: io::Error },

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

    pub(crate) fn hub_cache(path: &Path) -> impl FnOnce(io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::HubCache { path, source }
    }

    pub(crate) fn cache(path: &Path) -> impl FnOnce(io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::Cache { path, source }
    }
}
