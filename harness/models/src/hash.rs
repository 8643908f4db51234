//! sha256 of files, remembered as long as the file stays as it was.
//!
//! Hashing gpt2-xl takes seconds, and every command reports the hash. So the result is kept in the
//! cache under the file's path, together with its size, times and inode; any difference there
//! and it is computed again. (The same evidence of an unchanged file that git's index uses.)

use crate::FileHash;
use crate::error::ModelError;
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Fewer bytes are hashed before anybody could read about it.
const TAKES_A_WHILE: u64 = 100_000_000;

/// sha256 of a file's content, as lower-case hexadecimal.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    sha256_telling(path, |_| {})
}

/// The same with progress, for files that may be large.
pub(crate) fn sha256_shown(path: &Path) -> io::Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = fs::metadata(path)?.len();
    let bar = Progress::new(bytes < TAKES_A_WHILE).bytes(&format!("hashing {name}"), bytes);
    bar.set(0);
    sha256_telling(path, |read| bar.add(read as u64))
}

fn sha256_telling(path: &Path, tell: impl Fn(usize)) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                tell(n);
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What must stay equal for a remembered hash to hold.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_ns: u128,
    /// Change time and inode: (seconds, nanoseconds, inode); zeros where the system has none.
    identity: (i64, i64, u64),
    sha256: String,
}

impl Stamp {
    fn of(metadata: &Metadata, sha256: String) -> Stamp {
        let modified =
            metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            (metadata.ctime(), metadata.ctime_nsec(), metadata.ino())
        };
        #[cfg(not(unix))]
        let identity = (0, 0, 0);
        Stamp {
            bytes: metadata.len(),
            modified_ns: modified.map_or(0, |d| d.as_nanos()),
            identity,
            sha256,
        }
    }
}

/// sha256 of a folder's `model.safetensors`, the identity of the weights; from memory where it is untouched since.
pub fn weights_sha256(dir: &Path) -> Result<String, ModelError> {
    Ok(hash_file(dir, "model.safetensors", &crate::cache_dir())?.sha256)
}

/// Name, size and sha256 of `dir/name`, from memory where the file is untouched since.
pub(crate) fn hash_file(dir: &Path, name: &str, cache: &Path) -> Result<FileHash, ModelError> {
    let path = dir.join(name);
    let real = path.canonicalize().map_err(ModelError::io("find", &path))?;
    let metadata = fs::metadata(&real).map_err(ModelError::io("read", &path))?;
    let key = hex(&Sha256::digest(real.as_os_str().as_encoded_bytes())[..16]);
    let stamp_file = cache.join("models").join("hashes").join(format!("{key}.json"));

    let remembered =
        fs::read(&stamp_file).ok().and_then(|bytes| serde_json::from_slice::<Stamp>(&bytes).ok());
    if let Some(stamp) = remembered
        && stamp == Stamp::of(&metadata, stamp.sha256.clone())
    {
        return Ok(FileHash { name: name.to_owned(), bytes: stamp.bytes, sha256: stamp.sha256 });
    }
    let sha256 = sha256_shown(&real).map_err(ModelError::io("read", &path))?;
    if is_settled(&metadata) {
        // A cache that can't be written costs time, never the answer.
        let _ = remember(&stamp_file, &Stamp::of(&metadata, sha256.clone()));
    }
    Ok(FileHash { name: name.to_owned(), bytes: metadata.len(), sha256 })
}

/// A file written a moment ago may be written again within the clock's grain, unseen.
fn is_settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > Duration::from_millis(50))
}

fn remember(stamp_file: &Path, stamp: &Stamp) -> io::Result<()> {
    let folder = stamp_file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut fresh = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut fresh, stamp)?;
    fresh.persist(stamp_file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_standards_own_example() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("abc"), "abc").unwrap();
        assert_eq!(sha256_file(&dir.path().join("abc")).unwrap(), SHA256_OF_ABC);
    }

    #[test]
    fn a_remembered_hash_is_used_only_while_the_file_is_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("cache"), dir.path().join("f"));
        fs::write(&file, "abc").unwrap();
        std::thread::sleep(Duration::from_millis(80));
        assert_eq!(hash_file(dir.path(), "f", &cache).unwrap().sha256, SHA256_OF_ABC);

        // A stamp that lies proves that the second answer came from memory.
        let stamp_file =
            fs::read_dir(cache.join("models/hashes")).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&stamp_file).unwrap().replace(SHA256_OF_ABC, "lie");
        fs::write(&stamp_file, text).unwrap();
        assert_eq!(hash_file(dir.path(), "f", &cache).unwrap().sha256, "lie");

        // Same length, other content: seen.
        fs::write(&file, "abd").unwrap();
        let again = hash_file(dir.path(), "f", &cache).unwrap();
        assert_eq!(again.sha256, sha256_file(&file).unwrap());
        assert_ne!(again.sha256, SHA256_OF_ABC);
    }
}
