//! Load and faults, in their short form: `tests/soak` tells what must hold. Alone in its binary, because it measures how soon the
//! daemon answers.
#![allow(clippy::disallowed_methods, reason = "a test starts the program as a user would")]

use std::process::Command;

#[test]
fn the_daemon_holds_under_load_and_against_clients_that_misbehave() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/soak/soak.py");
    let output = Command::new("python3")
        .args([script, "--short", "--cpud", env!("CARGO_BIN_EXE_llorch-cpud")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    for part in ["requests", "hangups", "slow-headers", "sigterm"] {
        assert!(said.contains(part), "{part} was not run: {said}");
    }
}
