//! The official client of OpenAI's API.

use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::Daemon;

/// The official client, from its pins, in an environment that is made once.
fn openai_python() -> std::path::PathBuf {
    let pins = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/requirements.lock");
    let key = &llorch_trace::hash::sha256_bytes(&std::fs::read(pins).unwrap())[..16];
    let home = llorch_models::cache_dir().join("envs").join(format!("test-openai-{key}"));
    let python = home.join("bin/python");
    let done = home.join("done");
    if !done.exists() {
        let run =
            |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "--require-hashes",
            "-r",
            pins,
        ]));
        std::fs::write(done, "").unwrap();
    }
    python
}

#[test]
fn the_official_openai_client_gets_its_answers() {
    let daemon = Daemon::start(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_client.py");
    let output = Command::new(openai_python()).arg(script).arg(&daemon.url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!answer["text"].as_str().unwrap().is_empty());
    assert_eq!((&answer["by_ids"], &answer["streamed"]), (&answer["text"], &answer["text"]));
    let tokens = answer["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(json!(joined), answer["text"]);
    assert_eq!(answer["top"], json!(vec![2; tokens.len()]));
    let error = json!({"status": 400, "code": "context_length_exceeded", "param": "max_tokens"});
    assert_eq!((&answer["error"], &answer["missing"]), (&error, &json!("model_not_found")));
}
