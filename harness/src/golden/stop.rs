//! What stops a command of `golden`, with its exit code.

use std::fmt::Display;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Stop {
    pub code: u8,
    pub message: String,
}

impl Stop {
    /// What was asked for or what lies there can't be used.
    pub fn input(message: impl Display) -> Stop {
        Stop { code: 2, message: message.to_string() }
    }

    /// Nothing could run, or a file could not be written.
    pub fn environment(message: impl Display) -> Stop {
        Stop { code: 3, message: message.to_string() }
    }
}
