//! Makes references runnable: virtual environments from lock files, adapters built by cargo, our
//! own engine built from the checkout that it belongs to.
//!
//! What is made lies in the cache under a name that holds the hash of its pins, and counts as made
//! when its stamp is there, which is written last. One process builds, others wait (`lock`). Once
//! made, nothing here needs a network; with [`ProvisionOptions::offline`] nothing here tries one.
//!
//! Reading order: [`ensure`], `python` and `cargo` (the two kinds of reference), `uv`, `compiler`
//! (tinygrad's), `engine`, `disk`, `stamp`, then what looks after the cache: `status`, `doctor`,
//! `prune`.

pub mod lock;

use std::fmt;

use crate::references::Reference;
use crate::supervise::AdapterCommand;

/// How far provisioning may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvisionOptions {
    /// Never touch the network.
    pub offline: bool,
    /// Say nothing on stderr.
    pub quiet: bool,
    /// Whether what is missing may be installed at all; if not, it is reported as missing.
    pub allow: bool,
}

/// Something that can't run here and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Why, in one sentence.
    pub reason: String,
    /// The one command (or step) that mends it.
    pub mend: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (to mend it: {})", self.reason, self.mend)
    }
}

impl std::error::Error for Missing {}
