//! mistral.rs's public layers, each by itself, as a reference for isolated stages.
//!
//! mistral.rs has no GPT-2, and what its own models are made of can't all be had from outside: so
//! nothing is chained here. A run captures stages whose inputs were injected; [`model`] has one layer
//! of mistral.rs for each, and says of every other stage why it has none.
//!
//! The conversation is that of the Candle adapter, compiled again from its sources: mistral.rs is
//! built on another release of Candle, so its tensors are of other types.

#[path = "../../candle/src/config.rs"]
pub mod config;
#[path = "../../candle/src/failure.rs"]
pub mod failure;
pub mod hello;
pub mod model;
#[path = "../../candle/src/process.rs"]
pub mod process;
#[path = "../../candle/src/recorder.rs"]
pub mod recorder;
#[path = "../../candle/src/request.rs"]
pub mod request;
pub mod run;
#[path = "../../candle/src/serve.rs"]
pub mod serve;
#[allow(dead_code, reason = "a graph's helper, and nothing is chained here")]
#[path = "../../candle/src/tap.rs"]
pub mod tap;
#[path = "../../candle/src/tensors.rs"]
pub mod tensors;
pub mod tokenizer;
pub mod variant;
pub mod weights;
