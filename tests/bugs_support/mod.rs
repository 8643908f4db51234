//! Runs `llorch-diff bisect` on seeded bugs, two at a time, and holds what it names to the data.
#![allow(dead_code)] // each test file uses its own part of it

pub mod data;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use data::{Bug, Cause};
use llorch_diff::oracle::Oracle;
use llorch_models::progress::Progress;
use serde_json::Value;

use crate::run_support::seeded::bug_adapter;
use crate::run_support::{diff, repository};

/// Runs at the same time; each computes with one thread.
const AT_ONCE: usize = 2;
/// The token that equals another in the model `ties`; no prompt has it.
const TWIN: usize = 50_000;

/// A bug and what became of it.
pub struct Outcome {
    pub bug: Bug,
    /// What was named, in words.
    pub found: String,
    /// What is wrong with that; empty where it is right.
    pub wrong: Vec<String>,
}

pub struct Bench {
    dir: tempfile::TempDir,
    /// Suites so far, which gives each its name.
    written: AtomicUsize,
    adapter: String,
    cases: BTreeMap<String, toml::Table>,
}

impl Bench {
    pub fn new() -> Bench {
        let text = std::fs::read_to_string(repository().join("tests/bugs/cases.toml")).unwrap();
        let table: toml::Table = text.parse().unwrap();
        let cases = table["case"].as_array().unwrap().iter().map(|case| {
            let case = case.as_table().unwrap().clone();
            (case["name"].as_str().unwrap().to_string(), case)
        });
        let cases = cases.collect();
        let bench = Bench {
            dir: tempfile::tempdir().unwrap(),
            written: AtomicUsize::new(0),
            adapter: bug_adapter().to_string(),
            cases,
        };
        bench.write_ties();
        bench
    }

    /// Bisects every bug. Below the limit, nothing has to be found.
    pub fn try_all(&self, bugs: Vec<Bug>) -> Vec<Outcome> {
        let bar = Progress::new(false).steps("seeded bugs", "bug", bugs.len());
        bar.set(0);
        side_by_side(&bugs, |bug| {
            bar.detail(&bug.name());
            let outcome = self.bisect(bug);
            bar.add(1);
            outcome
        })
    }

    fn bisect(&self, bug: &Bug) -> Outcome {
        let suite = self.suite(&bug.case);
        let bugs: Vec<String> = bug.inject.iter().map(|b| format!("--bug {b}")).collect();
        let subject = format!("{} {}", self.adapter, bugs.join(" "));
        let model = match bug.model.as_str() {
            "ties" => self.ties().display().to_string(),
            name => name.to_string(),
        };
        let output = diff()
            .args(["bisect", "--format", "json", "--quiet", "--threads", "1", "--ref", "numpy"])
            .args(["--model", &model, "--subject", &subject])
            .args(["--suite", suite.to_str().unwrap()])
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let (found, wrong) = match serde_json::from_str::<Value>(&stdout) {
            Ok(answer) => self::judge(bug, &answer, output.status.code()),
            Err(_) => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                ("no answer".into(), vec![stderr.trim().to_string()])
            }
        };
        Outcome { bug: bug.clone(), found, wrong }
    }

    /// A suite of one case.
    fn suite(&self, case: &str) -> PathBuf {
        let case = self.cases.get(case).unwrap_or_else(|| panic!("no case {case}"));
        let mut suite = toml::Table::new();
        suite.insert("schema".into(), "llorch.suite/1".into());
        suite.insert("case".into(), vec![toml::Value::Table(case.clone())].into());
        let path =
            self.dir.path().join(format!("{}.toml", self.written.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&path, suite.to_string()).unwrap();
        path
    }

    fn ties(&self) -> PathBuf {
        self.dir.path().join("ties")
    }

    /// Nano, with the row of the token that follows the case `pair` copied to another token's: with
    /// tied embeddings, the largest logit is there twice.
    fn write_ties(&self) {
        let nano = repository().join("golden/models/nano");
        let ids = self.cases["pair"]["ids"].as_array().unwrap();
        let ids: Vec<u32> = ids.iter().map(|id| id.as_integer().unwrap() as u32).collect();
        let best = Oracle::open(&nano).unwrap().continue_greedily(&ids, 1).unwrap().ids[0] as usize;
        std::fs::create_dir(self.ties()).unwrap();
        std::fs::copy(nano.join("config.json"), self.ties().join("config.json")).unwrap();
        let mut bytes = std::fs::read(nano.join("model.safetensors")).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let wte = metadata.tensors();
        let wte = wte.iter().find(|(name, _)| name.ends_with("wte.weight")).unwrap().1;
        let row = (wte.data_offsets.1 - wte.data_offsets.0) / wte.shape[0];
        let at = |token: usize| 8 + header + wte.data_offsets.0 + token * row;
        bytes.copy_within(at(best)..at(best) + row, at(TWIN));
        std::fs::write(self.ties().join("model.safetensors"), bytes).unwrap();
    }
}

/// Does a piece of work for each item, [`AT_ONCE`] at a time; results in the order of the items.
fn side_by_side<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(at, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// What an answer names, and what is wrong with it.
fn judge(bug: &Bug, answer: &Value, code: Option<i32>) -> (String, Vec<String>) {
    let causes = answer["causes"].as_array().cloned().unwrap_or_default();
    let told: Vec<String> = causes.iter().map(tell).collect();
    let found = match (told.is_empty(), &answer["between"]) {
        (false, _) => told.join("; "),
        (true, Value::Null) => "nothing".into(),
        (true, between) => format!("between {between}"),
    };
    let expected = bug.causes();
    if bug.below_limit.is_some() {
        // Who names it all the same is welcome to, if it is right.
        let right = causes.first().is_none_or(|cause| differences(&expected[0], cause).is_empty());
        let wrong = if right { vec![] } else { vec!["another cause than the bug".to_string()] };
        return (found, wrong);
    }
    let mut wrong = Vec::new();
    if code != Some(1) {
        wrong.push(format!("exit code {code:?}, expected 1"));
    }
    for (n, expected) in expected.iter().enumerate() {
        match causes.get(n) {
            None => wrong.push(format!("no cause {}", n + 1)),
            Some(cause) => wrong.extend(differences(expected, cause)),
        }
    }
    (found, wrong)
}

fn differences(expected: &Cause, found: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, right: bool, found: &Value| {
        if !right {
            wrong.push(format!("{what} is {found}"));
        }
    };
    let layers = expected.layers();
    // A cause in several layers may be named by the first or by all of them.
    let of_all = match layers.len() {
        0 | 1 => expected.point.clone(),
        _ => expected.point.replacen(&format!("h.{}", layers[0]), "h.*", 1),
    };
    let point = found["point"].as_str();
    check("point", point == Some(&expected.point) || point == Some(&of_all), &found["point"]);
    check("step", found["step"] == expected.step, &found["step"]);
    check("layers", found["layers"] == serde_json::json!(layers), &found["layers"]);
    check(
        "checkpoint",
        found["checkpoint"] == expected.point().checkpoint().number,
        &found["checkpoint"],
    );
    check("head", expected.head.is_none_or(|head| found["head"] == head), &found["head"]);
    check("token", expected.token.is_none_or(|token| found["token"] == token), &found["token"]);
    let signature = &found["signature"];
    check("signature", expected.signature.allows(signature.as_str()), signature);
    wrong
}

fn tell(cause: &Value) -> String {
    let mut text = format!("{} step {}", cause["point"].as_str().unwrap_or("?"), cause["step"]);
    if cause["layers"].as_array().is_some_and(|layers| layers.len() > 1) {
        write!(text, " layers {}", cause["layers"]).unwrap();
    }
    for name in ["head", "token"] {
        if !cause[name].is_null() {
            write!(text, " {name} {}", cause[name]).unwrap();
        }
    }
    write!(text, " {}", cause["signature"].as_str().unwrap_or("none")).unwrap();
    text
}

/// The table of a run: one line a bug, and how many of each file were found.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from("| checkpoint | bug | found | |\n|---|---|---|---|\n");
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for Outcome { bug, found, wrong } in outcomes {
        let right = wrong.is_empty();
        let verdict = match &bug.below_limit {
            Some(why) => format!("below the limit: {why}"),
            None if right => "found".into(),
            None => format!("MISSED: {}; expected {}", wrong.join(", "), expectation(bug)),
        };
        let found = first_words(found, 160);
        writeln!(text, "| {} | `{}` | {found} | {verdict} |", bug.checkpoint(), bug.name())
            .unwrap();
        if bug.below_limit.is_none() {
            let count = counts.entry(bug.file.clone()).or_default();
            *count = (count.0 + usize::from(right), count.1 + 1);
        }
    }
    let sum = counts.values().fold((0, 0), |sum, c| (sum.0 + c.0, sum.1 + c.1));
    text.push('\n');
    for (file, (found, all)) in &counts {
        writeln!(text, "- {file}: {found} of {all}").unwrap();
    }
    writeln!(text, "\n{} of {} seeded bugs above the detection limit are found", sum.0, sum.1)
        .unwrap();
    text
}

fn expectation(bug: &Bug) -> String {
    let causes: Vec<String> = bug.causes().iter().map(Cause::tell).collect();
    causes.join("; then ")
}

fn first_words(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_string(),
        Some((at, _)) => format!("{} …", &text[..at]),
    }
}

/// Panics with those that were missed.
pub fn require_all(outcomes: &[Outcome]) {
    let missed: Vec<String> = outcomes
        .iter()
        .filter(|o| !o.wrong.is_empty())
        .map(|o| {
            let (name, expected) = (o.bug.name(), expectation(&o.bug));
            format!(
                "{name}\n    expected {expected}\n    found    {}\n    {}",
                o.found,
                o.wrong.join(", ")
            )
        })
        .collect();
    assert!(missed.is_empty(), "{} bugs were missed:\n{}", missed.len(), missed.join("\n"));
}
