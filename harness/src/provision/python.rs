//! Python references: a virtual environment made by `uv` from a lock file with hashes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llorch_models::progress::{Bar, Progress};

use super::disk::human_bytes;
use super::find::{self, Python};
use super::lock::{self, BuildLock};
use super::{
    Missing, Provisioner, built, disk, lock_path, pins, say, say_hello, setup_command, stamp, uv,
};
use crate::references::Reference;
use crate::supervise::{
    AdapterCommand, ToolEvent, ToolFailure, remove_on_interrupt, run_tool_told, run_tool_with,
};

/// A download of gigabytes over a slow line, but not for ever.
const INSTALL_LIMIT: Duration = Duration::from_secs(2 * 3600);

pub(super) fn ensure(
    provisioner: &Provisioner,
    reference: &Reference,
) -> Result<AdapterCommand, Missing> {
    if let Some(env) = ready(provisioner, reference) {
        return command(provisioner, reference, &env);
    }
    provisioner.may_install(reference)?;
    let name = &provisioner.called(reference);
    let python = find::python(reference.python.as_deref().unwrap_or("3.11"))?;
    let bar = Progress::new(provisioner.options.quiet).open(name, "looking what is there");
    let env = env_dir(provisioner, reference, &python)?;

    let built = {
        let locked = BuildLock::acquire(&env, || {
            say(&bar, "waiting for another llorch-diff that installs it");
            bar.doing("waiting for another llorch-diff");
        });
        let _lock = locked
            .map_err(|error| failed(name, format!("failed to lock {}: {error}", env.display())))?;
        // Another process may have made it while this one waited.
        match ready(provisioner, reference) {
            Some(_) => false,
            None => {
                build(provisioner, reference, &python, &env, &bar)?;
                true
            }
        }
    };
    let command = command(provisioner, reference, &env)?;
    if built {
        greet(name, &command, &bar)?;
    }
    Ok(command)
}

/// An environment for these pins that was made to its end and whose interpreter is still there,
/// whichever Python made it. It is in use from here on.
pub(super) fn ready(provisioner: &Provisioner, reference: &Reference) -> Option<PathBuf> {
    let prefix = env_prefix(provisioner, reference)?;
    let entries = std::fs::read_dir(provisioner.envs()).ok()?.flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .filter(|path| is_whole(path))
        .collect();
    found.sort();
    found.into_iter().next()
}

fn is_whole(env: &Path) -> bool {
    // The interpreter is a link to the machine's, which may have been removed or replaced.
    stamp::read(env).is_some() && find::is_executable(&interpreter(env))
}

fn interpreter(env: &Path) -> PathBuf {
    env.join("bin/python")
}

/// `hf-0123456789abcdef-py`: what the names of all environments for these pins begin with that can be used
/// on this machine.
pub(super) fn env_prefix(provisioner: &Provisioner, reference: &Reference) -> Option<String> {
    let pins = pins_prefix(provisioner, reference)?;
    let processor = reference.build.as_ref().map(|_| built::processor_part(provisioner));
    Some(format!("{pins}{}py", processor.unwrap_or_default()))
}

/// The same on any machine that shares the cache: `prune` lets it be.
pub(super) fn pins_prefix(provisioner: &Provisioner, reference: &Reference) -> Option<String> {
    let lock = provisioner.bytes(&lock_path(reference))?;
    Some(built::prefix(provisioner, reference, &lock))
}

fn env_dir(
    provisioner: &Provisioner,
    reference: &Reference,
    python: &Python,
) -> Result<PathBuf, Missing> {
    let prefix = env_prefix(provisioner, reference).ok_or_else(|| {
        failed(&provisioner.called(reference), "its lock file isn't there".into())
    })?;
    Ok(provisioner.envs().join(format!("{prefix}{}", python.version())))
}

fn build(
    provisioner: &Provisioner,
    reference: &Reference,
    python: &Python,
    env: &Path,
    bar: &Bar,
) -> Result<(), Missing> {
    let name = &provisioner.called(reference);
    if reference.build.is_some() {
        built::check_compilers(name)?;
    }
    disk::check(name, reference.disk_mb, env, provisioner.free_space)?;
    let shown = pins::telling(reference, &|path| provisioner.text(path));
    let shown = shown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    say(
        bar,
        &format!(
            "installing {shown} for Python {}: about {} to download, {} on disk, in {}",
            python.version(),
            human_bytes(reference.download_mb * 1_000_000),
            human_bytes(reference.disk_mb * 1_000_000),
            env.display()
        ),
    );
    if let Some(build) = &reference.build {
        built::announce(build, bar);
    }
    let uv = uv::ensure(provisioner, &python.path, bar)?;

    let began = Instant::now();
    let _cleanup = remove_on_interrupt(env);
    let io =
        |error: std::io::Error| failed(name, format!("failed to write {}: {error}", env.display()));
    if env.exists() {
        say(bar, "removing what an interrupted installation left");
        std::fs::remove_dir_all(env).map_err(io)?;
    }
    let log = lock::log_path(env);
    let _ = std::fs::remove_file(&log);
    let give_up = |failure: ToolFailure| {
        let _ = std::fs::remove_dir_all(env);
        failed(name, failure.brief())
    };
    let run = |command: AdapterCommand, what: &str| {
        bar.doing(what);
        let outcome = run_tool_told(&command, INSTALL_LIMIT, Some(&log), bar);
        bar.detail("");
        outcome.map_err(give_up)
    };
    let venv = uv
        .command("uv venv")
        .args(["venv", "--quiet", "--python"])
        .arg(python.path.to_string_lossy());
    run(venv.arg(env.to_string_lossy()), "making the virtual environment")?;
    // The lock file lies in the environment: a record of what it was made from. uv runs there too,
    // so that no project of the current folder adds settings of its own.
    let lock = env.join("requirements.lock");
    let text = provisioner.bytes(&lock_path(reference)).unwrap_or_default();
    std::fs::write(&lock, text).map_err(io)?;
    let install = uv
        .command("uv pip install")
        .args(["pip", "install", "--require-hashes", "--no-deps", "--python"])
        .arg(interpreter(env).to_string_lossy())
        .arg("-r")
        .arg(lock.to_string_lossy())
        .cwd(env);
    match &reference.build {
        None => drop(run(install, "downloading and installing")?),
        Some(build) => {
            bar.doing("downloading");
            let install =
                built::prepare(provisioner, reference, build, env, install).map_err(io)?;
            let watch = built::Watch::new(build);
            run_tool_with(&install, INSTALL_LIMIT, Some(&log), &mut |event| {
                if let ToolEvent::Line(line) = event {
                    watch.line(line, bar);
                }
            })
            .map_err(give_up)?;
            watch.done(bar);
        }
    }
    stamp::write(env, began.elapsed().as_secs_f64()).map_err(io)
}

/// Says how it went, with the size and the time.
fn greet(name: &str, command: &AdapterCommand, bar: &Bar) -> Result<(), Missing> {
    let began = Instant::now();
    bar.doing("starting for the first time");
    say(bar, "installed; starting it for the first time");
    match say_hello(command) {
        Ok(version) => {
            say(
                bar,
                &format!("ready: {version} (first start {:.1} s)", began.elapsed().as_secs_f64()),
            );
            Ok(())
        }
        Err(failure) => Err(Missing {
            reason: format!("{name} was installed but doesn't start: {failure}"),
            mend: "llorch-diff adapters doctor".into(),
        }),
    }
}

fn command(
    provisioner: &Provisioner,
    reference: &Reference,
    env: &Path,
) -> Result<AdapterCommand, Missing> {
    let name = &provisioner.called(reference);
    lock::hold(env)
        .map_err(|error| failed(name, format!("failed to use {}: {error}", env.display())))?;
    let root = provisioner.adapters().map_err(|error| {
        failed(name, format!("failed to write the adapters to the cache: {error}"))
    })?;
    let script = root.join("adapters/python").join(&reference.entry);
    let command = AdapterCommand::new(name, interpreter(env));
    let command = match own_program().filter(|_| reference.calls_llorch_diff) {
        Some(program) => command.env("LLORCH_DIFF", program.to_string_lossy()),
        None => command,
    };
    Ok(command
        .arg("-u")
        .arg(script.to_string_lossy())
        .env("PYTHONNOUSERSITE", "1")
        .env("PYTHONUTF8", "1")
        // Set in many containers; without bytecode each start of transformers compiles it anew.
        .env("PYTHONDONTWRITEBYTECODE", "")
        // Nothing that an adapter does may reach for the network: the model is on disk.
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1"))
}

/// This program, unless the code is part of another (a test).
fn own_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program.file_stem().is_some_and(|stem| stem == env!("CARGO_PKG_NAME")).then_some(program)
}

fn failed(name: &str, reason: String) -> Missing {
    Missing { reason: format!("{name} can't be installed: {reason}"), mend: setup_command(name) }
}
