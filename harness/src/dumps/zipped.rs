//! Entries of a zip, read no further than what they claim, and their claims held to what can be true.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::read::ZipFile;

/// The logits of 1024 positions over GPT-2's vocabulary are 412 MB in float64.
pub const ENTRY_CAP: u64 = 4 << 30;

/// Deflate shrinks by at most 1032 to 1 (<https://zlib.net/zlib_tech.html>); stored entries not at all.
const INFLATION: u64 = 1040;

pub fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    ZipArchive::new(BufReader::new(file)).map_err(|e| e.to_string())
}

/// The claimed size, if it can be true. Errors are sentences.
pub fn plausible(name: &str, size: u64, compressed: u64) -> Result<u64, String> {
    let believed = ENTRY_CAP.min(compressed.saturating_mul(INFLATION));
    match size <= believed {
        true => Ok(size),
        false => Err(format!(
            "{name} claims to inflate from {compressed} bytes to {size}; at most {believed} are believed"
        )),
    }
}

/// All bytes of an entry of at most `cap`.
pub fn whole<R: Read>(entry: ZipFile<'_, R>, name: &str, cap: u64) -> Result<Vec<u8>, String> {
    let size = plausible(name, entry.size(), entry.compressed_size())?;
    if size > cap {
        return Err(format!("{name} has {size} bytes; at most {cap} are read"));
    }
    let mut bytes = Vec::new();
    // One byte more than claimed is enough to know that the claim is false.
    entry.take(size + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(format!("{name} claims {size} bytes and holds {} or more", bytes.len())),
    }
}
