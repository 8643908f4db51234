//! File locks beside the folders of the cache: one process builds, the others wait; what is in use
//! isn't pruned.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fs4::FileExt;

use crate::supervise::{await_exit, interrupted};

/// `<dir>.log`: what the tools that make a folder say.
pub(crate) fn log_path(dir: &Path) -> PathBuf {
    beside(dir, ".log")
}

/// `<dir>.lock`, beside the folder, so that it outlives the folder's removal.
fn lock_path(dir: &Path) -> PathBuf {
    beside(dir, ".lock")
}

/// (Not `with_extension`: that would cut the version `3.11` off the end of a name.)
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    dir.with_file_name(name)
}

fn open(dir: &Path) -> io::Result<File> {
    let path = lock_path(dir);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

/// The right to build a folder. Ends when dropped, or with the process.
#[derive(Debug)]
pub struct BuildLock {
    file: File,
}

impl BuildLock {
    /// Waits for the lock. `on_wait` is called once, when another process has it.
    pub fn acquire(dir: &Path, on_wait: impl FnOnce()) -> io::Result<Self> {
        // Who builds doesn't use: or a process that finds its environment broken waits for itself.
        held().retain(|(path, _)| path != dir);
        let file = open(dir)?;
        let mut on_wait = Some(on_wait);
        loop {
            match FileExt::try_lock(&file) {
                Ok(()) => return Ok(Self { file }),
                Err(fs4::TryLockError::WouldBlock) => {}
                Err(fs4::TryLockError::Error(error)) => return Err(error),
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait();
            }
            if interrupted() {
                await_exit();
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The lock, if nobody builds or uses the folder.
    pub fn try_acquire(dir: &Path) -> io::Result<Option<Self>> {
        let file = open(dir)?;
        match FileExt::try_lock(&file) {
            Ok(()) => Ok(Some(Self { file })),
            Err(fs4::TryLockError::WouldBlock) => Ok(None),
            Err(fs4::TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        let _ = FileExt::unlock(&self.file); // closing the file does it as well
    }
}

/// The folders that this process uses, with their shared locks.
fn held() -> MutexGuard<'static, Vec<(PathBuf, File)>> {
    static HELD: Mutex<Vec<(PathBuf, File)>> = Mutex::new(Vec::new());
    HELD.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Marks a folder as in use until this process ends.
pub fn hold(dir: &Path) -> io::Result<()> {
    let mut held = held();
    if held.iter().any(|(path, _)| path == dir) {
        return Ok(());
    }
    let file = match open(dir) {
        Ok(file) => file,
        // A cache that somebody else looks after: what we can't lock, we can't lose to `prune`.
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    // A pruner has the lock for as long as it takes to remove the folder.
    while let Err(fs4::TryLockError::WouldBlock) = FileExt::try_lock_shared(&file) {
        if interrupted() || Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("{} is locked", dir.display()),
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    held.push((dir.to_owned(), file));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_folder_is_not_for_building_and_a_free_one_is() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("env");
        let lock = BuildLock::try_acquire(&dir).unwrap().expect("nobody has it");
        assert!(BuildLock::try_acquire(&dir).unwrap().is_none());
        drop(lock);
        hold(&dir).unwrap();
        hold(&dir).unwrap(); // twice is once
        assert!(BuildLock::try_acquire(&dir).unwrap().is_none());
    }
}
