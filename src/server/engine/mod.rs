//! The engine room: one thread owns the model and computes all requests together.
//!
//! It works in steps, and requests join and leave between them. A step feeds one token of every sequence that
//! is being continued and a part of the prompts of those that have just come, all in one pass through the weights. What a
//! sequence gets does not depend on who else is there: the kernels give the same bits alone and in company.
//!
//! In reading order: [`handle`] is what the rest of the daemon sees; [`ticket`] bounds how many requests there are; [`room`] takes the
//! steps; [`waiting`] says who is next, [`slots`] are the sequences that are computed together and their caches,
//! [`batch`] what a step feeds; [`sequence`] is one sequence, [`stop`] looks for its stop strings, [`logprobs`] says how likely its tokens
//! were; [`capture`] is a run with the hooks on.

mod batch;
mod capture;
mod handle;
mod logprobs;
mod room;
mod sequence;
mod slots;
mod stop;
#[cfg(test)]
mod testing;
mod ticket;
mod waiting;

pub use capture::Capture;
pub use handle::{Engine, Ready, Refused};
pub use logprobs::TokenLogprob;
pub use sequence::{Event, Failure, FinishReason, Sequence, Task, Token};
pub use ticket::Outcome;
