//! What both sides of a differential test must agree on, and nothing else.
//!
//! Reading order: [`points`] names the checkpoints and the tensors that belong to them, [`protocol`]
//! the messages between the harness and an adapter ([`lines`] how they travel), [`tensor`] the values in memory ([`precision`] what they are computed in), [`files`] their
//! bounded readers and writers, [`bundle`] the folder in which a run keeps them, [`dims`] the sizes
//! that the shapes are made of.
//!
//! Everything read here may come from an untrusted program: sizes are checked against the length of
//! the file before anything is allocated, and no reader panics.

pub mod bundle;
pub mod dims;
pub mod error;
pub mod files;
pub mod hash;
pub mod lines;
pub mod mapped;
pub mod points;
pub mod precision;
pub mod protocol;
pub mod tensor;

pub use bundle::{Bundle, BundleWriter, Manifest};
pub use dims::Dims;
pub use error::{Error, Result};
pub use mapped::MappedTensor;
pub use points::{CHECKPOINTS, Checkpoint, Class, Point, PointSet, Stage, all_points, checkpoint};
pub use precision::Precision;
pub use tensor::{Dtype, Tensor, TensorData};
