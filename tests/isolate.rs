//! `llorch-diff run --isolate`: stages by themselves, in the engine, in the NumPy reference, in one with
//! a bug, and in adapters that can't.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::path::Path;

use llorch_trace::Tensor;
use llorch_trace::files::write_npy;
use run_support::{assert_conforms, diff, fake, implementation, repository, rows, texts};
use serde_json::Value;

/// The output of every stage of a block.
const BLOCK: [&str; 16] = [
    ".ln_1",
    ".attn.q",
    ".attn.k",
    ".attn.v",
    ".attn.cache.k",
    ".attn.cache.v",
    ".attn.scores",
    ".attn.probs",
    ".attn.context",
    ".attn.out",
    ".resid_mid",
    ".ln_2",
    ".mlp.fc",
    ".mlp.act",
    ".mlp.out",
    "",
];

fn isolate(arguments: &[&str]) -> (Value, i32, String) {
    let output =
        diff().args(["run", "--isolate", "--format", "json"]).args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    let result = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("result", &result);
    (result, output.status.code().unwrap(), stderr)
}

/// The command of the NumPy adapter, installed first where need be, with another script in its place.
fn numpy(script: &str) -> String {
    let setup = diff().args(["adapters", "setup", "numpy"]).output().unwrap();
    assert!(setup.status.success(), "{}", texts(&setup).1);
    let (command, _) = texts(&diff().args(["adapters", "command", "numpy"]).output().unwrap());
    let mut words = shlex::split(command.trim()).unwrap();
    let place = words.iter().position(|word| word.ends_with("numpy/adapter.py")).unwrap();
    words[place] = repository().join(script).to_str().unwrap().to_string();
    shlex::try_join(words.iter().map(String::as_str)).unwrap()
}

fn honest() -> String {
    numpy("adapters/python/numpy/adapter.py")
}

fn not_passed(result: &Value) -> Vec<&Value> {
    let all = result["rows"].as_array().unwrap().iter();
    all.filter(|r| r["verdict"] != "PASS").collect()
}

#[test]
fn every_stage_of_the_engine_agrees_with_numpy_and_with_float64() {
    let (result, code, stderr) = isolate(&["--ref", "numpy", "--ref", "numpy:f64"]);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    assert_eq!(not_passed(&result), Vec::<&Value>::new());
    for layer in [0, 3] {
        for stage in BLOCK {
            for step in [0, 1] {
                let point = format!("h.{layer}{stage}");
                let at = |kind| {
                    let all = rows(&result, &[("point", &point), ("kind", kind)]).into_iter();
                    all.filter(|r| r["step"] == step).collect::<Vec<_>>()
                };
                assert_eq!((at("pair").len(), at("oracle").len()), (3, 3), "{point} {step}");
                assert!(at("oracle").iter().all(|r| r["local"]["verdict"] == "PASS"));
                let norms = if stage.contains("ln_") { 3 } else { 0 };
                assert_eq!(at("self").len(), norms, "{point}");
            }
        }
    }
    // The stages do compute: f32 is not float64.
    let off = |point| {
        let row = rows(&result, &[("point", point), ("kind", "oracle"), ("a", "llorch-cpud")])[0];
        row["local"]["max_abs"].as_f64().unwrap()
    };
    assert!(off("h.0.ln_1") > 0.0 && off("h.3.mlp.out") > 0.0 && off("h.0.attn.cache.k") == 0.0);
    let isolate = &result["isolate"];
    assert_eq!((&isolate["input"], &isolate["runs"]), (&"oracle".into(), &3.into()));
    assert_eq!(isolate["stages"].as_array().unwrap().len(), 32);
    assert_eq!(result["cases"][0]["ids"].as_array().unwrap().len(), 12);
}

#[test]
fn a_bug_in_one_stage_fails_there_and_nowhere_else() {
    let bug = format!(
        "{} --bug eps:layer=2:which=ln_1:value=1e-3",
        numpy("adapters/python/bug/adapter.py")
    );
    let layers = ["--layer", "1", "--layer", "2", "--layer", "3"];
    let arguments = [&["--subject", &bug, "--ref", "numpy"], &layers[..]].concat();
    let (result, code, stderr) = isolate(&arguments);
    assert_eq!((code, &result["verdict"]), (1, &"FAIL".into()), "{stderr}");
    let failed = not_passed(&result);
    assert!(failed.iter().all(|r| r["point"] == "h.2.ln_1" && r["verdict"] == "FAIL"));
    for kind in ["pair", "oracle", "self"] {
        let of_kind: Vec<_> = failed.iter().filter(|r| r["kind"] == kind).collect();
        assert_eq!(of_kind.len(), 2, "{kind}: prefill and a decode step");
        assert!(of_kind.iter().all(|r| r["a"] == "bug"), "{kind}");
    }
    let of = |kind| *failed.iter().find(|r| r["kind"] == kind).unwrap();
    assert_eq!(of("pair")["blame"], serde_json::json!(["bug"]));
    let reason = of("self")["reason"].as_str().unwrap();
    assert!(reason.starts_with("before gain and bias: variance 9."), "{reason}");
    assert_eq!(
        (&result["odd"][0]["point"], &result["odd"][0]["name"]),
        (&"h.2.ln_1".into(), &"bug".into())
    );
    assert_eq!(rows(&result, &[("point", "h.3.mlp.out"), ("verdict", "PASS")]).len(), 6);
}

#[test]
fn a_stale_cache_fails_in_the_decode_step_and_spoils_nothing_after_it() {
    let bug = format!("{} --bug stale_cache:layer=1", numpy("adapters/python/bug/adapter.py"));
    let (result, code, stderr) =
        isolate(&["--subject", &bug, "--ref", "numpy", "--layer", "1", "--input", "random"]);
    assert_eq!(code, 1, "{stderr}");
    let failed = not_passed(&result);
    assert_eq!(failed.len(), 2, "against numpy and against float64");
    assert!(failed.iter().all(|r| r["point"] == "h.1.attn.cache.v" && r["step"] == 1));
}

#[test]
fn random_inputs_come_from_their_seed() {
    let subject = honest();
    let run = |input: &str| {
        let arguments = ["--subject", &subject, "--ref", "numpy:f64", "--input", input];
        let (result, code, stderr) = isolate(&arguments);
        assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{input}: {stderr}");
        assert_eq!(not_passed(&result), Vec::<&Value>::new(), "{input}");
        result["isolate"].clone()
    };
    let [first, again, other] = ["random:7", "random:7", "random"].map(run);
    assert_eq!(first, again);
    assert_eq!(
        (&first["input"], &first["seed"], &other["seed"]),
        (&"random".into(), &7.into(), &0.into())
    );
    assert_ne!(first["sha256"], other["sha256"]);
    assert!(first["inputs"].as_array().unwrap().iter().all(|i| i["source"] == "random"));
}

/// A file with numbers that GPT-2 never has: large, and close to one another.
fn write(path: &Path, shape: &[usize]) -> String {
    let n = shape.iter().product::<usize>();
    let values = (0..n).map(|i| 3000.0 + (i * 37 % 101) as f32 / 64.0).collect();
    write_npy(path, &Tensor::f32(shape.to_vec(), values)).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn a_file_is_the_input_of_the_stages_that_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let subject = honest();
    let base = ["--subject", &subject, "--ref", "numpy:f64", "--layer", "1"];
    let file = write(&dir.path().join("x.npy"), &[5, 128]);
    let (result, code, stderr) =
        isolate(&[&base[..], &["--checkpoint", "ln", "--input", &file]].concat());
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    assert_eq!(result["cases"][0]["ids"].as_array().unwrap().len(), 5, "as many as the file has");
    let record = &result["isolate"];
    let sha256 = llorch_trace::hash::sha256_file(Path::new(&file)).unwrap();
    assert_eq!((&record["file"], &record["file_sha256"]), (&file.as_str().into(), &sha256.into()));
    assert_eq!(
        (&record["inputs"][0]["point"], &record["inputs"][0]["source"]),
        (&"h.0".into(), &"file".into())
    );

    // Of the two things that context reads, values have this shape; probabilities are the oracle's.
    let heads = write(&dir.path().join("v.npy"), &[4, 12, 32]);
    let context = ["--point", "h.*.attn.context", "--input", &heads];
    let (result, code, stderr) = isolate(&[&base[..], &context].concat());
    assert_eq!(code, 0, "{stderr}");
    let sources: Vec<_> = result["isolate"]["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| (&i["point"], &i["source"]))
        .collect();
    assert_eq!(
        sources,
        [
            (&"h.1.attn.cache.v".into(), &"file".into()),
            (&"h.1.attn.probs".into(), &"oracle".into())
        ]
    );
}

#[test]
fn a_file_that_does_not_fit_is_named_with_what_was_found_and_expected() {
    let dir = tempfile::tempdir().unwrap();
    let subject = honest();
    let path = |name: &str| dir.path().join(name);
    let narrow = write(&path("narrow.npy"), &[12, 127]);
    let tall = write(&path("tall.npy"), &[13, 128]);
    let fits = write(&path("fits.npy"), &[12, 128]);
    let long = write(&path("long.npy"), &[100_000, 1]);
    let whole = path("whole.npy");
    write_npy(&whole, &Tensor::i64(vec![1, 128], vec![1; 128])).unwrap();
    let nan = path("nan.npy");
    let mut values = vec![0.5; 2 * 128];
    values[130] = f32::NAN;
    write_npy(&nan, &Tensor::f32(vec![2, 128], values)).unwrap();
    let (text, none) = (path("text.npy"), path("none.npy"));
    std::fs::write(&text, "tensor([1])").unwrap();
    // Of a case that was asked for the length stays; of our own it is the file's.
    let suite = path("suite.toml");
    let case = "[[case]]\nname = \"mine\"\nids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]\n";
    std::fs::write(&suite, format!("schema = \"llorch.suite/1\"\n{case}")).unwrap();
    let twelve = ["--suite", suite.to_str().unwrap()];
    let cases: [(&str, &[&str], &str); 8] = [
        (
            &narrow,
            &["--point", "h.0.ln_1"],
            "narrow.npy has shape [12, 127]; expected [12, 128] (embeddings), which h.0.ln_1 reads in case twelve",
        ),
        (
            &tall,
            &[&twelve[..], &["--point", "h.1.ln_1"]].concat(),
            "tall.npy has shape [13, 128]; expected [12, 128] (h.0)",
        ),
        (
            &fits,
            &["--point", "h.0.attn.scores"],
            "expected [4, 12, 32] (h.0.attn.q) or [4, 12, 32] (h.0.attn.cache.k)",
        ),
        (&long, &["--checkpoint", "ln"], "expected 1 to 256 tokens"),
        (whole.to_str().unwrap(), &["--checkpoint", "ln"], "whole.npy holds i64; expected floats"),
        (
            nan.to_str().unwrap(),
            &["--checkpoint", "ln"],
            "nan.npy holds NaN at [1, 2]; expected finite numbers",
        ),
        (text.to_str().unwrap(), &["--checkpoint", "ln"], "text.npy"),
        (none.to_str().unwrap(), &["--checkpoint", "ln"], "none.npy"),
    ];
    for (file, arguments, expected) in cases {
        let output = diff()
            .args(["run", "--isolate", "--subject", &subject, "--ref", "numpy", "--input", file])
            .args(arguments)
            .output()
            .unwrap();
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{file}: {stderr}");
        assert!(stderr.contains(expected) && stdout.is_empty(), "{file}: {stderr}");
    }
}

#[test]
fn what_cannot_be_isolated_is_a_usage_error() {
    let cases: [(&[&str], &str); 5] = [
        (&["--input", "random"], "--isolate"),
        (&["--point", "h.0.ln_1"], "--isolate"),
        (
            &["--isolate", "--point", "h.0.soul"],
            "\"h.0.soul\": no stage that reads another fits it",
        ),
        (&["--isolate", "--checkpoint", "0"], "isolated are checkpoints 1 to 9"),
        (&["--isolate", "--input", "random:x"], "found seed \"x\"; expected a whole number"),
    ];
    for (arguments, expected) in cases {
        let output = diff().arg("run").args(arguments).output().unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn who_cannot_inject_is_unchecked_and_lowers_nothing_unless_nobody_checks() {
    let (subject, cannot) = (honest(), format!("fake={}", fake("")));
    let base = ["--checkpoint", "qkv", "--subject", &subject, "--ref", &cannot];
    let (result, code, stderr) = isolate(&[&base[..], &["--ref", "numpy:f64"]].concat());
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    let of_fake = rows(&result, &[("b", "fake")]);
    assert!(of_fake.len() == 12 && of_fake.iter().all(|r| r["verdict"] == "UNCHECKED"));
    let reason = "fake: can't inject, so no stage of it can be isolated";
    assert!(of_fake.iter().all(|r| r["reason"] == reason), "{}", of_fake[0]);
    assert_eq!(implementation(&result, "fake")["status"], "ok");
    let unchecked = result["unchecked"].as_array().unwrap();
    assert!(
        unchecked.iter().any(|u| u["what"] == "fake: every stage" && u["kind"] == "unsupported")
    );

    // Float64 checks them still, but no reference does.
    let (result, code, stderr) = isolate(&base);
    assert_eq!((code, &result["verdict"]), (4, &"INCOMPLETE".into()), "{stderr}");
    assert_eq!(rows(&result, &[("kind", "oracle"), ("verdict", "PASS")]).len(), 12);

    // A subject that can't was not checked, whatever the references say of one another.
    let subject = fake("");
    let others = ["--subject", &subject, "--ref", "numpy", "--ref", "numpy:f64"];
    let (result, code, stderr) = isolate(&[&["--checkpoint", "qkv"], &others[..]].concat());
    assert_eq!((code, &result["verdict"]), (4, &"INCOMPLETE".into()), "{stderr}");
    let unchecked = result["unchecked"].as_array().unwrap();
    assert!(
        unchecked.iter().any(|u| u["what"] == "fake: every stage" && u["kind"] == "missing"),
        "{unchecked:?}"
    );
}

#[test]
fn a_point_where_nothing_can_be_put_leaves_the_other_stages_alone() {
    let reluctant = format!("reluctant={}", numpy("tests/fixtures/reluctant_adapter.py"));
    let subject = honest();
    let (result, code, stderr) = isolate(&[
        "--subject",
        &subject,
        "--ref",
        "numpy:f64",
        "--ref",
        &reluctant,
        "--layer",
        "0",
    ]);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    let unchecked = rows(&result, &[("verdict", "UNCHECKED")]);
    assert_eq!(unchecked.len(), 4, "two pairs, two steps");
    for row in unchecked {
        assert_eq!(row["point"], "h.0.attn.scores");
        assert!(row["reason"].as_str().unwrap().contains("q never leaves its kernel"), "{row}");
    }
    assert_eq!(
        rows(&result, &[("point", "h.0.attn.q"), ("b", "reluctant"), ("verdict", "PASS")]).len(),
        4
    );
}

#[test]
fn a_saved_isolation_is_judged_again_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let bug =
        format!("{} --bug eps:which=ln_1:value=1e-3", numpy("adapters/python/bug/adapter.py"));
    let arguments =
        ["--subject", &bug, "--ref", "numpy", "--layer", "1", "--input", "random:3", "--out", out];
    let (result, code, stderr) = isolate(&arguments);
    assert_eq!(code, 1, "{stderr}");
    let judged = diff().args(["judge", out, "--format", "json"]).output().unwrap();
    let again: Value = serde_json::from_str(&texts(&judged).0).unwrap();
    assert_eq!((judged.status.code(), &again["rows"]), (Some(1), &result["rows"]));
    let table = texts(&diff().args(["judge", out]).output().unwrap()).0;
    let first = table.lines().next().unwrap();
    assert!(
        first.starts_with(
            "FAIL · stages by themselves, in layer 1, on random tensors (seed 3): bug"
        ),
        "{first}"
    );
    assert!(table.contains("\ninput random tensors (seed 3): "), "{table}");
    let bisect = diff().args(["bisect", "--from", out]).output().unwrap();
    assert_eq!(bisect.status.code(), Some(2), "{}", texts(&bisect).1);
}

#[test]
fn hf_and_candle_can_be_isolated_at_every_stage() {
    let (result, code, stderr) = isolate(&["--ref", "hf", "--ref", "candle"]);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    assert_eq!(not_passed(&result), Vec::<&Value>::new());
    for name in ["llorch-cpud", "hf", "candle"] {
        let local = rows(&result, &[("kind", "oracle"), ("a", name)]);
        assert_eq!(local.len(), 2 * 2 * BLOCK.len(), "{name}");
    }
}
