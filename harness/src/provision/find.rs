//! Programs of the machine: Python, cargo, whatever is on PATH.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Missing;
use crate::supervise::{AdapterCommand, run_tool};

/// Where a program is on PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

pub(crate) fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The first line that a program prints, if it runs and ends well.
pub(crate) fn first_line(program: &Path, args: &[&str]) -> Option<String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let command = AdapterCommand::new(name, program).args(args.iter().copied());
    let output = run_tool(&command, Duration::from_secs(30), None).ok()?;
    output.stdout.lines().next().map(str::to_owned)
}

/// A Python that can hold an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Python {
    pub path: PathBuf,
    pub major: u32,
    pub minor: u32,
}

impl Python {
    pub(crate) fn version(&self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

/// Newer ones first wait for wheels: 3.11 to 3.13 have them all.
const NAMES: [&str; 7] =
    ["python3", "python3.13", "python3.12", "python3.11", "python3.14", "python3.15", "python"];

/// A Python of at least this version (`3.11`): `$LLORCH_PYTHON`, else the first on PATH.
pub(crate) fn python(minimum: &str) -> Result<Python, Missing> {
    let wanted = parse_version(minimum).unwrap_or((3, 11));
    if let Some(path) = std::env::var_os("LLORCH_PYTHON").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return match probe(&path) {
            Some(python) if (python.major, python.minor) >= wanted => Ok(python),
            Some(python) => {
                Err(no_python(minimum, &format!("LLORCH_PYTHON is Python {}", python.version())))
            }
            None => {
                Err(no_python(minimum, &format!("LLORCH_PYTHON ({}) doesn't run", path.display())))
            }
        };
    }
    let mut found = Vec::new();
    for python in NAMES.iter().filter_map(|name| on_path(name)).filter_map(|path| probe(&path)) {
        if (python.major, python.minor) >= wanted {
            return Ok(python);
        }
        found.push(python.version());
    }
    let what = if found.is_empty() {
        "none is on PATH".into()
    } else {
        format!("found {}", found.join(", "))
    };
    Err(no_python(minimum, &what))
}

fn no_python(minimum: &str, found: &str) -> Missing {
    Missing {
        reason: format!("Python {minimum} or newer is needed: {found}"),
        mend: format!(
            "install Python {minimum} or newer (Debian, Ubuntu: `apt install python3 python3-venv`), or name one in LLORCH_PYTHON"
        ),
    }
}

fn probe(path: &Path) -> Option<Python> {
    // The real interpreter, not a shim or a link into another environment that may be removed.
    let script = "import sys; print(*sys.version_info[:2], getattr(sys, '_base_executable', '') or sys.executable)";
    let line = first_line(path, &["-I", "-c", script])?;
    let mut words = line.splitn(3, ' ');
    let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let real = PathBuf::from(words.next()?);
    let path = if is_executable(&real) { real } else { path.to_owned() };
    Some(Python { path, major, minor })
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_is_too_old_is_named() {
        let missing = python("9.99").unwrap_err();
        assert!(missing.reason.contains("Python 9.99 or newer is needed"), "{missing}");
        assert!(missing.mend.contains("LLORCH_PYTHON"), "{missing}");
    }

    #[test]
    fn programs_are_found_on_path() {
        assert!(on_path("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(on_path("no-such-program-anywhere"), None);
    }
}
