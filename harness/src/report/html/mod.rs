//! One HTML file with everything a person looks for: the first wrong tensor, the matrix of checkpoints,
//! errors along the data flow, heat maps of what failed, generated text. It opens from disk, needs nothing
//! from anywhere, and keeps its tables without JavaScript.
//!
//! [`checkpoints`] are the matrix and the tables, [`failed`] the failed points, [`page`] all the rest.

mod checkpoints;
mod failed;
mod page;

use askama::Template;
use llorch_trace::Point;

use super::{Exporter, Run, Style};
use crate::result::{RunVerdict, Verdict};

pub const REPORT_CSS: &str = include_str!("../../../templates/report.css");

pub struct Html;

impl Exporter for Html {
    fn export(&self, run: &Run<'_>, _: &Style) -> anyhow::Result<String> {
        Ok(page::Page::new(run).render()? + "\n")
    }
}

/// A verdict for the eye: a class for its colour, and a sign and word for everyone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    pub class: &'static str,
    pub sign: &'static str,
    pub word: &'static str,
}

const fn mark(class: &'static str, sign: &'static str, word: &'static str) -> Mark {
    Mark { class, sign, word }
}

const PASS: Mark = mark("pass", "✓", "PASS");
const WARN: Mark = mark("warn", "!", "WARN");
const FAIL: Mark = mark("fail", "✗", "FAIL");
const ERROR: Mark = mark("fail", "✗", "ERROR");
const UNCHECKED: Mark = mark("none", "–", "UNCHECKED");
const INCOMPLETE: Mark = mark("warn", "?", "INCOMPLETE");
/// A difference that is the other's.
const OTHER: Mark = mark("none", "○", "not ours");

impl From<Verdict> for Mark {
    fn from(verdict: Verdict) -> Mark {
        match verdict {
            Verdict::Pass => PASS,
            Verdict::Unchecked => UNCHECKED,
            Verdict::Warn => WARN,
            Verdict::Fail => FAIL,
            Verdict::Error => ERROR,
        }
    }
}

impl From<RunVerdict> for Mark {
    fn from(verdict: RunVerdict) -> Mark {
        match verdict {
            RunVerdict::Pass => PASS,
            RunVerdict::Warn => WARN,
            RunVerdict::Incomplete => INCOMPLETE,
            RunVerdict::Fail => FAIL,
            RunVerdict::Error => ERROR,
        }
    }
}

/// The id of a failed point's section: a point's name may stand in it as it is.
fn anchor(who: &str, point: Point, subject: &str) -> String {
    match who == subject {
        true => format!("p-{point}"),
        false => {
            let who = who.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            format!("p-{point}-of-{who}")
        }
    }
}
