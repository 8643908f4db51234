//! How long and how much a child may take.

use std::time::Duration;

/// Time-outs and sizes for one adapter process. The defaults are generous: they exist to end what
/// hangs, not to judge speed.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// From start to the answer to `hello`. Importing torch takes 4 s from a warm disk and a
    /// minute from a cold, slow one.
    pub hello: Duration,
    /// For `load`. GPT-2 XL in f64 is 12 GB to read and widen.
    pub load: Duration,
    /// For each `run` or `tokenize`, without the time that the harness itself spends on the
    /// tensors as they arrive. A first case may compile kernels (tinygrad: a minute or two).
    pub case: Duration,
    /// Between TERM and KILL, and between the end of stdin and TERM.
    pub grace: Duration,
    /// Bytes of stderr that are kept: the first half and the last half; the middle is cut.
    pub stderr_cap: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(120),
            load: Duration::from_secs(600),
            case: Duration::from_secs(900),
            grace: Duration::from_secs(5),
            stderr_cap: 4 << 20,
        }
    }
}
