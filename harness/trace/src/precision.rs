//! What is computed in: the floats of [`Dtype`], or weights and inputs of eight bits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::tensor::Dtype;

/// What `load` asks an implementation to compute in. Tensors that it shows are floats in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Precision {
    /// Any dtype but `i64`.
    Float(Dtype),
    /// Matrices and what they are multiplied by in eight bits and a scale for each group; sums in f32.
    Int8,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Precision::Float(dtype) => dtype.name(),
            Precision::Int8 => "int8",
        }
    }

    /// Bytes that a weight takes at least, scales not counted.
    pub fn size(self) -> usize {
        match self {
            Precision::Float(dtype) => dtype.size(),
            Precision::Int8 => 1,
        }
    }
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Precision {
        Precision::Float(dtype)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Precision, Error> {
        match (text, text.parse()) {
            ("int8", _) => Ok(Precision::Int8),
            (_, Ok(dtype)) if dtype != Dtype::I64 => Ok(Precision::Float(dtype)),
            _ => Err(Error::Name(format!(
                "unknown precision {text:?}; expected f32, f64, f16, bf16 or int8"
            ))),
        }
    }
}

impl TryFrom<String> for Precision {
    type Error = Error;

    fn try_from(text: String) -> Result<Precision, Error> {
        text.parse()
    }
}

impl From<Precision> for String {
    fn from(precision: Precision) -> String {
        precision.name().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["f32", "f64", "f16", "bf16", "int8"] {
            let precision: Precision = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            assert_eq!(precision.to_string(), name);
        }
        for name in ["i64", "q8_0", ""] {
            assert!(name.parse::<Precision>().is_err(), "{name}");
        }
    }
}
