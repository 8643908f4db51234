//! What the tests of reports look at them with: Python tools from their pins, and a browser.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::repository;

/// A Python with what `tests/browser/requirements.lock` pins, made once.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| home().join("env/bin/python"))
}

/// A Chromium: the one named in LLORCH_CHROMIUM, one of the system, or a pinned one.
pub fn chromium() -> &'static Path {
    static CHROMIUM: OnceLock<PathBuf> = OnceLock::new();
    CHROMIUM.get_or_init(|| {
        if let Some(named) = std::env::var_os("LLORCH_CHROMIUM").filter(|v| !v.is_empty()) {
            return named.into();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
        let all = names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name)));
        all.into_iter().find(|p| p.is_file()).unwrap_or_else(|| home().join("browser/chromium"))
    })
}

/// The folder with both; whatever of it is missing is installed, by one process at a time.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let folder = repository().join("tests/browser");
        let pins = ["requirements.lock", "package-lock.json", "unpack.py"]
            .map(|name| std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")));
        let key = &llorch_trace::hash::sha256_bytes(&pins.concat())[..16];
        let envs = llorch_models::cache_dir().join("envs");
        let home = envs.join(format!("test-browser-{key}"));
        std::fs::create_dir_all(&home).unwrap();
        let lock = File::create(home.join("lock")).unwrap();
        lock.lock().unwrap();
        if !home.join("done").exists() {
            eprintln!("installing what reports are looked at with (about 200 MB, once) …");
            install(&folder, &home);
            std::fs::write(home.join("done"), "").unwrap();
        }
        home
    })
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
    run(Command::new(env.join("bin/python"))
        .arg(pins.join("unpack.py"))
        .arg(npm.join("node_modules/@sparticuz/chromium/bin"))
        .arg(home.join("browser")));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
