//! Where progress goes: a terminal, on which lines are redrawn, or a stream of lines.

use indicatif::{
    MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike,
};
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::work::{ABOUT, Amount, Work};

/// Redrawing a second, at most.
const HERTZ: u8 = 10;
/// How often what is shown is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Shorter work is over before a line about it is read.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// How often a line is repeated where there is no terminal.
const REPEAT: Duration = Duration::from_secs(10);
/// Columns from which on there is room for a bar beside the words.
const ROOM_FOR_A_BAR: u16 = 72;
/// What a bar counts to, whatever it is of.
const WHOLE: u64 = 1000;

pub(super) type WriteLine = Box<dyn Fn(&str) + Send + Sync>;

pub(super) struct Screen {
    /// Absent where nothing can be redrawn.
    terminal: Option<Terminal>,
    /// Writes a line.
    write: WriteLine,
    live: Mutex<Live>,
}

struct Terminal {
    bars: MultiProgress,
    columns: Arc<dyn Fn() -> u16 + Send + Sync>,
}

#[derive(Default)]
struct Live {
    works: Vec<Watched>,
    /// Whether somebody looks at them.
    ticking: bool,
}

struct Watched {
    work: Weak<Mutex<Work>>,
    /// On a terminal.
    bar: Option<ProgressBar>,
    /// When the last line about it was written.
    told: Option<Instant>,
}

impl Screen {
    /// The one of this process.
    pub fn stderr() -> Arc<Screen> {
        static STDERR: LazyLock<Arc<Screen>> = LazyLock::new(|| {
            let term = console::Term::buffered_stderr();
            let redraws = term.is_term() && !console::is_dumb();
            let write: WriteLine = Box::new(|text| {
                // In one piece; a reader that has gone is no reason to fail.
                let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
            });
            Arc::new(match redraws {
                true => Screen::terminal(Arc::new(term), write),
                false => Screen::lines(write),
            })
        });
        Arc::clone(&STDERR)
    }

    pub fn lines(write: WriteLine) -> Screen {
        Screen { terminal: None, write, live: Mutex::default() }
    }

    pub fn terminal(term: Arc<dyn TermLike>, write: WriteLine) -> Screen {
        let drawn = Box::new(Narrow::new(Arc::clone(&term)));
        let target = ProgressDrawTarget::term_like_with_hz(drawn, HERTZ);
        let bars = MultiProgress::with_draw_target(target);
        let terminal = Terminal { bars, columns: Arc::new(move || usable(&*term)) };
        Screen { terminal: Some(terminal), write, live: Mutex::default() }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        self.suspended(|write| write(text));
    }

    /// Does something while no bar is there.
    pub fn suspended<R>(&self, what: impl FnOnce(&WriteLine) -> R) -> R {
        match &self.terminal {
            Some(terminal) => terminal.bars.suspend(|| what(&self.write)),
            None => what(&self.write),
        }
    }

    /// Nothing is drawn any more.
    pub fn close(&self) {
        if let Some(terminal) = &self.terminal {
            let _ = terminal.bars.clear();
            terminal.bars.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Shows a piece of work until what this returns is dropped.
    pub fn show(self: &Arc<Self>, work: &Arc<Mutex<Work>>) -> Shown {
        let bar = self.terminal.as_ref().map(|terminal| terminal.bar(work));
        let mut live = self.live();
        live.works.push(Watched { work: Arc::downgrade(work), bar: bar.clone(), told: None });
        if !live.ticking {
            let screen = Arc::clone(self);
            // Without it nothing is told while nothing changes; the work goes on all the same.
            let started = std::thread::Builder::new().name("progress".into()).spawn(move || {
                while screen.tick(Instant::now()) {
                    std::thread::sleep(TICK);
                }
            });
            live.ticking = started.is_ok();
        }
        Shown { screen: Arc::clone(self), work: Arc::downgrade(work), bar }
    }

    /// Looks at everything once; false if there is nothing any more.
    pub fn tick(&self, now: Instant) -> bool {
        let mut lines = Vec::new();
        let mut bars = Vec::new();
        let mut live = self.live();
        live.works.retain(|watched| watched.work.strong_count() > 0);
        live.ticking = !live.works.is_empty();
        for watched in &mut live.works {
            let Some(work) = watched.work.upgrade() else { continue };
            match &watched.bar {
                Some(bar) => bars.push(bar.clone()),
                None => lines.extend(watched.line(&lock(&work), now)),
            }
        }
        let goes_on = live.ticking;
        drop(live);
        for bar in bars {
            bar.tick();
        }
        for line in lines {
            (self.write)(&line);
        }
        goes_on
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// What is to be told of it now, where there is no terminal.
    fn line(&mut self, work: &Work, now: Instant) -> Option<String> {
        let due = match self.told {
            None => work.age(now) >= WORTH_A_LINE,
            Some(told) => now.saturating_duration_since(told) >= REPEAT,
        };
        if !due {
            return None;
        }
        self.told = Some(now);
        let detail =
            if work.detail.is_empty() { String::new() } else { format!(" ({})", work.detail) };
        Some(work.told(now) + &detail)
    }
}

impl Terminal {
    fn bar(&self, work: &Arc<Mutex<Work>>) -> ProgressBar {
        let (columns, shared) = (Arc::clone(&self.columns), Arc::downgrade(work));
        let told = move |_: &ProgressState, out: &mut dyn fmt::Write| {
            let Some(work) = shared.upgrade() else { return };
            let mut text = lock(&work).told(Instant::now());
            // A line that wraps is hard to read and to redraw.
            let room = usize::from(columns());
            if console::measure_text_width(&text) > room {
                text = text.replace(ABOUT, ", ");
            }
            let _ = out.write_str(&console::truncate_str(&text, room, "…"));
        };
        let counted = !matches!(lock(work).amount, Amount::Unknown);
        let template = match counted && (self.columns)() >= ROOM_FOR_A_BAR {
            true => "{told} [{bar:16}] {wide_msg}",
            false => "{told} {wide_msg}",
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
            .with_key("told", told);
        let bar = ProgressBar::new(WHOLE).with_style(style);
        self.bars.add(bar)
    }
}

/// Keeps a piece of work on the screen.
pub(super) struct Shown {
    screen: Arc<Screen>,
    work: Weak<Mutex<Work>>,
    bar: Option<ProgressBar>,
}

impl Shown {
    /// Something is to be told that was not so before.
    pub fn changed(&self) {
        let (Some(bar), Some(work)) = (&self.bar, self.work.upgrade()) else { return };
        let work = lock(&work);
        let at = (work.fraction() * WHOLE as f64) as u64;
        let detail = match work.detail.as_str() {
            "" => String::new(),
            detail => format!("· {detail}"),
        };
        // Drawing asks for the work.
        drop(work);
        if bar.message() != detail {
            bar.set_message(detail);
        }
        bar.set_position(at);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let of_this = |w: &Watched| w.work.ptr_eq(&self.work);
        self.screen.live().works.retain(|watched| !of_this(watched));
        if let (Some(bar), Some(terminal)) = (&self.bar, &self.screen.terminal) {
            bar.finish_and_clear();
            terminal.bars.remove(bar);
        }
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Screen {{ redraws: {} }}", self.terminal.is_some())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shown on {:?}", self.screen)
    }
}

/// The terminal as indicatif is to see it. When it has gone nothing is written; that is no failure of the
/// work.
///
/// It is a little narrower than it is: else the ^C that a terminal shows would wrap into a line of its own,
/// and what was drawn above it would stay. indicatif leaves it to the terminal to begin the next line where
/// one is full; here that is done for it.
#[derive(Debug)]
struct Narrow {
    term: Arc<dyn TermLike>,
    column: Mutex<usize>,
}

impl Narrow {
    fn new(term: Arc<dyn TermLike>) -> Narrow {
        Narrow { term, column: Mutex::new(0) }
    }

    fn column(&self) -> MutexGuard<'_, usize> {
        self.column.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn usable(term: &dyn TermLike) -> u16 {
    term.width().saturating_sub(3)
}

impl TermLike for Narrow {
    fn width(&self) -> u16 {
        usable(&*self.term)
    }
    fn height(&self) -> u16 {
        self.term.height()
    }
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        forgive(self.term.move_cursor_up(n))
    }
    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        forgive(self.term.move_cursor_down(n))
    }
    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        forgive(self.term.move_cursor_right(n))
    }
    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        forgive(self.term.move_cursor_left(n))
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        *self.column() = 0;
        forgive(self.term.write_line(text))
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut column = self.column();
        if text == "\r" {
            *column = 0;
        } else if !text.is_empty() {
            if *column >= usize::from(self.width()) {
                *column = 0;
                let _ = self.term.write_str("\r\n");
            }
            *column += console::measure_text_width(text);
        }
        forgive(self.term.write_str(text))
    }
    fn clear_line(&self) -> io::Result<()> {
        *self.column() = 0;
        forgive(self.term.clear_line())
    }
    fn flush(&self) -> io::Result<()> {
        forgive(self.term.flush())
    }
}

fn forgive(_: io::Result<()>) -> io::Result<()> {
    Ok(())
}
