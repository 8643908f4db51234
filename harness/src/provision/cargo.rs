//! Cargo references: a Rust package with its own lock file, built from the extracted sources.
//!
//! The build folder is shared by all versions of the sources that have the same `Cargo.lock`, so a
//! change to an adapter recompiles the adapter and not Candle.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llorch_models::progress::{Bar, Progress};
use llorch_trace::hash::sha256_bytes;

use super::disk::human_bytes;
use super::lock::{self, BuildLock};
use super::{
    Missing, Provisioner, disk, find, lock_path, pins, say, say_hello, setup_command, sources,
    stamp,
};
use crate::references::Reference;
use crate::supervise::{
    AdapterCommand, ToolEvent, ToolFailure, remove_on_interrupt, run_tool_with,
};

const BUILD_LIMIT: Duration = Duration::from_secs(2 * 3600);

pub(super) fn ensure(
    provisioner: &Provisioner,
    reference: &Reference,
) -> Result<AdapterCommand, Missing> {
    let env = provisioner.envs().join(env_name(provisioner, reference));
    let program = env.join(program_name(reference));
    if is_whole(&env, reference) {
        return command(provisioner, reference, &env, &program);
    }
    provisioner.may_install(reference)?;
    let name = &provisioner.called(reference);
    let bar = Progress::new(provisioner.options.quiet).open(name, "looking what is there");
    let cargo = cargo_program()?;
    let built = {
        // One lock for the build folder: another version of the sources may build there too.
        let target = target_dir(provisioner, reference);
        let locked = BuildLock::acquire(&target, || {
            say(&bar, "waiting for another llorch-diff that builds it");
            bar.doing("waiting for another llorch-diff");
        });
        let _lock = locked.map_err(|error| {
            failed(name, format!("failed to lock {}: {error}", target.display()))
        })?;
        if is_whole(&env, reference) {
            false
        } else {
            build(provisioner, reference, &cargo, &target, &env, &bar)?;
            true
        }
    };
    let command = command(provisioner, reference, &env, &program)?;
    if built {
        match say_hello(&command) {
            Ok(version) => say(&bar, &format!("ready: {version}")),
            Err(failure) => {
                return Err(failed(name, format!("it was built but doesn't start: {failure}")));
            }
        }
    }
    Ok(command)
}

pub(super) fn is_whole(env: &Path, reference: &Reference) -> bool {
    stamp::read(env).is_some() && find::is_executable(&env.join(program_name(reference)))
}

/// `candle-0123456789abcdef`: the hash of everything that it is built from.
pub(super) fn env_name(provisioner: &Provisioner, reference: &Reference) -> String {
    let hash = sources::fingerprint(provisioner, &sources::of(reference));
    format!("{}-{hash}", reference.name)
}

pub(super) fn target_name(provisioner: &Provisioner, reference: &Reference) -> String {
    let lock = provisioner.bytes(&lock_path(reference)).unwrap_or_default();
    format!("{}-{}", reference.name, &sha256_bytes(&lock)[..16])
}

fn target_dir(provisioner: &Provisioner, reference: &Reference) -> PathBuf {
    provisioner.cache.join("build").join(target_name(provisioner, reference))
}

fn program_name(reference: &Reference) -> String {
    format!("llorch-adapter-{}", reference.entry)
}

/// cargo: the one that runs us, else the one on PATH.
pub(super) fn cargo_program() -> Result<PathBuf, Missing> {
    let running =
        std::env::var_os("CARGO").map(PathBuf::from).filter(|path| find::is_executable(path));
    running.or_else(|| find::on_path("cargo")).ok_or_else(|| Missing {
        reason: "cargo isn't on PATH".into(),
        mend: "install Rust (https://rustup.rs)".into(),
    })
}

fn build(
    provisioner: &Provisioner,
    reference: &Reference,
    cargo: &Path,
    target: &Path,
    env: &Path,
    bar: &Bar,
) -> Result<(), Missing> {
    let name = &provisioner.called(reference);
    let io =
        |error: std::io::Error| failed(name, format!("failed to write {}: {error}", env.display()));
    disk::check(name, reference.disk_mb, target, provisioner.free_space)?;
    let text = |path: &str| provisioner.text(path);
    let shown = pins::telling(reference, &text)
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let packages = pins::count_cargo(&text(&lock_path(reference)).unwrap_or_default());
    say(
        bar,
        &format!(
            "building its adapter on {shown}: up to {packages} packages, about {} to download, {} on disk, in {}",
            human_bytes(reference.download_mb * 1_000_000),
            human_bytes(reference.disk_mb * 1_000_000),
            target.display()
        ),
    );
    let root = match provisioner.resolved() {
        Some(dir) => dir.to_owned(),
        None => provisioner.adapters().map_err(io)?,
    };
    let package = root.join("adapters").join(&reference.entry);
    let began = Instant::now();
    let command = AdapterCommand::new("cargo build", cargo)
        .args(["build", "--release", "--locked", "--bins", "--target-dir"])
        .arg(target.to_string_lossy())
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        // So that no cargo settings of the current folder take part.
        .cwd(&package);
    let log = lock::log_path(target);
    let mut attempt = compile(&command, &log, packages, bar);
    if attempt.as_ref().is_err_and(|error| error.compiler_died()) {
        // Memory is what a compiler dies of most often: crates that are compiled side by side share it.
        say(bar, "a compiler ended without an error of its own; once more, one crate at a time");
        attempt = compile(&command.args(["--jobs", "1"]), &log, packages, bar);
    }
    attempt.map_err(|error| match (provisioner.resolved(), &error.diagnostic) {
        // The adapter was written for the pinned release; that it doesn't fit another is a finding.
        (Some(_), Some(diagnostic)) if !error.compiles => Missing {
            reason: format!(
                "{shown} can't be built with the adapter: {diagnostic} (all of it in {})",
                log.display()
            ),
            // Nothing does here: the pinned release is another column.
            mend: String::new(),
        },
        _ => failed(name, error.failure.brief()),
    })?;

    let program = built_program(target, &program_name(reference)).ok_or_else(|| {
        failed(name, format!("cargo built no {} in {}", program_name(reference), target.display()))
    })?;
    let _cleanup = remove_on_interrupt(env);
    if env.exists() {
        std::fs::remove_dir_all(env).map_err(io)?;
    }
    std::fs::create_dir_all(env).map_err(io)?;
    std::fs::copy(&program, env.join(program_name(reference))).map_err(io)?;
    stamp::write(env, began.elapsed().as_secs_f64()).map_err(io)?;
    say(bar, &format!("built in {:.0} s", began.elapsed().as_secs_f64()));
    Ok(())
}

/// A build that failed.
struct BuildFailure {
    failure: ToolFailure,
    /// The compiler's or cargo's first error, with its place.
    diagnostic: Option<String>,
    /// Whether every crate that was begun could be compiled.
    compiles: bool,
}

impl BuildFailure {
    /// Whether a compiler was killed or crashed, instead of refusing the code.
    fn compiler_died(&self) -> bool {
        !self.compiles && self.diagnostic.is_none()
    }
}

/// Runs cargo once, with what it compiles behind the bar.
fn compile(
    command: &AdapterCommand,
    log: &Path,
    packages: usize,
    bar: &Bar,
) -> Result<(), BuildFailure> {
    let (mut compiled, mut compiles, mut diagnostic) = (0, true, None::<String>);
    let outcome = run_tool_with(command, BUILD_LIMIT, Some(log), &mut |event| {
        let ToolEvent::Line(line) = event else { return };
        compiled += u64::from(line.trim_start().starts_with("Compiling "));
        bar.doing(&format!("building, {compiled} of up to {packages} packages"));
        bar.detail(line);
        match &mut diagnostic {
            _ if line.starts_with("error: could not compile") => compiles = false,
            None if line.starts_with("error") => diagnostic = Some(line.to_owned()),
            Some(error) if line.trim_start().starts_with("--> ") && !error.contains("--> ") => {
                error.push_str(&format!(" {}", line.trim()));
            }
            _ => {}
        }
    });
    outcome.map(drop).map_err(|failure| BuildFailure { failure, diagnostic, compiles })
}

/// `<target>/release/<name>`, or below the triple of somebody whose cargo settings name one.
fn built_program(target: &Path, name: &str) -> Option<PathBuf> {
    let plain = target.join("release").join(name);
    let entries = std::fs::read_dir(target).ok()?.flatten();
    let crossed = entries.map(|entry| entry.path().join("release").join(name));
    std::iter::once(plain).chain(crossed).find(|path| find::is_executable(path))
}

fn command(
    provisioner: &Provisioner,
    reference: &Reference,
    env: &Path,
    program: &Path,
) -> Result<AdapterCommand, Missing> {
    let name = &provisioner.called(reference);
    lock::hold(env)
        .map_err(|error| failed(name, format!("failed to use {}: {error}", env.display())))?;
    Ok(AdapterCommand::new(name, program))
}

fn failed(name: &str, reason: String) -> Missing {
    Missing { reason: format!("{name} can't be built: {reason}"), mend: setup_command(name) }
}
