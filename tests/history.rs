//! Runs that are remembered: by whom, safe from whom, and what `history` says of them.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use run_support::{Place, assert_conforms, diff, fake, texts};
use serde_json::Value;

/// Points that the oracle has no say in: the fakes agree with each other there.
const SOME: [&str; 4] = ["--checkpoint", "ln", "--checkpoint", "qkv"];

struct Kept {
    place: Place,
    history: PathBuf,
}

impl Kept {
    fn new() -> Kept {
        let place = Place::new();
        let history = place.path("history");
        Kept { place, history }
    }

    fn history(&self) -> &str {
        self.history.to_str().unwrap()
    }

    /// A run of a fake against another, remembered.
    fn run(&self, reference: &str) -> Output {
        let (subject, reference) = (fake("--name mine"), format!("x={}", fake(reference)));
        let arguments = ["--subject", &subject, "--ref", &reference, "--history", self.history()];
        self.place.run(&[&SOME[..], &arguments].concat())
    }

    /// `llorch-diff history …`: what it prints, and its exit code.
    fn ask(&self, arguments: &[&str]) -> (String, String, i32) {
        let output =
            diff().arg("history").args(arguments).args(["--history", self.history()]).output();
        let output = output.unwrap();
        let (stdout, stderr) = texts(&output);
        (stdout, stderr, output.status.code().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (stdout, stderr, code) = self.ask(&[arguments, &["--format", "json"]].concat());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.history).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    fn lines(&self) -> Vec<String> {
        let texts = self.files().into_iter().map(|f| fs::read_to_string(f).unwrap());
        texts.flat_map(|t| t.lines().map(String::from).collect::<Vec<_>>()).collect()
    }
}

#[test]
fn a_run_is_one_line_of_its_days_file_that_conforms_to_the_schema() {
    let kept = Kept::new();
    assert_eq!(kept.run("").status.code(), Some(0));
    let lines = kept.lines();
    assert_eq!(lines.len(), 1);
    let record: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_conforms("history", &record);
    let day = &record["started"].as_str().unwrap()[..10];
    assert_eq!(kept.files()[0].file_name().unwrap().to_str().unwrap(), format!("{day}.jsonl"));
    assert_eq!(record["implementations"][1]["version"], "fake 1.0");
    // 2 layers: ln_1, q, k and v.
    assert_eq!(record["points"].as_array().unwrap().len(), 8);
    assert_eq!(record["figures"]["x"]["bits"], record["figures"]["mine"]["bits"]);
    assert_eq!(record["pairs"][0]["verdicts"], "PPPPPPPP");
    let (stdout, _, code) = kept.ask(&[]);
    assert!(code == 0 && stdout.contains("mine, x") && stdout.contains("1 run in "), "{stdout}");
    assert_conforms("history-list", &kept.json(&["list"]));
}

#[test]
fn the_same_again_changed_nothing() {
    let kept = Kept::new();
    kept.run("");
    kept.run("");
    let (stdout, stderr, code) = kept.ask(&["diff"]);
    assert!(code == 0 && stdout.contains("nothing changed"), "{stdout}{stderr}");
    let changes = kept.json(&["diff", "last~1", "last"]);
    assert_conforms("history-diff", &changes);
    assert_eq!(changes["nothing_changed"], true);
}

#[test]
fn another_version_is_told_with_where_its_numbers_change() {
    let kept = Kept::new();
    kept.run("");
    let changed = "--release 1.1 --mode other-bits --point h.1.attn.q";
    assert_eq!(kept.run(changed).status.code(), Some(0));
    let (stdout, ..) = kept.ask(&["diff"]);
    assert!(stdout.contains("x: fake 1.0 → fake 1.1"), "{stdout}");
    assert!(
        stdout.contains("x: its numbers change at 1 of 8 points, first at h.1.attn.q"),
        "{stdout}"
    );
    let changes = kept.json(&["diff"]);
    assert_conforms("history-diff", &changes);
    assert_eq!(changes["bits"][0]["points"], serde_json::json!(["h.1.attn.q"]));
    assert_eq!(changes["verdict"], Value::Null);
    // Worse: the verdict changes too, at that checkpoint.
    let wrong = "--release 1.2 --mode wrong-value --point h.1.attn.q";
    assert_eq!(kept.run(wrong).status.code(), Some(1));
    let changes = kept.json(&["diff"]);
    assert_conforms("history-diff", &changes);
    assert_eq!(changes["verdict"], serde_json::json!(["PASS", "FAIL"]));
    assert_eq!(changes["checkpoints"][0]["number"], 2);
    assert_eq!(changes["verdicts"][0]["new"], "F");
}

#[test]
fn a_point_over_time_in_the_terminal_as_json_and_as_a_picture() {
    let kept = Kept::new();
    kept.run("");
    kept.run("--release 1.1 --mode other-bits --point h.1.attn.q");
    let (stdout, stderr, code) = kept.ask(&["show", "h.1.attn.q", "--error", "pair"]);
    assert!(
        code == 0 && stdout.contains("mine–x") && stdout.contains("too few runs"),
        "{stdout}{stderr}"
    );
    let series = kept.json(&["show", "attn.q", "--error", "pair"]);
    assert_conforms("history-series", &series);
    assert_eq!(series["points"], serde_json::json!(["h.0.attn.q", "h.1.attn.q"]));
    assert_eq!(series["lines"][0]["values"][0], 0.0);
    let second = series["lines"][0]["values"][1].as_f64().unwrap();
    assert!(second > 5e-8 && second < 2e-7, "{second}");
    let picture = kept.place.path("q.svg");
    let output = ["--format", "svg", "--output", picture.to_str().unwrap()];
    let (_, stderr, code) =
        kept.ask(&[&["show", "attn.q", "--error", "pair"][..], &output].concat());
    assert_eq!(code, 0, "{stderr}");
    let svg = fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<circle").count() == 2, "{svg}");
    // The oracle has no say in what fakes answer: nothing is drawn.
    let (_, stderr, code) = kept.ask(&["show", "h.1.attn.q"]);
    assert!(code == 2 && stderr.contains("--error pair"), "{stderr}");
    assert_eq!(kept.ask(&["show", "attn.q", "--error", "pair", "--last", "0"]).2, 2);
    let (stdout, ..) = kept.ask(&["--model", "no-such"]);
    assert!(stdout.contains("2 of other models or names"), "{stdout}");
    let (_, stderr, code) = kept.ask(&["show", "h.7.ln_1"]);
    assert!(code == 2 && stderr.contains("h.7.ln_1") && stderr.contains("2 runs"), "{stderr}");
}

#[test]
fn eight_runs_at_once_are_all_remembered() {
    let kept = Kept::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(kept.run("").status.code(), Some(0)));
        }
    });
    let list = kept.json(&["list"]);
    assert_eq!(list["runs"].as_array().unwrap().len(), 8);
    assert_eq!(list["skipped"], serde_json::json!([]));
}

#[test]
fn a_record_torn_by_a_kill_is_reported_and_the_next_one_stands_alone() {
    let kept = Kept::new();
    kept.run("");
    let file = kept.files().remove(0);
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{whole}{}", &whole[..whole.len() / 2])).unwrap();
    let (stdout, stderr, code) = kept.ask(&[]);
    assert!(code == 0 && stdout.contains("1 run in"), "{stdout}");
    assert!(stderr.contains("skipped line 2") && stderr.contains("torn"), "{stderr}");
    kept.run("");
    let list = kept.json(&["list"]);
    assert_eq!(list["runs"].as_array().unwrap().len(), 2);
    assert_eq!(list["skipped"][0]["line"], 2);
}

#[test]
fn a_place_that_can_not_be_written_is_told_before_the_run() {
    let kept = Kept::new();
    fs::write(&kept.history, "a file").unwrap();
    let output = kept.run("");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stdout.is_empty() && stderr.contains(kept.history()), "{stderr}");
    for (place, code) in [("ftp://x/y", 2), ("", 2), ("none", 2)] {
        let output = diff().args(["history", "--history", place]).output().unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{place}: {stderr}");
    }
}

#[test]
fn without_a_word_runs_go_into_the_data_folder_and_parts_nowhere() {
    let place = Place::new();
    let data = place.path("data");
    let (subject, reference) = (fake("--name mine"), format!("x={}", fake("")));
    let run = |more: &[&str]| {
        let mut command = place.command("run");
        command.args(SOME).args(["--subject", &subject, "--ref", &reference]).args(more);
        command.env_remove("LLORCH_HISTORY").env("LLORCH_DATA", &data).output().unwrap()
    };
    let count = |dir: &Path| fs::read_dir(dir).map_or(0, Iterator::count);
    let out = place.path("part");
    assert_eq!(run(&["--partition", "1/2", "--out", out.to_str().unwrap()]).status.code(), Some(0));
    assert_eq!(count(&data.join("history")), 0);
    assert_eq!(run(&[]).status.code(), Some(0));
    assert_eq!(count(&data.join("history")), 1);
    // A default place that can't be written is no reason not to run.
    fs::remove_dir_all(&data).unwrap();
    fs::write(&data, "a file").unwrap();
    let output = run(&[]);
    let (_, stderr) = texts(&output);
    assert!(output.status.code() == Some(0) && stderr.contains("will not be recorded"), "{stderr}");
}
