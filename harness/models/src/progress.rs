//! One line of progress on stderr: a bar on a terminal, a line now and then elsewhere.

use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Smaller work is over before a line about it is read.
const WORTH_A_LINE: u64 = 1_000_000;

/// Bytes done out of bytes to do, under one heading.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    total: u64,
    done: u64,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    pub fn start(quiet: bool, what: &str, total: u64) -> Progress {
        let shown = if quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(
                "{msg} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ({eta})",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style);
            Shown::Bar(bar.with_message(what.to_owned()))
        } else {
            if total >= WORTH_A_LINE {
                crate::errln!("{what}: {}", DecimalBytes(total));
            }
            Shown::Lines { last: Instant::now() }
        };
        Progress { what: what.to_owned(), total, done: 0, shown }
    }

    /// Sets how much is done, which may be less than before when a transfer starts over.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines { last } => {
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let percent = 100 * done / self.total.max(1);
                    crate::errln!("{}: {percent} % of {}", self.what, DecimalBytes(self.total));
                }
            }
        }
    }

    pub fn add(&mut self, bytes: u64) {
        self.set(self.done + bytes);
    }

    /// A remark that must not be overdrawn by the bar.
    pub fn note(&self, text: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.suspend(|| crate::errln!("{text}")),
            Shown::Lines { .. } => crate::errln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
