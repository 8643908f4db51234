//! A program on a terminal, as `tests/terminal/look.py` sees it.
#![allow(clippy::disallowed_methods, reason = "a test starts the program that it tests")]

use std::process::Command;

use serde_json::Value;

use super::repository;

/// What a terminal of so many columns showed.
pub struct Seen {
    /// Each time that something came; last, as it is left.
    pub screens: Vec<Vec<String>>,
    pub cursor_shown: bool,
    /// Where the cursor is left.
    pub column: u64,
    pub raw: Vec<u8>,
    pub stdout: String,
    pub code: i32,
}

impl Seen {
    pub fn left(&self) -> &[String] {
        self.screens.last().map_or(&[], Vec::as_slice)
    }

    /// Every line that was ever there.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.screens.iter().flatten().map(String::as_str)
    }
}

/// Runs a command there; Ctrl-C comes once the text `interrupt` is on the screen.
pub fn on_terminal(columns: u16, command: &Command, interrupt: Option<&str>) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3");
    python.arg(repository().join("tests/terminal/look.py"));
    python.arg(columns.to_string()).arg(dir.path());
    if let Some(text) = interrupt {
        python.args(["--interrupt", text]);
    }
    python.arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let output = python.output().unwrap();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(dir.path().join("screens.json").is_file(), "{text}");
    let report: Value = serde_json::from_slice(&read("screens.json")).unwrap();
    Seen {
        screens: serde_json::from_value(report["screens"].clone()).unwrap(),
        cursor_shown: report["cursor_shown"] == true,
        column: report["column"].as_u64().unwrap(),
        raw: read("raw"),
        stdout: String::from_utf8(read("stdout")).unwrap(),
        code: output.status.code().unwrap(),
    }
}
