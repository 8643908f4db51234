//! Records back from a place, and the one that is meant.

use super::record::{Record, SCHEMA};
use super::store::{Store, StoreError};
use crate::text::has_form;

/// Everything in a place, the oldest run first.
#[derive(Debug)]
pub struct History {
    pub place: String,
    pub records: Vec<Record>,
    /// Runs that filters left out.
    pub others: usize,
    /// Lines that are no records; nothing else is lost by them.
    pub skipped: Vec<Skipped>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    pub day: String,
    /// Counted from 1.
    pub line: usize,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(
        "failed to find a run in the history {place}: there are none; `llorch-diff run` records one"
    )]
    Empty { place: String },
    #[error(
        "failed to find run {asked:?} in the history {place}; expected an id or how it begins, its six \
         digits, last, or last~N with N below {runs}: `llorch-diff history` lists them"
    )]
    Unknown { asked: String, place: String, runs: usize },
    #[error("failed to find one run {asked:?}: it may be {}", candidates.join(", "))]
    Ambiguous { asked: String, candidates: Vec<String> },
}

impl History {
    pub fn read(store: &dyn Store) -> Result<History, StoreError> {
        let mut history =
            History { place: store.place(), records: Vec::new(), others: 0, skipped: Vec::new() };
        for day in store.days()? {
            let bytes = store.read(&day)?;
            history.take(&day, &bytes);
        }
        // Of equals the order in which they were written stays.
        history.records.sort_by(|a, b| a.started.cmp(&b.started));
        Ok(history)
    }

    fn take(&mut self, day: &str, bytes: &[u8]) {
        let whole = bytes.ends_with(b"\n");
        let lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
        let count = lines.len();
        for (i, line) in lines.into_iter().enumerate().filter(|(_, line)| !line.is_empty()) {
            let last = !whole && i + 1 == count;
            match record(line, last) {
                Ok(record) => self.records.push(record),
                Err(reason) => {
                    self.skipped.push(Skipped { day: day.to_string(), line: i + 1, reason });
                }
            }
        }
    }

    /// By id, how it begins, its six digits, `last` or `last~N`.
    pub fn find(&self, asked: &str) -> Result<&Record, FindError> {
        let place = || self.place.clone();
        if self.records.is_empty() {
            return Err(FindError::Empty { place: place() });
        }
        let unknown =
            || FindError::Unknown { asked: asked.into(), place: place(), runs: self.records.len() };
        let back = match asked.strip_prefix("last") {
            Some("") => Some(0),
            Some(rest) => rest.strip_prefix('~').and_then(|n| n.parse::<usize>().ok()),
            None => None,
        };
        if let Some(back) = back {
            let from_last = self.records.len().checked_sub(back + 1);
            return from_last.map(|i| &self.records[i]).ok_or_else(unknown);
        }
        let fits =
            |r: &&Record| !asked.is_empty() && (r.id.starts_with(asked) || r.short() == asked);
        let found: Vec<&Record> = self.records.iter().filter(fits).collect();
        match found[..] {
            [one] => Ok(one),
            [] => Err(unknown()),
            _ => Err(FindError::Ambiguous {
                asked: asked.into(),
                candidates: found.iter().map(|r| r.id.clone()).collect(),
            }),
        }
    }

    /// The runs before one whose figures may be laid beside its own, the latest last.
    pub fn before<'a>(&'a self, run: &'a Record) -> impl Iterator<Item = &'a Record> {
        let earlier = self.records.iter().take_while(|r| r.id != run.id);
        earlier.filter(|r| r.is_comparable(run))
    }
}

fn record(line: &[u8], last: bool) -> Result<Record, String> {
    #[derive(serde::Deserialize)]
    struct Named {
        schema: String,
    }
    let Ok(Named { schema }) = serde_json::from_slice::<Named>(line) else {
        return Err(match last {
            true => "torn: it ends in mid-write".into(),
            false => "no record: a writer was killed in mid-write, or the file is damaged".into(),
        });
    };
    if schema != SCHEMA {
        return Err(format!("schema {schema:?}; expected {SCHEMA:?}"));
    }
    let record: Record = serde_json::from_slice(line).map_err(|e| format!("damaged: {e}"))?;
    let started = &record.started;
    match has_form(started, "0000-00-00T00:00:00Z") {
        true => Ok(record),
        false => Err(format!(
            "damaged: it began at {started:?}; expected a time like 2026-01-31T12:00:00Z"
        )),
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped line {} of {}: {}", self.line, self.day, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{Past, store_of};

    #[test]
    fn a_torn_line_is_reported_and_nothing_else_is_lost() {
        let past = Past::default();
        let whole = |n: u32| serde_json::to_string(&past.record(n)).unwrap();
        let half = &whole(1)[..200];
        let (_dir, store) = store_of(&[whole(0), half.to_string(), whole(2)]);
        let history = History::read(&*store).unwrap();
        assert_eq!(history.records.len(), 2);
        assert_eq!((history.skipped.len(), history.skipped[0].line), (1, 2));
        assert!(history.skipped[0].to_string().contains("killed"), "{}", history.skipped[0]);
    }

    #[test]
    fn a_last_line_that_ends_in_mid_write_says_so_and_newer_schemas_too() {
        let past = Past::default();
        let mut history =
            History { place: "x".into(), records: vec![], others: 0, skipped: vec![] };
        let whole = serde_json::to_string(&past.record(0)).unwrap();
        history.take("2026-01-31", format!("{whole}\n{}", &whole[..99]).as_bytes());
        history.take("2026-02-01", b"{\"schema\":\"llorch.history/2\"}\n\n");
        assert_eq!(history.records.len(), 1);
        let told: Vec<String> = history.skipped.iter().map(Skipped::to_string).collect();
        assert!(told[0].contains("line 2 of 2026-01-31: torn"), "{told:?}");
        let yesterday = Record { started: "yesterday".into(), ..past.record(0) };
        history.take("2026-02-02", serde_json::to_string(&yesterday).unwrap().as_bytes());
        assert!(history.skipped[2].reason.contains("yesterday"), "{:?}", history.skipped);
        assert!(told[1].contains("history/2") && told[1].contains("history/1"), "{told:?}");
    }

    #[test]
    fn runs_are_found_by_what_people_type() {
        let past = Past::default();
        let records: Vec<Record> = (0..3).map(|n| past.record(n)).collect();
        let history = History { place: "x".into(), records, others: 0, skipped: vec![] };
        let id = |asked: &str| history.find(asked).map(|r| r.id.clone()).map_err(|e| e.to_string());
        let ids: Vec<&String> = history.records.iter().map(|r| &r.id).collect();
        assert_eq!(id("last").as_ref(), Ok(ids[2]));
        assert_eq!(id("last~2").as_ref(), Ok(ids[0]));
        assert_eq!(id(ids[1]).as_ref(), Ok(ids[1]));
        assert_eq!(id(history.records[1].short()).as_ref(), Ok(ids[1]));
        assert!(id("2026").unwrap_err().contains("it may be 2026"));
        for unknown in ["last~3", "last~x", "", "zzz"] {
            assert!(id(unknown).unwrap_err().contains("last~N"), "{unknown}");
        }
        let none = History { place: "x".into(), records: vec![], others: 0, skipped: vec![] };
        assert!(none.find("last").unwrap_err().to_string().contains("there are none"));
    }
}
