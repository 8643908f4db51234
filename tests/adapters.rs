//! The adapters' own tests, each in its own language, with what their pins install.
#![allow(clippy::disallowed_methods, reason = "a test starts the programs that it tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

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
    let (python, numpy) = (python_of("hf"), python_of("numpy"));
    run(Command::new(python)
        .args(["-W", "error", "-m", "unittest", "discover", "-s", "tests", "-t", "."])
        .current_dir(root().join("adapters/python"))
        .env("LLORCH_TINYGRAD_PYTHON", python_of("tinygrad"))
        .env("LLORCH_NUMPY_PYTHON", &numpy)
        .env("LLORCH_BUG_PYTHON", &numpy)
        .env("PYTHONPATH", test_packages())
        .env("PYTHONDONTWRITEBYTECODE", "1"));
}

#[test]
fn the_candle_adapter_passes_its_own_tests() {
    run(Command::new(env!("CARGO_BIN_EXE_llorch-diff")).args(["adapters", "setup", "candle"]));
    // Where the harness builds it, so that its dependencies are compiled once.
    let builds = std::fs::read_dir(llorch_models::cache_dir().join("build")).unwrap();
    let builds = builds.map(|b| b.unwrap().path()).filter(|p| p.is_dir());
    let candle = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().starts_with("candle-");
    let newest = builds.filter(candle).max_by_key(|p| p.metadata().unwrap().modified().unwrap());
    let target = newest.unwrap_or_else(|| root().join("target/candle"));
    run(Command::new("cargo")
        .args(["test", "--release", "--locked"])
        .current_dir(root().join("adapters/candle"))
        .env("CARGO_TARGET_DIR", target));
}
