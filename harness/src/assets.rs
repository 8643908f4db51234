//! Files that travel in the binary: the adapters, the pins, the goldens. So the program works from
//! any folder, and a binary always runs the adapters that it was built with.
//!
//! Paths are those of the repository: `adapters/python/hf/adapter.py`, `refs/hf/ref.toml`,
//! `golden/published/gpt2.json`. (`golden/models/nano` travels in `llorch-models`.)

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use llorch_trace::hash::sha256_bytes;
use rust_embed::RustEmbed;

use crate::provision::lock;

// Keep in step with build.rs.
#[derive(RustEmbed)]
#[folder = "../adapters"]
#[prefix = "adapters/"]
#[exclude = "*target/*"]
#[exclude = "*__pycache__/*"]
#[exclude = "*.pytest_cache/*"]
#[allow_missing = true]
struct Adapters;

#[derive(RustEmbed)]
#[folder = "../refs"]
#[prefix = "refs/"]
#[exclude = "*__pycache__/*"]
#[allow_missing = true]
struct Refs;

/// The candle adapter builds against it.
#[derive(RustEmbed)]
#[folder = "trace"]
#[prefix = "harness/trace/"]
#[include = "Cargo.toml"]
#[include = "src/*"]
struct Trace;

#[derive(RustEmbed)]
#[folder = "../golden"]
#[prefix = "golden/"]
#[include = "published/*"]
// Not what is pending there, nor what an interrupted command left.
#[include = "nano/hf-f32/*"]
#[include = "nano/hf-f64/*"]
#[include = "tokenizer/*"]
#[include = "suites/*"]
#[include = "nightly.toml"]
#[allow_missing = true]
struct Golden;

/// The content of an embedded file.
pub fn get(path: &str) -> Option<Cow<'static, [u8]>> {
    let file = match path.split('/').next()? {
        "adapters" => Adapters::get(path),
        "refs" => Refs::get(path),
        "harness" => Trace::get(path),
        "golden" => Golden::get(path),
        _ => None,
    };
    file.map(|file| file.data)
}

/// The paths of all embedded files below `prefix`, sorted.
pub fn list(prefix: &str) -> Vec<String> {
    let all = Adapters::iter().chain(Refs::iter()).chain(Trace::iter()).chain(Golden::iter());
    let mut paths: Vec<String> =
        all.filter(|path| path.starts_with(prefix)).map(Cow::into_owned).collect();
    paths.sort();
    paths
}

/// What names a state of all files below the prefixes: 16 hexadecimal digits.
pub fn fingerprint(prefixes: &[&str]) -> String {
    let mut text = String::new();
    for path in prefixes.iter().flat_map(|prefix| list(prefix)) {
        let bytes = get(&path).unwrap_or_default();
        text.push_str(&format!("{path} {}\n", sha256_bytes(&bytes)));
    }
    sha256_bytes(text.as_bytes())[..16].to_owned()
}

/// What adapters need on disk; the goldens are read from memory.
const EXTRACTED: [&str; 3] = ["adapters/", "refs/", "harness/trace/"];

/// The folder below the cache that [`extract`] makes.
pub fn extracted_dir() -> PathBuf {
    static KEY: OnceLock<String> = OnceLock::new();
    let key = KEY.get_or_init(|| fingerprint(&EXTRACTED));
    llorch_models::cache_dir().join("adapters").join(key)
}

/// Writes the adapters and pins to the cache, unless they are there, and returns the folder: it
/// holds `adapters/…`, `refs/…`, `harness/trace/…` as the repository does.
///
/// Whatever is made at the same time by another process: the folder is written under another name
/// and renamed, and the one that comes second finds the work done. While this process lives,
/// `adapters prune` leaves the folder alone.
pub fn extract() -> io::Result<PathBuf> {
    static DONE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let dir = extracted_dir();
    if done.as_deref() == Some(&dir) && dir.is_dir() {
        return Ok(dir);
    }
    extract_to(&dir)?;
    *done = Some(dir.clone());
    Ok(dir)
}

fn extract_to(dir: &Path) -> io::Result<()> {
    lock::hold(dir)?;
    if is_whole(dir) {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let fresh = tempfile::Builder::new().prefix(".extract-").tempdir_in(parent)?;
    let _cleanup = crate::supervise::remove_on_interrupt(fresh.path());
    for path in EXTRACTED.iter().flat_map(|prefix| list(prefix)) {
        write(&fresh.path().join(&path), &get(&path).unwrap_or_default())?;
    }
    if dir.exists() && !is_whole(dir) {
        // Something cleaned up in the cache. Moved, not removed in place: another process may run
        // from it.
        let aside = tempfile::Builder::new().prefix(".replaced-").tempdir_in(parent)?;
        let _ = fs::rename(dir, aside.path().join("old"));
    }
    match fs::rename(fresh.path(), dir) {
        Ok(()) => {
            let _ = fresh.keep(); // it has moved: nothing to remove
            Ok(())
        }
        Err(_) if is_whole(dir) => Ok(()), // another process was first
        Err(error) => Err(error),
    }
}

/// Whether every file is there in its full length.
fn is_whole(dir: &Path) -> bool {
    EXTRACTED.iter().flat_map(|prefix| list(prefix)).all(|path| {
        let length = get(&path).map_or(0, |bytes| bytes.len() as u64);
        fs::metadata(dir.join(&path)).is_ok_and(|found| found.len() == length)
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes)?;
    // The binary keeps no modes; what begins like a script is one.
    if bytes.starts_with(b"#!") {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_candle_builds_against_is_embedded_and_build_folders_are_not() {
        assert!(get("harness/trace/Cargo.toml").is_some());
        assert!(get("harness/trace/src/lib.rs").is_some());
        assert!(get("refs/uv/requirements.lock").is_some());
        for path in list("") {
            assert!(
                !path.contains("/target/") && !path.contains("__pycache__"),
                "{path} is embedded"
            );
            let golden = path.strip_prefix("golden/nano/");
            let accepted =
                golden.is_none_or(|g| g.starts_with("hf-f32/") || g.starts_with("hf-f64/"));
            assert!(accepted, "{path} is embedded, and is no accepted golden");
        }
    }

    #[test]
    fn extraction_repairs_itself_and_leaves_nothing_beside_it() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("adapters/key");
        extract_to(&dir).unwrap();
        let file = dir.join("harness/trace/Cargo.toml");
        assert_eq!(fs::read(&file).unwrap(), *get("harness/trace/Cargo.toml").unwrap());
        fs::remove_file(&file).unwrap();
        extract_to(&dir).unwrap();
        assert!(file.is_file());
        let beside: Vec<_> = fs::read_dir(cache.path().join("adapters"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(beside.iter().all(|name| name == "key" || name == "key.lock"), "{beside:?}");
    }

    #[test]
    fn the_fingerprint_names_the_content() {
        assert_eq!(fingerprint(&["refs/"]), fingerprint(&["refs/"]));
        assert_ne!(fingerprint(&["refs/"]), fingerprint(&["harness/trace/"]));
    }
}
