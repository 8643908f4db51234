//! What a night gave, `llorch.nightly/1`: everything that is shown of it is rendered from this.
//! `docs/schemas/nightly.schema.json` is its JSON Schema.

use serde::Serialize;

use super::config::Task;
use crate::history::diff::Changes;
use crate::result::{RunVerdict, Unchecked};

#[derive(Debug, Serialize)]
pub struct Night {
    pub schema: &'static str,
    pub verdict: RunVerdict,
    /// RFC 3339, UTC.
    pub started: String,
    pub seconds: f64,
    pub command: Vec<String>,
    /// The file, or the config that ships.
    pub config: String,
    pub history: Option<String>,
    pub news: News,
    pub runs: Vec<Outcome>,
}

/// What is new since the last night.
#[derive(Debug, Default, Serialize)]
pub struct News {
    /// When the night before began; null in the first one.
    pub since: Option<String>,
    /// Every run is what it was, but for times.
    pub nothing_changed: bool,
    /// A sentence a failure that was not there before.
    pub new_failures: Vec<String>,
    /// And one for each that is gone.
    pub mended: Vec<String>,
}

/// One run of the matrix.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub name: String,
    pub model: String,
    /// Who was compared; empty for published answers.
    pub implementations: Vec<String>,
    pub verdict: RunVerdict,
    /// The first line of its report, or why there is none.
    pub says: String,
    pub unchecked: Vec<Unchecked>,
    /// What is wrong, a line each: the causes by the oracle, or published answers.
    pub failures: Vec<String>,
    pub seconds: f64,
    /// Its id in the history.
    pub record: String,
    /// Against its last night; null in the first one.
    pub changes: Option<Changes>,
    /// The same in words.
    pub news: Vec<String>,
    /// Below the night's folder; null where nothing could run.
    pub report: Option<String>,
    pub result: Option<String>,
    /// The suites of its JUnit report.
    #[serde(skip)]
    pub suites: Vec<quick_junit::TestSuite>,
}

impl Outcome {
    /// With nothing but what it was and how it ended.
    pub fn new(task: &Task, verdict: RunVerdict, says: String) -> Outcome {
        Outcome {
            name: task.name.clone(),
            model: task.model.clone(),
            implementations: Vec::new(),
            verdict,
            says,
            unchecked: Vec::new(),
            failures: Vec::new(),
            seconds: 0.0,
            record: String::new(),
            changes: None,
            news: Vec::new(),
            report: None,
            result: None,
            suites: Vec::new(),
        }
    }

    /// What it says without the verdict, where that stands beside it.
    pub fn detail(&self) -> &str {
        self.says.split_once(" · ").map_or(&self.says, |(_, rest)| rest)
    }

    pub fn is_failure(&self) -> bool {
        matches!(self.verdict, RunVerdict::Fail | RunVerdict::Error)
    }
}

impl Night {
    /// The sentence that everything begins with.
    pub fn headline(&self) -> String {
        format!("{} · {}", self.verdict.name(), self.says())
    }

    /// The same without the verdict.
    pub fn says(&self) -> String {
        let runs = crate::text::count(self.runs.len(), "run");
        let news = match (&self.news.since, self.news.nothing_changed) {
            (None, _) if self.history.is_none() => "no history is kept".to_string(),
            (None, _) => "the first night: nothing to compare with".to_string(),
            (Some(since), true) => format!("nothing changed since {}", date(since)),
            (Some(since), false) => {
                let changed: Vec<&Outcome> = self.changed().collect();
                let names: Vec<String> = changed.iter().map(|r| r.name.clone()).collect();
                let of = self.runs.len();
                let listed = crate::text::listed(&names);
                format!("{} of {of} changed since {}: {listed}", names.len(), date(since))
            }
        };
        format!("{news} · {runs}")
    }

    pub fn changed(&self) -> impl Iterator<Item = &Outcome> {
        self.runs.iter().filter(|r| r.changes.as_ref().is_none_or(|c| !c.nothing_changed))
    }
}

/// `2026-01-31 02:00`.
pub fn date(rfc3339: &str) -> String {
    rfc3339.get(..16).unwrap_or(rfc3339).replace('T', " ")
}
