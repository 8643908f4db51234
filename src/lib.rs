//! GPT-2 on the CPU, with a hook at every checkpoint.
//!
//! In reading order: [`model`] is the forward pass, on one page; [`ops`] its arithmetic, one file an
//! operation; [`config`] and [`weights`] what it is made from; [`kv_cache`] what it remembers;
//! [`probe`] how it is watched and interfered with. Around it: [`tokenizer`] turns text into ids,
//! [`sampler`] chooses the next one, [`generate`] repeats that, [`trace`] does so on a harness's behalf,
//! [`server`] over HTTP, [`inspect`] tells what a model is made of, and [`cli`] is the command line.

pub mod cli;
pub mod config;
pub mod error;
pub mod generate;
pub mod inspect;
pub mod kv_cache;
mod memory;
pub mod model;
pub mod ops;
pub mod packed;
pub mod probe;
pub mod sampler;
pub mod server;
pub mod team;
pub mod tokenizer;
pub mod trace;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
pub use model::Model;
pub use tokenizer::Tokenizer;
