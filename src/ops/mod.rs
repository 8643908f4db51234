//! The arithmetic of GPT-2, one operation a file: pure functions from slices and arrays to arrays.
//!
//! All of it keeps one promise: **an output element is the same bits however it was computed**: for
//! one row or for a thousand, on one thread or on many, with AVX-512, AVX2 or neither. So each
//! element is summed in one fixed order, which each file states, and every multiply-add is fused.
//! That promise makes prefill equal to decoding token by token, and a cache equal to recomputation.

pub mod activation;
pub mod attention;
pub mod embedding;
pub mod exp;
pub mod layer_norm;
pub mod linear;
pub mod parallel;
pub mod simd;
pub mod softmax;
