//! Tools from PyPI and npm, by their pins: a Python and a Node without root, on a machine that has
//! neither Node nor a browser.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::repository;

/// What is installed of a folder's `requirements.lock` and `package-lock.json`.
#[derive(Debug, Clone, Copy)]
pub struct Pins {
    /// In `tests`.
    pub folder: &'static str,
    /// Files whose content names the installation.
    pub files: &'static [&'static str],
    /// What a person is told before it is installed.
    pub notice: &'static str,
}

impl Pins {
    pub fn folder(&self) -> PathBuf {
        repository().join("tests").join(self.folder)
    }

    /// The folder with `env` and `npm`; whatever of it is missing is installed, by one process at a
    /// time. `more` goes on from there.
    pub fn installed(&self, more: impl Fn(&Path, &Path)) -> PathBuf {
        let folder = self.folder();
        let read = |name: &&str| {
            std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let pins: Vec<u8> = self.files.iter().flat_map(read).collect();
        let key = &llorch_trace::hash::sha256_bytes(&pins)[..16];
        let envs = llorch_models::cache_dir().join("envs");
        let home = envs.join(format!("test-{}-{key}", self.folder));
        std::fs::create_dir_all(&home).unwrap();
        let lock = File::create(home.join("lock")).unwrap();
        lock.lock().unwrap();
        if !home.join("done").exists() {
            eprintln!("installing {} …", self.notice);
            install(&folder, &home);
            more(&folder, &home);
            std::fs::write(home.join("done"), "").unwrap();
        }
        home
    }
}

fn install(pins: &Path, home: &Path) {
    let env = home.join("env");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&env));
    run(Command::new(env.join("bin/python"))
        .args(["-m", "pip", "install", "-q", "--require-hashes", "-r"])
        .arg(pins.join("requirements.lock")));
    let npm = home.join("npm");
    std::fs::create_dir_all(&npm).unwrap();
    for name in ["package.json", "package-lock.json"] {
        std::fs::copy(pins.join(name), npm.join(name)).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    run(Command::new(env.join("bin/npm"))
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"])
        .current_dir(&npm)
        .env("PATH", format!("{}:{path}", env.join("bin").display())));
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
