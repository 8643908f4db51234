//! Saved runs to be shown: one that passes, one with a seeded bug, one with a reference that isn't there.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;

use super::seeded::{Short, subject};
use super::{diff, texts};

pub struct Saved {
    pub short: Short,
    pub code: i32,
    pub result: Value,
}

impl Saved {
    fn of(bugs: &[&str], references: &[&str]) -> Saved {
        let short = Short::new();
        let mut command = diff();
        command.arg("run").args(["--subject", &subject(bugs)]).arg("--suite").arg(short.suite());
        for reference in references {
            command.args(["--ref", reference]);
        }
        command.arg("--quiet").arg("--out").arg(short.path("out"));
        command.arg("--report").arg(format!(
            "junit={},md={}",
            short.path("run.xml").display(),
            short.path("run.md").display()
        ));
        let output = command.output().unwrap();
        let path = short.path("out/result.json");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", path.display(), texts(&output).1));
        let result = serde_json::from_str(&text).unwrap();
        Saved { short, code: output.status.code().unwrap(), result }
    }

    pub fn out(&self) -> PathBuf {
        self.short.path("out")
    }

    /// `llorch-diff report` of it.
    pub fn report(&self, format: &str) -> String {
        let output =
            diff().arg("report").arg(self.out()).args(["--format", format]).output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        stdout
    }
}

pub fn passing() -> &'static Saved {
    static SAVED: OnceLock<Saved> = OnceLock::new();
    SAVED.get_or_init(|| Saved::of(&[], &["numpy", "candle"]))
}

/// The bug is in h.2.attn.k: everything before it is right, everything after it inherits.
pub fn failing() -> &'static Saved {
    static SAVED: OnceLock<Saved> = OnceLock::new();
    SAVED.get_or_init(|| Saved::of(&["transposed:layer=2:which=k"], &["numpy", "candle"]))
}

/// The bug is in every layer, so that it generates other tokens.
pub fn parting() -> &'static Saved {
    static SAVED: OnceLock<Saved> = OnceLock::new();
    SAVED.get_or_init(|| Saved::of(&["swapped_qkv:order=vkq"], &["numpy", "candle"]))
}

pub fn missing() -> &'static Saved {
    static SAVED: OnceLock<Saved> = OnceLock::new();
    SAVED.get_or_init(|| Saved::of(&[], &["numpy", "ghost=/nonexistent/adapter"]))
}
