//! What is known of a piece of work, and how it is said.

use indicatif::DecimalBytes;
use std::time::{Duration, Instant};

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Amount {
    Bytes { total: u64 },
    Steps { kind: &'static str, total: u64 },
    Unknown,
}

/// In front of what is left; the first to go where there is little room.
pub(super) const ABOUT: &str = ", about ";

/// What is left is reckoned from no less than this, in seconds and of the whole.
const LEAST_TIME: f64 = 0.3;
const LEAST_PART: f64 = 0.05;

#[derive(Debug)]
pub(super) struct Work {
    pub what: String,
    pub amount: Amount,
    pub doing: String,
    pub detail: String,
    pub done: u64,
    /// Of the present step, from 0 to 1.
    part: f64,
    began: Instant,
    /// When something was first said to be done, and how much that was.
    first: Option<(Instant, u64)>,
    /// When that was last said.
    changed: Instant,
}

impl Work {
    pub fn new(what: &str, amount: Amount, now: Instant) -> Work {
        Work {
            what: what.to_owned(),
            amount,
            doing: String::new(),
            detail: String::new(),
            done: 0,
            part: 0.0,
            began: now,
            first: None,
            changed: now,
        }
    }

    pub fn set(&mut self, done: u64, now: Instant) {
        // What was done before it starts over says nothing of how long it takes from here.
        if self.first.is_none_or(|(_, first)| done < first) {
            self.first = Some((now, done));
        }
        (self.done, self.part, self.changed) = (done, 0.0, now);
    }

    pub fn set_part(&mut self, part: f64, now: Instant) {
        (self.part, self.changed) = (part.clamp(0.0, 1.0), now);
    }

    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn total(&self) -> Option<u64> {
        match self.amount {
            Amount::Bytes { total } | Amount::Steps { total, .. } => Some(total),
            Amount::Unknown => None,
        }
    }

    /// From 0 to 1.
    pub fn fraction(&self) -> f64 {
        let total = self.total().unwrap_or(0).max(1) as f64;
        ((self.done as f64 + self.part) / total).clamp(0.0, 1.0)
    }

    /// As long again for each that is left as for each that is done, from when something was last done;
    /// none where that can't be believed, or is over already.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (since, first) = self.first?;
        let done = self.done.saturating_sub(first) as f64 + self.part;
        let left = self.total()?.saturating_sub(self.done) as f64 - self.part;
        let took = self.changed.saturating_duration_since(since).as_secs_f64();
        if left <= 0.0 || took < LEAST_TIME || done / (done + left) < LEAST_PART {
            return None;
        }
        let left = Duration::try_from_secs_f64(took / done * left).ok()?;
        let rest = left.checked_sub(now.saturating_duration_since(self.changed))?;
        (rest.as_secs_f64() >= 0.5).then_some(rest)
    }

    /// `hf: case 3 of 7, 12 s, about 20 s left`
    pub fn told(&self, now: Instant) -> String {
        let going_on = match self.amount {
            Amount::Bytes { total } if self.doing.is_empty() => {
                format!("{} of {}", DecimalBytes(self.done), DecimalBytes(total))
            }
            Amount::Steps { kind, total } if self.first.is_some() => {
                format!("{kind} {} of {total}", (self.done + 1).min(total))
            }
            _ => self.doing.clone(),
        };
        let what = match (self.what.is_empty(), going_on.is_empty()) {
            (true, _) => going_on,
            (false, true) => self.what.clone(),
            (false, false) => format!("{}: {going_on}", self.what),
        };
        let left = self.left(now).map(|left| format!("{ABOUT}{} left", whole(left)));
        format!("{what}, {}{}", whole(self.age(now)), left.unwrap_or_default())
    }
}

/// A duration as people say it: `0.4 s`, `12 s`, `3 min 05 s`.
pub fn human_time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 10.0 => format!("{seconds:.1} s"),
        _ => whole(time),
    }
}

/// The same without tenths, which would flicker: `0 s`, `12 s`, `3 min 05 s`, `2 h 07 min`.
fn whole(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// One line of what a program printed, without what would move the cursor.
pub(super) fn plain(text: &str) -> String {
    let text = console::strip_ansi_codes(text);
    text.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned()
}
