//! `llorch-diff nightly`: a matrix of runs, night after night.
//!
//! The adapters are fakes that agree with each other and with no GPT-2, on points that the oracle has no
//! say in.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use run_support::browser::{chromium, python};
use run_support::{Place, assert_conforms, diff, fake, repository, texts};
use serde_json::{Value, json};

/// A folder with a config, a history and a model.
struct Nights {
    place: Place,
}

/// One night as a user sees it.
struct Night {
    stdout: String,
    stderr: String,
    code: i32,
    out: PathBuf,
}

impl Nights {
    fn new() -> Nights {
        Nights { place: Place::new() }
    }

    /// A config with one matrix: the tiny model, and whatever else.
    fn config(&self, reference: &str, more_models: &str) {
        let text = format!(
            "schema = \"llorch.nightly/1\"\n[[matrix]]\nmodels = [{:?}{more_models}]\nsuites = [\"suite.toml\"]\n\
             checkpoints = [\"ln\", \"qkv\"]\nsubject = {:?}\nreferences = [{:?}]\n",
            self.place.path("model").to_str().unwrap(),
            fake("--name mine"),
            format!("x={}", fake(reference)),
        );
        fs::write(self.place.path("nightly.toml"), text).unwrap();
    }

    fn night(&self, more: &[&str]) -> Night {
        let out = self.place.path("night");
        let output = diff()
            .arg("nightly")
            .args(["--config", self.place.path("nightly.toml").to_str().unwrap()])
            .args(["--history", self.place.path("history").to_str().unwrap()])
            .args(["--out", out.to_str().unwrap(), "--no-provision"])
            .args(more)
            .env("LLORCH_CACHE", self.place.path("cache"))
            .env("HF_HOME", self.place.path("hub"))
            // Nobody listens there.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .output()
            .unwrap();
        let (stdout, stderr) = texts(&output);
        Night { stdout, stderr, code: output.status.code().unwrap(), out }
    }
}

impl Night {
    fn json(&self) -> Value {
        let text = fs::read_to_string(self.out.join("nightly.json"));
        let night = text.unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr));
        let night = serde_json::from_str(&night).unwrap();
        assert_conforms("nightly", &night);
        night
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn first_line(&self) -> &str {
        self.stdout.lines().next().unwrap_or_default()
    }
}

#[test]
fn twice_in_a_row_nothing_changed_and_another_version_is_told_with_where() {
    let nights = Nights::new();
    nights.config("", "");
    let first = nights.night(&[]);
    assert_eq!(first.code, 0, "{}{}", first.stdout, first.stderr);
    assert!(first.first_line().starts_with("PASS · the first night"), "{}", first.stdout);
    assert_eq!(first.json()["news"]["since"], Value::Null);

    let second = nights.night(&[]);
    assert!(
        second.first_line().starts_with("PASS · nothing changed since 20"),
        "{}",
        second.stdout
    );
    assert_eq!(second.json()["news"]["nothing_changed"], true);
    assert!(second.file("summary.md").starts_with("# PASS · nothing changed"));
    assert!(second.file("index.html").contains("nothing changed since"));
    let page = second.file("runs/model-suite-f32/index.html");
    assert!(page.contains("<!doctype html>") && page.contains("llorch-diff run --model"));

    nights.config("--release 1.1 --mode other-bits --point h.1.attn.q", "");
    let third = nights.night(&[]);
    assert_eq!(third.code, 0, "{}{}", third.stdout, third.stderr);
    let told = ["1 of 1 changed since", "x: fake 1.0 → fake 1.1", "first at h.1.attn.q"];
    for part in told {
        assert!(third.stdout.contains(part), "{part}: {}", third.stdout);
        assert!(third.file("summary.md").contains(part), "{part}: {}", third.file("summary.md"));
        assert!(third.file("index.html").contains(part), "{part}");
    }
    let night = third.json();
    assert_eq!(night["news"]["new_failures"], json!([]));
    assert_eq!(night["runs"][0]["changes"]["bits"][0]["points"], json!(["h.1.attn.q"]));
}

#[test]
fn a_failure_is_new_once_and_mended_once() {
    let nights = Nights::new();
    nights.config("", "");
    nights.night(&[]);
    nights.config("--mode wrong-value --point h.1.attn.q", "");
    let failing = nights.night(&[]);
    assert_eq!(failing.code, 1, "{}{}", failing.stdout, failing.stderr);
    assert_eq!(failing.json()["runs"][0]["failures"].as_array().unwrap().len(), 1);
    let new = &failing.json()["news"]["new_failures"];
    assert_eq!(new.as_array().unwrap().len(), 1, "{new}");
    assert!(failing.file("index.html").contains("New failure"));
    let junit = failing.file("junit.xml");
    assert!(
        junit.contains("<failure") && junit.contains("model-suite-f32: 2 QKV projection"),
        "{junit}"
    );
    let shots = repository().join("target/reports/nightly");
    let look = Command::new(python())
        .arg(repository().join("tests/browser/night.py"))
        .args([chromium(), &failing.out, &shots])
        .output()
        .unwrap();
    assert!(look.status.success(), "{}", texts(&look).1);
    let again = nights.night(&[]);
    assert!(again.first_line().starts_with("FAIL · nothing changed"), "{}", again.stdout);
    assert_eq!((again.code, &again.json()["news"]["new_failures"]), (1, &json!([])));
    nights.config("", "");
    let mended = nights.night(&[]);
    assert_eq!(mended.code, 0);
    assert_eq!(mended.json()["news"]["mended"].as_array().unwrap().len(), 1);
}

#[test]
fn weights_that_can_not_be_had_are_incomplete_by_name_and_the_rest_runs() {
    let nights = Nights::new();
    nights.config("", ", \"gpt2\"");
    let night = nights.night(&[]);
    assert_eq!(night.code, 4, "{}{}", night.stdout, night.stderr);
    let json = night.json();
    assert_eq!(json["verdict"], "INCOMPLETE");
    assert_eq!(json["runs"][0]["verdict"], "PASS");
    assert_eq!(
        (&json["runs"][1]["name"], &json["runs"][1]["verdict"]),
        (&json!("gpt2-suite-f32"), &json!("INCOMPLETE"))
    );
    let reason = json["runs"][1]["unchecked"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("127.0.0.1:9"), "{reason}");
    assert!(night.file("summary.md").contains("gpt2-suite-f32"), "{}", night.file("summary.md"));
    assert!(night.file("junit.xml").contains("<skipped"));
    // Still not there: no news, and no success.
    let again = nights.night(&[]);
    assert!(again.first_line().starts_with("INCOMPLETE · nothing changed"), "{}", again.stdout);
    assert_eq!(again.code, 4);
}

#[test]
fn figures_are_compared_across_a_night_that_had_none() {
    let nights = Nights::new();
    nights.config("", "");
    nights.night(&[]);
    let (model, away) = (nights.place.path("model"), nights.place.path("model/away"));
    let weights = model.join("model.safetensors");
    fs::rename(&weights, &away).unwrap();
    assert_ne!(nights.night(&[]).code, 0);
    fs::rename(&away, &weights).unwrap();
    nights.config("--release 1.1 --mode other-bits --point h.1.attn.q", "");
    let back = nights.night(&[]);
    assert_eq!(back.code, 0, "{}{}", back.stdout, back.stderr);
    for part in ["x: fake 1.0 → fake 1.1", "first at h.1.attn.q", "verdict: "] {
        assert!(back.stdout.contains(part), "{part}: {}", back.stdout);
    }
}

#[test]
fn a_crash_of_the_subject_is_an_error_and_the_night_goes_on() {
    let nights = Nights::new();
    nights.config("", "");
    let config = nights.place.path("nightly.toml");
    let text = fs::read_to_string(&config).unwrap();
    let other = text
        .replace("--name mine", "--mode exit-at-start")
        .replace("schema = \"llorch.nightly/1\"\n", "");
    let other = other.replace("suite.toml", "other.toml");
    fs::copy(nights.place.path("suite.toml"), nights.place.path("other.toml")).unwrap();
    fs::write(&config, text + &other).unwrap();
    let night = nights.night(&[]);
    assert_eq!(night.code, 5, "{}{}", night.stdout, night.stderr);
    let json = night.json();
    assert_eq!(
        (&json["runs"][0]["verdict"], &json["runs"][1]["verdict"]),
        (&json!("PASS"), &json!("ERROR"))
    );
    assert!(
        json["news"]["new_failures"][0].as_str().unwrap().contains("model-other-f32"),
        "{json:#}"
    );
}

#[test]
fn a_subject_that_can_not_be_found_is_an_error_and_news() {
    let nights = Nights::new();
    nights.config("", "");
    nights.night(&[]);
    let config = nights.place.path("nightly.toml");
    let text = fs::read_to_string(&config).unwrap();
    let subject = text.lines().find(|l| l.starts_with("subject")).unwrap();
    fs::write(&config, text.replace(subject, "subject = \"no-such-engine --x\"")).unwrap();
    let night = nights.night(&[]);
    assert_eq!(night.code, 5, "{}{}", night.stdout, night.stderr);
    let new = night.json()["news"]["new_failures"].to_string();
    assert!(new.contains("no-such-engine"), "{new}");
    // What the night says, history says again, although one of the two has no figures.
    let diff = diff()
        .args(["history", "diff", "--history", nights.place.path("history").to_str().unwrap()])
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&diff);
    assert!(diff.status.success() && stdout.contains("verdict: PASS → ERROR"), "{stdout}{stderr}");
}

#[test]
fn a_reference_that_breaks_is_one_line_and_no_figure_of_its_is_called_wrong() {
    let nights = Nights::new();
    nights.config("", "");
    nights.night(&[]);
    nights.config("--mode exit-at-start", "");
    let night = nights.night(&[]);
    assert_eq!(night.code, 4, "{}{}", night.stdout, night.stderr);
    assert!(night.stdout.contains("x: fake 1.0 → broken: "), "{}", night.stdout);
    assert!(!night.stdout.contains("not finite"), "{}", night.stdout);
    assert_eq!(night.stdout.matches("  checkpoint").count(), 1, "{}", night.stdout);
}

#[test]
fn two_nights_do_not_write_into_one_folder_at_once() {
    let nights = Nights::new();
    nights.config("", "");
    nights.night(&[]);
    let mark = fs::File::open(nights.place.path("night/.llorch-nightly")).unwrap();
    mark.lock().unwrap();
    let refused = nights.night(&[]);
    assert!(refused.code == 3 && refused.stderr.contains("another night"), "{}", refused.stderr);
    assert!(nights.place.path("night/nightly.json").exists(), "nothing was cleared");
    drop(mark);
    assert_eq!(nights.night(&[]).code, 0);
}

#[test]
fn folders_of_models_are_found_beside_the_config() {
    let nights = Nights::new();
    nights.config("", "");
    let config = nights.place.path("nightly.toml");
    let text = fs::read_to_string(&config).unwrap();
    let model = format!("{:?}", nights.place.path("model").to_str().unwrap());
    fs::write(&config, text.replace(&model, "\"model\"")).unwrap();
    let night = nights.night(&[]);
    assert_eq!(night.code, 0, "{}{}", night.stdout, night.stderr);
    assert_eq!(night.json()["runs"][0]["name"], "model-suite-f32");
}

#[test]
fn what_can_not_be_meant_is_told_before_anything_runs() {
    let nights = Nights::new();
    nights.config("", "");
    let none = nights.night(&["--only", "no-such-*"]);
    assert!(none.code == 2 && none.stderr.contains("model-suite-f32"), "{}", none.stderr);
    fs::create_dir(nights.place.path("night")).unwrap();
    fs::write(nights.place.path("night/mine.txt"), "precious").unwrap();
    let refused = nights.night(&[]);
    assert!(refused.code == 2 && refused.stderr.contains("other files"), "{}", refused.stderr);
    assert!(nights.place.path("night/mine.txt").exists());
    fs::write(nights.place.path("nightly.toml"), "schema = \"llorch.nightly/1\"\nmatrix = 3\n")
        .unwrap();
    let bad = nights.night(&[]);
    assert!(bad.code == 2 && bad.stderr.contains("nightly.toml"), "{}", bad.stderr);
    assert!(!nights.place.path("history").exists());
}

#[test]
fn without_a_history_there_is_no_news_and_the_page_says_so() {
    let nights = Nights::new();
    nights.config("", "");
    let night = nights.night(&["--history", "none"]);
    // Named twice, the last one counts for nobody: clap refuses it.
    assert_eq!(night.code, 2, "{}", night.stdout);
    let out = nights.place.path("night");
    let output = diff()
        .args(["nightly", "--history", "none", "--no-provision", "--keep"])
        .args(["--config", nights.place.path("nightly.toml").to_str().unwrap()])
        .args(["--out", out.to_str().unwrap()])
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.starts_with("PASS · no history is kept"), "{stdout}");
    // With --keep the run's folder is one that other commands read.
    let judged = diff().arg("judge").arg(out.join("runs/model-suite-f32")).output().unwrap();
    assert_eq!(judged.status.code(), Some(0), "{}", texts(&judged).1);
}
