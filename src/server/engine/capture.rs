//! One prompt with the hooks on.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use llorch_trace::{Point, PointSet, Tensor};
use tokio::sync::oneshot;

use super::sequence::Failure;
use super::ticket::Ticket;
use crate::error::Result;
use crate::generate::{Generation, Options};

/// Takes each tensor as it is computed, with its step.
pub type Keep = Box<dyn FnMut(usize, Point, Tensor) -> Result<()> + Send>;

/// What is to be run, and who wants to know.
pub struct Capture {
    pub ids: Vec<u32>,
    pub options: Options,
    pub points: PointSet,
    pub keep: Keep,
    /// After this it is not worth going on.
    pub deadline: Instant,
    pub ticket: Arc<Ticket>,
    /// Told when `keep` has been dropped.
    pub reply: oneshot::Sender<std::result::Result<Generation, Failure>>,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Capture { ids, options, points, .. } = self;
        f.debug_struct("Capture")
            .field("ids", ids)
            .field("options", options)
            .field("points", points)
            .finish_non_exhaustive()
    }
}
