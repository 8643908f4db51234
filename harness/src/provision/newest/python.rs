//! The newest releases of Python packages, by `uv`: with the flags that made the pinned lock files, but
//! for the Python of this machine.

use std::time::Duration;

use llorch_models::progress::Bar;

use super::super::{Missing, find, lock_path, pins, say, uv};
use super::{Work, loosen};
use crate::references::Release;
use crate::supervise::{AdapterCommand, run_tool, run_tool_told};

const LIMIT: Duration = Duration::from_secs(600);

/// Writes the lock file.
pub(super) fn resolve(work: &Work<'_>, bar: &Bar) -> Result<(), Missing> {
    let (asking, reference) = (work.asking, work.reference);
    let input = format!("refs/{}/requirements.in", reference.name);
    let asked = asking.text(&input);
    let asked =
        asked.ok_or_else(|| super::failed(&work.name(), &format!("{input} isn't there")))?;
    work.write(&input, loosen::requirements(&asked).as_bytes())?;
    let python = find::python(reference.python.as_deref().unwrap_or("3.11"))?;
    let uv = uv::ensure(asking, &python.path, bar)?;
    say(bar, "asking the package index for its newest release");

    let lock = work.root.join(lock_path(reference));
    let file = |path: &std::path::Path| {
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let compile = |universe: &[&str]| -> AdapterCommand {
        let mut command = uv
            .command("uv pip compile")
            .args(["pip", "compile", "--universal", "--no-header", "--upgrade"])
            .args(["--prerelease", "disallow", "--python-version", &python.version()])
            .args(["--no-emit-index-url", "--no-emit-find-links", "--python"])
            .arg(python.path.to_string_lossy())
            .args(universe.iter().copied())
            // uv runs there, so that no project of the current folder adds settings of its own.
            .cwd(lock.parent().unwrap_or(work.root));
        if let Some(Release::AsOf(day)) = asking.newest.as_ref().map(|newest| &newest.release) {
            command = command.args(["--exclude-newer", &format!("{day}T23:59:59Z")]);
        }
        command.arg("requirements.in")
    };
    let whole = compile(&["--fork-strategy", "fewest", "--generate-hashes", "--quiet"]);
    let whole = whole.args(["-o", &file(&lock)]);
    run_tool_told(&whole, LIMIT, Some(work.log), bar)
        .map_err(|failure| work.unanswered(&failure))?;

    // What each package would be alone, for the newest Python: what is held back is told.
    let alone = compile(&["--no-deps", "--no-annotate", "--quiet"]);
    if let Ok(output) = run_tool(&alone, LIMIT, Some(work.log)) {
        let newest = pins::read(&output.stdout);
        for pin in work.found().telling() {
            let newer = newest.iter().rev().find(|n| n.name == pin.name).filter(|n| **n != pin);
            if let Some(newer) = newer {
                say(
                    bar,
                    &format!(
                        "{newer} is out, but {pin} is the newest for Python {} beside the others",
                        python.version()
                    ),
                );
            }
        }
    }
    Ok(())
}
