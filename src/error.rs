//! What can go wrong, each with what was found and what was expected.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    /// A config.json that is damaged or contradicts itself.
    #[error("failed to read {}: {what}", path.display())]
    Config { path: PathBuf, what: String },

    /// A config.json of a model that this engine does not compute.
    #[error("failed to run the model of {}: {what}", path.display())]
    Unsupported { path: PathBuf, what: String },

    /// A weights file that is damaged or doesn't fit the configuration.
    #[error("failed to load weights from {}: {what}", path.display())]
    Weights { path: PathBuf, what: String },

    /// Tokenizer files that are missing or damaged.
    #[error("failed to load the tokenizer from {}: {what}", path.display())]
    Tokenizer { path: PathBuf, what: String },

    /// A prompt or an option that can't be honoured.
    #[error("failed to {action}: {what}")]
    Input { action: &'static str, what: String },

    #[error(
        "failed to continue: {prompt} prompt tokens and {new} new ones need {} positions; \
         the model has {n_positions}", prompt + new.saturating_sub(1)
    )]
    ContextOverflow { prompt: usize, new: usize, n_positions: usize },

    /// A computation that came out wrong: NaN logits, for one.
    #[error("failed to {action}: {what}")]
    Internal { action: &'static str, what: String },

    /// The daemon can't listen or serve.
    #[error("failed to {action}: {source}")]
    Service { action: String, source: std::io::Error },

    #[error(transparent)]
    Trace(#[from] llorch_trace::Error),

    #[error(transparent)]
    Model(#[from] llorch_models::ModelError),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn weights(path: &Path, what: impl Into<String>) -> Error {
        Error::Weights { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn tokenizer(path: &Path, what: impl Into<String>) -> Error {
        Error::Tokenizer { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn input(action: &'static str, what: impl Into<String>) -> Error {
        Error::Input { action, what: what.into() }
    }

    pub(crate) fn internal(action: &'static str, what: impl Into<String>) -> Error {
        Error::Internal { action, what: what.into() }
    }

    /// The exit code of a program that stops for this: 2 for bad input, 3 for the environment, 5 for
    /// a fault of the engine's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Model(e) => e.exit_code(),
            Error::Io { .. } | Error::Service { .. } => 3,
            Error::Internal { .. } => 5,
            Error::Config { .. }
            | Error::Unsupported { .. }
            | Error::Weights { .. }
            | Error::Tokenizer { .. }
            | Error::Input { .. }
            | Error::ContextOverflow { .. }
            | Error::Trace(_) => 2,
        }
    }
}
