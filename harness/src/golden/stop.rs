//! What stops a command of `golden`, with its exit code.

use std::fmt::Display;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Stop {
    pub code: u8,
    pub message: String,
}

/// The exit code of a command of `golden`; what stopped it is told.
pub fn exit_code(done: Result<u8, Stop>) -> u8 {
    done.unwrap_or_else(|Stop { code, message }| {
        llorch_models::errln!("error: {message}");
        code
    })
}

pub fn print(text: &str) -> Result<(), Stop> {
    crate::text::print(text).map_err(|e| Stop::environment(format!("failed to print: {e}")))
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
