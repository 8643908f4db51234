//! What a finished run amounts to: the level it has reached, what the next one lacks, which checkpoint
//! to look at next, and what the failures make likely.

use llorch_trace::Stage;
use llorch_trace::points::CHECKPOINTS;
use serde::{Deserialize, Serialize};

use super::patterns::{self, Likely};
use crate::report::view::{CheckpointView, checkpoints};
use crate::result::{ModelKind, NO_REFERENCE, RowKind, RunResult, RunVerdict, Verdict};
use crate::text::listed;

/// How far a subject has been confirmed. Each level holds what the one before holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    None,
    /// Checkpoint 12 passes: it says the right words.
    Minimum,
    /// Checkpoints 1 to 12 pass, and 0 does not fail: for the right reasons.
    Recommended,
    /// All 13 on several cases, temperature 0 and above, real weights.
    Production,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// Null where stages were isolated: those are no run.
    pub level: Option<Level>,
    /// What the level after it lacks.
    pub lacking: Vec<String>,
    pub next: Option<Next>,
    pub likely: Option<Likely>,
}

/// The checkpoint to look at next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    pub checkpoint: u8,
    pub why: String,
    pub command: String,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Minimum => "minimum",
            Level::Recommended => "recommended",
            Level::Production => "production",
        }
    }

    fn after(self) -> Option<Level> {
        match self {
            Level::None => Some(Level::Minimum),
            Level::Minimum => Some(Level::Recommended),
            Level::Recommended => Some(Level::Production),
            Level::Production => None,
        }
    }
}

pub fn assess(result: &RunResult) -> Assessment {
    let views = checkpoints(result);
    let seen = Seen { result, views: &views };
    let (level, lacking) = match result.isolate {
        Some(_) => (None, Vec::new()),
        None => {
            let (level, lacking) = seen.level();
            (Some(level), lacking)
        }
    };
    let likely = match result.verdict {
        RunVerdict::Fail => patterns::table(result, &views).and_then(|t| patterns::likely(&t)),
        _ => None,
    };
    Assessment { level, lacking, next: seen.next(), likely }
}

struct Seen<'a> {
    result: &'a RunResult,
    views: &'a [CheckpointView<'a>],
}

impl Seen<'_> {
    fn verdict(&self, number: u8) -> Option<Verdict> {
        self.views.iter().find(|v| v.number == number).map(|v| v.verdict)
    }

    fn passes(&self, number: u8) -> bool {
        matches!(self.verdict(number), Some(Verdict::Pass | Verdict::Warn))
    }

    fn state(&self, number: u8) -> String {
        match self.verdict(number) {
            Some(verdict) => verdict.name().to_string(),
            None => "not compared".into(),
        }
    }

    /// `checkpoints 4, 6 and 8: FAIL`, an entry for each state but passing.
    fn states(&self, numbers: &[u8]) -> Vec<String> {
        let mut by_state: Vec<(String, Vec<String>)> = Vec::new();
        for number in numbers.iter().filter(|n| !self.passes(**n)) {
            let state = self.state(*number);
            match by_state.iter_mut().find(|(known, _)| *known == state) {
                Some((_, numbers)) => numbers.push(number.to_string()),
                None => by_state.push((state, vec![number.to_string()])),
            }
        }
        let told = by_state.into_iter().map(|(state, numbers)| match &numbers[..] {
            [one] => format!("checkpoint {one} ({state})"),
            many => format!("checkpoints {} ({state})", listed(many)),
        });
        told.collect()
    }

    fn level(&self) -> (Level, Vec<String>) {
        let mut level = Level::None;
        while let Some(higher) = level.after() {
            let lacking = self.lacking(higher);
            if !lacking.is_empty() {
                return (level, lacking);
            }
            level = higher;
        }
        (level, Vec::new())
    }

    /// What keeps a level from being reached, those before it being reached.
    fn lacking(&self, level: Level) -> Vec<String> {
        match level {
            Level::None => Vec::new(),
            Level::Minimum => self.states(&[12]),
            Level::Recommended => {
                let broken = matches!(self.verdict(0), Some(Verdict::Fail | Verdict::Error));
                let from = if broken { 0 } else { 1 };
                self.states(&(from..=12).collect::<Vec<u8>>())
            }
            Level::Production => {
                let mut lacking = self.states(&[0]);
                lacking.extend(self.cases());
                if self.result.model.kind != ModelKind::Real {
                    lacking.push("real weights (`llorch-diff run --model gpt2`)".into());
                }
                if !matches!(self.result.verdict, RunVerdict::Pass | RunVerdict::Warn) {
                    lacking.push(format!("the run is {}", self.result.verdict.name()));
                }
                lacking
            }
        }
    }

    /// What the cases lack: their number, and temperatures of both kinds that somebody checked.
    fn cases(&self) -> Vec<String> {
        let cases = &self.result.cases;
        let subject = self.result.subject_name();
        let checked = |case: &str| {
            self.result.rows.iter().any(|r| {
                r.case == case
                    && r.kind == RowKind::Pair
                    && r.a == subject
                    && r.point.stage == Stage::NextProbs
                    && matches!(r.verdict, Verdict::Pass | Verdict::Warn)
            })
        };
        let has = |warm: bool| {
            let of_kind = |t: f64| (t > 0.0) == warm;
            cases.iter().any(|c| of_kind(c.sampling.temperature) && checked(&c.name))
        };
        let mut lacking = Vec::new();
        if cases.len() < 2 {
            lacking.push("a second case (without --prompt the canonical suite has five)".into());
        }
        if !has(false) {
            lacking.push("a case at temperature 0 whose probabilities were compared".into());
        }
        if !has(true) {
            lacking.push("a case above temperature 0 whose probabilities were compared".into());
        }
        lacking
    }

    fn next(&self) -> Option<Next> {
        let subject = self.result.subject_name();
        let explain = |checkpoint: u8, why: String| {
            let command = format!("llorch-diff explain {checkpoint}");
            Some(Next { checkpoint, why, command })
        };
        if let Some(fault) = patterns::fault(self.result) {
            let what = match fault.is_measured {
                true => "is the first that is wrong by itself",
                false => "is the first that differs",
            };
            return explain(fault.checkpoint, format!("{} {what}", fault.point));
        }
        let broken = self.result.rows.iter().filter(|r| r.verdict_of(subject) == Verdict::Error);
        if let Some(row) = broken.min_by_key(|r| (r.step, r.point)) {
            let why = format!("{} is the first that could not be compared", row.point);
            return explain(row.checkpoint, why);
        }
        if self.result.isolate.is_some() {
            return None;
        }
        // Onwards from the last that passes, then whatever is left.
        let numbers = || CHECKPOINTS.iter().map(|c| c.number);
        let last = numbers().filter(|n| self.passes(*n)).max();
        let open = |n: &u8| !self.passes(*n);
        let onwards = numbers().filter(open).find(|n| last.is_none_or(|last| *n > last));
        let number = onwards.or_else(|| numbers().find(open))?;
        let why = match self.verdict(number) {
            None => "it was not compared",
            Some(_) => NO_REFERENCE,
        };
        explain(number, why.into())
    }
}

impl Assessment {
    /// `recommended · production lacks: real weights (…)`.
    pub fn level_line(&self) -> Option<String> {
        let level = self.level?;
        Some(match level.after() {
            None => format!("{}: nothing is lacking", level.name()),
            Some(after) => {
                let lacking = self.lacking.join("; ");
                format!("{} · {} lacks: {lacking}", level.name(), after.name())
            }
        })
    }

    /// ``checkpoint 6 · FFN output: h.1.mlp.act is the first that is wrong by itself; `llorch-diff explain 6` ``.
    pub fn next_line(&self) -> Option<String> {
        let Next { checkpoint, why, command } = self.next.as_ref()?;
        let name = CHECKPOINTS[usize::from(*checkpoint)].name;
        Some(format!("checkpoint {checkpoint} · {name}: {why}; `{command}`"))
    }
}
