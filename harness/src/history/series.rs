//! One figure over time: the errors at a point in the runs of one series.

use llorch_trace::Point;
use llorch_trace::points::glob_matches;
use serde_json::{Value, json};

use super::read::History;
use super::record::{Figures, Record};
use super::usual::{RUNS, Usual, usual};
use crate::run::RunError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Error {
    /// max |implementation − oracle|: all that went wrong so far
    Total,
    /// What the stage did by itself, over what rounding is expected to do at most
    Local,
    /// max |a − b| of two implementations
    Pair,
}

/// Runs of the same weights, cases, precision and machine, the latest last.
#[derive(Debug)]
pub struct Series<'a> {
    pub asked: String,
    pub error: Error,
    /// Those of the points that the last run has and the pattern means.
    pub points: Vec<Point>,
    pub runs: Vec<&'a Record>,
    pub lines: Vec<Line>,
    /// Runs of other weights, cases, precision or machines.
    pub left_out: usize,
    pub place: String,
}

/// One implementation, or a pair.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    /// One a run: the largest at the points; none where there is none, or it is not finite.
    pub values: Vec<Option<f64>>,
    /// (run, version before, version from then on)
    pub versions: Vec<(usize, String, String)>,
    /// Of the runs before the last one.
    pub usual: Option<Usual>,
}

impl Error {
    pub fn says(self) -> &'static str {
        match self {
            Error::Total => "max |implementation − oracle|",
            Error::Local => "local error over what rounding is expected to do at most",
            Error::Pair => "max |a − b|",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Error::Total => "total",
            Error::Local => "local",
            Error::Pair => "pair",
        }
    }
}

/// The series of the last run that has such a point.
pub fn of<'a>(
    history: &'a History,
    asked: &str,
    error: Error,
    last: usize,
) -> Result<Series<'a>, RunError> {
    let meant = |p: &Point| {
        let name = p.to_string();
        glob_matches(asked, &name) || glob_matches(&format!("h.*.{asked}"), &name)
    };
    let Some(newest) = history.records.iter().rev().find(|r| r.points.iter().any(meant)) else {
        return Err(RunError::Usage(format!(
            "failed to show {asked:?}: none of {} in {} has such a point; `llorch-diff points` lists them",
            crate::text::count(history.records.len(), "run"),
            history.place
        )));
    };
    let points: Vec<Point> = newest.points.iter().copied().filter(meant).collect();
    let before: Vec<&Record> = history.before(newest).collect();
    let after = history.records.iter().skip_while(|r| r.id != newest.id).skip(1);
    let all: Vec<&Record> = before
        .into_iter()
        .chain([newest])
        .chain(after.filter(|r| r.is_comparable(newest)))
        .collect();
    let left_out = history.records.len() - all.len();
    let runs = all[all.len().saturating_sub(last.max(1))..].to_vec();
    // What is usual is what it was before the runs that are shown as well.
    let lines =
        names(newest, error).into_iter().map(|name| line(&all, runs.len(), name, error, &points));
    let lines: Vec<Line> = lines.collect();
    if lines.iter().all(|l| l.values.iter().all(Option::is_none)) {
        let (kept, other) = match error {
            Error::Pair => ("no difference of two implementations", "--error total"),
            Error::Total | Error::Local => ("no error against the oracle", "--error pair"),
        };
        return Err(RunError::Usage(format!(
            "failed to show {asked:?}: {kept} is kept of it in {}; perhaps {other} is",
            history.place
        )));
    }
    Ok(Series {
        asked: asked.into(),
        error,
        lines,
        points,
        runs,
        left_out,
        place: history.place.clone(),
    })
}

fn names(newest: &Record, error: Error) -> Vec<String> {
    match error {
        Error::Pair => newest.pairs.iter().map(|p| format!("{}–{}", p.a, p.b)).collect(),
        _ => newest.implementations.iter().map(|i| i.name.clone()).collect(),
    }
}

fn line(all: &[&Record], shown: usize, name: String, error: Error, points: &[Point]) -> Line {
    let values: Vec<Option<f64>> = all.iter().map(|r| value(r, &name, error, points)).collect();
    let (_, earlier) = values.split_last().unwrap_or((&None, &[]));
    let earlier: Vec<f64> = earlier.iter().flatten().copied().collect();
    let from = all.len() - shown;
    // One that never said hello has none.
    let version = |r: &Record| {
        let of = r.implementation(&name).map(|i| i.version.clone());
        of.filter(|version| !version.is_empty())
    };
    let versions = (1..shown).filter_map(|i| {
        let (old, new) = (version(all[from + i - 1])?, version(all[from + i])?);
        (old != new).then_some((i, old, new))
    });
    Line {
        versions: versions.collect(),
        usual: usual(&earlier[earlier.len().saturating_sub(RUNS)..]),
        values: values[from..].to_vec(),
        name,
    }
}

fn value(record: &Record, name: &str, error: Error, points: &[Point]) -> Option<f64> {
    let of_figures = |of: fn(&Figures) -> &Vec<Option<f64>>| record.figures.get(name).map(of);
    let values = match error {
        Error::Total => of_figures(|f| &f.total),
        Error::Local => of_figures(|f| &f.local),
        Error::Pair => {
            let pair = record.pairs.iter().find(|p| format!("{}–{}", p.a, p.b) == name);
            pair.map(|p| &p.max_abs)
        }
    }?;
    let at = points.iter().filter_map(|p| values.get(record.place(*p)?).copied().flatten());
    at.reduce(f64::max)
}

impl Series<'_> {
    /// `h.3.attn.scores`, `the largest of 4 points attn.scores`.
    pub fn title(&self) -> String {
        match self.points[..] {
            [point] => point.to_string(),
            _ => format!("{}, the largest of {} points", self.asked, self.points.len()),
        }
    }

    /// Of all lines and runs.
    pub fn figures(&self) -> impl Iterator<Item = f64> {
        self.lines.iter().flat_map(|line| line.values.iter().flatten().copied())
    }

    /// Powers of ten around all figures that have one, at least one apart.
    pub fn decades(&self) -> (f64, f64) {
        let logs = self.figures().filter(|v| *v > 0.0).map(f64::log10);
        let (low, high) =
            logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        match low.is_finite() {
            true => (low.floor(), high.ceil().max(low.floor() + 1.0)),
            false => (-8.0, 0.0),
        }
    }

    pub fn json(&self) -> Value {
        let line = |l: &Line| {
            let versions: Vec<Value> = l
                .versions
                .iter()
                .map(|(i, old, new)| json!({"run": self.runs[*i].id, "old": old, "new": new}))
                .collect();
            json!({"name": l.name, "values": l.values, "usual": l.usual, "versions": versions})
        };
        json!({
            "schema": "llorch.history-series/1",
            "place": self.place,
            "error": self.error.name(),
            "points": self.points,
            "runs": self.runs.iter().map(|r| json!({"id": r.id, "started": r.started, "verdict": r.verdict})).collect::<Vec<_>>(),
            "lines": self.lines.iter().map(line).collect::<Vec<_>>(),
            "left_out": self.left_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::Past;

    fn history() -> History {
        let mut records: Vec<Record> = (0..6).map(|n| Past::default().record(n)).collect();
        let other = Past { threads: 1, ..Past::default() };
        records.push(other.record(6));
        let last = Past { hf: "transformers 5.1.0", errors: [1e-7, 9e-6, 3e-6], ..Past::default() };
        records.push(last.record(7));
        History { place: "x".into(), records, others: 0, skipped: Vec::new() }
    }

    #[test]
    fn a_series_is_one_point_of_comparable_runs() {
        let history = history();
        let series = of(&history, "ln_1", Error::Total, 30).unwrap();
        assert_eq!(
            (series.title().as_str(), series.runs.len(), series.left_out),
            ("h.0.ln_1", 7, 1)
        );
        let hf = &series.lines[1];
        assert_eq!((hf.values[0], hf.values[6]), (Some(2e-6), Some(9e-6)));
        assert_eq!(hf.versions, [(6, "transformers 5.0.0".into(), "transformers 5.1.0".into())]);
        // The last run is not part of what is usual.
        assert_eq!(hf.usual.map(|u| (u.median, u.runs)), Some((2e-6, 6)));
    }

    #[test]
    fn fewer_runs_are_shown_and_all_say_what_is_usual() {
        let history = history();
        let series = of(&history, "*", Error::Pair, 2).unwrap();
        assert_eq!((series.runs.len(), series.points.len()), (2, 3));
        assert_eq!(series.lines[0].name, "llorch-cpud–hf");
        assert_eq!(
            (series.lines[0].values[1], series.lines[0].usual.unwrap().runs),
            (Some(2e-6), 6)
        );
        assert!(
            of(&history, "h.9.ln_1", Error::Total, 2).unwrap_err().to_string().contains("h.9.ln_1")
        );
    }
}
