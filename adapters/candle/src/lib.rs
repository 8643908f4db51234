//! GPT-2 on Candle, as a reference for differential tests.
//!
//! Two models answer the same protocol. [`graph`] writes GPT-2 out on candle-nn's layers: every point
//! can be captured and replaced. [`upstream`] runs candle-transformers' Whisper decoder, unmodified,
//! on GPT-2's weights: only what leaves that decoder can be seen, but nobody here wrote its graph.
//!
//! Reading order: [`serve`] the conversation, [`run`] one case, [`model`] what both models share,
//! [`graph`] and [`upstream`] the models, [`tap`] the hook at each point.

pub mod config;
pub mod failure;
pub mod graph;
pub mod hello;
pub mod model;
pub mod process;
pub mod recorder;
pub mod request;
pub mod run;
pub mod sampling;
pub mod serve;
pub mod tap;
pub mod tensors;
pub mod tokenizer;
pub mod upstream;
pub mod variant;
pub mod weights;
