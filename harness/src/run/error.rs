//! Why a run could not be made, by exit code.

use crate::collect::CollectError;
use crate::lineup::LineupError;
use crate::plan::PlanError;
use crate::saved::SavedError;
use crate::suite::SuiteError;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Exit code 2: what was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Exit code 3: nothing can run here and now.
    #[error("{0}")]
    Environment(String),
    /// Exit code 3: the weights can't be had here and now.
    #[error("{0}")]
    Weights(String),
    /// Exit code 5: the subject fails before there is anything to compare.
    #[error("{0}")]
    Subject(String),
}

impl RunError {
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Usage(_) => 2,
            RunError::Environment(_) | RunError::Weights(_) => 3,
            RunError::Subject(_) => 5,
        }
    }
}

impl From<LineupError> for RunError {
    fn from(error: LineupError) -> RunError {
        RunError::Usage(error.to_string())
    }
}

impl From<SuiteError> for RunError {
    fn from(error: SuiteError) -> RunError {
        RunError::Usage(error.to_string())
    }
}

impl From<PlanError> for RunError {
    fn from(error: PlanError) -> RunError {
        RunError::Usage(error.to_string())
    }
}

impl From<llorch_models::ModelError> for RunError {
    fn from(error: llorch_models::ModelError) -> RunError {
        match error.exit_code() {
            2 => RunError::Usage(error.to_string()),
            _ => RunError::Weights(error.to_string()),
        }
    }
}

impl From<CollectError> for RunError {
    fn from(error: CollectError) -> RunError {
        RunError::Environment(error.to_string())
    }
}

impl From<SavedError> for RunError {
    fn from(error: SavedError) -> RunError {
        RunError::Environment(error.to_string())
    }
}
