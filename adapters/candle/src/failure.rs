//! What goes wrong, with the protocol's class for it.

use std::fmt;

use llorch_trace::protocol::ErrorClass;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub class: ErrorClass,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn unsupported(message: impl Into<String>) -> Failure {
        Failure { class: ErrorClass::Unsupported, message: message.into() }
    }

    pub fn input(message: impl Into<String>) -> Failure {
        Failure { class: ErrorClass::Input, message: message.into() }
    }

    pub fn resource(message: impl Into<String>) -> Failure {
        Failure { class: ErrorClass::Resource, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Failure {
        Failure { class: ErrorClass::Internal, message: message.into() }
    }
}

/// Requests are checked before Candle sees them, so what it still refuses is a mistake in here.
impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Failure {
        Failure::internal(format!("candle: {}", first_line(&error)))
    }
}

/// Candle appends a backtrace where the environment asks for one; messages are one line.
pub fn first_line(error: &dyn fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
