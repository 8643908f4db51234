//! The mark that something was made to its end: written last, by rename.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is known of something that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// The llorch-diff that made it.
    pub made_by: String,
    pub seconds: f64,
    pub bytes: u64,
}

fn path(dir: &Path) -> PathBuf {
    dir.join(".complete")
}

pub(crate) fn write(dir: &Path, seconds: f64) -> io::Result<()> {
    let stamp =
        Stamp { made_by: env!("CARGO_PKG_VERSION").into(), seconds, bytes: super::disk::size(dir) };
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, &stamp)?;
    file.persist(path(dir)).map_err(|error| error.error)?;
    Ok(())
}

pub(crate) fn read(dir: &Path) -> Option<Stamp> {
    serde_json::from_slice(&std::fs::read(path(dir)).ok()?).ok()
}
