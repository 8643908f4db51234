//! Bounded readers and writers of tensor files: `.npy` and `.safetensors`.
//!
//! A `.npy` of 200 bytes may claim 2^40 elements; a reader that believes it aborts the process. So
//! the header is checked against the length of the file before anything is allocated.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use ndarray_npy::{ReadNpyExt, WriteNpyExt};
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::mapped::MappedTensor;
use crate::tensor::{Dtype, Tensor, TensorData};

/// What the header of a `.npy` file says.
/// Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>
#[derive(Debug, Clone, PartialEq, Eq)]
struct NpyHeader {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
    /// Where the data begins, in bytes.
    data: u64,
}

impl NpyHeader {
    fn dtype(&self) -> Dtype {
        match self.descr.trim_start_matches(['<', '>', '=', '|']) {
            "f8" => Dtype::F64,
            "f4" => Dtype::F32,
            "f2" => Dtype::F16,
            _ => Dtype::I64,
        }
    }
}

pub fn read_npy(path: &Path) -> Result<Tensor> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let length = file.metadata().map_err(|e| Error::io("examine", path, e))?.len();
    read_npy_from(BufReader::new(file), length, path)
}

/// Dtype and shape of a `.npy`, from its header alone.
pub fn inspect_npy(path: &Path) -> Result<(Dtype, Vec<usize>)> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let length = file.metadata().map_err(|e| Error::io("examine", path, e))?.len();
    inspect_npy_from(BufReader::new(file), length, path)
}

/// As [`inspect_npy`], from a source of `length` bytes.
pub fn inspect_npy_from<R: Read>(
    mut source: R,
    length: u64,
    path: &Path,
) -> Result<(Dtype, Vec<usize>)> {
    let (header, _) = checked_npy_header(&mut source, length, path)?;
    Ok((header.dtype(), header.shape))
}

/// A `.npy` that stays in its file; None of one in Fortran order or big-endian, whose elements must be moved.
pub fn map_npy(path: &Path) -> Result<Option<MappedTensor>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let length = file.metadata().map_err(|e| Error::io("examine", path, e))?.len();
    let (header, item) = checked_npy_header(&mut BufReader::new(&file), length, path)?;
    if header.fortran || header.descr.starts_with('>') {
        return Ok(None);
    }
    // An empty file has a header, and is no empty map.
    let map = map(&file, path)?;
    let (begin, dtype) = (header.data as usize, header.dtype());
    let bytes = begin..map.len();
    Ok(MappedTensor::new(Arc::new(map), bytes, header.shape, dtype, item as usize))
}

fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: the map is read-only. Another process that shortens the file meanwhile could make a read
    // fault; the files are dumps that somebody compares, those that a finished run left, and those that an
    // adapter's `tensor` message names, which nobody rewrites in place.
    unsafe { Mmap::map(file) }.map_err(|e| Error::io("map", path, e))
}

/// The header and the bytes an element takes, once it is sure that the rest of the file is as long
/// as the header claims.
fn checked_npy_header<R: Read>(
    source: &mut R,
    length: u64,
    path: &Path,
) -> Result<(NpyHeader, u64)> {
    let header = npy_header(source, length).map_err(|what| Error::malformed(path, what))?;
    let item: u64 = match header.descr.trim_start_matches(['<', '>', '=', '|']) {
        "f8" | "i8" => 8,
        "f4" | "i4" => 4,
        "f2" => 2,
        _ => {
            let what = format!("dtype {:?}; expected f2, f4, f8, i4 or i8", header.descr);
            return Err(Error::malformed(path, what));
        }
    };
    let elements = header.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let expected = elements.and_then(|n| n.checked_mul(item));
    let held = length - header.data;
    if expected != Some(held) {
        let claimed = expected.map_or("more than 2^64".to_string(), |n| n.to_string());
        return Err(Error::malformed(
            path,
            format!(
                "the header claims shape {:?} of {}, {claimed} bytes; the file holds {held}",
                header.shape, header.descr
            ),
        ));
    }
    Ok((header, item))
}

/// Reads one array from a source of `length` bytes; `path` is for messages.
pub fn read_npy_from<R: Read + Seek>(mut source: R, length: u64, path: &Path) -> Result<Tensor> {
    let (header, item) = checked_npy_header(&mut source, length, path)?;
    let held = length - header.data;
    if item == 2 {
        return read_half(source, &header, held, path);
    }
    source.seek(SeekFrom::Start(0)).map_err(|e| Error::io("read", path, e))?;
    let failed = |e: ndarray_npy::ReadNpyError| Error::malformed(path, e.to_string());
    Ok(match header.descr.trim_start_matches(['<', '>', '=', '|']) {
        "f8" => flat(ArrayD::<f64>::read_npy(source).map_err(failed)?, TensorData::F64),
        "f4" => flat(ArrayD::<f32>::read_npy(source).map_err(failed)?, TensorData::F32),
        "i8" => flat(ArrayD::<i64>::read_npy(source).map_err(failed)?, TensorData::I64),
        _ => {
            let ids = ArrayD::<i32>::read_npy(source).map_err(failed)?;
            flat(ids.mapv(i64::from), TensorData::I64)
        }
    })
}

/// Row-major data, whichever order the file had.
fn flat<T: Clone>(array: ArrayD<T>, wrap: impl Fn(Vec<T>) -> TensorData) -> Tensor {
    let shape = array.shape().to_vec();
    Tensor::new(shape, wrap(array.iter().cloned().collect()))
}

/// `f2` is no element type of the npy crate, so it is read here, little-endian and row-major only.
fn read_half<R: Read + Seek>(
    mut source: R,
    header: &NpyHeader,
    bytes: u64,
    path: &Path,
) -> Result<Tensor> {
    if header.fortran || header.descr.starts_with('>') {
        let what = "f2 in Fortran order or big-endian; expected row-major little-endian";
        return Err(Error::malformed(path, what));
    }
    let mut buffer = vec![0; bytes as usize];
    source
        .seek(SeekFrom::Start(header.data))
        .and_then(|_| source.read_exact(&mut buffer))
        .map_err(|e| Error::io("read", path, e))?;
    Ok(Tensor::new(header.shape.clone(), TensorData::from_le_bytes(Dtype::F16, &buffer)))
}

fn npy_header<R: Read>(source: &mut R, length: u64) -> Result<NpyHeader, String> {
    let short = |_| format!("it ends inside the header, at {length} bytes");
    let mut magic = [0; 8];
    source.read_exact(&mut magic).map_err(short)?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err("not a .npy file: it does not start with \\x93NUMPY".into());
    }
    let (size, prefix) = match magic[6] {
        1 => {
            let mut n = [0; 2];
            source.read_exact(&mut n).map_err(short)?;
            (u16::from_le_bytes(n) as u64, 10)
        }
        2 | 3 => {
            let mut n = [0; 4];
            source.read_exact(&mut n).map_err(short)?;
            (u32::from_le_bytes(n) as u64, 12)
        }
        v => return Err(format!(".npy version {v}; expected 1, 2 or 3")),
    };
    if prefix + size > length {
        return Err(format!("a header of {size} bytes is claimed in a file of {length}"));
    }
    let mut text = vec![0; size as usize];
    source.read_exact(&mut text).map_err(short)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let field = |key: &str| {
        let at = [format!("'{key}':"), format!("\"{key}\":")]
            .iter()
            .find_map(|k| text.find(k).map(|i| i + k.len()));
        at.map(|i| text[i..].trim_start()).ok_or(format!("the header has no {key:?}: {text:?}"))
    };
    let descr = field("descr")?;
    let descr = descr.get(1..).and_then(|d| d.split(['\'', '"']).next());
    let descr = descr.ok_or("the header's descr is no string")?.to_string();
    let fortran = field("fortran_order")?.starts_with("True");
    let shape = field("shape")?.strip_prefix('(').and_then(|s| s.split(')').next());
    let shape = shape.ok_or("the header's shape is no tuple")?;
    let shape: Result<Vec<usize>, _> =
        shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse).collect();
    let shape = shape.map_err(|e| format!("the header's shape is not made of sizes: {e}"))?;
    Ok(NpyHeader { descr, fortran, shape, data: prefix + size })
}

/// Writes one array. Half-width floats have no portable `.npy` form here; use `.safetensors`.
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<()> {
    fn view<'a, T>(shape: &[usize], data: &'a [T]) -> ArrayViewD<'a, T> {
        // `Tensor::new` holds shape and data to each other.
        ArrayViewD::from_shape(IxDyn(shape), data).expect("a tensor's shape fits its data")
    }
    let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
    let mut out = BufWriter::new(file);
    let written = match &tensor.data {
        TensorData::F32(v) => view(&tensor.shape, v).write_npy(&mut out),
        TensorData::F64(v) => view(&tensor.shape, v).write_npy(&mut out),
        TensorData::I64(v) => view(&tensor.shape, v).write_npy(&mut out),
        TensorData::F16(_) | TensorData::BF16(_) => {
            let what = format!("{} does not go into .npy; use .safetensors", tensor.dtype());
            return Err(Error::malformed(path, what));
        }
    };
    let failed = |e: std::io::Error| Error::io("write", path, e);
    written.map_err(|e| failed(std::io::Error::other(e)))?;
    out.flush().map_err(failed)
}

/// A memory-mapped `.safetensors` file whose header has been parsed once and checked against its
/// length.
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    map: Arc<Mmap>,
    path: PathBuf,
    metadata: Metadata,
    /// Where the data begins, in bytes.
    data: usize,
}

impl SafetensorsFile {
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let map = map(&file, path)?;
        let refuse = |e| Error::malformed(path, format!("not a safetensors file: {e}"));
        SafeTensors::deserialize(&map).map_err(refuse)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(refuse)?;
        let (map, path) = (Arc::new(map), path.to_path_buf());
        Ok(SafetensorsFile { map, path, metadata, data: header + 8 })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Names, dtypes and shapes, in the order of the names.
    pub fn list(&self) -> Result<Vec<(String, Dtype, Vec<usize>)>> {
        let mut rows = Vec::new();
        for (name, info) in self.metadata.tensors() {
            rows.push((name.clone(), self.dtype(&name, info.dtype)?, info.shape.clone()));
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(rows)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.metadata.info(key).is_some()
    }

    pub fn shape(&self, key: &str) -> Result<&[usize]> {
        Ok(&self.info(key)?.shape)
    }

    pub fn get(&self, key: &str) -> Result<Tensor> {
        let info = self.info(key)?;
        let (begin, end) = info.data_offsets;
        self.widen(key, info, info.shape.clone(), begin..end)
    }

    /// The tensor where it lies.
    pub fn mapped(&self, key: &str) -> Result<MappedTensor> {
        let info = self.info(key)?;
        let dtype = self.dtype(key, info.dtype)?;
        let width = if info.dtype == safetensors::Dtype::I32 { 4 } else { dtype.size() };
        let (begin, end) = info.data_offsets;
        let bytes = self.data + begin..self.data + end;
        MappedTensor::new(self.map.clone(), bytes, info.shape.clone(), dtype, width).ok_or_else(
            || {
                let what =
                    format!("tensor {key:?} of shape {:?} has {} bytes", info.shape, end - begin);
                Error::malformed(&self.path, what)
            },
        )
    }

    /// Some rows along the first axis, without reading the others.
    pub fn get_rows(&self, key: &str, rows: Range<usize>) -> Result<Tensor> {
        let info = self.info(key)?;
        let held = info.shape.first().copied().unwrap_or(0);
        if rows.start > rows.end || rows.end > held {
            let what = format!("rows {rows:?} of {key:?} were asked for; it has {held}");
            return Err(Error::malformed(&self.path, what));
        }
        let (begin, end) = info.data_offsets;
        let row = (end - begin).checked_div(held).unwrap_or(0);
        let mut shape = info.shape.clone();
        shape[0] = rows.len();
        self.widen(key, info, shape, begin + rows.start * row..begin + rows.end * row)
    }

    fn info(&self, key: &str) -> Result<&TensorInfo> {
        self.metadata.info(key).ok_or_else(|| {
            let mut names = self.metadata.offset_keys();
            names.sort();
            let held = match names.len() {
                0 => "none".to_string(),
                n if n > 5 => format!("{n}: {}, …", names[..5].join(", ")),
                _ => names.join(", "),
            };
            Error::NoSuchTensor { path: self.path.clone(), key: key.to_string(), held }
        })
    }

    /// The bytes of a range of the data as a tensor; `i32` becomes `i64`.
    fn widen(
        &self,
        key: &str,
        info: &TensorInfo,
        shape: Vec<usize>,
        range: Range<usize>,
    ) -> Result<Tensor> {
        let bytes = &self.map[self.data + range.start..self.data + range.end];
        let data = match info.dtype {
            safetensors::Dtype::I32 => {
                let (ids, _) = bytes.as_chunks::<4>();
                TensorData::I64(ids.iter().map(|b| i32::from_le_bytes(*b) as i64).collect())
            }
            other => TensorData::from_le_bytes(self.dtype(key, other)?, bytes),
        };
        Ok(Tensor::new(shape, data))
    }

    fn dtype(&self, key: &str, dtype: safetensors::Dtype) -> Result<Dtype> {
        use safetensors::Dtype as S;
        match dtype {
            S::F32 => Ok(Dtype::F32),
            S::F64 => Ok(Dtype::F64),
            S::F16 => Ok(Dtype::F16),
            S::BF16 => Ok(Dtype::BF16),
            S::I64 | S::I32 => Ok(Dtype::I64),
            other => {
                let what =
                    format!("tensor {key:?} is {other:?}; expected F32, F64, F16, BF16 or I64");
                Err(Error::malformed(&self.path, what))
            }
        }
    }
}

pub fn read_safetensors(path: &Path, key: &str) -> Result<Tensor> {
    SafetensorsFile::open(path)?.get(key)
}

pub fn list_safetensors(path: &Path) -> Result<Vec<(String, Dtype, Vec<usize>)>> {
    SafetensorsFile::open(path)?.list()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// What a mapped tensor gives is what reading it whole does, wherever one begins.
    #[test]
    fn a_mapped_tensor_has_the_elements_of_the_one_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let same = |mapped: &MappedTensor, whole: &Tensor| {
            assert_eq!((mapped.shape(), mapped.dtype()), (&whole.shape[..], whole.dtype()));
            for begin in 0..whole.len() {
                let mut out = vec![0.0; whole.len() - begin];
                mapped.read(begin, &mut out);
                assert_eq!(out, whole.to_f64()[begin..], "{} from {begin}", whole.dtype());
            }
        };
        for data in [
            TensorData::F32(vec![1.5, -0.1, 3e38, 0.0, 1.0, 2.0]),
            TensorData::F64(vec![1e300, -0.1, 0.0, 1.0, 2.0, 3.0]),
            TensorData::I64(vec![-7, 50256, 0, 1, 2, 3]),
        ] {
            let tensor = Tensor::new(vec![2, 3], data);
            let path = dir.path().join("t.npy");
            write_npy(&path, &tensor).unwrap();
            same(&map_npy(&path).unwrap().unwrap(), &tensor);
        }
        let (f16s, bf16s) = ([0.1, -2.0].map(f16::from_f64), [0.1, -2.0].map(bf16::from_f64));
        let bytes = |data: TensorData| data.to_le_bytes();
        let views = [
            ("f16", safetensors::Dtype::F16, bytes(TensorData::F16(f16s.to_vec()))),
            ("bf16", safetensors::Dtype::BF16, bytes(TensorData::BF16(bf16s.to_vec()))),
            ("i32", safetensors::Dtype::I32, [-5i32, 7].map(i32::to_le_bytes).concat()),
        ];
        let views: Vec<_> = views
            .iter()
            .map(|(name, dtype, bytes)| {
                (*name, safetensors::tensor::TensorView::new(*dtype, vec![2], bytes).unwrap())
            })
            .collect();
        let path = dir.path().join("t.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        for name in ["f16", "bf16", "i32"] {
            same(&file.mapped(name).unwrap(), &file.get(name).unwrap());
        }
        let pair = file.mapped("f16").unwrap().reshaped(vec![1, 2]).unwrap();
        assert_eq!(pair.shape(), [1, 2]);
        assert!(pair.reshaped(vec![3]).is_none());
    }

    fn write(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.npy");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let dict =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn npy_goes_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.npy");
        let tensors = [
            Tensor::f32(vec![2, 3], vec![1., 2., 3., 4., 5., 6.]),
            Tensor::f64(vec![1], vec![0.1]),
            Tensor::i64(vec![], vec![13]),
            Tensor::f32(vec![0, 4], vec![]),
        ];
        for tensor in tensors {
            write_npy(&path, &tensor).unwrap();
            assert_eq!(read_npy(&path).unwrap(), tensor);
        }
    }

    #[test]
    fn fortran_order_and_other_dtypes_become_row_major() {
        let floats: Vec<u8> =
            [1f32, 4., 2., 5., 3., 6.].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_dir, path) = write(&npy("<f4", "True", "(2, 3)", &floats));
        let expected = Tensor::f32(vec![2, 3], vec![1., 2., 3., 4., 5., 6.]);
        assert_eq!(read_npy(&path).unwrap(), expected);
        let (_dir, path) = write(&npy("<i4", "False", "(1,)", &13i32.to_le_bytes()));
        assert_eq!(read_npy(&path).unwrap(), Tensor::i64(vec![1], vec![13]));
        let half = half::f16::from_f32(1.5).to_le_bytes();
        let (_dir, path) = write(&npy("<f2", "False", "(1,)", &half));
        assert_eq!(read_npy(&path).unwrap().get(0), 1.5);
    }

    #[test]
    fn lies_and_torn_files_are_refused_without_allocating() {
        let cases = [
            (npy("<f4", "False", "(1099511627776,)", &[0; 4]), "the file holds 4"),
            (npy("<f4", "False", "(4294967296, 4294967296, 4)", &[0; 4]), "more than 2^64"),
            (npy("<f4", "False", "(2,)", &[0; 7]), "the file holds 7"),
            (npy("<c8", "False", "(1,)", &[0; 8]), "dtype \"<c8\""),
            (npy("<f4", "False", "(-1,)", &[0; 4]), "not made of sizes"),
            (b"\x93NUMPY\x01\x00\xff\xff".to_vec(), "claimed in a file of 10"),
            (b"hello".to_vec(), "ends inside the header"),
            (b"PK\x03\x04........".to_vec(), "not a .npy"),
            (vec![], "ends inside the header"),
        ];
        for (bytes, expected) in cases {
            let (_dir, path) = write(&bytes);
            let error = read_npy(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("t.npy"), "{error}");
        }
        assert!(read_npy(Path::new("/nowhere/x.npy")).unwrap_err().to_string().contains("open"));
    }

    #[test]
    fn every_truncation_and_byte_flip_of_a_npy_is_an_error_or_a_tensor() {
        let data: Vec<u8> = (0..24).collect();
        let whole = npy("<f4", "False", "(2, 3)", &data);
        for n in 0..whole.len() {
            let (_dir, path) = write(&whole[..n]);
            assert!(read_npy(&path).is_err());
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[n] ^= flip;
                let (_dir, path) = write(&bytes);
                let _ = read_npy(&path);
            }
        }
    }

    #[test]
    fn safetensors_names_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let bytes: Vec<u8> = 1.5f32.to_le_bytes().to_vec();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes);
        let file = safetensors::serialize([("a", view.unwrap())], None).unwrap();
        std::fs::write(&path, &file).unwrap();
        assert_eq!(read_safetensors(&path, "a").unwrap(), Tensor::f32(vec![1], vec![1.5]));
        let held = SafetensorsFile::open(&path).unwrap();
        assert_eq!(held.get_rows("a", 0..1).unwrap(), held.get("a").unwrap());
        assert!(held.get_rows("a", 1..2).unwrap_err().to_string().contains("it has 1"));
        let error = read_safetensors(&path, "b").unwrap_err().to_string();
        assert!(error.contains("\"b\"") && error.contains("it holds a"), "{error}");
        std::fs::write(&path, &file[..file.len() - 1]).unwrap();
        assert!(read_safetensors(&path, "a").is_err());
        std::fs::write(&path, b"").unwrap();
        assert!(read_safetensors(&path, "a").is_err());
    }
}
