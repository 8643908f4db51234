//! What counts as a change between two runs, and what does not.

use super::diff::*;
use super::read::History;
use super::record::Record;
use super::testing::Past;
use crate::result::{RunVerdict, Verdict};

fn history(records: Vec<Record>) -> History {
    History { place: "x".into(), records, others: 0, skipped: Vec::new() }
}

/// Equal nights, then another; what changed against the one before.
fn after(nights: u32, last: &Past) -> Changes {
    let mut records: Vec<Record> = (0..nights).map(|n| Past::default().record(n)).collect();
    records.push(last.record(nights));
    let history = history(records);
    diff(&history, &history.records[nights as usize - 1], &history.records[nights as usize])
}

#[test]
fn equal_runs_changed_nothing() {
    for nights in [1, 14, 20] {
        let changes = after(nights, &Past { seconds: 10.3, ..Past::default() });
        assert!(changes.nothing_changed, "{changes:?}");
        assert_eq!(changes, Changes { times: vec![], ..changes.clone() });
    }
}

#[test]
fn another_version_is_told_with_the_first_point_whose_bits_it_changes() {
    let last = Past { hf: "transformers 5.1.0", bits: ["a", "B", "C"], ..Past::default() };
    let changes = after(1, &last);
    assert!(!changes.nothing_changed);
    let implementation = &changes.implementations[0];
    assert_eq!(implementation.name, "hf");
    assert_eq!(implementation.new.as_deref(), Some("transformers 5.1.0"));
    assert_eq!(changes.bits.len(), 1);
    assert_eq!(
        (changes.bits[0].points[0].to_string().as_str(), changes.bits[0].of),
        ("h.0.ln_1", 3)
    );
    assert!(changes.errors.is_empty());
}

#[test]
fn bits_that_vary_by_themselves_are_no_news_after_the_second_night() {
    let night = |n: u32, bits| Past { bits, ..Past::default() }.record(n);
    let records =
        vec![night(0, ["a", "b", "c"]), night(1, ["a", "B", "c"]), night(2, ["a", "x", "c"])];
    let history = history(records);
    let of = |old: usize, new: usize| {
        diff(&history, &history.records[old], &history.records[new]).bits.len()
    };
    assert_eq!((of(0, 1), of(1, 2)), (1, 0));
}

#[test]
fn an_error_is_told_where_it_is_beyond_what_is_usual() {
    let with = |error: f64| Past { errors: [1e-7, error, 3e-6], ..Past::default() };
    assert!(after(14, &with(2.4e-6)).errors.is_empty());
    let changes = after(14, &with(2.6e-6));
    let told = &changes.errors[0];
    assert_eq!((told.name.as_str(), told.error, told.of, told.points.len()), ("hf", "total", 3, 1));
    assert_eq!(told.points[0].usual.map(|u| (u.median, u.runs)), Some((2e-6, 14)));
    // Too few nights: twice as much, or half.
    assert!(after(3, &with(3.9e-6)).errors.is_empty());
    assert_eq!(after(3, &with(4.1e-6)).errors[0].points[0].usual, None);
    assert_eq!(after(3, &with(0.9e-6)).errors.len(), 1);
}

#[test]
fn other_threads_are_another_series_and_their_figures_are_not_compared() {
    let changes = after(14, &Past { threads: 1, errors: [1.0; 3], ..Past::default() });
    assert_eq!(changes.circumstances[0].what, "means");
    assert!(changes.errors.is_empty() && changes.series == 0 && !changes.nothing_changed);
}

#[test]
fn verdicts_by_point_and_times_are_told() {
    let mut last = Past { seconds: 30.0, ..Past::default() }.record(14);
    last.verdict = RunVerdict::Fail;
    last.checkpoints.insert(1, Verdict::Fail);
    last.pairs[0].verdicts = "PFF".into();
    let mut records: Vec<Record> = (0..14).map(|n| Past::default().record(n)).collect();
    records.push(last);
    let history = history(records);
    let changes = diff(&history, &history.records[13], &history.records[14]);
    assert_eq!(changes.verdict, Some([RunVerdict::Pass, RunVerdict::Fail]));
    assert_eq!(changes.checkpoints.len(), 1);
    let pair = &changes.verdicts[0];
    assert_eq!(
        (pair.who.as_str(), pair.points.len(), pair.old, pair.new),
        ("llorch-cpud–hf", 2, 'P', 'F')
    );
    assert_eq!((changes.times[0].part.as_str(), changes.times[0].usual.median), ("total", 10.0));
    // Times alone are no change.
    let slow = after(14, &Past { seconds: 30.0, ..Past::default() });
    assert!(slow.nothing_changed && slow.times.len() == 1);
}
