//! What changes files beside the goldens. Each step happens whole or not at all, and is on the disk
//! before the next one begins.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// The new content under this name, or the old one.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first)?;
    step();
    file.write_all(second)?;
    file.sync_all()?;
    step();
    rename(&part, path)
}

pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    step();
    File::open(to)?.sync_all()
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    step();
    for parent in [from.parent(), to.parent()].into_iter().flatten() {
        sync_folder(parent)?;
    }
    Ok(())
}

pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A folder in the place of another, if there is one. Where two can't change places at once, the old one
/// goes to `aside`, and in between there is none.
pub fn replace(place: &Path, new: &Path, aside: &Path) -> io::Result<()> {
    if !place.exists() {
        return rename(new, place);
    }
    match exchange(place, new)? {
        true => Ok(()),
        false => rename(place, aside).and_then(|()| rename(new, place)),
    }
}

/// Two folders change places at once; false where the file system can't do that.
fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    let exchanged = try_exchange(a, b)?;
    if exchanged {
        step();
        for parent in [a.parent(), b.parent()].into_iter().flatten() {
            sync_folder(parent)?;
        }
    }
    Ok(exchanged)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
fn try_exchange(a: &Path, b: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    if !may_exchange() {
        return Ok(false);
    }
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::XDEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn try_exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

pub fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }?;
    step();
    Ok(())
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    step();
    path.parent().map_or(Ok(()), sync_folder)
}

/// Between two steps: the tests end the process here.
#[cfg(not(test))]
pub fn step() {}
#[cfg(not(test))]
fn may_exchange() -> bool {
    true
}

#[cfg(test)]
use testing::may_exchange;
#[cfg(test)]
pub use testing::step;

#[cfg(test)]
pub mod testing {
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Kill this process after so many steps.
    pub const KILL_AFTER: &str = "LLORCH_TEST_KILL_AFTER";
    /// As on a file system where two folders can't change places at once.
    pub const NO_EXCHANGE: &str = "LLORCH_TEST_NO_EXCHANGE";

    pub fn step() {
        static STEPS: AtomicUsize = AtomicUsize::new(0);
        let taken = STEPS.fetch_add(1, Ordering::SeqCst);
        let limit = std::env::var(KILL_AFTER).ok().and_then(|n| n.parse::<usize>().ok());
        if limit.is_some_and(|limit| taken >= limit) {
            // Nothing is unwound and no destructor runs.
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }

    pub fn may_exchange() -> bool {
        std::env::var_os(NO_EXCHANGE).is_none()
    }
}
