//! A folder with goldens, held by one process at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use fs4::FileExt;

use super::commit;
use crate::golden::stop::Stop;

/// In a checkout.
pub const DEFAULT: &str = "golden/nano";

/// A folder that nobody else records to or reviews; whatever was interrupted there is finished.
#[derive(Debug)]
pub struct Place {
    pub dir: PathBuf,
    /// A decision that was interrupted has been finished.
    pub finished: bool,
    lock: File,
}

impl Place {
    pub fn open(dir: &Path) -> Result<Place, Stop> {
        if !dir.is_dir() {
            return Err(Stop::input(format!(
                "failed to find {}: run this from a checkout, or name the folder with --dir",
                dir.display()
            )));
        }
        let Some(mut place) = Place::try_hold(dir)? else {
            return Err(Stop::environment(format!(
                "another llorch-diff records or reviews in {}; wait until it has ended",
                dir.display()
            )));
        };
        place.finished = commit::recover(dir)?;
        Ok(place)
    }

    /// As [`Place::open`], and says so if there was something to finish.
    pub fn enter(dir: &Path) -> Result<Place, Stop> {
        let place = Place::open(dir)?;
        if place.finished {
            llorch_models::errln!("finished a review that was interrupted in {}", dir.display());
        }
        Ok(place)
    }

    /// The folder, unless another process has it. The lock is on the folder itself: no file is left.
    pub fn try_hold(dir: &Path) -> Result<Option<Place>, Stop> {
        let lock = File::open(dir).map_err(|e| commit::failed("open", dir, &e))?;
        match FileExt::try_lock(&lock) {
            Ok(()) => Ok(Some(Place { dir: dir.to_path_buf(), finished: false, lock })),
            Err(fs4::TryLockError::WouldBlock) => Ok(None),
            Err(fs4::TryLockError::Error(e)) => Err(commit::failed("lock", dir, &e)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // By name: a child that is just being started holds the file open a little longer than we.
        let _ = FileExt::unlock(&self.lock);
    }
}
