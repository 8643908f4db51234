//! The process-wide settings: the real stdout kept for the protocol, Candle's number of threads.

use std::io;

#[cfg(unix)]
pub fn claim_stdout() -> io::Result<std::fs::File> {
    use std::os::fd::{AsFd, AsRawFd};

    let protocol = io::stdout().as_fd().try_clone_to_owned()?;
    // SAFETY: dup2 takes two descriptor numbers, both open for the life of the process, and touches
    // no memory of ours.
    let done = unsafe { libc::dup2(io::stderr().as_raw_fd(), io::stdout().as_raw_fd()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(std::fs::File::from(protocol))
}

/// Elsewhere nothing is redirected: neither this program nor Candle prints to stdout.
#[cfg(not(unix))]
pub fn claim_stdout() -> io::Result<io::Stdout> {
    Ok(io::stdout())
}

/// Candle reads how many threads a matrix product may use from this variable, at each product.
pub fn set_candle_threads(threads: usize) {
    // SAFETY: called between cases, when the only other threads are the one that reads stdin, which
    // knows no environment, and the idle ones of a pool, which look at it only inside Candle's work.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
}
