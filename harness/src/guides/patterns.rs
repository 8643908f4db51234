//! What a table of failed checkpoints makes likely. `data/patterns.toml` has the patterns.
//!
//! A bug spoils what comes after it, and block 1 comes after block 0: the checkpoints that FAIL are
//! seldom those at fault. So where the oracle has named the first stage that is wrong by itself, that
//! stage alone decides; the pattern only says what people get wrong there.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::report::view::CheckpointView;
use crate::result::{Odd, Role, Row, RowKind, RunResult, Verdict};
use llorch_trace::Point;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    pub id: String,
    #[serde(default)]
    pub stages: Vec<String>,
    pub only: Option<Vec<u8>>,
    pub all: Option<[u8; 2]>,
    pub first: Option<[u8; 2]>,
    #[serde(default)]
    pub decode: bool,
    pub cause: String,
    pub look: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patterns {
    pattern: Vec<Pattern>,
}

/// What was likely, as the result holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Likely {
    pub pattern: String,
    /// The stage at fault is measured; without it the cause is a guess from the table alone.
    pub stage_is_known: bool,
    pub cause: String,
    pub look: String,
}

/// A table that has failures in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The stage that is wrong by itself, if anybody could tell.
    pub stage: Option<String>,
    /// The checkpoint of the first failure as data flows.
    pub first: u8,
    pub failed: BTreeSet<u8>,
    /// Everything that was compared.
    pub compared: BTreeSet<u8>,
    /// No failure in the prefill.
    pub decode: bool,
}

pub fn patterns() -> &'static [Pattern] {
    static PATTERNS: OnceLock<Vec<Pattern>> = OnceLock::new();
    PATTERNS.get_or_init(|| {
        let read: Result<Patterns, _> = toml::from_str(include_str!("data/patterns.toml"));
        // Part of the program; a test reads it.
        read.unwrap_or_else(|e| panic!("{e}")).pattern
    })
}

impl Pattern {
    fn fits(&self, table: &Table) -> bool {
        if let Some(stage) = &table.stage {
            return self.stages.contains(stage);
        }
        let within = |range: &[u8; 2], n: u8| range[0] <= n && n <= range[1];
        let conditions = [
            self.only.as_ref().map(|only| {
                table.failed.iter().eq(only.iter()) && table.compared.len() > table.failed.len()
            }),
            self.all.as_ref().map(|range| {
                let mut inside = table.compared.iter().filter(|n| within(range, **n)).peekable();
                inside.peek() == Some(&&range[0]) && inside.all(|n| table.failed.contains(n))
            }),
            self.first.as_ref().map(|range| within(range, table.first)),
            self.decode.then_some(table.decode),
        ];
        self.stages.is_empty() && conditions.iter().flatten().all(|fits| *fits)
    }
}

/// The first pattern that fits.
pub fn likely(table: &Table) -> Option<Likely> {
    let pattern = patterns().iter().find(|p| p.fits(table))?;
    Some(Likely {
        pattern: pattern.id.clone(),
        stage_is_known: table.stage.is_some(),
        cause: pattern.cause.clone(),
        look: pattern.look.clone(),
    })
}

/// The table of a run in which the subject failed.
pub(super) fn table(result: &RunResult, views: &[CheckpointView<'_>]) -> Option<Table> {
    let subject = result.implementations.iter().find(|i| i.role == Role::Subject)?;
    let failed = |r: &&Row| r.verdict_of(&subject.name) == Verdict::Fail;
    let rows = || result.rows.iter().filter(failed);
    let fault = fault(result)?;
    let numbers = |wanted: fn(Verdict) -> bool| {
        views.iter().filter(|v| wanted(v.verdict)).map(|v| v.number).collect()
    };
    Some(Table {
        stage: fault.is_measured.then(|| super::stage_name(fault.point.stage)),
        first: fault.checkpoint,
        failed: numbers(|v| v == Verdict::Fail),
        compared: numbers(|v| !matches!(v, Verdict::Unchecked | Verdict::Error)),
        decode: rows().all(|r| r.step > 0),
    })
}

/// The first place at which the subject fails.
#[derive(Debug)]
pub struct Fault {
    pub point: Point,
    pub checkpoint: u8,
    /// The stage there was held to its own inputs and is wrong; else it is only the first that differs.
    pub is_measured: bool,
}

pub fn fault(result: &RunResult) -> Option<Fault> {
    let subject = &result.subject()?.name;
    let failed = |r: &&Row| r.verdict_of(subject) == Verdict::Fail;
    let first = result.rows.iter().filter(failed).min_by_key(|r| (r.step, r.point));
    let odd = result.odd.iter().find(|odd| odd.name == *subject);
    let is_measured = |odd: &&Odd| {
        let at = |r: &&Row| {
            r.a == odd.name && r.point == odd.point && r.case == odd.case && r.step == odd.step
        };
        // That two of its own tensors contradict each other says nothing of what differed before.
        let is_first = first.is_none_or(|f| (odd.step, odd.point) <= (f.step, f.point));
        result.rows.iter().filter(at).any(|r| match r.kind {
            RowKind::Oracle => r.local.as_ref().is_some_and(|l| l.verdict == Verdict::Fail),
            RowKind::Own => r.verdict == Verdict::Fail && is_first,
            RowKind::Pair => false,
        })
    };
    let fault = |point, checkpoint, is_measured| Fault { point, checkpoint, is_measured };
    match odd.filter(is_measured) {
        Some(odd) => Some(fault(odd.point, odd.checkpoint, true)),
        None => first.map(|row| fault(row.point, row.checkpoint, false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_table(first: u8, failed: &[u8], decode: bool) -> Option<String> {
        let table = Table {
            stage: None,
            first,
            failed: failed.iter().copied().collect(),
            compared: (0..13).collect(),
            decode,
        };
        likely(&table).map(|l| l.pattern)
    }

    #[test]
    fn tables_of_failures_read_as_engineers_read_them() {
        let all: Vec<u8> = (0..13).collect();
        let from = |n: usize| all[n..].to_vec();
        for (first, failed, decode, expected) in [
            (0, all.clone(), false, "everything"),
            (0, from(0)[..8].to_vec(), false, "embedding"),
            (0, vec![0, 1, 8, 12], true, "start-position"),
            (1, from(1), false, "operations-or-layout"),
            (2, from(1), false, "operations-or-layout"),
            (3, vec![3, 4, 5, 8], true, "cache-write"),
            (4, from(1), false, "attention-or-mlp"),
            (5, from(1), false, "attention-or-mlp"),
            (6, vec![1, 2, 6, 8], false, "attention-or-mlp"),
            (7, from(7), false, "residual-or-norm-order"),
            (8, vec![8, 9], false, "after-the-first-block"),
            (9, vec![9, 10], false, "which-row"),
            (10, vec![10, 12], false, "only-choice"),
            (11, vec![11], false, "only-sampling"),
            (12, vec![12], false, "only-e2e"),
            (12, vec![12], true, "only-e2e"),
        ] {
            assert_eq!(by_table(first, &failed, decode).as_deref(), Some(expected), "{failed:?}");
        }
    }

    #[test]
    fn a_checkpoint_that_was_asked_for_alone_is_not_everything() {
        let compared: BTreeSet<u8> = [4].into();
        let table = Table { first: 4, failed: compared.clone(), compared, ..Table::default() };
        assert_eq!(likely(&table).unwrap().pattern, "attention-or-mlp");
        let table = Table { first: 12, failed: [12].into(), compared: [12].into(), ..table };
        assert_eq!(likely(&table).unwrap().pattern, "the-choice", "nobody knows of the others");
    }

    #[test]
    fn every_stage_and_every_first_checkpoint_has_one_and_ids_are_their_own() {
        for stage in llorch_trace::Stage::all() {
            let stage = Some(super::super::stage_name(stage));
            let table = Table { stage: stage.clone(), ..Table::default() };
            let found = likely(&table).unwrap_or_else(|| panic!("{stage:?}"));
            assert!(found.stage_is_known);
        }
        for first in 0..13 {
            for decode in [false, true] {
                assert!(by_table(first, &[first, 9], decode).is_some(), "{first}");
            }
        }
        let ids: BTreeSet<&str> = patterns().iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids.len(), patterns().len());
        for p in patterns() {
            let conditions = p.only.is_some() || p.all.is_some() || p.first.is_some();
            assert!(p.stages.is_empty() == conditions, "{}: either a stage or a table", p.id);
        }
    }

    #[test]
    fn a_stage_that_is_known_overrules_the_table() {
        let everything: BTreeSet<u8> = (0..13).collect();
        let table = Table {
            stage: Some("mlp.act".into()),
            first: 6,
            failed: everything.clone(),
            compared: everything,
            decode: false,
        };
        let found = likely(&table).unwrap();
        assert!(found.pattern == "mlp" && found.stage_is_known);
    }
}
