//! Ctrl-C: end all children, remove what is half-made, exit 130.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::group;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static HALF_MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static INSTALLED: Once = Once::new();

/// How long children have between TERM and KILL once the user wants out.
const GRACE: Duration = Duration::from_secs(2);

/// Installs the handler for INT, TERM and HUP. Call once, early in `main`.
///
/// On the first signal all groups get TERM and, two seconds later or at a second signal, KILL;
/// paths registered by [`remove_on_interrupt`] are removed; the program exits with 130 (128 plus
/// the signal's number for TERM and HUP).
pub fn on_interrupt() {
    INSTALLED.call_once(|| match signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => {
            // A thread that can't be started leaves the default action: the program ends at once.
            let _ = std::thread::Builder::new()
                .name("interrupt".into())
                .spawn(move || wait_and_exit(signals));
        }
        Err(error) => {
            llorch_models::errln!("failed to watch for Ctrl-C: {error}; children may outlive it")
        }
    });
}

/// Whether the program is on its way out.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// For a thread whose child has ended: if the program is on its way out, waits for the handler to end
/// it, so that nobody reports a failure that is none.
pub(crate) fn await_exit() {
    let deadline = Instant::now() + 5 * GRACE;
    while interrupted() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn wait_and_exit(mut signals: signal_hook::iterator::Signals) {
    let Some(signal) = signals.forever().next() else { return };
    INTERRUPTED.store(true, Ordering::Relaxed);
    let groups = group::close();
    for group in &groups {
        group.terminate();
    }
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && signals.pending().next().is_none() {
        // The threads that own the children wait for them meanwhile and clear their groups.
        if groups.iter().all(|group| group::group_is_empty(group.leader())) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for group in &groups {
        group.kill();
        group.clear();
    }
    for path in half_made().iter() {
        remove(path);
    }
    // Behind the ^C that the terminal shows.
    llorch_models::progress::leave("\ninterrupted", 128 + signal)
}

/// Removes this file or folder if the program is interrupted while the guard lives. Dropping the
/// guard forgets the path; it removes nothing.
#[must_use = "the path is forgotten when the guard is dropped"]
pub fn remove_on_interrupt(path: &Path) -> Cleanup {
    half_made().push(path.to_owned());
    Cleanup { path: path.to_owned() }
}

/// See [`remove_on_interrupt`].
#[derive(Debug)]
pub struct Cleanup {
    path: PathBuf,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let mut paths = half_made();
        if let Some(index) = paths.iter().position(|path| *path == self.path) {
            paths.swap_remove(index);
        }
    }
}

fn half_made() -> MutexGuard<'static, Vec<PathBuf>> {
    HALF_MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn remove(path: &Path) {
    let removed =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            llorch_models::errln!("failed to remove {}: {error}", path.display());
        }
        _ => {}
    }
}
