//! Our own engine: `llorch-cpud`, as one more program that speaks the protocol.
//!
//! Where it comes from, in this order:
//! 1. `$LLORCH_CPUD`, used as it is;
//! 2. the checkout that this `llorch-diff` was built in: `cargo build` runs first, so that a binary
//!    older than its sources is never judged;
//! 3. beside this program (`cargo install` puts both into one folder);
//! 4. PATH.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use llorch_models::progress::Progress;

use super::{Missing, ProvisionOptions, cargo, find, say};
use crate::supervise::{AdapterCommand, ToolEvent, run_tool_with};

pub const ENGINE: &str = "llorch-cpud";

/// The engine's `trace` command, built first where it belongs to a checkout (once per process).
pub fn engine_command(options: &ProvisionOptions) -> Result<AdapterCommand, Missing> {
    Ok(AdapterCommand::new(ENGINE, engine_program(options)?).arg("trace"))
}

/// The engine's program itself, for its other commands.
pub fn engine_program(options: &ProvisionOptions) -> Result<PathBuf, Missing> {
    // Held while building: two threads that ask at once get one build.
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(program) = found.as_ref() {
        return Ok(program.clone());
    }
    let program = locate(options)?;
    *found = Some(program.clone());
    Ok(program)
}

fn locate(options: &ProvisionOptions) -> Result<PathBuf, Missing> {
    if let Some(path) = std::env::var_os("LLORCH_CPUD").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        let found = if path.components().count() > 1 {
            Some(path.clone())
        } else {
            find::on_path(&path.to_string_lossy())
        };
        return found.filter(|path| find::is_executable(path)).ok_or_else(|| Missing {
            reason: format!("LLORCH_CPUD names {}, which isn't a program", path.display()),
            mend: "unset LLORCH_CPUD, or set it to the path of llorch-cpud".into(),
        });
    }
    let here = std::env::current_exe().ok();
    if let Some(build) = here.as_deref().and_then(BuildFolder::of) {
        return build.engine(options);
    }
    let beside = here
        .and_then(|exe| Some(exe.parent()?.join(ENGINE)))
        .filter(|path| find::is_executable(path));
    beside.or_else(|| find::on_path(ENGINE)).ok_or_else(|| Missing {
        reason: format!("{ENGINE} is neither beside llorch-diff nor on PATH"),
        mend: "install it with `cargo install --path .` in a checkout, or name it in LLORCH_CPUD"
            .into(),
    })
}

/// The cargo build folder that a program lies in: `<checkout>/target/release`.
#[derive(Debug, PartialEq, Eq)]
struct BuildFolder {
    checkout: PathBuf,
    target: PathBuf,
    profile: String,
}

impl BuildFolder {
    fn of(program: &Path) -> Option<Self> {
        let mut folder = program.parent()?;
        if folder.ends_with("deps") {
            folder = folder.parent()?; // tests lie one deeper
        }
        if !folder.join("deps").is_dir() || !folder.join(".fingerprint").is_dir() {
            return None;
        }
        let target = folder.parent()?;
        let profile = match folder.file_name()?.to_str()? {
            "debug" => "dev",
            name => name,
        };
        // The build folder may lie elsewhere than in the checkout (CARGO_TARGET_DIR).
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        let checkout = target
            .ancestors()
            .find(|dir| is_checkout(dir))
            .or_else(|| Some(built_from).filter(|dir| is_checkout(dir)))?;
        Some(Self {
            checkout: checkout.to_owned(),
            target: target.to_owned(),
            profile: profile.to_owned(),
        })
    }

    /// Builds the engine, which takes no time where it is fresh.
    fn engine(&self, options: &ProvisionOptions) -> Result<PathBuf, Missing> {
        let cargo = cargo::cargo_program().map_err(|missing| Missing {
            reason: format!(
                "{ENGINE} can't be built from {}: {}",
                self.checkout.display(),
                missing.reason
            ),
            mend: format!("{}, or name a built engine in LLORCH_CPUD", missing.mend),
        })?;
        let mut command = AdapterCommand::new("cargo build", cargo)
            .args(["build", "--bin", ENGINE, "--profile", &self.profile, "--target-dir"])
            .arg(self.target.to_string_lossy())
            .env("CARGO_TERM_COLOR", "never")
            .env("CARGO_TERM_PROGRESS_WHEN", "never")
            .cwd(&self.checkout);
        if options.offline {
            command = command.arg("--offline");
        }
        let bar = Progress::new(options.quiet).open(ENGINE, "looking whether it is fresh");
        let mut told = false;
        let outcome = run_tool_with(&command, Duration::from_secs(3600), None, &mut |event| {
            let ToolEvent::Line(line) = event else { return };
            bar.detail(line);
            match line.split_whitespace().next() {
                Some("Blocking") => bar.doing("waiting for another cargo"),
                Some("Compiling") if !told => {
                    say(&bar, &format!("building it from {}", self.checkout.display()));
                    bar.doing("building");
                    told = true;
                }
                _ => {}
            }
        });
        outcome.map_err(|failure| Missing {
            reason: format!("{ENGINE} can't be built: {failure}"),
            mend: format!("cargo build --bin {ENGINE} (in {})", self.checkout.display()),
        })?;
        let folder = if self.profile == "dev" { "debug" } else { &self.profile };
        Ok(self.target.join(folder).join(ENGINE))
    }
}

/// A folder whose Cargo.toml is that of the engine's package.
fn is_checkout(dir: &Path) -> bool {
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    let manifest: Option<toml::Table> = manifest.parse().ok();
    let name = manifest.as_ref().and_then(|table| table.get("package")?.get("name")?.as_str());
    name == Some(ENGINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_a_build_folder_belongs_to_its_checkout() {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("target/release");
        for name in ["deps", ".fingerprint"] {
            std::fs::create_dir_all(release.join(name)).unwrap();
        }
        std::fs::write(dir.path().join("Cargo.toml"), "[package]\nname = \"llorch-cpud\"\n")
            .unwrap();
        let expected = BuildFolder {
            checkout: dir.path().to_owned(),
            target: dir.path().join("target"),
            profile: "release".into(),
        };
        assert_eq!(BuildFolder::of(&release.join("llorch-diff")), Some(expected));
        assert!(BuildFolder::of(&release.join("deps/run-0123")).is_some());
    }

    #[test]
    fn an_installed_program_belongs_to_no_checkout() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(BuildFolder::of(&dir.path().join("bin/llorch-diff")), None);
    }
}
