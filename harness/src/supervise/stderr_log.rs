//! A child's stderr in a file of bounded size: the first part and the last part, and how much was
//! cut between them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What became of a child's stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StderrSummary {
    pub path: PathBuf,
    /// Bytes that the child wrote.
    pub total: u64,
    /// Bytes that the file leaves out.
    pub cut: u64,
    /// The last lines.
    pub tail: String,
}

/// Lines and bytes of the tail that is quoted in errors.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(crate) struct StderrLog {
    path: PathBuf,
    state: Arc<Mutex<Kept>>,
    ended: Receiver<()>,
}

#[derive(Debug)]
struct Kept {
    /// Bytes of each part at most.
    half: usize,
    total: u64,
    head: u64,
    tail: VecDeque<u8>,
}

impl StderrLog {
    /// Drains `source` in a thread until it ends.
    pub(crate) fn drain(
        source: impl Read + Send + 'static,
        path: &Path,
        cap: u64,
        name: &str,
    ) -> io::Result<Self> {
        let file = File::create(path)?;
        let half = usize::try_from(cap / 2).unwrap_or(usize::MAX).max(TAIL_BYTES);
        let state = Arc::new(Mutex::new(Kept { half, total: 0, head: 0, tail: VecDeque::new() }));
        let shared = Arc::clone(&state);
        let (sender, ended) = channel();
        std::thread::Builder::new().name(format!("{name} stderr")).spawn(move || {
            keep(source, file, &shared);
            let _ = sender.send(());
        })?;
        Ok(Self { path: path.to_owned(), state, ended })
    }

    /// The last lines so far. Waits a moment for what is still in the pipe of a child that ended.
    pub(crate) fn tail(&self) -> String {
        let _ = self.ended.recv_timeout(Duration::from_millis(300));
        let state = self.lock();
        let skip = state.tail.len().saturating_sub(TAIL_BYTES);
        let bytes: Vec<u8> = state.tail.iter().skip(skip).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let lines = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        lines
            .iter()
            .map(|line| printable(line))
            .collect::<Vec<_>>()
            .join("\n")
            .trim_end()
            .to_owned()
    }

    pub(crate) fn summary(&self) -> StderrSummary {
        let tail = self.tail();
        let state = self.lock();
        StderrSummary { path: self.path.clone(), total: state.total, cut: state.cut(), tail }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Kept {
    /// Bytes of the tail that aren't in the head.
    fn beyond_head(&self) -> usize {
        usize::try_from(self.total - self.head)
            .map_or(self.tail.len(), |rest| rest.min(self.tail.len()))
    }

    fn cut(&self) -> u64 {
        self.total - self.head - self.beyond_head() as u64
    }
}

fn keep(mut source: impl Read, mut file: File, shared: &Mutex<Kept>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = &buffer[..read];
        let mut state = shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let room = state.half.saturating_sub(state.head as usize).min(read);
        // A full disk must not stall the child: the tail is in memory whatever the file holds.
        let _ = file.write_all(&bytes[..room]);
        state.head += room as u64;
        state.total += read as u64;
        state.tail.extend(bytes);
        let excess = state.tail.len().saturating_sub(state.half);
        state.tail.drain(..excess);
    }
    let state = shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if state.cut() > 0 {
        let _ = write!(file, "\n[... {} bytes cut ...]\n", state.cut());
    }
    let skip = state.tail.len() - state.beyond_head();
    let rest: Vec<u8> = state.tail.iter().skip(skip).copied().collect();
    let _ = file.write_all(&rest);
}

/// Without the control characters that would recolour or overwrite the reader's terminal. Progress
/// bars redraw a line after a carriage return: only the last drawing counts.
fn printable(line: &str) -> String {
    let line = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            // An ANSI sequence ends with its first letter.
            '\u{1b}' => {
                chars.by_ref().find(|c| c.is_ascii_alphabetic());
            }
            '\t' => out.push_str("    "),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bytes: Vec<u8>, cap: u64) -> (StderrSummary, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stderr.txt");
        let log = StderrLog::drain(io::Cursor::new(bytes), &path, cap, "test").unwrap();
        log.ended.recv_timeout(Duration::from_secs(10)).unwrap();
        (log.summary(), std::fs::read(&path).unwrap())
    }

    #[test]
    fn a_short_stream_is_kept_whole() {
        let (summary, file) = run(b"one\ntwo\n".to_vec(), 1 << 20);
        assert_eq!((summary.total, summary.cut, summary.tail.as_str()), (8, 0, "one\ntwo"));
        assert_eq!(file, b"one\ntwo\n");
    }

    #[test]
    fn a_stream_between_one_and_two_halves_is_kept_whole() {
        let bytes: Vec<u8> = (0..12_000u32).map(|i| b'a' + (i % 26) as u8).collect();
        let (summary, file) = run(bytes.clone(), 16 << 10);
        assert_eq!(summary.cut, 0);
        assert_eq!(file, bytes);
    }

    #[test]
    fn a_flood_keeps_its_beginning_and_its_end_and_says_how_much_is_gone() {
        let mut bytes = b"begin\n".to_vec();
        bytes.resize(1 << 20, b'x');
        bytes.extend(b"\nthe end\n");
        let total = bytes.len() as u64;
        let (summary, file) = run(bytes, 16 << 10);
        assert_eq!(summary.total, total);
        assert_eq!(summary.cut, total - (16 << 10));
        assert!(file.len() < 17 << 10, "{} bytes were kept", file.len());
        assert!(file.starts_with(b"begin\n") && file.ends_with(b"the end\n"));
        assert!(
            String::from_utf8_lossy(&file)
                .contains(&format!("[... {} bytes cut ...]", summary.cut))
        );
        assert!(summary.tail.ends_with("the end"));
    }

    #[test]
    fn the_tail_is_fit_for_a_terminal() {
        let (summary, _) = run(b"\x1b[31mred\x1b[0m\n10%\r50%\r100%\n".to_vec(), 1 << 20);
        assert_eq!(summary.tail, "red\n100%");
    }
}
