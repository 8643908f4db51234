//! What to run: a program with its arguments and environment, never a shell line.

use std::path::PathBuf;

/// A program that the harness can start: an adapter, the engine, or a tool.
///
/// The child gets the harness's own environment, minus what would change the Python that it runs
/// (`PYTHONPATH`, `PYTHONHOME` and their like, see [`SCRUBBED`]), plus [`AdapterCommand::env`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterCommand {
    /// The name under which results are shown: `hf`, `candle:upstream`, `llorch-cpud`.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Added to (or replacing) the inherited environment.
    pub env: Vec<(String, String)>,
    /// Working directory; the harness's own where absent.
    pub cwd: Option<PathBuf>,
    /// SHA-256 of the lock file that it was installed from.
    pub lock_sha256: Option<String>,
}

/// Inherited variables that no child may see: each would make a pinned environment load code or
/// settings from somewhere else.
pub const SCRUBBED: [&str; 8] = [
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONINSPECT",
    "PYTHONEXECUTABLE",
    "PYTHONUSERBASE",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
];

/// What cargo sets for a program that it runs (`cargo run`, `cargo test`), by the beginning of the name. It
/// is about our own packages: a build below us takes it for a changed setting, and compiles ring and all
/// that depends on it again, and then once more for who runs cargo by hand.
pub const OF_CARGO: [&str; 5] =
    ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];

/// A command line that can't be split into words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("failed to read the command of {name}: nothing but white space")]
    Empty { name: String },
    #[error(
        "failed to split the command of {name} into words: a quote or backslash is left open in `{line}`"
    )]
    Unbalanced { name: String, line: String },
}

impl AdapterCommand {
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            lock_sha256: None,
        }
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Splits `line` like a POSIX shell splits words (quotes, backslashes, `NAME=value` in front). No
    /// shell runs: `$HOME`, `*` and `|` are plain characters.
    pub fn from_words(name: impl Into<String>, line: &str) -> Result<Self, CommandError> {
        let name = name.into();
        let Some(words) = shlex::split(line) else {
            return Err(CommandError::Unbalanced { name, line: line.to_owned() });
        };
        let mut words = words.into_iter().peekable();
        let mut env = Vec::new();
        while let Some(assignment) = words.peek().and_then(|word| assignment(word)) {
            env.push(assignment);
            words.next();
        }
        match words.next() {
            Some(program) => Ok(Self { env, ..Self::new(name, program).args(words) }),
            None => Err(CommandError::Empty { name }),
        }
    }

    /// Why it did not start, for who gave the command.
    pub fn failed_to_start(&self, error: &std::io::Error) -> String {
        let folder = self.program.is_dir();
        let hint = if folder { " (a folder; expected a program and its arguments)" } else { "" };
        format!("failed to start {}: {error}{hint}", self.display())
    }

    /// The command as a line that can be pasted into a shell, environment in front.
    pub fn display(&self) -> String {
        let mut words = Vec::new();
        if let Some(dir) = &self.cwd {
            words.push(format!("cd {} &&", quote(&dir.to_string_lossy())));
        }
        words.extend(self.env.iter().map(|(key, value)| format!("{key}={}", quote(value))));
        words.push(quote(&self.program.to_string_lossy()));
        words.extend(self.args.iter().map(|arg| quote(arg)));
        words.join(" ")
    }
}

/// `NAME=value` in front of a command sets its environment, as in a shell.
fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_name = starts_well && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then(|| (name.to_owned(), value.to_owned()))
}

/// One word, quoted for a POSIX shell where it needs it.
fn quote(word: &str) -> String {
    match shlex::try_quote(word) {
        Ok(quoted) => quoted.into_owned(),
        // Only a NUL can't be quoted, and no process could be given one either.
        Err(_) => format!("{word:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_like_a_shell_does_it_without_a_shell() {
        let command =
            AdapterCommand::from_words("mine", r#"./my engine\ dir/bin "a b" '$HOME' *"#).unwrap();
        assert_eq!(command.program, PathBuf::from("./my"));
        assert_eq!(command.args, ["engine dir/bin", "a b", "$HOME", "*"]);
    }

    #[test]
    fn an_open_quote_and_an_empty_line_are_refused() {
        assert!(matches!(
            AdapterCommand::from_words("x", "a 'b"),
            Err(CommandError::Unbalanced { .. })
        ));
        assert!(matches!(AdapterCommand::from_words("x", "  "), Err(CommandError::Empty { .. })));
    }

    #[test]
    fn display_can_be_pasted_back() {
        let command =
            AdapterCommand::new("x", "/opt/a b/run").arg("--text").arg("it's").env("DEV", "CPU");
        let line = command.display();
        let words = shlex::split(&line).unwrap();
        assert_eq!(words, ["DEV=CPU", "/opt/a b/run", "--text", "it's"]);
        assert_eq!(AdapterCommand::from_words("x", &line).unwrap(), command);
        let only = AdapterCommand::from_words("x", "DEV=CPU ");
        assert!(matches!(only, Err(CommandError::Empty { .. })));
    }
}
