//! A tensor that stays in its file: elements are widened a few at a time, where they are wanted.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

use crate::tensor::Dtype;

/// Row-major little-endian elements in a memory-mapped file.
#[derive(Debug, Clone)]
pub struct MappedTensor {
    map: Arc<Mmap>,
    /// Where the elements lie in the file.
    bytes: Range<usize>,
    shape: Vec<usize>,
    dtype: Dtype,
    /// Bytes per element: whole numbers may take 4 or 8.
    width: usize,
}

impl MappedTensor {
    /// None where the shape doesn't hold as many elements as there are bytes for, or these aren't all in the file.
    pub fn new(
        map: Arc<Mmap>,
        bytes: Range<usize>,
        shape: Vec<usize>,
        dtype: Dtype,
        width: usize,
    ) -> Option<MappedTensor> {
        let held = map.get(bytes.clone())?.len();
        let known = width == dtype.size() || (dtype, width) == (Dtype::I64, 4);
        let whole = shape.iter().try_fold(width, |n, d| n.checked_mul(*d)) == Some(held);
        (known && whole).then_some(MappedTensor { map, bytes, shape, dtype, width })
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The same elements in another shape; None where it holds another number of them.
    pub fn reshaped(self, shape: Vec<usize>) -> Option<MappedTensor> {
        MappedTensor::new(self.map, self.bytes, shape, self.dtype, self.width)
    }

    /// Widens elements from `begin` on until `out` is full. Exact, but for whole numbers above 2⁵³.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn read(&self, begin: usize, out: &mut [f64]) {
        fn widen<const N: usize>(bytes: &[u8], out: &mut [f64], one: impl Fn([u8; N]) -> f64) {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *to = one(*from);
            }
        }
        let bytes = &self.map[self.bytes.clone()];
        let bytes = &bytes[begin * self.width..(begin + out.len()) * self.width];
        match (self.dtype, self.width) {
            (Dtype::F32, _) => widen(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
            (Dtype::F64, _) => widen(bytes, out, f64::from_le_bytes),
            (Dtype::F16, _) => widen(bytes, out, |b| f16::from_le_bytes(b).to_f64()),
            (Dtype::BF16, _) => widen(bytes, out, |b| bf16::from_le_bytes(b).to_f64()),
            (Dtype::I64, 4) => widen(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
            (Dtype::I64, _) => widen(bytes, out, |b| i64::from_le_bytes(b) as f64),
        }
    }
}
