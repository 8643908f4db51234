//! One error type for files and names. Every message names the file, what was found and what was
//! expected.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The file's content is not what its form demands.
    #[error("failed to read {}: {what}", path.display())]
    Malformed { path: PathBuf, what: String },
    #[error("failed to read {}: no tensor {key:?}; it holds {held}", path.display())]
    NoSuchTensor { path: PathBuf, key: String, held: String },
    #[error("{0}")]
    Name(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Error::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn malformed(path: &std::path::Path, what: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_path_buf(), what: what.into() }
    }
}
