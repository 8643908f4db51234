//! Decisions that end anywhere: this process is killed after its first step, its second, and so on.
#![allow(clippy::disallowed_methods)] // a killed process is another one

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use llorch_trace::bundle::CaseRecord;
use llorch_trace::{Bundle, BundleWriter, Manifest, Tensor};
use serde_json::json;

use super::commit::{LOG, PENDING, RECORD};
use super::decide::{Decision, decide};
use super::disk::testing::{KILL_AFTER, NO_EXCHANGE};
use super::mixture::origin;
use super::pending::{Pending, whole};
use super::place::Place;
use super::view::Review;
use super::{ask, show};
use crate::golden::bundles::NAMES;
use crate::golden::record::record_with;

const PLACE: &str = "LLORCH_TEST_PLACE";
const ACTION: &str = "LLORCH_TEST_ACTION";

/// Two cases, two points, one value a tensor; the second case goes on with `token`.
fn bundle(dir: &Path, by: &str, values: [f32; 4], token: u32) -> Bundle {
    let mut writer = BundleWriter::create(dir).unwrap();
    let keys = [("a", "h.0"), ("a", "ln_f"), ("b", "h.0"), ("b", "ln_f")];
    for ((case, point), value) in keys.into_iter().zip(values) {
        writer.add(case, 0, point, &Tensor::f32(vec![1, 1], vec![value])).unwrap();
    }
    let record = |token: u32| CaseRecord {
        ids: vec![1],
        generated: Some(vec![token]),
        text: Some(format!("t{token}")),
    };
    let cases = [("a".to_string(), record(7)), ("b".to_string(), record(token))].into();
    let provenance = json!({ "by": by, "command": "test", "date": "2026-01-31", "cases": {} });
    let model = json!({ "files": { "model.safetensors": "00" } });
    writer.finish(Manifest { cases, provenance, model, ..Manifest::default() }).unwrap()
}

const OLD: [f32; 4] = [1.0, 2.0, 3.0, 4.0];
const NEW: [f32; 4] = [1.5, 2.5, 3.5, 4.5];

fn accepted(dir: &Path) {
    for name in NAMES {
        bundle(&dir.join(name), "old", OLD, 8);
    }
}

/// As `golden record` with a recorder that writes these.
fn record(dir: &Path, by: &str, values: [f32; 4], token: u32) -> Vec<String> {
    let place = Place::open(dir).unwrap();
    record_with(&place, "test", &|out| {
        for name in NAMES {
            bundle(&out.join(name), by, values, token);
        }
        Ok(())
    })
    .unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    Pending::read(dir).unwrap().map_or(Vec::new(), |p| p.units().map(|u| u.name.clone()).collect())
}

fn values(dir: &Path) -> Vec<f32> {
    let bundle = whole(dir).unwrap();
    let one = |(case, point)| bundle.get(case, 0, point).unwrap().get(0) as f32;
    [("a", "h.0"), ("a", "ln_f"), ("b", "h.0"), ("b", "ln_f")].map(one).to_vec()
}

fn decide_all(dir: &Path, decision: Decision) {
    let place = Place::open(dir).unwrap();
    decide(&place, &names(dir), decision, "because").unwrap();
}

/// What the tests below start and kill; by itself it does nothing.
#[test]
fn victim() {
    let (Ok(dir), Ok(action)) = (std::env::var(PLACE), std::env::var(ACTION)) else { return };
    let dir = PathBuf::from(dir);
    match action.as_str() {
        "record" => drop(record(&dir, "new", NEW, 8)),
        "record nothing" => drop(record(&dir, "new", OLD, 8)),
        "accept" => decide_all(&dir, Decision::Accepted),
        "reject" => decide_all(&dir, Decision::Rejected),
        "accept one" => {
            let place = Place::open(&dir).unwrap();
            decide(&place, &["hf-f32/h.0".to_string()], Decision::Accepted, "because").unwrap();
        }
        "recover" => drop(Place::open(&dir).unwrap()),
        other => panic!("{other}"),
    }
}

/// True if it came to its end, false if it was killed on the way.
fn run(dir: &Path, action: &str, kill_after: usize, exchange: bool) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "golden::review::tests::victim"]);
    command.env(PLACE, dir).env(ACTION, action).env(KILL_AFTER, kill_after.to_string());
    if !exchange {
        command.env(NO_EXCHANGE, "1");
    }
    let output = command.output().unwrap();
    use std::os::unix::process::ExitStatusExt;
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    !killed
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The state of a folder that nobody is at: values of both bundles, pending units, lines of the log.
fn state(dir: &Path) -> (Vec<Vec<f32>>, Vec<String>, usize) {
    let log = fs::read_to_string(dir.join(LOG)).unwrap_or_default();
    for line in log.lines() {
        let _: super::decide::Line = serde_json::from_str(line).unwrap();
    }
    for entry in entries(dir) {
        let known = ["hf-f32", "hf-f64", PENDING, LOG];
        assert!(known.contains(&entry.as_str()), "{entry} was left behind");
    }
    (NAMES.map(|n| values(&dir.join(n))).to_vec(), names(dir), log.lines().count())
}

/// Kills `action` after each of its steps, and what finishes it after each of its own.
fn killed_everywhere(template: &Path, action: &str, exchange: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let before = state(template);
    let done = scratch.path().join("done");
    copy(template, &done);
    assert!(run(&done, action, usize::MAX, exchange));
    let after = state(&done);
    assert!(action == "record nothing" || before != after, "{action} does something");
    let mut ended = (0, 0);
    let mut steps = 0;
    loop {
        let dir = scratch.path().join(format!("killed-{steps}"));
        copy(template, &dir);
        if run(&dir, action, steps, exchange) {
            break;
        }
        if exchange {
            // Nobody has mended anything yet: readers that know of no reviews find whole bundles.
            for name in NAMES {
                let found = values(&dir.join(name));
                let index = NAMES.iter().position(|n| *n == name).unwrap();
                let known = found == before.0[index] || found == after.0[index];
                assert!(known, "{action} killed after {steps}: {name} holds {found:?}");
            }
        }
        let mut more = 0;
        loop {
            let again = scratch.path().join("again");
            copy(&dir, &again);
            let finished = run(&again, "recover", more, exchange);
            drop(Place::open(&again).unwrap());
            let found = state(&again);
            assert!(
                found == before || found == after,
                "{action} killed after {steps}, then after {more}: {found:?}"
            );
            ended = (ended.0 + usize::from(found == before), ended.1 + usize::from(found == after));
            // And whatever came of it, the same command leads to the same end.
            assert!(run(&again, action, usize::MAX, exchange));
            if action != "record" && action != "record nothing" && found == before {
                assert_eq!(state(&again), after);
            }
            fs::remove_dir_all(&again).unwrap();
            if finished {
                break;
            }
            more += 1;
        }
        fs::remove_dir_all(&dir).unwrap();
        steps += 1;
    }
    assert!(steps > 2 && ended.0 > 0, "{action}: {steps} steps, {ended:?}");
    // Where the last step is the one that counts, no kill comes after it.
    assert!(action.starts_with("record") || ended.1 > 0, "{action}: {ended:?}");
}

#[test]
fn a_recording_killed_anywhere_touches_nothing_accepted() {
    let place = tempfile::tempdir().unwrap();
    accepted(place.path());
    killed_everywhere(place.path(), "record", true);
    // Over what is pending already.
    record(place.path(), "between", [1.0, 2.25, 3.0, 4.0], 8);
    for exchange in [true, false] {
        let scratch = tempfile::tempdir().unwrap();
        copy(place.path(), scratch.path());
        let steps = (0..).find(|n| {
            let done = run(scratch.path(), "record", *n, exchange);
            drop(Place::open(scratch.path()).unwrap());
            let found = state(scratch.path());
            assert_eq!((found.0, found.2), (vec![OLD.to_vec(), OLD.to_vec()], 0));
            done
        });
        assert!(steps > Some(5));
        assert_eq!(names(scratch.path()).len(), 4);
    }
    killed_everywhere(place.path(), "record nothing", true);
}

#[test]
fn a_review_killed_anywhere_leaves_old_or_new_and_is_finished_or_undone() {
    let place = tempfile::tempdir().unwrap();
    accepted(place.path());
    record(place.path(), "new", NEW, 8);
    for action in ["accept", "reject", "accept one"] {
        killed_everywhere(place.path(), action, true);
    }
    // Where two folders can't change places at once the next command puts it right.
    killed_everywhere(place.path(), "accept", false);
}

#[test]
fn what_is_accepted_and_what_is_not_make_one_bundle_that_names_who_recorded_what() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    accepted(dir);
    assert_eq!(
        record(dir, "new", NEW, 8),
        ["hf-f32/h.0", "hf-f32/ln_f", "hf-f64/h.0", "hf-f64/ln_f"]
    );
    let held = Place::open(dir).unwrap();
    let one = |name: &str, decision| decide(&held, &[name.to_string()], decision, "why").unwrap();
    one("hf-f32/h.0", Decision::Accepted);
    one("hf-f32/ln_f", Decision::Rejected);
    assert_eq!(values(&dir.join("hf-f32")), [1.5, 2.0, 3.5, 4.0]);
    assert_eq!(names(dir), ["hf-f64/h.0", "hf-f64/ln_f"]);
    let by = |key: &str| {
        origin(&whole(&dir.join("hf-f32")).unwrap().manifest, key)["by"]
            .as_str()
            .unwrap()
            .to_string()
    };
    let all = ["a/0/h.0", "a/0/ln_f", "b/0/h.0", "b/0/ln_f"];
    assert_eq!(all.map(by), ["new", "old", "new", "old"]);
    // The manifest keeps the form that a difference shows well in: a line a tensor.
    let text = fs::read_to_string(dir.join("hf-f32/manifest.json")).unwrap();
    assert_eq!(
        text.lines()
            .filter(|l| l.starts_with("  {\"case\": ") || l.starts_with("  {\"case\":"))
            .count(),
        4
    );
    one("hf-f64/h.0", Decision::Accepted);
    one("hf-f64/ln_f", Decision::Accepted);
    // All of it: as it was recorded.
    assert_eq!(values(&dir.join("hf-f64")), NEW);
    assert!(whole(&dir.join("hf-f64")).unwrap().manifest.provenance.get("recordings").is_none());
    assert_eq!(entries(dir), ["hf-f32", "hf-f64", LOG]);
    // A third recording, of which one is taken, and then another.
    drop(held);
    assert_eq!(record(dir, "third", [1.5, 2.75, 3.5, 4.0], 8), ["hf-f32/ln_f", "hf-f64/ln_f"]);
    let held = Place::open(dir).unwrap();
    decide(&held, &["hf-f32/ln_f".to_string()], Decision::Accepted, "why").unwrap();
    let by = |key: &str| {
        origin(&whole(&dir.join("hf-f32")).unwrap().manifest, key)["by"]
            .as_str()
            .unwrap()
            .to_string()
    };
    // Everything that is now in it came with the third recording.
    assert_eq!(all.map(by), ["third"; 4]);
    let log = fs::read_to_string(dir.join(LOG)).unwrap();
    let lines: Vec<super::decide::Line> =
        log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|l| (l.unit.as_str(), l.decision)).collect();
    assert_eq!(
        told[..2],
        [("hf-f32/h.0", Decision::Accepted), ("hf-f32/ln_f", Decision::Rejected)]
    );
    assert_eq!(lines[4].old.as_ref().unwrap().by, "old");
    assert_eq!(lines[4].new.as_ref().unwrap().by, "third");
}

#[test]
fn tensors_behind_another_token_and_of_other_weights_go_together() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    accepted(dir);
    let units = ["hf-f32/case b", "hf-f32/h.0", "hf-f32/ln_f"];
    assert_eq!(record(dir, "new", NEW, 9)[..3], units);
    let held = Place::open(dir).unwrap();
    decide(&held, &["hf-f32/case b".to_string()], Decision::Accepted, "why").unwrap();
    let bundle = whole(&dir.join("hf-f32")).unwrap();
    assert_eq!(values(&dir.join("hf-f32")), [1.0, 2.0, 3.5, 4.5]);
    assert_eq!(bundle.manifest.cases["b"].text.as_deref(), Some("t9"));
    drop(held);
    let held = Place::open(dir).unwrap();
    let other = record_with(&held, "test", &|out| {
        for name in NAMES {
            let mut manifest = bundle_manifest(&out.join(name));
            manifest["model"]["files"]["model.safetensors"] = json!("11");
            fs::write(out.join(name).join("manifest.json"), manifest.to_string()).unwrap();
        }
        Ok(())
    });
    assert_eq!(other.unwrap(), NAMES);
}

fn bundle_manifest(dir: &Path) -> serde_json::Value {
    bundle(dir, "other weights", OLD, 8);
    serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn damaged_pending_goldens_are_named_and_nothing_is_decided() {
    let place = tempfile::tempdir().unwrap();
    accepted(place.path());
    record(place.path(), "new", NEW, 8);
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let tensors = "pending/hf-f32/tensors.safetensors";
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Damage<'_>); 7] = [
        (tensors, &cut),
        (tensors, &flip),
        (tensors, &remove),
        ("pending/hf-f64/manifest.json", &cut),
        ("pending/hf-f64/manifest.json", &remove),
        ("pending/pending.json", &cut),
        ("pending/pending.json", &remove),
    ];
    for (file, damage) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("nano");
        copy(place.path(), &dir);
        damage(&dir.join(file));
        let stop = Pending::read(&dir).unwrap_err();
        assert_eq!(stop.code, 2);
        assert!(stop.message.contains(file) && stop.message.contains("record again"), "{stop}");
        let held = Place::open(&dir).unwrap();
        let all = ["hf-f32/h.0".to_string()];
        assert!(decide(&held, &all, Decision::Accepted, "why").is_err());
        assert!(NAMES.iter().all(|n| values(&dir.join(n)) == OLD));
        // A new recording puts it right.
        drop(held);
        record(&dir, "new", NEW, 8);
        assert_eq!(names(&dir).len(), 4);
    }
    // A journal that can't be read is not guessed at.
    let dir = place.path();
    fs::create_dir(dir.join(".review")).unwrap();
    fs::write(dir.join(".review/commit.json"), "{").unwrap();
    assert!(Place::open(dir).unwrap_err().message.contains("commit.json"));
}

#[test]
fn a_folder_is_one_processs_at_a_time() {
    let place = tempfile::tempdir().unwrap();
    let held = Place::open(place.path()).unwrap();
    let refused = Place::open(place.path()).unwrap_err();
    assert!(refused.code == 3 && refused.message.contains("another llorch-diff"), "{refused}");
    drop(held);
    Place::open(place.path()).unwrap();
    assert_eq!(entries(place.path()), [""; 0]);
}

#[test]
fn answers_decide_unit_by_unit_and_a_reason_is_insisted_on() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    accepted(dir);
    record(dir, "new", NEW, 8);
    let asked = |answers: &str| {
        let held = Place::open(dir).unwrap();
        let pending = Pending::read(dir).unwrap().unwrap();
        let mut review = Review::of(dir, &pending).unwrap();
        drop(pending);
        let mut out = Vec::new();
        ask::ask(&held, &mut review, None, &mut answers.as_bytes(), &mut out).unwrap();
        (review, String::from_utf8(out).unwrap())
    };
    // Skip; accept with an empty reason first; then the end of the input.
    let (review, out) = asked("?\ns\na\n \ntorch 3\n");
    assert!(out.contains("skip it") && out.contains("a reason is needed"), "{out}");
    assert!(out.contains("1 of 4: hf-f32/h.0") && out.contains("accepted 1 unit"), "{out}");
    let left = ["hf-f32/h.0", "hf-f64/h.0", "hf-f64/ln_f"];
    assert_eq!((review.decided.len(), review.pending.as_slice()), (1, &left.map(String::from)[..]));
    assert_eq!(names(dir), left);
    // A reason that never comes decides nothing.
    asked("r\n");
    assert_eq!(names(dir), left);
    // Enter takes the last reason; R takes all that is left.
    let (review, out) = asked("r\nnoise\nR\n\n");
    assert!(out.contains("(Enter: noise)") && review.pending.is_empty(), "{out}");
    assert_eq!(values(&dir.join("hf-f32")), [1.0, 2.5, 3.0, 4.5]);
    assert_eq!(entries(dir), ["hf-f32", "hf-f64", LOG]);
    // The same again is known to have been rejected.
    record(dir, "new", [1.5, 2.5, 3.5, 4.5], 8);
    let pending = Pending::read(dir).unwrap().unwrap();
    let review = Review::of(dir, &pending).unwrap();
    let text = show::text(&review, false, false);
    assert!(text.contains("just this was rejected before") && text.contains("noise"), "{text}");
    fs::remove_file(dir.join(PENDING).join(RECORD)).unwrap();
}
