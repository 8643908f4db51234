//! Folders that appear whole or not at all, whoever else is at work and whenever the power fails.

use crate::error::ModelError;
use fs4::FileExt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where everything that can be made again is kept:
/// `$LLORCH_CACHE`, else `$XDG_CACHE_HOME/llorch`, else `~/.cache/llorch`.
pub fn cache_dir() -> PathBuf {
    base_dir("LLORCH_CACHE", "XDG_CACHE_HOME", ".cache")
}

/// Where what can't be made again is kept:
/// `$LLORCH_DATA`, else `$XDG_DATA_HOME/llorch`, else `~/.local/share/llorch`.
pub fn data_dir() -> PathBuf {
    base_dir("LLORCH_DATA", "XDG_DATA_HOME", ".local/share")
}

fn base_dir(own: &str, xdg: &str, under_home: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set(own) {
        return std::path::absolute(&dir).unwrap_or(dir);
    }
    // The XDG specification: a relative path in these variables is to be ignored.
    if let Some(dir) = set(xdg).filter(|dir| dir.is_absolute()) {
        return dir.join("llorch");
    }
    match std::env::home_dir().filter(|home| home.is_absolute()) {
        Some(home) => home.join(under_home).join("llorch"),
        None => std::env::temp_dir().join("llorch"),
    }
}

/// Makes the folder `target` exist, complete: unless `is_good` accepts what is there, `fill` writes a
/// fresh folder beside it, which then takes its place by rename.
///
/// One process at a time does this for one target; others wait and find it done.
pub(crate) fn publish_dir(
    target: &Path,
    is_good: impl Fn(&Path) -> bool,
    fill: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    if is_good(target) {
        return Ok(());
    }
    let parent = target.parent().unwrap_or(Path::new("."));
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::create_dir_all(parent).map_err(ModelError::cache(parent))?;
    let lock_file = parent.join(format!(".{name}.lock"));
    let _lock = lock(&lock_file).map_err(ModelError::cache(&lock_file))?;
    if is_good(target) {
        return Ok(());
    }
    let prefix = format!(".{name}.partial-");
    remove_leftovers(parent, &prefix);
    let fresh = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(parent)
        .map_err(ModelError::cache(parent))?;
    fill(fresh.path())?;
    if target.exists() {
        // Moved aside first: whoever has the old files mapped keeps them until it ends.
        let aside = parent.join(format!("{prefix}replaced"));
        fs::rename(target, &aside).map_err(ModelError::cache(target))?;
        let _ = fs::remove_dir_all(aside);
    }
    fs::rename(fresh.keep(), target).map_err(ModelError::cache(target))
}

/// An exclusive lock that ends with the value (or the process).
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    FileExt::lock(&file)?;
    Ok(file)
}

/// Partial folders of a process that was killed. Only called under the target's lock.
fn remove_leftovers(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Refuses to begin what the disk can't hold. `path` need not exist yet.
pub(crate) fn check_free_space(what: &str, path: &Path, needed: u64) -> Result<(), ModelError> {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(path);
    let free = fs4::available_space(existing)
        .map_err(ModelError::io("read the free space of", existing))?;
    // A little more than the files: folders, locks, the hash stamps.
    let needed = needed + (1 << 20);
    if free < needed {
        return Err(ModelError::DiskFull {
            what: what.to_owned(),
            path: existing.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn eight_at_once_fill_once_and_leave_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("models/x");
        let fills = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    publish_dir(
                        &target,
                        |t| t.join("done").is_file(),
                        |fresh| {
                            fills.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_millis(20));
                            fs::write(fresh.join("done"), b"1").map_err(ModelError::cache(fresh))
                        },
                    )
                    .unwrap();
                });
            }
        });
        assert_eq!(fills.load(Ordering::SeqCst), 1);
        let mut left: Vec<_> = fs::read_dir(target.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".x.lock", "x"]);
    }

    #[test]
    fn a_failed_fill_leaves_no_target_and_leftovers_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        fs::create_dir(dir.path().join(".x.partial-old")).unwrap();
        let refused =
            publish_dir(&target, Path::is_dir, |_| Err(ModelError::NoNano { missing: "x" }));
        assert!(refused.is_err());
        assert!(!target.exists());
        assert!(!dir.path().join(".x.partial-old").exists());
        publish_dir(&target, Path::is_dir, |_| Ok(())).unwrap();
        assert!(target.is_dir());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = publish_dir(&file.join("models/x"), Path::is_dir, |_| Ok(())).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(text.contains("LLORCH_CACHE") && text.contains("file/models"), "{text}");
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_beforehand() {
        let error = check_free_space("everything", Path::new("/nowhere/at/all"), u64::MAX >> 1)
            .unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.to_string().starts_with("failed to make room for everything: found "),
            "{error}"
        );
    }
}
