//! `llorch-diff adapter new`: what it writes builds and keeps the protocol as it is, with a stub; and with
//! a GPT-2 in the stub's place, in Python and in C++, it passes `run`, and `bisect` finds a seeded bug.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use run_support::{diff, repository, texts};
use serde_json::Value;

fn new(folder: &Path, lang: &str, name: &str) -> (Output, PathBuf) {
    let dir = folder.join(name);
    let output =
        diff().args(["adapter", "new", "--lang", lang, name, "--dir"]).arg(&dir).output().unwrap();
    (output, dir)
}

/// The adapter that is written, as it is or with an engine in the stub's place, as a command.
fn adapter(folder: &Path, lang: &str, name: &str, engine: Option<&str>) -> String {
    let (output, dir) = new(folder, lang, name);
    assert!(output.status.success(), "{output:?}");
    let source = dir.join(if lang == "cpp" { "adapter.cpp" } else { "adapter.py" });
    if let Some(engine) = engine {
        let text = std::fs::read_to_string(&source).unwrap();
        std::fs::write(&source, put(&text, engine)).unwrap();
    }
    match lang {
        "python" => format!("'{}' -B '{}'", python_with_numpy(engine), source.display()),
        "cpp" => {
            built(Command::new("make").arg("-C").arg(&dir));
            format!("'{}'", dir.join(name).display())
        }
        _ => {
            let manifest = dir.join("Cargo.toml");
            let mut cargo = Command::new("cargo");
            // Nobody's settings but its own: those of a test may say where to build.
            cargo.env_remove("CARGO_TARGET_DIR");
            built(cargo.args(["build", "--release", "--manifest-path"]).arg(manifest));
            format!("'{}'", dir.join("target/release").join(name).display())
        }
    }
}

/// The engine between the two lines that say what is yours.
fn put(template: &str, engine: &str) -> String {
    let line = |what: &str| {
        let at = template.find(what).unwrap();
        template[..at].rfind('\n').unwrap() + 1
    };
    let begin = line(">>> what is yours");
    let begin = begin + template[begin..].find('\n').unwrap() + 1;
    format!("{}{engine}{}", &template[..begin], &template[line("<<< what is yours")..])
}

fn built(command: &mut Command) {
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    assert!(!err.contains("warning"), "{err}");
}

/// The stub needs Python alone; an engine of NumPy the environment of the reference `numpy`.
fn python_with_numpy(engine: Option<&str>) -> String {
    if engine.is_none() {
        return "python3".into();
    }
    built_quietly(diff().args(["adapters", "setup", "numpy"]));
    let command = built_quietly(diff().args(["adapters", "command", "numpy"]));
    let words = shlex::split(&command).unwrap();
    words.into_iter().find(|word| word.ends_with("/bin/python")).unwrap()
}

fn built_quietly(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    out
}

fn numpy_engine() -> String {
    let text = std::fs::read_to_string(repository().join("tests/engines/numpy_engine.py")).unwrap();
    text.replace("@REPOSITORY@", repository().to_str().unwrap())
}

fn cpp_engine() -> String {
    std::fs::read_to_string(repository().join("tests/engines/gpt2.cpp")).unwrap()
}

fn keeps_the_protocol(command: &str) {
    let output = diff().args(["adapter", "check", command, "--offline"]).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.starts_with("PASS · "), "{out}");
}

fn json(arguments: &[&str]) -> (Value, i32) {
    let output = diff().args(arguments).args(["--format", "json"]).output().unwrap();
    let (out, err) = texts(&output);
    let value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}\n{out}\n{err}"));
    (value, output.status.code().unwrap())
}

/// The points that are wrong, with all 13 checkpoints looked at.
fn failing_points(command: &str) -> (String, Vec<String>) {
    let (result, _) = json(&["run", "--subject", command, "--ref", "numpy"]);
    let rows = result["rows"].as_array().unwrap();
    let checkpoints: std::collections::BTreeSet<u64> =
        rows.iter().filter_map(|row| row["checkpoint"].as_u64()).collect();
    assert_eq!(checkpoints.len(), 13, "{checkpoints:?}");
    let failing = rows.iter().filter(|row| row["verdict"] == "FAIL");
    let points = failing.map(|row| row["point"].as_str().unwrap().to_string()).collect();
    (result["verdict"].as_str().unwrap().to_string(), points)
}

#[test]
fn a_stub_keeps_the_protocol_and_is_no_gpt2() {
    let folder = tempfile::tempdir().unwrap();
    for lang in ["python", "rust", "cpp"] {
        let command = adapter(folder.path(), lang, &format!("stub-{lang}"), None);
        keeps_the_protocol(&command);
        let (verdict, points) = failing_points(&command);
        assert_eq!(verdict, "FAIL", "{lang}");
        // The right tokens are fed; nothing else of it is real.
        assert!(points.contains(&"embeddings".to_string()), "{lang}: {points:?}");
        assert!(!points.contains(&"tokens".to_string()), "{lang}: {points:?}");
    }
}

#[test]
fn engines_in_the_stubs_place_pass_everything() {
    let folder = tempfile::tempdir().unwrap();
    for (lang, engine) in [("python", numpy_engine()), ("cpp", cpp_engine())] {
        let command = adapter(folder.path(), lang, &format!("own-{lang}"), Some(&engine));
        keeps_the_protocol(&command);
        let (verdict, points) = failing_points(&command);
        assert_eq!((verdict.as_str(), points), ("PASS", Vec::new()), "{lang}");
    }
}

/// `engine` with a mistake in it: what stood there, and what stands there now.
fn mistaken(engine: &str, right: &str, wrong: &str) -> String {
    assert_eq!(engine.matches(right).count(), 1, "{right}");
    engine.replace(right, wrong)
}

fn first_cause(command: &str) -> String {
    let (answer, code) = json(&["bisect", "--subject", command, "--ref", "none"]);
    assert_eq!(code, 1, "{answer}");
    answer["causes"][0]["point"].as_str().unwrap().to_string()
}

#[test]
fn bisect_finds_a_bug_in_either() {
    let folder = tempfile::tempdir().unwrap();
    // The scale of the attention forgotten in layer 2.
    let forgetful = "class Gpt2(Gpt2):\n    def scale(self, i):\n        \
        return np.float32(1) if i == 2 else super().scale(i)\n\n\nclass Engine:";
    let numpy = mistaken(&numpy_engine(), "class Engine:", forgetful);
    let command = adapter(folder.path(), "python", "scale", Some(&numpy));
    assert_eq!(first_cause(&command), "h.2.attn.scores");
    // The exact GELU where the tanh form is due would be a fine point; a factor is a plain mistake.
    let cpp = mistaken(&cpp_engine(), "0.044715f * x * x * x", "0.044715f * x * x");
    let command = adapter(folder.path(), "cpp", "gelu", Some(&cpp));
    assert_eq!(first_cause(&command), "h.0.mlp.act");
}

#[test]
fn nothing_is_overwritten_and_bad_names_are_told() {
    let folder = tempfile::tempdir().unwrap();
    assert!(new(folder.path(), "python", "mine").0.status.success());
    let before = std::fs::read(folder.path().join("mine/adapter.py")).unwrap();
    let (again, _) = new(folder.path(), "python", "mine");
    let (_, err) = texts(&again);
    assert_eq!(again.status.code(), Some(2));
    assert!(err.contains("mine/adapter.py: it exists already"), "{err}");
    assert_eq!(std::fs::read(folder.path().join("mine/adapter.py")).unwrap(), before);
    for name in ["hf", "a b", "llorch-cpud"] {
        let (refused, dir) = new(folder.path(), "cpp", name);
        assert_eq!(refused.status.code(), Some(2), "{name}");
        assert!(!dir.exists(), "{name}");
    }
    std::fs::write(folder.path().join("file"), "").unwrap();
    let dir = folder.path().join("file/below");
    let mut command = diff();
    command.args(["adapter", "new", "--lang", "rust", "mine", "--dir"]).arg(dir);
    assert_eq!(command.output().unwrap().status.code(), Some(3));
}
