//! `llorch-diff golden record` and `golden review`: what waits, what is shown, what is accepted.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use llorch_trace::tensor::TensorData;
use llorch_trace::{Bundle, BundleWriter, Manifest, Tensor};
use run_support::{assert_conforms, diff, repository, texts};
use serde_json::{Value, json};

const NAMES: [&str; 2] = ["hf-f32", "hf-f64"];
const FILES: [&str; 2] = ["manifest.json", "tensors.safetensors"];

/// A copy of the accepted goldens, and a recording in which some values are others.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// Every value of these points, by bundle, has something added.
    fn new(changes: &[(&str, &str, f64)]) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        for name in NAMES {
            let (from, to) = (repository().join("golden/nano").join(name), place.nano().join(name));
            fs::create_dir_all(&to).unwrap();
            for file in FILES {
                fs::copy(from.join(file), to.join(file)).unwrap();
            }
            let added = |point: &str| {
                let fits = |c: &&(&str, &str, f64)| c.0 == name && c.1 == point;
                changes.iter().find(fits).map_or(0.0, |c| c.2)
            };
            write_changed(&from, &place.path("fresh").join(name), added);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn nano(&self) -> PathBuf {
        self.path("nano")
    }

    fn golden(&self, arguments: &[&str]) -> Command {
        let mut command = diff();
        // No hub cache, so that no machine's GPT-2 is found.
        command.arg("golden").args(arguments).args(["--dir", "nano"]).current_dir(self.dir.path());
        command.env("HF_HOME", self.path("home")).env("HF_HUB_OFFLINE", "1");
        command.env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        said(&self.golden(arguments).output().unwrap())
    }

    fn record(&self) -> (i32, String, String) {
        self.run(&["record", "--from", "fresh"])
    }

    fn review(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, stdout, stderr) =
            self.run(&[&["review", "--format", "json"], arguments].concat());
        let review: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
        assert_conforms("golden-review", &review);
        (code, review)
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        let all = NAMES.iter().flat_map(|n| FILES.iter().map(move |f| (n, f)));
        all.map(|(name, file)| fs::read(self.nano().join(name).join(file)).unwrap()).collect()
    }

    fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.nano().join("reviews.jsonl")).unwrap_or_default();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        lines.iter().for_each(|line| assert_conforms("golden-log", line));
        lines
    }
}

fn said(output: &Output) -> (i32, String, String) {
    let (stdout, stderr) = texts(output);
    (output.status.code().unwrap(), stdout, stderr)
}

fn write_changed(from: &Path, to: &Path, added: impl Fn(&str) -> f64) {
    let bundle = Bundle::open(from).unwrap();
    let mut writer = BundleWriter::create(to).unwrap();
    for e in &bundle.manifest.tensors {
        let tensor = bundle.get(&e.case, e.step, &e.point).unwrap();
        let by = added(e.point.split('#').next().unwrap());
        let data = match tensor.data {
            TensorData::F32(v) => TensorData::F32(v.iter().map(|x| x + by as f32).collect()),
            TensorData::F64(v) => TensorData::F64(v.iter().map(|x| x + by).collect()),
            other => other,
        };
        writer.add(&e.case, e.step, &e.point, &Tensor::new(tensor.shape, data)).unwrap();
    }
    let mut manifest = Manifest { ..bundle.manifest.clone() };
    manifest.provenance["by"] = json!("transformers 99, torch 98");
    writer.finish(manifest).unwrap();
}

#[test]
fn what_is_recorded_waits_beside_the_goldens_and_a_strict_check_fails() {
    let place = Place::new(&[("hf-f32", "h.1.mlp.out", 1e-3), ("hf-f64", "h.3.ln_2", 1e-9)]);
    let before = place.bytes();
    let (code, stdout, stderr) = place.record();
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stdout.contains("nothing accepted was touched") && stdout.contains("torch 98"));
    assert_eq!(place.bytes(), before);
    let record = fs::read_to_string(place.nano().join("pending/pending.json")).unwrap();
    assert!(record.contains("transformers 99") && record.contains("golden record --from fresh"));

    let (code, stdout, _) = place.run(&["check", "--offline", "--format", "json"]);
    let result: Value = serde_json::from_str(&stdout).unwrap();
    assert_conforms("golden", &result);
    assert_eq!((code, &result["verdict"]), (0, &json!("PASS")));
    let units = json!(["hf-f32/h.1.mlp.out", "hf-f64/h.3.ln_2"]);
    assert_eq!(result["pending"]["units"], units);

    let (code, stdout, _) = place.run(&["check", "--offline", "--strict"]);
    assert_eq!(code, 1, "{stdout}");
    let last = stdout.lines().last().unwrap();
    assert!(stdout.starts_with("FAIL") && last.starts_with("FAIL pending 2 units"), "{stdout}");
    assert!(last.contains("hf-f32/h.1.mlp.out, hf-f64/h.3.ln_2; decide with"), "{last}");

    // Recorded again, and now nothing changes: nothing is left pending.
    let (code, stdout, _) = place.run(&["record", "--from", "nano"]);
    assert!(code == 0 && stdout.contains("nothing changes"), "{stdout}");
    assert!(!place.nano().join("pending").exists());
    assert_eq!(place.bytes(), before);
    let (code, stdout, _) = place.run(&["review"]);
    assert!(code == 0 && stdout.contains("nothing is pending in nano"), "{stdout}");
}

#[test]
fn both_sides_are_held_to_the_oracle() {
    let place = Place::new(&[
        ("hf-f64", "h.3.ln_2", 1e-9),
        ("hf-f64", "h.0.attn.scores", 1e-6),
        ("hf-f64", "next.probs", 1e-7),
        ("hf-f32", "h.1.mlp.out", 0.5),
    ]);
    place.record();
    let error = |tensor: &Value, side: &str| tensor[side].as_f64().unwrap();
    let tensors = |review: &Value, unit: &str| -> Vec<Value> {
        let all = review["bundles"].as_array().unwrap().iter();
        let mut units = all.flat_map(|b| b["units"].as_array().unwrap().clone());
        let found = units.find(|u| u["unit"] == unit).unwrap_or_else(|| panic!("{unit}"));
        found["tensors"].as_array().unwrap().clone()
    };
    let (code, review) = place.review(&[]);
    assert_eq!((code, review["pending"].as_array().unwrap().len()), (1, 4));
    // The float64 goldens are the oracle's to 1e-10, so the error is what was added.
    for (unit, added) in
        [("hf-f64/h.3.ln_2", 1e-9), ("hf-f64/h.0.attn.scores", 1e-6), ("hf-f64/next.probs", 1e-7)]
    {
        for tensor in tensors(&review, unit) {
            assert!((error(&tensor, "new_error") / added - 1.0).abs() < 1e-2, "{unit}: {tensor}");
            assert!(error(&tensor, "old_error") < 1e-10, "{unit}: {tensor}");
            assert_eq!((&tensor["nearer"], &tensor["change"]), (&json!("old"), &json!("changed")));
        }
    }
    let beyond = tensors(&review, "hf-f32/h.1.mlp.out");
    assert!(beyond.iter().all(|t| t["beyond_tolerance"] == true && error(t, "new_error") > 0.49));
    let (_, stdout, _) = place.run(&["review", "--only", "hf-f32*", "--format", "md"]);
    assert!(stdout.contains("the new one is beyond the tolerance"), "{stdout}");
    assert!(stdout.contains("old  transformers 5") && stdout.contains("new  transformers 99"));
    assert!(!stdout.contains("h.3.ln_2"), "{stdout}");
    // The other way round: what was wrong is accepted, what is right waits.
    let reasoned = ["review", "--accept-all", "--reason", "a test"];
    assert_eq!(place.run(&reasoned).0, 0);
    let from = repository().join("golden/nano");
    assert_eq!(place.run(&["record", "--from", from.to_str().unwrap()]).0, 1);
    let (_, review) = place.review(&["--only", "hf-f64/h.3.ln_2"]);
    assert!(tensors(&review, "hf-f64/h.3.ln_2").iter().all(|t| t["nearer"] == "new"));
}

#[test]
fn accepting_needs_a_reason_and_is_remembered_with_it() {
    let place = Place::new(&[("hf-f32", "h.1.mlp.out", 1e-6), ("hf-f64", "h.3.ln_2", 1e-9)]);
    place.record();
    let before = place.bytes();
    for arguments in [
        &["--accept-all"][..],
        &["--accept-all", "--reason", "  "],
        &["--reject-all", "--accept-all", "--reason", "x"],
        &["--accept-all", "--reason", "x", "--only", "hf-f16*"],
    ] {
        let (code, _, stderr) = place.run(&[&["review"], arguments].concat());
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = place.run(&["review", "--only", "hf-f16*"]);
    assert!(code == 2 && stderr.contains("there are hf-f32/h.1.mlp.out, hf-f64/h.3.ln_2"));
    assert_eq!((place.bytes() == before, place.log().len()), (true, 0));

    let some = ["--accept-all", "--reason", "torch 98", "--only", "hf-f64/*"];
    let (code, review) = place.review(&some);
    assert_eq!((code, &review["pending"]), (1, &json!(["hf-f32/h.1.mlp.out"])));
    assert_eq!(review["decided"][0]["unit"], "hf-f64/h.3.ln_2");
    let (code, review) = place.review(&["--reject-all", "--reason", "noise"]);
    assert_eq!((code, &review["pending"]), (0, &json!([])));
    let log = place.log();
    let told: Vec<_> = log.iter().map(|l| (&l["unit"], &l["decision"], &l["reason"])).collect();
    let (first, second) = (json!("hf-f64/h.3.ln_2"), json!("hf-f32/h.1.mlp.out"));
    assert_eq!(told[0], (&first, &json!("accepted"), &json!("torch 98")));
    assert_eq!(told[1], (&second, &json!("rejected"), &json!("noise")));
    assert!(log[0]["old"]["by"].as_str().unwrap().starts_with("transformers 5"));
    assert_eq!(log[0]["new"]["by"], "transformers 99, torch 98");
    assert_ne!(log[0]["old"]["tensors_sha256"], log[0]["new"]["tensors_sha256"]);
    // What was accepted is as it was recorded, what was rejected as it was.
    let read =
        |folder: &str, bundle: &str| fs::read(place.path(folder).join(bundle).join(FILES[1]));
    assert_eq!(read("nano", "hf-f64").unwrap(), read("fresh", "hf-f64").unwrap());
    assert_eq!((&place.bytes()[0], &place.bytes()[1]), (&before[0], &before[1]));
    let (code, stdout, _) = place.run(&["check", "--offline", "--strict"]);
    assert!(code == 0 && stdout.starts_with("PASS"), "{stdout}");
}

#[test]
fn at_a_terminal_it_asks_about_one_after_the_other() {
    let changes = [
        ("hf-f32", "h.1.mlp.out", 1e-6),
        ("hf-f32", "h.2.ln_1", 1e-7),
        ("hf-f64", "h.3.ln_2", 1e-9),
    ];
    let place = Place::new(&changes);
    place.record();
    let answers = json!([
        ["[?]", "?"],
        ["[?]", "a"],
        ["why?", ""],
        ["why?", "torch 98"],
        ["[?]", "r"],
        ["why?", ""],
        ["[?]", "q"],
    ]);
    let command = place.golden(&["review"]);
    let mut terminal = Command::new("python3");
    terminal.arg(repository().join("tests/fixtures/terminal.py")).arg(answers.to_string());
    terminal.arg(command.get_program()).args(command.get_args()).current_dir(place.dir.path());
    let (code, out, stderr) = said(&terminal.output().unwrap());
    assert_eq!(code, 1, "{out}{stderr}");
    for text in [
        "1 of 3: hf-f32/h.1.mlp.out",
        "a reason is needed",
        "(Enter: torch 98)",
        "2 decided, 1 pending",
    ] {
        assert!(out.contains(text), "{text}: {out}");
    }
    let log = place.log();
    assert_eq!((log.len(), &log[1]["reason"]), (2, &json!("torch 98")));
    // A bundle of old and new, each tensor with who recorded it.
    let bundle = Bundle::open(&place.nano().join("hf-f32")).unwrap();
    bundle.verify().unwrap();
    let recordings = bundle.manifest.provenance["recordings"].as_array().unwrap();
    assert_eq!((recordings.len(), &recordings[0]["by"]), (1, &json!("transformers 99, torch 98")));
    let keys = recordings[0]["tensors"].as_array().unwrap();
    assert!(keys.iter().all(|k| k.as_str().unwrap().contains("/h.1.mlp.out")) && keys.len() == 22);
    let (_, review) = place.review(&[]);
    assert_eq!(review["pending"], json!(["hf-f64/h.3.ln_2"]));
    let (code, stdout, _) = place.run(&["check", "--offline"]);
    assert!(code == 0 && stdout.contains("PENDING 1 unit in nano/pending"), "{stdout}");
}

#[test]
fn damage_is_named_and_a_check_of_other_goldens_goes_on() {
    let place = Place::new(&[("hf-f32", "h.1.mlp.out", 1e-6)]);
    place.record();
    let file = place.nano().join("pending/hf-f32/tensors.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    for arguments in [&["review"][..], &["review", "--accept-all", "--reason", "x"]] {
        let (code, _, stderr) = place.run(arguments);
        let named = stderr.contains("nano/pending/hf-f32/tensors.safetensors");
        assert!(code == 2 && named && stderr.contains("remove nano/pending"), "{stderr}");
    }
    let (code, stdout, _) = place.run(&["check", "--offline"]);
    assert!(code == 0 && stdout.contains("PENDING nano/pending: failed to read"), "{stdout}");
    assert_eq!(place.run(&["check", "--offline", "--strict"]).0, 1);
    fs::remove_file(place.nano().join("hf-f64/manifest.json")).unwrap();
    let (code, _, stderr) = place.run(&["check", "--offline"]);
    assert!(code == 2 && stderr.contains("nano/hf-f64/manifest.json"), "{stderr}");
}

#[test]
fn without_a_checkout_nothing_can_be_pending() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = diff();
    command.args(["golden", "check", "--strict", "--offline", "--format", "json"]);
    command.env("HF_HOME", empty.path()).current_dir(empty.path());
    let (code, stdout, stderr) = said(&command.output().unwrap());
    let result: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    assert_eq!((code, &result["pending"]), (0, &Value::Null));
    for (arguments, expected) in
        [(["review"], "run this from a checkout"), (["record"], "run this from a checkout")]
    {
        let mut command = diff();
        command.arg("golden").args(arguments).current_dir(empty.path());
        let (code, _, stderr) = said(&command.output().unwrap());
        assert!(code == 2 && stderr.contains(expected), "{stderr}");
    }
}

/// By Hugging Face, really: the goldens are what it gives.
#[test]
fn recording_again_changes_nothing() {
    let place = Place::new(&[]);
    let before = place.bytes();
    let (code, stdout, stderr) = place.run(&["record"]);
    // Another machine's kernels may round otherwise; then it says by how much, and that waits.
    let same =
        code == 0 && stdout.contains("nothing changes") && !place.nano().join("pending").exists();
    let other = code == 1 && stdout.contains("largest change") && place.review(&[]).0 == 1;
    assert!(same || other, "{code}: {stdout}{stderr}");
    assert_eq!(place.bytes(), before);
}
