//! A child's stdout as lines of bounded length.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

/// The longest line that is taken. A `run` of 1,024 tokens answers in lines of a few kilobytes;
/// a `hello` with a recipe for every point in less than 100.
pub(crate) const LINE_CAP: usize = 16 << 20;

/// Lines that may wait unread. A child that talks without being asked is stalled by its own full
/// pipe, not by our memory.
const BACKLOG: usize = 16;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its line feed.
    Whole(Vec<u8>),
    /// More than [`LINE_CAP`] bytes without a line feed; the first of them.
    TooLong(Vec<u8>),
    /// The stream ended inside this line.
    Unfinished(Vec<u8>),
}

/// The receiving end: the channel is disconnected at the end of the stream.
#[derive(Debug)]
pub(crate) struct Lines {
    pub receiver: Receiver<Line>,
    pending: Arc<AtomicUsize>,
}

impl Lines {
    /// Drains `source` in a thread until it ends, whether anybody listens or not.
    pub(crate) fn drain(source: impl Read + Send + 'static, name: &str) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(BACKLOG);
        let pending = Arc::new(AtomicUsize::new(0));
        let shared = Arc::clone(&pending);
        std::thread::Builder::new()
            .name(format!("{name} stdout"))
            .spawn(move || split(source, LINE_CAP, &|line| sender.send(line).is_ok(), &shared))?;
        Ok(Self { receiver, pending })
    }

    /// Drains several streams into one channel, each line with its stream's number: who listens need not choose
    /// which one to wait for. It is disconnected when all have ended.
    pub(crate) fn merge(
        sources: Vec<Box<dyn Read + Send>>,
        name: &str,
    ) -> std::io::Result<Receiver<(usize, Line)>> {
        let (sender, receiver) = sync_channel(BACKLOG);
        for (index, source) in sources.into_iter().enumerate() {
            let sender = sender.clone();
            std::thread::Builder::new().name(format!("{name} output")).spawn(move || {
                let send = |line| sender.send((index, line)).is_ok();
                split(source, LINE_CAP, &send, &AtomicUsize::new(0));
            })?;
        }
        Ok(receiver)
    }

    /// Bytes of a line that hasn't ended yet.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }
}

/// `send` says whether anybody listens still; the pipe is drained all the same.
fn split(mut source: impl Read, cap: usize, send: &dyn Fn(Line) -> bool, pending: &AtomicUsize) {
    let mut buffer = vec![0; 64 << 10];
    let mut line = Vec::new();
    let mut skipping = false; // inside a line that was already reported as too long
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for chunk in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match chunk.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (chunk, false),
            };
            if !skipping {
                line.extend_from_slice(text);
                if line.len() > cap {
                    skipping = true;
                    line.truncate(200);
                    send(Line::TooLong(std::mem::take(&mut line)));
                }
            }
            if ends {
                if !skipping {
                    send(Line::Whole(std::mem::take(&mut line)));
                }
                skipping = false;
            }
        }
        pending.store(line.len(), Ordering::Relaxed);
    }
    if !line.is_empty() {
        send(Line::Unfinished(line));
    }
}

/// What a child wrote, as text that can be shown: escapes for what isn't printable, and after
/// [`SHOWN`] characters how many bytes there are in all.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    match start_of(bytes) {
        (text, true) => text,
        (text, false) => format!("{text}… ({} bytes)", bytes.len()),
    }
}

/// Characters that an error message quotes of what nobody understood.
const SHOWN: usize = 80;

/// The first characters, and whether that is all.
pub(crate) fn start_of(bytes: &[u8]) -> (String, bool) {
    let mut text = String::new();
    let mut length = 0;
    // No character is longer than four bytes.
    for c in String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]).chars() {
        let shown: String = if c.is_control() { c.escape_default().collect() } else { c.into() };
        length += shown.chars().count();
        if length > SHOWN {
            return (text, false);
        }
        text.push_str(&shown);
    }
    (text, bytes.len() <= 4 * SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &'static [u8], cap: usize) -> Vec<Line> {
        let (sender, receiver) = sync_channel(100);
        split(bytes, cap, &|line| sender.send(line).is_ok(), &AtomicUsize::new(0));
        drop(sender);
        receiver.into_iter().collect()
    }

    #[test]
    fn splits_at_line_feeds_and_names_what_is_unfinished() {
        let expected = vec![
            Line::Whole(b"ab".to_vec()),
            Line::Whole(Vec::new()),
            Line::Unfinished(b"c".to_vec()),
        ];
        assert_eq!(lines(b"ab\n\nc", 10), expected);
    }

    #[test]
    fn a_line_without_end_is_reported_once_and_the_next_is_read() {
        let got = lines(b"aaaaaaaaaaaa\nok\n", 5);
        assert_eq!(got, vec![Line::TooLong(b"aaaaaaaaaaaa".to_vec()), Line::Whole(b"ok".to_vec())]);
    }

    #[test]
    fn excerpts_are_printable() {
        assert_eq!(excerpt(b"a\x1b[31m\tb"), "a\\u{1b}[31m\\tb");
    }

    #[test]
    fn excerpts_of_garbage_are_short_whatever_it_is() {
        for byte in [b'x', 0, 0x1b, 0xff] {
            let text = excerpt(&[byte; 5000]);
            assert!(text.ends_with("… (5000 bytes)"), "{text}");
            assert!(text.chars().count() <= SHOWN + 20, "{text}");
        }
        assert_eq!(excerpt(&[b'x'; SHOWN]), "x".repeat(SHOWN));
    }
}
