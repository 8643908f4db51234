//! The log, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use super::args::{LogFormat, ServeArgs};

/// From here on, what is logged is written. `quiet` leaves errors alone.
pub fn start(args: &ServeArgs, quiet: bool) {
    let most = if quiet { tracing::Level::ERROR } else { args.log };
    let lines = fmt()
        .with_max_level(LevelFilter::from_level(most))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // Where a program around this one logs already, its log goes on.
    let _ = match args.log_format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
