//! The adapters' own tests, each in its own language, with what their pins install.
#![allow(clippy::disallowed_methods, reason = "a test starts the programs that it tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out
}

/// The Python of a reference's environment, which is installed first where it isn't yet.
fn python_of(reference: &str) -> PathBuf {
    let diff = env!("CARGO_BIN_EXE_llorch-diff");
    run(Command::new(diff).args(["adapters", "setup", reference]));
    let command = run(Command::new(diff).args(["adapters", "command", reference]));
    let words = command.split_whitespace();
    let python = words.map(|w| w.trim_matches('\'')).find(|w| w.ends_with("/bin/python"));
    python.unwrap_or_else(|| panic!("no Python in {command}")).into()
}

/// What only the tests need, beside the environment and not in it: that one is as its pins say.
fn test_packages() -> PathBuf {
    let pins = root().join("refs/hf/requirements-test.lock");
    let key = &llorch_trace::hash::sha256_bytes(&std::fs::read(&pins).unwrap())[..16];
    let target = llorch_models::cache_dir().join("envs").join(format!("test-adapters-{key}"));
    if !target.join("done").exists() {
        let pip = ["-m", "pip", "install", "-q", "--require-hashes", "--upgrade", "--target"];
        run(Command::new("python3").args(pip).arg(&target).arg("-r").arg(&pins));
        std::fs::write(target.join("done"), "").unwrap();
    }
    target
}

#[test]
fn the_python_adapters_pass_their_own_tests() {
    let adapters = root().join("adapters/python");
    let references =
        "hf tinygrad llamacpp numpy onnxruntime openvino ctranslate2 flax".split_whitespace();
    let mut environment: Vec<(String, PathBuf)> = references
        .map(|name| (format!("LLORCH_{}_PYTHON", name.to_uppercase()), python_of(name)))
        .collect();
    let hf = environment[0].1.clone();
    environment.push(("LLORCH_BUG_PYTHON".into(), python_of("numpy")));
    environment.push(("LLORCH_DIFF".into(), env!("CARGO_BIN_EXE_llorch-diff").into()));
    environment.push(("PYTHONPATH".into(), test_packages()));

    let files = std::fs::read_dir(adapters.join("tests")).unwrap();
    let files = files.map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut modules: Vec<String> =
        files.filter_map(|f| Some(f.strip_suffix(".py")?.to_string())).collect();
    modules.retain(|m| m.starts_with("test_"));
    // Those that take longest are taken from the end first.
    modules.sort_by_key(|m| {
        ["test_protocol", "test_llamacpp", "test_faults", "test_numbers"]
            .iter()
            .position(|l| l == m)
    });
    assert!(modules.len() >= 8 && modules.ends_with(&["test_numbers".into()]), "{modules:?}");
    let left = Mutex::new(modules);
    let next = || left.lock().unwrap().pop();
    let work = || {
        while let Some(module) = next() {
            run(Command::new(&hf)
                .args(["-W", "error", "-m", "unittest", &format!("tests.{module}")])
                .current_dir(&adapters)
                .envs(environment.iter().cloned())
                .env("PYTHONDONTWRITEBYTECODE", "1"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
}

#[test]
fn the_candle_adapter_passes_its_own_tests() {
    cargo_tests_of("candle");
}

/// The tests of a Rust adapter, where the harness builds it, so that its dependencies are compiled once.
fn cargo_tests_of(name: &str) {
    run(Command::new(env!("CARGO_BIN_EXE_llorch-diff")).args(["adapters", "setup", name]));
    let builds = std::fs::read_dir(llorch_models::cache_dir().join("build")).unwrap();
    let builds = builds.map(|b| b.unwrap().path()).filter(|p| p.is_dir());
    let front = format!("{name}-");
    let own = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().starts_with(&front);
    let newest = builds.filter(own).max_by_key(|p| p.metadata().unwrap().modified().unwrap());
    let target = newest.unwrap_or_else(|| root().join("target").join(name));
    run(Command::new("cargo")
        .args(["test", "--release", "--locked"])
        .current_dir(root().join("adapters").join(name))
        .env("CARGO_TARGET_DIR", target));
}

#[test]
#[ignore = "builds the 500 crates of mistral.rs, ten minutes on two idle cores"]
fn the_mistralrs_adapter_passes_its_own_tests_and_takes_part_in_isolated_runs_alone() {
    cargo_tests_of("mistralrs");
    let result = |arguments: &[&str]| -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llorch-diff"));
        let jury = ["--ref", "numpy", "--ref", "mistralrs", "--format", "json"];
        let output = command.arg("run").args(arguments).args(jury).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let rows_of = |result: &serde_json::Value| -> Vec<(String, String)> {
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_string();
        let rows = result["rows"].as_array().unwrap().iter();
        let own = rows.filter(|r| r["a"] == "mistralrs" && r["kind"] == "oracle");
        own.map(|r| (text(r, "point"), text(r, "verdict"))).collect()
    };
    let isolated = result(&["--isolate"]);
    assert_eq!(isolated["verdict"], "PASS", "{}", isolated["unchecked"]);
    let rows = rows_of(&isolated);
    for name in ["ln_1", "attn.q", "attn.probs", "attn.out", "ln_2", "mlp.fc", "mlp.act", "mlp.out"]
    {
        let passes = |(point, verdict): &(String, String)| {
            *point == format!("h.0.{name}") && verdict == "PASS"
        };
        assert!(rows.iter().any(passes), "{name}: {rows:?}");
    }
    let whole = result(&["--prompt", "Hello."]);
    assert!(rows_of(&whole).iter().all(|(_, verdict)| verdict == "UNCHECKED"));
    assert!(
        whole["unchecked"].to_string().contains("mistral.rs has no GPT-2"),
        "{}",
        whole["unchecked"]
    );
}
