//! The log, on standard error.

use std::io::{self, IsTerminal, Write};

use llorch_models::progress;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use super::args::{LogFormat, ServeArgs};

/// From here on, what is logged is written. `quiet` leaves errors alone.
pub fn start(args: &ServeArgs, quiet: bool) {
    let most = if quiet { tracing::Level::ERROR } else { args.log };
    let lines = fmt()
        .with_max_level(LevelFilter::from_level(most))
        .with_writer(|| Lossy(io::stderr()))
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    if args.log_format == LogFormat::Json {
        // A line that is no JSON would be in the way of whoever reads it.
        progress::set_quiet(true);
    }
    // Where a program around this one logs already, its log goes on.
    let _ = match args.log_format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Standard error; what can't be written is lost. A log that nobody reads any more, or a full disk, is no reason to answer nobody.
#[derive(Debug)]
struct Lossy(io::Stderr);

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}
