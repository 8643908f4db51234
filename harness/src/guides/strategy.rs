//! `run --strategy`: checkpoint by checkpoint in an order of its own, up to where that order stops.
//!
//! Whose fault a difference is can only be told with everything before it in sight, so a run collects
//! and judges once, and the strategy decides how much of that is reported. What it leaves out has no
//! rows; it is UNCHECKED by name, which makes a run INCOMPLETE that has not failed anyway. `judge` on
//! the saved folder shows the rest.

use llorch_trace::points::CHECKPOINTS;
use serde::{Deserialize, Serialize};

use super::Criticality;
use crate::judge::conclude;
use crate::report::view::{CheckpointView, checkpoints};
use crate::result::{RunResult, RunVerdict, Unchecked, UncheckedKind, Verdict};
use crate::saved::Collected;
use crate::text::listed;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// From 0 to 12; stops after the first that fails by itself
    Sequential,
    /// The critical ones first, then the others; stops after the first that fails by itself
    Critical,
    /// From 12 down to 0; stops after the first that passes: the fault lies just behind it
    Backwards,
}

/// What the strategy did, in the saved result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrategyRecord {
    pub name: Strategy,
    /// Checkpoints in the order in which they were looked at.
    pub looked_at: Vec<u8>,
    /// The one after which it stopped; null where it went through all of them.
    pub stopped_after: Option<u8>,
    pub left_out: Vec<u8>,
    pub reason: String,
}

/// What a strategy sees of a checkpoint.
#[derive(Debug, Clone, Copy)]
struct Seen {
    number: u8,
    verdict: Verdict,
    /// It fails by nothing but what came in.
    inherited: bool,
}

impl Strategy {
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Sequential => "sequential",
            Strategy::Critical => "critical",
            Strategy::Backwards => "backwards",
        }
    }

    /// All 13 in the order in which it looks at them.
    fn order(self) -> Vec<u8> {
        let mut order: Vec<u8> = CHECKPOINTS.iter().map(|c| c.number).collect();
        match self {
            Strategy::Sequential => {}
            Strategy::Critical => {
                order.sort_by_key(|n| super::of(*n).criticality != Criticality::Critical);
            }
            Strategy::Backwards => order.reverse(),
        }
        order
    }

    fn stops(self, seen: &Seen) -> bool {
        match self {
            Strategy::Sequential | Strategy::Critical => match seen.verdict {
                // A checkpoint that only shows what another did is not where to stop.
                Verdict::Fail => !seen.inherited,
                verdict => verdict == Verdict::Error,
            },
            Strategy::Backwards => matches!(seen.verdict, Verdict::Pass | Verdict::Warn),
        }
    }

    fn walk(self, all: &[Seen]) -> StrategyRecord {
        let order = self.order();
        let of = |n: &u8| all.iter().find(|s| s.number == *n);
        let mut present: Vec<&Seen> = order.iter().filter_map(of).collect();
        let stop = present.iter().position(|s| self.stops(s));
        let mut left_out: Vec<u8> = match stop {
            Some(at) => present.split_off(at + 1).iter().map(|s| s.number).collect(),
            None => Vec::new(),
        };
        left_out.sort_unstable();
        let reason = self.reason(&present, stop.is_some());
        StrategyRecord {
            name: self,
            looked_at: present.iter().map(|s| s.number).collect(),
            stopped_after: stop.and_then(|_| present.last()).map(|s| s.number),
            left_out,
            reason,
        }
    }

    fn reason(self, looked: &[&Seen], stopped: bool) -> String {
        let Some(last) = looked.last() else { return "there was nothing to look at".into() };
        let n = last.number;
        if !stopped {
            return match self {
                Strategy::Backwards => "no checkpoint passes".into(),
                _ => "no checkpoint fails by itself".into(),
            };
        }
        match (self, looked.len()) {
            (Strategy::Backwards, 1) => format!("checkpoint {n} passes, where it began"),
            (Strategy::Backwards, _) => {
                format!("checkpoint {n} passes: the fault lies behind it")
            }
            _ if last.verdict == Verdict::Error => format!("checkpoint {n} could not be compared"),
            _ => {
                let inherited = looked.iter().filter(|s| s.verdict == Verdict::Fail && s.inherited);
                let inherited: Vec<String> = inherited.map(|s| s.number.to_string()).collect();
                match inherited.is_empty() {
                    true => format!("checkpoint {n} is the first that fails"),
                    false => format!(
                        "checkpoint {n} is the first that fails by itself; {} fail by what came in",
                        listed(&inherited)
                    ),
                }
            }
        }
    }

    /// Keeps of a result what the strategy looks at, and judges the run by that.
    pub fn apply(self, result: &mut RunResult, collected: &Collected) {
        let subject = result.subject_name().to_string();
        let see = |view: &CheckpointView<'_>| Seen {
            number: view.number,
            verdict: view.verdict,
            inherited: view.is_inherited(&subject),
        };
        let seen: Vec<Seen> = checkpoints(result).iter().map(see).collect();
        let record = self.walk(&seen);
        if !record.left_out.is_empty() {
            self.leave_out(result, collected, &record);
        }
        result.strategy = Some(record);
    }

    fn leave_out(self, result: &mut RunResult, collected: &Collected, record: &StrategyRecord) {
        let mut rows = std::mem::take(&mut result.rows);
        rows.retain(|row| record.looked_at.contains(&row.checkpoint));
        let verdicts = conclude(&collected.plan, &collected.evidence, rows);
        for implementation in &mut result.implementations {
            if let Some((status, reason)) = verdicts.statuses.get(&implementation.name) {
                (implementation.status, implementation.reason) = (*status, reason.clone());
            }
        }
        result.rows = verdicts.rows;
        result.odd = verdicts.odd;
        let left_out = record.left_out.iter().map(|n| {
            let checkpoint = &CHECKPOINTS[usize::from(*n)];
            Unchecked {
                what: format!("checkpoint {n} ({})", checkpoint.name),
                kind: UncheckedKind::Missing,
                reason: format!("left out by --strategy {}: {}", self.name(), record.reason),
            }
        });
        let others = verdicts.unchecked.into_iter().chain(collected.unchecked.iter().cloned());
        result.unchecked = others.chain(left_out).collect();
        result.verdict = verdicts.verdict.max(RunVerdict::Incomplete);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(verdict: impl Fn(u8) -> (Verdict, bool)) -> Vec<Seen> {
        let seen = |number: u8| {
            let (verdict, inherited) = verdict(number);
            Seen { number, verdict, inherited }
        };
        (0..13).map(seen).collect()
    }

    /// GELU is wrong in block 1: what comes after shows it in all later layers.
    fn gelu() -> Vec<Seen> {
        all(|n| match n {
            0 | 7 => (Verdict::Pass, false),
            6 => (Verdict::Fail, false),
            _ => (Verdict::Fail, true),
        })
    }

    #[test]
    fn sequential_stops_after_the_first_that_fails_by_itself() {
        let record = Strategy::Sequential.walk(&gelu());
        assert_eq!(record.looked_at, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((record.stopped_after, record.left_out.len()), (Some(6), 6));
        assert!(record.reason.ends_with("by itself; 1, 2, 3, 4 and 5 fail by what came in"));
        let record = Strategy::Sequential
            .walk(&all(|n| (if n > 2 { Verdict::Fail } else { Verdict::Pass }, false)));
        assert_eq!(record.looked_at, [0, 1, 2, 3]);
        assert_eq!(record.reason, "checkpoint 3 is the first that fails");
    }

    #[test]
    fn critical_begins_with_those_that_the_guides_call_critical() {
        let order = Strategy::Critical.order();
        let critical =
            order.iter().take_while(|n| super::super::of(**n).criticality == Criticality::Critical);
        let n = critical.count();
        assert!((2..13).contains(&n), "{order:?}");
        let rest = &order[n..];
        assert!(rest.iter().all(|n| super::super::of(*n).criticality != Criticality::Critical));
        assert!(rest.is_sorted() && order[..n].is_sorted());
        let record = Strategy::Critical.walk(&all(|_| (Verdict::Fail, false)));
        assert_eq!(record.looked_at, [order[0]]);
    }

    #[test]
    fn backwards_stops_after_the_first_that_passes() {
        let record = Strategy::Backwards.walk(&gelu());
        assert_eq!((record.looked_at, record.stopped_after), (vec![12, 11, 10, 9, 8, 7], Some(7)));
        let record = Strategy::Backwards.walk(&all(|_| (Verdict::Pass, false)));
        assert_eq!((record.looked_at.len(), record.left_out.len()), (1, 12));
        assert_eq!(record.reason, "checkpoint 12 passes, where it began");
    }

    #[test]
    fn what_nobody_checked_stops_nobody_and_what_broke_stops_all_but_backwards() {
        let unchecked = all(|_| (Verdict::Unchecked, false));
        for strategy in [Strategy::Sequential, Strategy::Critical, Strategy::Backwards] {
            let record = strategy.walk(&unchecked);
            assert_eq!((record.looked_at.len(), record.stopped_after), (13, None));
        }
        let broken = all(|n| (if n == 4 { Verdict::Error } else { Verdict::Pass }, false));
        assert_eq!(Strategy::Sequential.walk(&broken).stopped_after, Some(4));
        let few = [broken[4], broken[5]];
        assert_eq!(Strategy::Backwards.walk(&few).looked_at, [5]);
    }
}
