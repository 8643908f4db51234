//! Bounded reading of `.npz`, NumPy's zip of `.npy` files.
//!
//! A zip entry can claim any size, and its `.npy` header another. Nothing is allocated by a claim:
//! an entry may not inflate beyond what deflate can do or beyond [`zipped::ENTRY_CAP`], its header must
//! agree with its size, and bytes are counted as they come.

use std::fs::File;
use std::io::{BufReader, Cursor};
use std::path::{Path, PathBuf};

use llorch_trace::files::{inspect_npy_from, read_npy_from};
use llorch_trace::{Dtype, Tensor};
use zip::ZipArchive;

use super::zipped;

#[derive(Debug, thiserror::Error)]
#[error("failed to read {}: {what}", path.display())]
pub struct NpzError {
    path: PathBuf,
    what: String,
}

/// Names (without `.npy`), dtypes and shapes of all entries, in the order of the file.
pub fn list(path: &Path) -> Result<Vec<(String, Dtype, Vec<usize>)>, NpzError> {
    let mut archive = open(path)?;
    let mut rows = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| refuse(path, e))?;
        if entry.is_dir() {
            continue;
        }
        let name = entry.name().to_string();
        let Some(stem) = name.strip_suffix(".npy") else {
            return Err(refuse(path, format!("entry {name:?} is no .npy")));
        };
        let size = zipped::plausible(&name, entry.size(), entry.compressed_size())
            .map_err(|what| refuse(path, what))?;
        let (dtype, shape) =
            inspect_npy_from(entry, size, &inside(path, &name)).map_err(|e| within(path, e))?;
        rows.push((stem.to_string(), dtype, shape));
    }
    Ok(rows)
}

/// One entry, named without `.npy`.
pub fn read(path: &Path, name: &str) -> Result<Tensor, NpzError> {
    let mut archive = open(path)?;
    let name = format!("{name}.npy");
    let entry = archive.by_name(&name).map_err(|e| refuse(path, format!("{name}: {e}")))?;
    let bytes =
        zipped::whole(entry, &name, zipped::ENTRY_CAP).map_err(|what| refuse(path, what))?;
    let size = bytes.len() as u64;
    read_npy_from(Cursor::new(bytes), size, &inside(path, &name)).map_err(|e| within(path, e))
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, NpzError> {
    zipped::open(path).map_err(|what| refuse(path, format!("not a .npz: {what}")))
}

fn inside(path: &Path, name: &str) -> PathBuf {
    path.join(name)
}

fn refuse(path: &Path, what: impl ToString) -> NpzError {
    NpzError { path: path.to_path_buf(), what: what.to_string() }
}

/// An error from inside names the entry already; only its sentence is wanted.
fn within(path: &Path, error: llorch_trace::Error) -> NpzError {
    let text = error.to_string();
    refuse(
        path,
        text.strip_prefix("failed to read ").unwrap_or(&text).replacen(
            &format!("{}/", path.display()),
            "",
            1,
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};
    use ndarray_npy::NpzWriter;

    fn sample(compressed: bool) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump.npz");
        let file = File::create(&path).unwrap();
        let mut npz =
            if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
        npz.add_array("h.0.ln_1", &array![[1f32, 2.], [3., 4.]]).unwrap();
        npz.add_array("zeros", &Array2::<f64>::zeros((40, 50))).unwrap();
        npz.finish().unwrap();
        (dir, path)
    }

    #[test]
    fn what_numpy_zips_is_read() {
        for compressed in [false, true] {
            let (_dir, path) = sample(compressed);
            let rows = list(&path).unwrap();
            assert_eq!(rows[0], ("h.0.ln_1".into(), Dtype::F32, vec![2, 2]));
            assert_eq!(rows[1], ("zeros".into(), Dtype::F64, vec![40, 50]));
            let tensor = read(&path, "h.0.ln_1").unwrap();
            assert_eq!(tensor, Tensor::f32(vec![2, 2], vec![1., 2., 3., 4.]));
            assert!(read(&path, "absent").unwrap_err().to_string().contains("absent.npy"));
        }
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let (_dir, path) = sample(true);
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            std::fs::write(&path, &whole[..n]).unwrap();
            let error = list(&path).unwrap_err().to_string();
            assert!(error.contains("dump.npz"), "{n}: {error}");
        }
    }

    #[test]
    fn flipped_bytes_never_panic_and_claims_are_not_believed() {
        let (_dir, path) = sample(true);
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[n] ^= flip;
                std::fs::write(&path, &bytes).unwrap();
                for (name, ..) in list(&path).unwrap_or_default() {
                    let _ = read(&path, &name);
                }
            }
        }
        // The central directory's claim of the uncompressed size, 24 bytes into its record.
        let at = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap() + 24;
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&0xfffffff0u32.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = list(&path).unwrap_err().to_string();
        assert!(error.contains("at most") && error.contains("h.0.ln_1"), "{error}");
    }
}
