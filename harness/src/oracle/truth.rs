//! What the oracle knows of a run's cases.

use std::collections::BTreeMap;

use super::{Continuation, Oracle};

#[derive(Debug, Default)]
pub struct Truth {
    /// By case; empty where the oracle doesn't know the model.
    pub continuations: BTreeMap<String, Continuation>,
    /// Recomputes stages. None where the oracle doesn't know the model, or its weights are not here.
    pub oracle: Option<Oracle>,
}
