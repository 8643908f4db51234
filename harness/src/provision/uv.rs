//! `uv`, which makes virtual environments quickly: the one on PATH, else one from the Python
//! registry in the cache, pinned by hash.

use std::path::{Path, PathBuf};
use std::time::Duration;

use llorch_models::progress::Bar;

use super::lock::{BuildLock, log_path};
use super::{Missing, Provisioner, find, pins, say, stamp};
use crate::supervise::{AdapterCommand, remove_on_interrupt, run_tool};

/// A `uv` that runs, and the environment variables that it is to get.
#[derive(Debug, Clone)]
pub(crate) struct Uv {
    pub path: PathBuf,
    env: Vec<(String, String)>,
}

impl Uv {
    /// `uv` with the settings that hold for every call.
    pub(crate) fn command(&self, name: &str) -> AdapterCommand {
        let mut command = AdapterCommand::new(name, &self.path);
        command.env = self.env.clone();
        command
    }
}

const LOCK: &str = "refs/uv/requirements.lock";

/// The folder of our own `uv`, named by its version.
pub(crate) fn own_dir(provisioner: &Provisioner) -> Option<PathBuf> {
    let lock = provisioner.text(LOCK)?;
    let version = pins::read(&lock).into_iter().find(|pin| pin.name == "uv")?.version;
    Some(provisioner.shared_cache.join("uv").join(version))
}

/// Finds `uv` without installing anything.
pub(crate) fn look(provisioner: &Provisioner) -> Option<Uv> {
    if let Some(path) = provisioner.uv.clone().or_else(|| find::on_path("uv")) {
        return Some(Uv { path, env: settings() });
    }
    let dir = own_dir(provisioner)?;
    stamp::read(&dir)?;
    own(&dir)
}

fn own(dir: &Path) -> Option<Uv> {
    let path = dir.join("bin/uv");
    let mut env = settings();
    // Our own uv keeps what it downloads where `adapters prune` finds it, on the file system of the
    // environments (so that it can link instead of copying).
    if std::env::var_os("UV_CACHE_DIR").is_none() {
        let cache = dir.with_file_name("cache");
        env.push(("UV_CACHE_DIR".into(), cache.to_string_lossy().into_owned()));
    }
    find::is_executable(&path).then_some(Uv { path, env })
}

/// Finds `uv`, or installs it.
pub(crate) fn ensure(provisioner: &Provisioner, python: &Path, bar: &Bar) -> Result<Uv, Missing> {
    if let Some(uv) = look(provisioner) {
        return Ok(uv);
    }
    let broken = |reason: String| Missing {
        reason,
        mend: "install uv (`pipx install uv`, or see https://docs.astral.sh/uv)".into(),
    };
    let (Some(lock_text), Some(dir)) = (provisioner.text(LOCK), own_dir(provisioner)) else {
        return Err(broken(format!("uv isn't on PATH and {LOCK} names no version")));
    };
    let version = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let _lock =
        BuildLock::acquire(&dir, || say(bar, "waiting for another llorch-diff that installs uv"))
            .map_err(|error| broken(format!("failed to lock {}: {error}", dir.display())))?;
    if let Some(uv) = look(provisioner) {
        return Ok(uv);
    }
    say(bar, &format!("uv isn't on PATH: installing uv {version} into the cache, about 25 MB"));

    bar.doing("installing uv");
    let _cleanup = remove_on_interrupt(&dir);
    let began = std::time::Instant::now();
    let log = log_path(&dir);
    let io = |error: std::io::Error| broken(format!("failed to write {}: {error}", dir.display()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(io)?;
    }
    let run = |command: AdapterCommand, minutes: u64| {
        run_tool(&command, Duration::from_secs(60 * minutes), Some(&log))
    };
    let venv = AdapterCommand::new("python -m venv", python)
        .args(["-I", "-m", "venv"])
        .arg(dir.to_string_lossy());
    run(venv, 5).map_err(|failure| Missing {
        reason: format!(
            "uv isn't on PATH and a virtual environment can't be made: {}",
            failure.brief()
        ),
        mend: "install Python's venv module (Debian, Ubuntu: `apt install python3-venv`) or uv"
            .into(),
    })?;
    let lock_file = dir.join("requirements.lock");
    std::fs::write(&lock_file, lock_text).map_err(io)?;
    let pip = AdapterCommand::new("pip install uv", dir.join("bin/python"))
        .args([
            "-I",
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--no-deps",
            "--only-binary",
            ":all:",
        ])
        .args(["--disable-pip-version-check", "--quiet", "-r"])
        .arg(lock_file.to_string_lossy());
    run(pip, 15).map_err(|failure| {
        broken(format!("failed to install uv {version}: {}", failure.brief()))
    })?;
    stamp::write(&dir, began.elapsed().as_secs_f64()).map_err(io)?;
    own(&dir).ok_or_else(|| {
        broken(format!("pip installed uv {version} without a program in {}", dir.display()))
    })
}

/// uv doesn't read pip's settings; the one that everybody behind a mirror has is handed on.
fn settings() -> Vec<(String, String)> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut env = vec![("UV_NO_PROGRESS".to_owned(), "1".to_owned())];
    if set("UV_HTTP_TIMEOUT").is_none() {
        env.push(("UV_HTTP_TIMEOUT".into(), "120".into()));
    }
    let has_index =
        ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"].iter().any(|name| set(name).is_some());
    if let (false, Some(index)) = (has_index, set("PIP_INDEX_URL")) {
        env.push(("UV_DEFAULT_INDEX".into(), index));
    }
    env
}
