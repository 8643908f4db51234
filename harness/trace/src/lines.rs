//! The protocol's lines, as an adapter in Rust reads and writes them: ahead, so that a run can be taken back while it goes on.

use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::protocol::{Request, Response};

/// Ids of runs that are to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancelled(Arc<Mutex<HashSet<String>>>);

impl Cancelled {
    fn insert(&self, id: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    pub fn contains(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// Reads lines ahead; `cancel` takes effect here and is not handed on.
pub fn read_lines(
    mut requests: impl BufRead + Send + 'static,
    cancelled: Cancelled,
) -> Receiver<Vec<u8>> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        loop {
            let mut line = Vec::new();
            // A read error is taken as the end: there is nobody left to answer.
            if !matches!(requests.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            if let Ok(Request::Cancel { id }) = serde_json::from_slice(&line) {
                cancelled.insert(id);
                continue;
            }
            if send.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// One message on a line of its own, at once.
///
/// # Errors
/// Nobody reads the answers any more.
pub fn write_line(answers: &mut impl Write, response: &Response) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    answers.write_all(&line)?;
    answers.flush()
}
