//! What provisioning tells on stderr: a line for each thing done, and while something takes long a
//! line that is redrawn (on a terminal) or repeated now and then (elsewhere).

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::supervise::human_time;

/// How often a line is repeated where there is no terminal.
const REPEAT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    quiet: bool,
    terminal: bool,
    drawn: bool,
    last: Instant,
}

impl Progress {
    pub(crate) fn new(name: &str, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { name: name.to_owned(), quiet, terminal, drawn: false, last: Instant::now() }
    }

    /// One line that stays.
    pub(crate) fn say(&mut self, text: &str) {
        self.erase();
        if !self.quiet {
            llorch_models::errln!("{}: {text}", self.name);
        }
        self.last = Instant::now();
    }

    /// What is going on, for how long already.
    pub(crate) fn tick(&mut self, text: &str, elapsed: Duration) {
        if self.quiet {
            return;
        }
        let line = format!("{}: {text}, {}", self.name, human_time(elapsed));
        if self.terminal {
            // Cut to what fits most terminals: a line that wraps can't be erased.
            let line: String = line.chars().take(78).collect();
            eprint!("\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
            self.drawn = true;
        } else if self.last.elapsed() >= REPEAT {
            llorch_models::errln!("{line}");
            self.last = Instant::now();
        }
    }

    fn erase(&mut self) {
        if self.drawn {
            eprint!("\r\x1b[2K");
            self.drawn = false;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.erase();
    }
}
