//! Where a run leaves its files: the user's folder, or one that goes away with the run.

use std::fs;
use std::path::{Path, PathBuf};

use super::RunError;
use crate::saved::RESULT;
use crate::supervise::{Cleanup, remove_on_interrupt};

#[derive(Debug)]
pub struct OutDir {
    path: PathBuf,
    temporary: Option<(tempfile::TempDir, Cleanup)>,
}

impl OutDir {
    /// Makes the folder. One that is there must be empty or hold an earlier run, which is replaced:
    /// a typing error must not overwrite what belongs to somebody else.
    pub fn create(wanted: Option<&Path>) -> Result<OutDir, RunError> {
        let Some(wanted) = wanted else {
            let dir = tempfile::Builder::new().prefix("llorch-run-").tempdir();
            let dir = dir.map_err(|e| {
                RunError::Environment(format!("failed to create a temporary folder: {e}"))
            })?;
            let cleanup = remove_on_interrupt(dir.path());
            return Ok(OutDir { path: dir.path().to_path_buf(), temporary: Some((dir, cleanup)) });
        };
        let fail = |e: std::io::Error| {
            RunError::Environment(format!("failed to write to --out {}: {e}", wanted.display()))
        };
        let path = std::path::absolute(wanted).map_err(fail)?;
        if path.exists() && !path.is_dir() {
            return Err(RunError::Usage(format!(
                "failed to write to --out {}: found a file; expected a folder, or nothing yet",
                wanted.display()
            )));
        }
        fs::create_dir_all(&path).map_err(fail)?;
        let result = path.join(RESULT);
        if fs::read_dir(&path).map_err(fail)?.next().is_some() && !is_of_a_run(&path) {
            return Err(RunError::Usage(format!(
                "failed to write to --out {}: found other files in it; expected an empty folder or an earlier run",
                wanted.display()
            )));
        }
        if result.exists() {
            // Until the new result is there, the folder is no result.
            fs::remove_file(&result).map_err(fail)?;
        }
        fs::write(path.join(MARK), "").map_err(fail)?;
        Ok(OutDir { path, temporary: None })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }
}

/// Says that the folder is a run's even before there is a result.
const MARK: &str = ".llorch-run";

fn is_of_a_run(path: &Path) -> bool {
    path.join(MARK).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_folder_is_left_alone_and_an_earlier_run_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("thesis.tex"), "").unwrap();
        let error = OutDir::create(Some(&theirs)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        fs::write(theirs.join(RESULT), "theirs too").unwrap();
        assert!(OutDir::create(Some(&theirs)).is_err());
        assert_eq!(fs::read_to_string(theirs.join(RESULT)).unwrap(), "theirs too");

        let ours = dir.path().join("new/ours");
        OutDir::create(Some(&ours)).unwrap();
        fs::write(ours.join(RESULT), "{}").unwrap();
        OutDir::create(Some(&ours)).unwrap();
        assert!(!ours.join(RESULT).exists());
    }
}
