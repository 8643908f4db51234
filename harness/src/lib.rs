//! Differential testing.

pub mod assets;
pub mod provision;
pub mod references;
pub mod supervise;
