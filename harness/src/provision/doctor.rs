//! What a machine needs, whether it has it, and what mends it where it hasn't.

use std::path::Path;

use super::disk::human_bytes;
use super::status::{Status, status};
use super::{
    Missing, Provisioner, built, cargo, engine, find, newest, say_hello, setup_command, uv,
};
use crate::references::{self, Reference};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Good,
    /// Not there, but made or found when it is needed.
    Idle,
    Bad,
}

#[derive(Debug, Clone)]
pub struct Check {
    pub what: String,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What mends it; empty where nothing is to be mended.
    pub mend: String,
}

impl Check {
    fn new(what: &str, state: State, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.to_owned(), state, found: found.into(), mend: mend.into() }
    }
}

/// Runs all checks; `each` sees every one as it is done (starting an adapter takes seconds).
pub fn examine(provisioner: &Provisioner, each: &mut dyn FnMut(&Check)) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |check: Check| {
        each(&check);
        checks.push(check);
    };
    let installed_uv = uv::look(provisioner);
    add(python());
    add(venv_module(installed_uv.is_some()));
    add(match &installed_uv {
        Some(uv) => {
            let version =
                find::first_line(&uv.path, &["--version"]).unwrap_or_else(|| "doesn't run".into());
            Check::new("uv", State::Good, format!("{version} ({})", uv.path.display()), "")
        }
        None => Check::new(
            "uv",
            State::Idle,
            "not on PATH; is installed into the cache when needed",
            "",
        ),
    });
    add(cargo_check());
    add(compiler(provisioner));
    add(cxx_compiler());
    add(disk_check(provisioner));
    add(engine_check(provisioner));
    for reference in references::read_all() {
        match reference {
            Ok(reference) if reference.hidden => {}
            Ok(reference) => add(adapter(provisioner, &reference)),
            Err(error) => {
                add(Check::new(&error.path, State::Bad, error.to_string(), "reinstall llorch-diff"))
            }
        }
    }
    for (_, reference, release) in newest::known(provisioner) {
        if let Status::Ready { .. } = status(&release, &reference) {
            add(adapter(&release, &reference));
        }
    }
    checks
}

fn python() -> Check {
    match find::python("3.11") {
        Ok(python) => {
            let found = format!("{} ({})", python.version(), python.path.display());
            Check::new("Python ≥ 3.11", State::Good, found, "")
        }
        Err(Missing { reason, mend }) => Check::new("Python ≥ 3.11", State::Bad, reason, mend),
    }
}

/// Needed only to install uv.
fn venv_module(has_uv: bool) -> Check {
    let what = "Python's venv and pip";
    let Ok(python) = find::python("3.11") else {
        return Check::new(what, State::Bad, "no Python to ask", "see above");
    };
    let has = find::first_line(&python.path, &["-I", "-c", "import venv, ensurepip; print('yes')"])
        .is_some();
    match (has, has_uv) {
        (true, _) => Check::new(what, State::Good, "there", ""),
        (false, true) => Check::new(what, State::Idle, "not there, and not needed beside uv", ""),
        (false, false) => Check::new(
            what,
            State::Bad,
            "not there, and uv isn't either",
            "apt install python3-venv (Debian, Ubuntu), or install uv",
        ),
    }
}

fn cargo_check() -> Check {
    match cargo::cargo_program() {
        Ok(path) => {
            let version =
                find::first_line(&path, &["--version"]).unwrap_or_else(|| "doesn't run".into());
            Check::new("cargo", State::Good, version, "")
        }
        Err(Missing { reason, mend }) => {
            Check::new("cargo", State::Bad, format!("{reason}; candle can't be built"), mend)
        }
    }
}

/// tinygrad compiles its kernels.
fn compiler(provisioner: &Provisioner) -> Check {
    let what = "clang (tinygrad)";
    if let Some(clang) = find::on_path("clang") {
        let version =
            find::first_line(&clang, &["--version"]).unwrap_or_else(|| "doesn't run".into());
        return Check::new(what, State::Good, version, "");
    }
    let tinygrad = references::find("tinygrad").map(|reference| status(provisioner, &reference));
    match tinygrad {
        Some(Status::Ready { path, .. }) if has_zig(&path) => Check::new(
            what,
            State::Good,
            "not on PATH; tinygrad's environment brings zig, which stands in",
            "",
        ),
        _ => Check::new(
            what,
            State::Idle,
            "not on PATH; zig comes with tinygrad's environment and stands in",
            "",
        ),
    }
}

/// llama.cpp is built from source.
fn cxx_compiler() -> Check {
    let what = "C++ compiler (llamacpp)";
    match built::cxx_compiler() {
        Ok(path) => {
            let version =
                find::first_line(&path, &["--version"]).unwrap_or_else(|| "doesn't run".into());
            Check::new(what, State::Good, version, "")
        }
        Err(found) => Check::new(
            what,
            State::Bad,
            format!("{found}; llamacpp can't be built"),
            "install a C++ compiler (Debian, Ubuntu: `apt install g++`), or name one in CXX",
        ),
    }
}

fn has_zig(env: &Path) -> bool {
    let libraries = std::fs::read_dir(env.join("lib")).into_iter().flatten().flatten();
    libraries
        .map(|entry| entry.path().join("site-packages/ziglang/zig"))
        .any(|zig| find::is_executable(&zig))
}

fn disk_check(provisioner: &Provisioner) -> Check {
    let cache = &provisioner.cache;
    let to_come: u64 = references::all()
        .iter()
        .filter(|reference| {
            !reference.hidden
                && !reference.only_by_name
                && !matches!(status(provisioner, reference), Status::Ready { .. })
        })
        .map(|reference| reference.disk_mb * 1_000_000)
        .sum();
    let what = "disk";
    let Ok(free) = (provisioner.free_space)(cache) else {
        return Check::new(
            what,
            State::Idle,
            format!("can't tell how much {} has free", cache.display()),
            "",
        );
    };
    let needed = match to_come {
        0 => String::new(),
        bytes => format!(" for {} to come", human_bytes(bytes)),
    };
    let found = format!("{} free{needed}, in {}", human_bytes(free), cache.display());
    if free >= to_come {
        Check::new(what, State::Good, found, "")
    } else {
        Check::new(
            what,
            State::Bad,
            found,
            "make room, or set LLORCH_CACHE to a folder on a larger disk",
        )
    }
}

fn engine_check(provisioner: &Provisioner) -> Check {
    match engine::engine_command(&provisioner.options) {
        Ok(command) => match say_hello(&command) {
            Ok(version) => Check::new(
                engine::ENGINE,
                State::Good,
                format!("{version} ({})", command.program.display()),
                "",
            ),
            Err(failure) => Check::new(
                engine::ENGINE,
                State::Bad,
                failure.to_string(),
                "build or install it anew",
            ),
        },
        Err(Missing { reason, mend }) => Check::new(engine::ENGINE, State::Bad, reason, mend),
    }
}

fn adapter(provisioner: &Provisioner, reference: &Reference) -> Check {
    let name = &provisioner.called(reference);
    match status(provisioner, reference) {
        Status::Ready { path, bytes } => {
            let Some(command) = provisioner.installed(reference) else {
                return Check::new(
                    name,
                    State::Bad,
                    "is being changed by another llorch-diff",
                    "try again",
                );
            };
            match say_hello(&command) {
                Ok(version) => {
                    Check::new(name, State::Good, format!("{version}, {}", human_bytes(bytes)), "")
                }
                Err(failure) => {
                    let mend = format!("rm -r {} && {}", path.display(), setup_command(name));
                    Check::new(
                        name,
                        State::Bad,
                        format!("installed, but doesn't start: {failure}"),
                        mend,
                    )
                }
            }
        }
        Status::HalfMade { .. } => Check::new(
            name,
            State::Idle,
            "half-made; is made anew when needed",
            setup_command(name),
        ),
        Status::Missing => {
            let size = human_bytes(reference.disk_mb * 1_000_000);
            Check::new(
                name,
                State::Idle,
                format!("not installed ({size}); is installed when needed"),
                setup_command(name),
            )
        }
    }
}
