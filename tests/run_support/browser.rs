//! What the tests of reports look at them with: Python tools from their pins, and a browser.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::node::{Pins, run};

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

const PINS: Pins = Pins {
    folder: "browser",
    files: &["requirements.lock", "package-lock.json", "unpack.py"],
    notice: "what reports are looked at with (about 200 MB, once)",
};

/// The folder with both.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        PINS.installed(|pins, home| {
            run(Command::new(home.join("env/bin/python"))
                .arg(pins.join("unpack.py"))
                .arg(home.join("npm/node_modules/@sparticuz/chromium/bin"))
                .arg(home.join("browser")));
        })
    })
}
