//! The newest releases of the crates that an adapter was written for, by `cargo`: a copy of its sources
//! whose exact pins are gone.

use std::time::Duration;

use llorch_models::progress::Bar;

use super::super::{Missing, cargo, lock_path, say, sources};
use super::{Work, loosen};
use crate::supervise::{AdapterCommand, run_tool_told};

const LIMIT: Duration = Duration::from_secs(600);

/// Writes the sources and the lock file. Whether the adapter's code fits the releases is for the build
/// to find out.
pub(super) fn resolve(work: &Work<'_>, bar: &Bar) -> Result<(), Missing> {
    let (asking, reference) = (work.asking, work.reference);
    let manifest = format!("adapters/{}/Cargo.toml", reference.entry);
    let lock = lock_path(reference);
    // (`asking` has resolved nothing yet: these are the pinned sources.)
    for path in sources::list(asking, &sources::of(reference)) {
        let bytes = asking.bytes(&path).unwrap_or_default();
        if path == manifest {
            let loosened = loosen::manifest(&String::from_utf8_lossy(&bytes)).map_err(|error| {
                super::failed(&work.name(), &format!("failed to read {manifest}: {error}"))
            })?;
            work.write(&path, loosened.as_bytes())?;
        } else if path != lock {
            work.write(&path, &bytes)?;
        }
    }
    let cargo = cargo::cargo_program()?;
    say(bar, "asking the crate registry for its newest release");
    let command = AdapterCommand::new("cargo generate-lockfile", cargo)
        .arg("generate-lockfile")
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        // The newest that the Rust of this machine compiles.
        .env("CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS", "fallback")
        .cwd(work.root.join("adapters").join(&reference.entry));
    run_tool_told(&command, LIMIT, Some(work.log), bar)
        .map_err(|failure| work.unanswered(&failure))?;
    Ok(())
}
