//! What long work tells on stderr, for both programs: what is being done, for how long, and how much
//! is left.
//!
//! On a terminal a [`Bar`] is one line that is redrawn and vanishes when it is dropped; several may be
//! there at once. Elsewhere it is a line when the work has begun and one now and then, without an escape
//! code. Lines that stay go through [`Progress::say`] or [`crate::errln!`], which never tear a bar.
//! With [`set_quiet`] there is nothing of all this.
//!
//! `screen` is where it goes, `work` is what is known of one piece of work and how that is said.

mod screen;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use screen::Screen;
use work::{Amount, Work};

pub use work::human_time;

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on this process tells nothing but errors: what `--quiet` means.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether only errors are told.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line on stderr that no bar tears. [`crate::errln!`] is the way to call it.
pub fn line(text: fmt::Arguments<'_>) {
    Screen::stderr().line(&text.to_string());
}

/// The last line of this process: bars go, and nothing is drawn any more.
pub fn leave(text: &str, exit_code: i32) -> ! {
    Screen::stderr().suspended(|write| {
        write(text);
        std::process::exit(exit_code)
    })
}

/// Before the end of a process in which work may still go on: no bar is drawn from here on.
pub fn close() {
    Screen::stderr().close();
}

/// Tells how work goes on.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Nowhere, if absent.
    screen: Option<Arc<Screen>>,
}

impl Progress {
    /// Tells on stderr, unless this part of the work or the whole process is to be quiet.
    pub fn new(quiet: bool) -> Progress {
        let screen = (!quiet && !is_quiet()).then(Screen::stderr);
        Progress { screen }
    }

    pub fn silent() -> Progress {
        Progress { screen: None }
    }

    /// A line that stays, or several.
    pub fn say(&self, text: &str) {
        if let Some(screen) = &self.screen {
            screen.line(text);
        }
    }

    /// Bytes done out of bytes to do.
    pub fn bytes(&self, what: &str, total: u64) -> Bar {
        self.bar(what, Amount::Bytes { total })
    }

    /// Steps done out of steps to do, of a kind that has a name: `case`. What comes before the first is
    /// told with [`Bar::doing`].
    pub fn steps(&self, what: &str, kind: &'static str, total: usize) -> Bar {
        self.bar(what, Amount::Steps { kind, total: total as u64 })
    }

    /// Work of which nobody knows how long it takes.
    pub fn open(&self, what: &str, doing: &str) -> Bar {
        let bar = self.bar(what, Amount::Unknown);
        bar.doing(doing);
        bar
    }

    fn bar(&self, what: &str, amount: Amount) -> Bar {
        let work = Arc::new(Mutex::new(Work::new(what, amount, Instant::now())));
        let shown = self.screen.as_ref().map(|screen| screen.show(&work));
        Bar { progress: self.clone(), work, shown }
    }
}

/// One piece of long work, while it goes on.
#[derive(Debug)]
pub struct Bar {
    progress: Progress,
    work: Arc<Mutex<Work>>,
    shown: Option<screen::Shown>,
}

impl Bar {
    /// How much is done; it may be less than before, when a transfer starts over. Time that is left is
    /// reckoned from the first call on.
    pub fn set(&self, done: u64) {
        self.change(|work| work.set(done, Instant::now()));
    }

    pub fn add(&self, more: u64) {
        self.change(|work| work.set(work.done + more, Instant::now()));
    }

    /// How much of the present step is done, from 0 to 1.
    pub fn part(&self, part: f64) {
        self.change(|work| work.set_part(part, Instant::now()));
    }

    pub fn name(&self) -> String {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).what.clone()
    }

    /// Its name, where that is known only now.
    pub fn rename(&self, what: &str) {
        self.change(|work| what.clone_into(&mut work.what));
    }

    /// What is going on, where no steps are counted (yet).
    pub fn doing(&self, what: &str) {
        self.change(|work| what.clone_into(&mut work.doing));
    }

    /// What stands behind it all, where there is room: the case, a tool's last line.
    pub fn detail(&self, detail: &str) {
        self.change(|work| work.detail = work::plain(detail));
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        self.progress.say(text);
    }

    fn change(&self, change: impl FnOnce(&mut Work)) {
        change(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(shown) = &self.shown {
            shown.changed();
        }
    }
}
