//! What the tests drive the adapter with: a small random model, its mathematics in float64, and the
//! other end of the pipes.

pub mod driver;
pub mod oracle;
pub mod tiny;
