//! Engines with known bugs, and a suite short enough to run them by the dozen.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::{diff, repository, texts};

/// The command line of a reference, `NAME` or `NAME:VARIANT`, which is installed first where it isn't.
pub fn command_of(reference: &str) -> String {
    let run = |words: &[&str]| {
        let output = diff().args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", texts(&output).1);
        texts(&output).0
    };
    let name = reference.split(':').next().unwrap();
    run(&["adapters", "setup", name]);
    run(&["adapters", "command", reference]).trim().to_string()
}

/// The command line of the bug adapter, in the environment of the numpy reference.
pub fn bug_adapter() -> &'static str {
    static ADAPTER: OnceLock<String> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let command = command_of("numpy");
        let (before, _) = command.rsplit_once(' ').unwrap();
        format!("{before} '{}'", repository().join("adapters/python/bug/adapter.py").display())
    })
}

/// The NumPy adapter with seeded bugs as a command line.
pub fn subject(bugs: &[&str]) -> String {
    bugs.iter().fold(bug_adapter().to_string(), |line, bug| format!("{line} --bug {bug}"))
}

/// A folder with a suite of one short case, `short`.
pub struct Short {
    dir: tempfile::TempDir,
}

impl Short {
    pub fn new() -> Short {
        let dir = tempfile::tempdir().unwrap();
        let suite = "schema = \"llorch.suite/1\"\n[[case]]\nname = \"short\"\n\
            prompt = \"The old man walked down the road\"\n\
            ids = [464, 1468, 582, 6807, 866, 262, 2975]\nmax_new_tokens = 3\n";
        std::fs::write(dir.path().join("suite.toml"), suite).unwrap();
        Short { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn suite(&self) -> PathBuf {
        self.path("suite.toml")
    }
}
