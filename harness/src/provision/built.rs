//! A package of a Python reference that has no wheels and is built here, from source, by CMake: for this
//! very processor, with a C++ compiler of the machine's.
//!
//! What was built for one processor may not run on another, and a cache may be shared between machines. So
//! the processor is part of the environment's name, and of uv's name for the wheel in its own cache.

use std::path::Path;
use std::time::Instant;

use llorch_models::progress::{Bar, human_time};
use llorch_trace::hash::sha256_bytes;

use super::{Missing, Provisioner, find, say};
use crate::references::{Build, Reference};
use crate::supervise::AdapterCommand;

const C_COMPILERS: [&str; 3] = ["cc", "gcc", "clang"];
const CXX_COMPILERS: [&str; 3] = ["c++", "g++", "clang++"];

/// What the names of environments for these pins begin with, whatever the processor; `lock_hash` is that of
/// the lock file alone.
pub(super) fn prefix(provisioner: &Provisioner, reference: &Reference, lock: &[u8]) -> String {
    let mut pinned = lock.to_vec();
    for file in reference.build.iter().flat_map(|build| [&build.constraints, &build.cmake]) {
        pinned.extend(provisioner.bytes(&path(reference, file)).unwrap_or_default().iter());
    }
    format!("{}-{}-", reference.name, &sha256_bytes(&pinned)[..16])
}

/// `cpu-0123abcd-`: for this processor.
pub(super) fn processor_part(provisioner: &Provisioner) -> String {
    format!("cpu-{}-", processor_key(provisioner))
}

fn processor_key(provisioner: &Provisioner) -> String {
    sha256_bytes((provisioner.processor)().as_bytes())[..8].to_owned()
}

/// A file beside `ref.toml`, as a path in the repository.
fn path(reference: &Reference, file: &str) -> String {
    format!("refs/{}/{file}", reference.name)
}

/// What compilers look at when they compile for the machine that they run on: the architecture, the
/// processor's model and what it can do.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    format!("{}\n{}", std::env::consts::ARCH, features_in(&text))
}

/// Of the first processor; the others are its like.
fn features_in(cpuinfo: &str) -> String {
    let keys = ["vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let fields = first.lines().filter_map(|line| line.split_once(':'));
    let told = fields.filter(|(key, _)| keys.contains(&key.trim()));
    told.map(|(key, value)| format!("{}:{}\n", key.trim(), value.trim())).collect()
}

/// Whether it can be built here at all.
pub(super) fn check_compilers(name: &str) -> Result<(), Missing> {
    for (variable, programs) in [("CC", C_COMPILERS), ("CXX", CXX_COMPILERS)] {
        compiler(variable, &programs).map_err(|found| Missing {
            reason: format!("{name} is built from source, and {found}"),
            mend: format!(
                "install a C++ compiler (Debian, Ubuntu: `apt install g++`), or name one in {variable}"
            ),
        })?;
    }
    Ok(())
}

/// The C++ compiler that builds would take, or why there is none.
pub(super) fn cxx_compiler() -> Result<std::path::PathBuf, String> {
    compiler("CXX", &CXX_COMPILERS)
}

fn compiler(variable: &str, programs: &[&str]) -> Result<std::path::PathBuf, String> {
    let named = std::env::var(variable).unwrap_or_default();
    // CMake takes the first word for the program.
    if let Some(program) = named.split_whitespace().next() {
        let path = Path::new(program);
        let found = match path.is_absolute() {
            true => Some(path.to_owned()).filter(|path| find::is_executable(path)),
            false => find::on_path(program),
        };
        return found.ok_or_else(|| format!("{variable} is `{named}`, which is no program here"));
    }
    let found = programs.iter().find_map(|program| find::on_path(program));
    found.ok_or_else(|| format!("no compiler is on PATH (looked for {})", programs.join(", ")))
}

/// Says beforehand what is going to be built and how long it takes.
pub(super) fn announce(build: &Build, bar: &Bar) {
    say(
        bar,
        &format!(
            "{} has no wheel: it is compiled here for this processor, about {} min on two cores",
            build.package, build.minutes
        ),
    );
}

/// What uv needs to know for it, after the files that it names were written to the environment.
pub(super) fn prepare(
    provisioner: &Provisioner,
    reference: &Reference,
    build: &Build,
    env: &Path,
    install: AdapterCommand,
) -> std::io::Result<AdapterCommand> {
    let written = |file: &str| {
        let to = env.join(file);
        let bytes = provisioner.bytes(&path(reference, file)).unwrap_or_default();
        std::fs::write(&to, bytes).map(|()| to.to_string_lossy().into_owned())
    };
    let (constraints, cmake) = (written(&build.constraints)?, written(&build.cmake)?);
    let define = |key: &str, value: &str| format!("{}:cmake.define.{key}={value}", build.package);
    Ok(install
        // Of all that uv says, the compiler's progress is among what it says when it is verbose.
        .args(["--verbose", "--no-binary", &build.package, "--build-constraints", &constraints])
        .args([
            "--config-settings-package",
            &define(&format!("CMAKE_PROJECT_{}_INCLUDE", build.project), &cmake),
        ])
        .args([
            "--config-settings-package",
            &define("LLORCH_PROCESSOR", &processor_key(provisioner)),
        ]))
}

/// Tells how far the compiler is, from the lines that ninja prints.
#[derive(Debug)]
pub(super) struct Watch {
    package: String,
    began: Instant,
}

impl Watch {
    pub fn new(build: &Build) -> Self {
        Self { package: build.package.clone(), began: Instant::now() }
    }

    pub fn line(&self, line: &str, bar: &Bar) {
        if let Some((done, all)) = ninja_step(line) {
            bar.doing(&format!("compiling {}, {done} of {all} files", self.package));
        }
    }

    pub fn done(&self, bar: &Bar) {
        say(bar, &format!("{} compiled in {}", self.package, human_time(self.began.elapsed())));
    }
}

/// `DEBUG [12/83] /usr/bin/c++ …`.
fn ninja_step(line: &str) -> Option<(u32, u32)> {
    let (step, _) = line.strip_prefix("DEBUG [")?.split_once(']')?;
    let (done, all) = step.split_once('/')?;
    Some((done.parse().ok()?, all.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninja_tells_how_far_it_is() {
        assert_eq!(ninja_step("DEBUG [12/83] /usr/bin/c++ -O3 [1/2].cpp"), Some((12, 83)));
        for other in ["DEBUG [tag] x", "[1/2] x", "DEBUG Found [1/2]", "DEBUG [1/x] y"] {
            assert_eq!(ninja_step(other), None);
        }
    }

    #[test]
    fn processors_differ_by_what_they_can_do_and_not_by_how_fast_they_are_at_the_moment() {
        let text = |flags: &str, mhz: u32| {
            format!(
                "processor : 0\nmodel name : A\ncpu MHz : {mhz}\nflags : {flags}\n\nprocessor : 1\nflags : b\n"
            )
        };
        assert_eq!(features_in(&text("fpu avx2", 1)), features_in(&text("fpu avx2", 2)));
        assert_ne!(features_in(&text("fpu avx2", 1)), features_in(&text("fpu avx512f", 1)));
        assert!(features_in(&text("fpu", 1)).ends_with("flags:fpu\n"));
    }

    #[test]
    fn a_compiler_that_is_not_there_is_told_with_what_mends_it() {
        assert!(compiler("LLORCH_TEST_NO_SUCH_VARIABLE", &["sh"]).is_ok());
        let none = compiler("LLORCH_TEST_NO_SUCH_VARIABLE", &["no-such-compiler"]).unwrap_err();
        assert_eq!(none, "no compiler is on PATH (looked for no-such-compiler)");
    }
}
