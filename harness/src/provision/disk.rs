//! How much room there is, and how much a folder takes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Missing;

/// Bytes that this user may still write below `path`, which need not exist yet.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    fs4::available_space(existing)
}

/// Refuses what wouldn't fit. `free` is [`free_space`] but in tests.
pub(crate) fn check(
    name: &str,
    needed_mb: u64,
    path: &Path,
    free: fn(&Path) -> io::Result<u64>,
) -> Result<(), Missing> {
    let Ok(free) = free(path) else { return Ok(()) }; // can't tell: try
    let needed = needed_mb * 1_000_000;
    if free >= needed {
        return Ok(());
    }
    Err(Missing {
        reason: format!(
            "{name} needs {} on disk, {} has {} free",
            human_bytes(needed),
            path.display(),
            human_bytes(free)
        ),
        mend: "make room (`llorch-diff adapters prune` shows what the cache can spare), or set LLORCH_CACHE to a folder on a larger disk".into(),
    })
}

/// Bytes on disk below `path`, a file with several names counted once.
pub fn size(path: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut open = vec![path.to_owned()];
    let mut total = 0;
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()));
        }
        if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
            total += meta.blocks() * 512;
        }
    }
    total
}

/// `4.7 GB`, `130 MB`, `12 kB`: decimal units, as downloads are sold.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let missing = check("hf", 4700, Path::new("/x"), |_| Ok(1_200_000_000)).unwrap_err();
        assert!(
            missing.reason.contains("hf needs 4.7 GB") && missing.reason.contains("1.2 GB free"),
            "{missing}"
        );
        assert!(check("hf", 4700, Path::new("/x"), |_| Ok(4_700_000_000)).is_ok());
    }

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
        let once = size(dir.path());
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(size(dir.path()), once);
        assert!(once >= 100_000);
    }
}
