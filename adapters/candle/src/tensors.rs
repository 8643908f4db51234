//! Candle's tensors and the files' tensors, one into the other.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use llorch_trace::{Tensor as FileTensor, TensorData};

use crate::failure::{Failure, Result};

/// A row-major copy; token ids become i64.
pub fn to_file(tensor: &Tensor) -> Result<FileTensor> {
    let flat = tensor.flatten_all()?;
    let data = match tensor.dtype() {
        DType::F32 => TensorData::F32(flat.to_vec1()?),
        DType::F64 => TensorData::F64(flat.to_vec1()?),
        DType::I64 => TensorData::I64(flat.to_vec1()?),
        DType::U32 => TensorData::I64(flat.to_vec1::<u32>()?.into_iter().map(i64::from).collect()),
        other => return Err(Failure::internal(format!("no file holds Candle's {other:?}"))),
    };
    Ok(FileTensor::new(tensor.dims().to_vec(), data))
}

/// Half precision is widened; whole numbers stay i64.
pub fn from_file(tensor: &FileTensor) -> CandleResult<Tensor> {
    let shape = tensor.shape.as_slice();
    match &tensor.data {
        TensorData::F32(v) => Tensor::from_slice(v, shape, &Device::Cpu),
        TensorData::F64(v) => Tensor::from_slice(v, shape, &Device::Cpu),
        TensorData::I64(v) => Tensor::from_slice(v, shape, &Device::Cpu),
        TensorData::F16(_) | TensorData::BF16(_) => {
            Tensor::from_vec(tensor.to_f64(), shape, &Device::Cpu)
        }
    }
}
