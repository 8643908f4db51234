//! `run --partition` and `merge`: a run that several machines share, against the same run in one piece,
//! and parts that don't belong together. The NumPy adapter is installed first where it isn't yet.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use run_support::seeded::command_of;
use run_support::{Place, assert_conforms, diff, fake, implementation, repository, texts};
use serde_json::Value;

fn result(dir: &Path) -> Value {
    let result = serde_json::from_slice(&std::fs::read(dir.join("result.json")).unwrap()).unwrap();
    assert_conforms("result", &result);
    result
}

/// Without what is no part of the answer.
fn answer(dir: &Path) -> Value {
    let mut result = result(dir);
    for field in ["started", "seconds", "command"] {
        result.as_object_mut().unwrap().remove(field).unwrap();
    }
    result
}

fn merge(dirs: &[&Path], out: &Path) -> Output {
    diff().arg("merge").args(dirs).arg("--out").arg(out).output().unwrap()
}

fn tensors(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name).join("tensors.safetensors")).unwrap()
}

/// Runs all at the same time.
fn all(commands: Vec<Command>) {
    let running: Vec<_> = commands
        .into_iter()
        .map(|mut c| c.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for one in running {
        let output = one.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    }
}

#[test]
fn four_parts_merge_to_the_whole() {
    command_of("numpy");
    let dir = tempfile::tempdir().unwrap();
    let run = |out: &str| {
        let mut run = diff();
        run.args(["run", "--threads", "1", "--ref", "numpy", "--ref", "numpy:sequential"]);
        run.arg("--out").arg(dir.path().join(out));
        run
    };
    all(vec![run("whole")]);
    let part = |k: usize| {
        let mut part = run(&format!("part-{k}"));
        part.args(["--partition", &format!("{k}/4")]);
        part
    };
    all((1..=4).map(part).collect());

    let parts = [3, 1, 4, 2].map(|k| dir.path().join(format!("part-{k}")));
    let (whole, joined) = (dir.path().join("whole"), dir.path().join("joined"));
    let output = merge(&parts.each_ref().map(|p| p.as_path()), &joined);
    assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    assert!(
        texts(&output)
            .0
            .starts_with("PASS · llorch-cpud matches numpy and numpy:sequential at all 13")
    );
    assert_eq!(answer(&joined), answer(&whole));
    for name in ["llorch-cpud", "numpy", "numpy-sequential", "oracle"] {
        assert!(tensors(&joined, name) == tensors(&whole, name), "{name}");
    }
    // Kept, for people to look at.
    let kept = repository().join("target/reports/merged");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::copy(joined.join("result.json"), kept.join("result.json")).unwrap();
    // The command is that of the whole run.
    let command = result(&joined)["command"].to_string();
    assert!(!command.contains("--partition") && command.contains("joined"), "{command}");
    // What was joined is a run like any other.
    let judged = diff().arg("judge").arg(&joined).output().unwrap();
    assert_eq!(judged.status.code(), Some(0), "{}", texts(&judged).1);
}

#[test]
fn references_can_be_given_out_too() {
    command_of("numpy");
    let dir = tempfile::tempdir().unwrap();
    let run = |out: &str, more: &[&str]| {
        let mut run = diff();
        run.args([
            "run",
            "--threads",
            "1",
            "--ref",
            "numpy",
            "--ref",
            "numpy:sequential",
            "--prompt",
            "Hello.",
        ]);
        run.args(more).arg("--out").arg(dir.path().join(out));
        run
    };
    let part = |part: &'static str| ["--partition", part, "--partition-by", "reference"];
    all(vec![run("whole", &[]), run("one", &part("1/2")), run("two", &part("2/2"))]);
    let path = |name: &str| dir.path().join(name);
    let output = merge(&[&path("one"), &path("two")], &path("joined"));
    assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    assert_eq!(answer(&path("joined")), answer(&path("whole")));

    let output = merge(&[&path("two")], &path("half"));
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(
        stdout.contains("part 1 of 2: it was not merged; its references are numpy"),
        "{stdout}"
    );
    assert_eq!(implementation(&result(&path("half")), "numpy")["status"], "missing");
    let found = diff().args(["bisect", "--from"]).arg(path("half")).output().unwrap();
    assert_eq!(found.status.code(), Some(4), "{}", texts(&found).0);
    assert!(texts(&found).0.contains("INCOMPLETE: part 1 of 2: it was not merged"));
}

/// Two parts of a run of fakes.
struct Parts {
    place: Place,
}

impl Parts {
    fn new() -> Parts {
        let parts = Parts { place: Place::new() };
        for k in ["1", "2"] {
            parts.run(k, &[]);
        }
        parts
    }

    fn run(&self, k: &str, more: &[&str]) {
        let out = self.place.path(&format!("part-{k}"));
        let (subject, reference) = (fake(""), format!("x={}", fake("--name x")));
        let output = self
            .place
            .command("run")
            .args(["--subject", &subject, "--ref", &reference, "--partition", &format!("{k}/2")])
            .args(more)
            .arg("--out")
            .arg(out)
            .output()
            .unwrap();
        assert!(output.status.code().is_some_and(|c| c != 2), "{}", texts(&output).1);
    }

    fn merge(&self, parts: &[&str]) -> Output {
        let dirs: Vec<_> = parts.iter().map(|name| self.place.path(name)).collect();
        let dirs: Vec<&Path> = dirs.iter().map(|dir| dir.as_path()).collect();
        merge(&dirs, &self.place.path("joined"))
    }

    fn refused(&self, parts: &[&str], why: &str) {
        let output = self.merge(parts);
        assert_eq!(output.status.code(), Some(2), "{}", texts(&output).0);
        assert!(texts(&output).1.contains(why), "{}", texts(&output).1);
        assert!(!self.place.path("joined").exists());
    }

    /// Changes a part's file as text.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.place.path(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
}

#[test]
fn a_missing_part_is_named_with_its_cases() {
    let parts = Parts::new();
    let output = parts.merge(&["part-1"]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stdout.starts_with("INCOMPLETE"), "{stdout}");
    assert!(stdout.contains("part 2 of 2: it was not merged; its cases are second"), "{stdout}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let parts = Parts::new();
    parts.refused(&["part-1", "part-1"], "both are part 1 of 2; expected each part once");
    parts.run("2", &["--checkpoint", "ln"]);
    parts.refused(&["part-1", "part-2"], "they were asked for different things");
    parts.run("2", &[]);
    parts.edit("part-2/evidence.json", "fake 1.0", "fake 2.0");
    parts.refused(&["part-1", "part-2"], "is fake 1.0 and fake 2.0");
    parts.run("2", &[]);
    for (k, lock) in [("1", "a"), ("2", "b")] {
        let lock = format!("\"lock_sha256\": \"{}\"", lock.repeat(64));
        parts.edit(&format!("part-{k}/evidence.json"), "\"lock_sha256\": null", &lock);
    }
    parts
        .refused(&["part-1", "part-2"], "was installed from the lock files aaaaaaaaaaaa… and bbbb");
    parts.run("1", &[]);
    parts.run("2", &[]);
    let sha256 =
        result(&parts.place.path("part-2"))["model"]["sha256"].as_str().unwrap().to_string();
    parts.edit("part-2/result.json", &sha256, &"0".repeat(64));
    parts.refused(&["part-1", "part-2"], "their models differ");
    parts.refused(&["part-1", "nothing"], "nothing/result.json: it is not there");
}

#[test]
fn what_is_no_part_and_no_place_is_refused() {
    let parts = Parts::new();
    let (subject, reference) = (fake(""), format!("x={}", fake("--name x")));
    let base = ["--subject", &subject, "--ref", &reference];
    let whole = parts.place.path("whole");
    let output = parts.place.run(&[&base[..], &["--out", whole.to_str().unwrap()]].concat());
    assert_ne!(output.status.code(), Some(2), "{}", texts(&output).1);
    parts.refused(&["whole"], "found a whole run; expected one that was made with --partition K/N");

    let first = parts.place.path("part-1");
    let output = merge(&[&first], &first);
    assert!(texts(&output).1.contains("it is one of the parts"), "{}", texts(&output).1);
    assert!(first.join("result.json").exists());

    let out = parts.place.path("more");
    let out = out.to_str().unwrap();
    let cases: [(&[&str], &str); 4] = [
        (&["--partition", "1/3", "--out", out], "found 2 cases for 3 parts"),
        (&["--partition", "3/2", "--out", out], "expected K/N with K from 1 to N"),
        (
            &["--partition", "1/2", "--partition-by", "reference", "--out", out],
            "found 1 references for 2",
        ),
        (&["--partition", "1/2"], "--out"),
    ];
    for (arguments, expected) in cases {
        let output = parts.place.run(&[&base, arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(texts(&output).1.contains(expected), "{arguments:?}: {}", texts(&output).1);
    }
}
