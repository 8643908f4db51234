//! The harness proves itself: `llorch-diff bisect` names every seeded bug, at the right point and
//! with the right signature.
//!
//! The bugs are data, `tests/bugs/*.toml`; what makes them is `adapters/python/bug`. The ordinary run
//! takes some of each file. All of them, with the table:
//!
//! ```text
//! cargo test --release --test bugs -- --ignored --nocapture
//! ```
//!
//! `LLORCH_BUGS=cache` runs only those whose file or name contains the word; `LLORCH_BUGS_TABLE=FILE`
//! leaves the table in a file, as it stands in docs/SEEDED_BUGS.md.
#![allow(clippy::disallowed_methods, reason = "a test starts the program that it tests")]

mod bugs_support;
mod run_support;

use std::collections::{BTreeMap, BTreeSet};

use bugs_support::data::{self, Bug};
use bugs_support::{Bench, require_all, table};
use run_support::repository;

/// Of each file, one in so many runs in the ordinary test run.
const ONE_IN: usize = 12;

fn all() -> Vec<Bug> {
    data::read_all(&repository().join("tests/bugs"))
}

#[test]
fn some_seeded_bugs_of_every_kind_are_found() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut bugs = all();
    bugs.retain(|bug| {
        let n = seen.entry(bug.file.clone()).or_default();
        *n += 1;
        (*n - 1).is_multiple_of(ONE_IN)
    });
    assert!(bugs.len() >= 25, "{} bugs", bugs.len());
    let outcomes = Bench::new().try_all(bugs);
    println!("{}", table(&outcomes));
    require_all(&outcomes);
}

#[test]
#[ignore = "minutes: run it when bisect, the judge or the bugs change, and every night"]
fn every_seeded_bug_is_found() {
    let mut bugs = all();
    if let Ok(word) = std::env::var("LLORCH_BUGS") {
        bugs.retain(|bug| bug.file.contains(&word) || bug.name().contains(&word));
    }
    let outcomes = Bench::new().try_all(bugs);
    publish("seeded bugs", &table(&outcomes));
    require_all(&outcomes);
}

/// Prints a table, and adds it to the file that `LLORCH_BUGS_TABLE` names.
fn publish(title: &str, table: &str) {
    println!("{table}");
    if let Ok(path) = std::env::var("LLORCH_BUGS_TABLE") {
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        let (begin, end) = (format!("<!-- {title} -->\n"), format!("<!-- end of {title} -->"));
        let text = match (known.find(&begin), known.find(&end)) {
            (Some(a), Some(b)) if a < b => {
                format!("{}{begin}{table}{}", &known[..a], &known[b..])
            }
            _ => format!("{known}{begin}{table}{end}\n"),
        };
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn the_bugs_cover_what_they_must() {
    let bugs = all();
    let counted: Vec<&Bug> = bugs.iter().filter(|bug| bug.below_limit.is_none()).collect();
    assert!(counted.len() >= 110, "{} bugs are counted", counted.len());
    let causes = || counted.iter().flat_map(|bug| bug.causes());
    let checkpoints: BTreeSet<u8> = counted.iter().map(|bug| bug.checkpoint()).collect();
    assert_eq!(checkpoints, (0..=12).collect());
    let layers: BTreeSet<usize> = causes().flat_map(|cause| cause.layers()).collect();
    assert!(layers.len() >= 4, "layers {layers:?}");
    let heads: BTreeSet<usize> = causes().filter_map(|cause| cause.head).collect();
    assert!(heads.len() >= 3, "heads {heads:?}");
    let steps: BTreeSet<usize> = causes().map(|cause| cause.step).collect();
    assert!(steps.contains(&0) && steps.contains(&7) && steps.len() >= 5, "steps {steps:?}");
    assert!(counted.iter().filter(|bug| bug.then.is_some()).count() >= 10, "pairs");

    let once: BTreeSet<String> = bugs.iter().map(Bug::name).collect();
    assert_eq!(once.len(), bugs.len(), "a bug is listed twice");
}
