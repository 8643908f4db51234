//! `llorch-diff adapter new`: a small adapter that keeps the protocol already, with a stub where the
//! engine goes. The templates travel in the binary; tests build what they make and check it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::lineup::{ENGINE, UNNAMED};
use crate::references;
use crate::run::RunError;
use crate::text::{print, shell_word};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The language that it is written in
    #[arg(long, value_enum)]
    pub lang: Language,

    /// The adapter's name, as reports will show it: a letter, then letters, digits, - and _
    #[arg(value_name = "NAME")]
    pub name: String,

    /// The folder to write it into [default: NAME, here]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// One file, Python 3.9 and its standard library
    Python,
    /// A cargo package that needs serde_json
    Rust,
    /// One file, C++17 and POSIX, with a Makefile
    Cpp,
}

/// A file below the folder, and its text, in which `@NAME@` stands for the name.
type Template = (&'static str, &'static str);

macro_rules! template {
    ($path:literal from $file:literal) => {
        ($path, include_str!(concat!("../templates/adapter/", $file)))
    };
}

const PYTHON: &[Template] = &[template!("adapter.py" from "python/adapter.py")];
const RUST: &[Template] = &[
    template!("Cargo.toml" from "rust/Cargo.toml.in"),
    template!("Cargo.lock" from "rust/Cargo.lock.in"),
    template!("src/main.rs" from "rust/src/main.rs"),
    template!("src/engine.rs" from "rust/src/engine.rs"),
    template!("src/model.rs" from "rust/src/model.rs"),
    template!("src/show.rs" from "rust/src/show.rs"),
];
const CPP: &[Template] =
    &[template!("adapter.cpp" from "cpp/adapter.cpp"), template!("Makefile" from "cpp/Makefile")];

/// What stands in the files for the name.
const NAME: &str = "@NAME@";

/// The command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_name(&args.name)?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let files = match args.lang {
        Language::Python => PYTHON,
        Language::Rust => RUST,
        Language::Cpp => CPP,
    };
    write(&dir, files, &args.name)?;
    print(&next_steps(args, &dir, files))?;
    Ok(ExitCode::SUCCESS)
}

fn check_name(name: &str) -> Result<(), RunError> {
    let wrong =
        |what: String| Err(RunError::Usage(format!("failed to name the adapter {name:?}: {what}")));
    let good = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let fits = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(good);
    if !fits || name.len() > 64 {
        return wrong("expected a letter, then letters, digits, - and _, 64 at most".into());
    }
    // What cargo takes for something else.
    const CARGO: [&str; 6] = ["test", "core", "std", "alloc", "build", "deps"];
    let taken = ["oracle", ENGINE, UNNAMED].contains(&name) || CARGO.contains(&name);
    if taken || references::find(name).is_some() {
        return wrong("the name is taken; reports could not tell the two apart".into());
    }
    Ok(())
}

/// All files, or none: what stands there already is left alone.
fn write(dir: &Path, files: &[Template], name: &str) -> Result<(), RunError> {
    if let Some((path, _)) = files.iter().find(|(path, _)| dir.join(path).exists()) {
        let path = dir.join(path);
        let what = "it exists already; choose another --dir";
        return Err(RunError::Usage(format!("failed to write {}: {what}", path.display())));
    }
    for (path, text) in files {
        let path = dir.join(path);
        let failed = |error: std::io::Error| {
            RunError::Environment(format!("failed to write {}: {error}", path.display()))
        };
        std::fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(failed)?;
        std::fs::write(&path, text.replace(NAME, name)).map_err(failed)?;
    }
    Ok(())
}

fn next_steps(args: &Args, dir: &Path, files: &[Template]) -> String {
    let (name, shown) = (&args.name, |path: &str| dir.join(path).display().to_string());
    let word = |path: &str| shell_word(&shown(path));
    let (build, command, engine) = match args.lang {
        Language::Python => {
            (None, format!("python3 {}", word("adapter.py")), "class Engine in adapter.py")
        }
        Language::Rust => (
            Some(format!("cargo build --release --manifest-path {}", word("Cargo.toml"))),
            word(&format!("target/release/{name}")),
            "src/engine.rs",
        ),
        Language::Cpp => (
            Some(format!("make -C {}", shell_word(&dir.display().to_string()))),
            // A bare name would be looked up on PATH.
            word(name),
            "class Engine in adapter.cpp",
        ),
    };
    let command = match command.contains(['/', ' ']) {
        true => command,
        false => format!("./{command}"),
    };
    let subject = shell_word(&command);
    let mut out = String::new();
    for (path, _) in files {
        out.push_str(&format!("wrote {}\n", shown(path)));
    }
    out.push_str("\nIt keeps the protocol, and computes nothing real: its engine is a stub.\n\n");
    if let Some(build) = build {
        out.push_str(&format!("  {build}\n"));
    }
    out.push_str(&format!("  llorch-diff adapter check {subject}\n"));
    out.push_str(&format!("\nPut your engine in the stub's place, {engine}; then\n\n"));
    out.push_str(&format!("  llorch-diff run --subject {subject} --ref numpy\n"));
    out.push_str(&format!("  llorch-diff bisect --subject {subject}\n"));
    out.push_str("\ndocs/BRING-YOUR-ENGINE.md goes through it step by step.\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_mislead_are_refused() {
        for name in ["", "1st", "a b", "../x", "hf", "oracle", "llorch-cpud", "test", "a:b"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["mine", "my-engine", "E2_x"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn every_template_says_where_the_engine_goes_and_that_it_is_a_stub() {
        for files in [PYTHON, RUST, CPP] {
            let all: String = files.iter().map(|(_, text)| *text).collect();
            assert!(all.contains("STUB: PUT YOUR ENGINE HERE") && all.contains(NAME));
        }
    }
}
