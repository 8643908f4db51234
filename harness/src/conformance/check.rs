//! What a check is, and how one ends.

use super::bench::Bench;

/// One thing that the protocol asks for, and how it is tried.
#[derive(Debug)]
pub struct Check {
    /// Its name in tables and JSON.
    pub slug: &'static str,
    /// What holds when it passes.
    pub says: &'static str,
    /// The section of adapters/PROTOCOL.md that asks for it.
    pub section: &'static str,
    /// What to do about a failure.
    pub mend: &'static str,
    pub needs: Needs,
    pub test: fn(&mut Bench<'_>) -> Result<(), Stop>,
}

/// What must have gone well before: without it a check would only say the same once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    Nothing,
    Hello,
    Load,
    Run,
}

/// Why a check ended before its end.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    Wrong(Box<Wrong>),
    /// It can't be made: the capability isn't declared, say.
    Skip(String),
}

/// A broken promise, for who has to mend it.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrong {
    pub sent: String,
    pub found: String,
    pub expected: String,
    /// What to do where the check's own advice doesn't fit.
    pub mend: Option<String>,
}

impl Stop {
    pub fn wrong(
        sent: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Stop {
        let (sent, found, expected) = (sent.into(), found.into(), expected.into());
        Stop::Wrong(Box::new(Wrong { sent, found, expected, mend: None }))
    }

    /// The same, with this to do about it.
    pub fn mended_by(mut self, mend: String) -> Stop {
        if let Stop::Wrong(wrong) = &mut self {
            wrong.mend = Some(mend);
        }
        self
    }
}

/// `Err` where there are problems: the first few, and how many more.
pub fn none_of(problems: &[String], sent: &str, expected: &str) -> Result<(), Stop> {
    const SHOWN: usize = 3;
    if problems.is_empty() {
        return Ok(());
    }
    let mut found = problems[..problems.len().min(SHOWN)].join("; ");
    if problems.len() > SHOWN {
        found.push_str(&format!("; and {} more", problems.len() - SHOWN));
    }
    Err(Stop::wrong(sent, found, expected))
}
