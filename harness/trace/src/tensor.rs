//! A tensor in memory: a shape and a flat row-major vector in the dtype in which it was stored.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F64,
    F16,
    BF16,
    I64,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            Dtype::I64 => "i64",
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// Unit roundoff u: half the distance from 1 to the next number. 0 for whole numbers.
    pub fn unit_roundoff(self) -> f64 {
        let bits = match self {
            Dtype::F64 => 53,
            Dtype::F32 => 24,
            Dtype::F16 => 11,
            Dtype::BF16 => 8,
            Dtype::I64 => return 0.0,
        };
        2f64.powi(-bits)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Dtype, Error> {
        [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::I64]
            .into_iter()
            .find(|d| d.name() == text)
            .ok_or_else(|| {
                Error::Name(format!("unknown dtype {text:?}; expected f32, f64, f16, bf16 or i64"))
            })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I64(Vec<i64>),
}

impl TensorData {
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::F64(v) => v.len(),
            TensorData::F16(v) => v.len(),
            TensorData::BF16(v) => v.len(),
            TensorData::I64(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads little-endian bytes; a remainder that fills no element is dropped by the caller's check.
    pub fn from_le_bytes(dtype: Dtype, bytes: &[u8]) -> TensorData {
        fn read<const N: usize, T>(bytes: &[u8], one: impl Fn([u8; N]) -> T) -> Vec<T> {
            let (elements, _) = bytes.as_chunks::<N>();
            elements.iter().map(|e| one(*e)).collect()
        }
        match dtype {
            Dtype::F32 => TensorData::F32(read(bytes, f32::from_le_bytes)),
            Dtype::F64 => TensorData::F64(read(bytes, f64::from_le_bytes)),
            Dtype::F16 => TensorData::F16(read(bytes, f16::from_le_bytes)),
            Dtype::BF16 => TensorData::BF16(read(bytes, bf16::from_le_bytes)),
            Dtype::I64 => TensorData::I64(read(bytes, i64::from_le_bytes)),
        }
    }

    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            TensorData::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::BF16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: TensorData,
}

impl Tensor {
    /// Panics if the shape does not hold as many elements as there are: a mistake of the caller, who
    /// made both. Files are checked by their readers.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Tensor { shape, data }
    }

    pub fn f32(shape: Vec<usize>, data: Vec<f32>) -> Tensor {
        Tensor::new(shape, TensorData::F32(data))
    }

    pub fn f64(shape: Vec<usize>, data: Vec<f64>) -> Tensor {
        Tensor::new(shape, TensorData::F64(data))
    }

    pub fn i64(shape: Vec<usize>, data: Vec<i64>) -> Tensor {
        Tensor::new(shape, TensorData::I64(data))
    }

    pub fn dtype(&self) -> Dtype {
        match self.data {
            TensorData::F32(_) => Dtype::F32,
            TensorData::F64(_) => Dtype::F64,
            TensorData::F16(_) => Dtype::F16,
            TensorData::BF16(_) => Dtype::BF16,
            TensorData::I64(_) => Dtype::I64,
        }
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i` of the flat data; exact for every float dtype, and for whole numbers up to 2⁵³.
    pub fn get(&self, i: usize) -> f64 {
        match &self.data {
            TensorData::F32(v) => v[i] as f64,
            TensorData::F64(v) => v[i],
            TensorData::F16(v) => v[i].to_f64(),
            TensorData::BF16(v) => v[i].to_f64(),
            TensorData::I64(v) => v[i] as f64,
        }
    }

    /// Elements from `begin` on until `out` is full, as [`Tensor::get`] gives them.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn widen(&self, begin: usize, out: &mut [f64]) {
        fn each<T: Copy>(from: &[T], begin: usize, out: &mut [f64], one: impl Fn(T) -> f64) {
            for (to, from) in out.iter_mut().zip(&from[begin..]) {
                *to = one(*from);
            }
        }
        assert!(out.len() <= self.len() - begin, "{} elements from {begin} on", out.len());
        match &self.data {
            TensorData::F32(v) => each(v, begin, out, f64::from),
            TensorData::F64(v) => each(v, begin, out, |x| x),
            TensorData::F16(v) => each(v, begin, out, f16::to_f64),
            TensorData::BF16(v) => each(v, begin, out, bf16::to_f64),
            TensorData::I64(v) => each(v, begin, out, |x| x as f64),
        }
    }

    pub fn to_f64(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.len()];
        self.widen(0, &mut values);
        values
    }

    /// The index along each axis of flat element `i`.
    pub fn unravel(&self, i: usize) -> Vec<usize> {
        unravel(&self.shape, i)
    }
}

/// The index along each axis of a flat index into `shape`.
pub fn unravel(shape: &[usize], mut flat: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (axis, &n) in shape.iter().enumerate().rev() {
        index[axis] = flat % n.max(1);
        flat /= n.max(1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_there_and_back_in_every_dtype() {
        let tensors = [
            TensorData::F32(vec![1.5, -0.0, f32::INFINITY]),
            TensorData::F64(vec![1e300]),
            TensorData::F16(vec![f16::from_f32(0.1)]),
            TensorData::BF16(vec![bf16::from_f32(-3.25)]),
            TensorData::I64(vec![-7, 50256]),
        ];
        for data in tensors {
            let t = Tensor::new(vec![data.len()], data);
            assert_eq!(TensorData::from_le_bytes(t.dtype(), &t.data.to_le_bytes()), t.data);
            assert_eq!(t.dtype().name().parse::<Dtype>().unwrap(), t.dtype());
        }
    }

    #[test]
    fn unravel_counts_the_last_axis_first() {
        let t = Tensor::f32(vec![2, 3, 4], vec![0.0; 24]);
        assert_eq!(t.unravel(23), [1, 2, 3]);
        assert_eq!(t.unravel(4), [0, 1, 0]);
    }

    #[test]
    fn unit_roundoff_is_half_an_ulp_of_one() {
        assert_eq!(Dtype::F32.unit_roundoff() as f32, f32::EPSILON / 2.0);
        assert_eq!(Dtype::F16.unit_roundoff(), f16::EPSILON.to_f64() / 2.0);
        assert_eq!(Dtype::BF16.unit_roundoff(), bf16::EPSILON.to_f64() / 2.0);
    }
}
