//! `llorch-diff golden record`: nano's goldens anew, by Hugging Face's GPT-2 in its pinned
//! environment. It shows what would change and writes only when it is told to.
//!
//! The recorder is `refs/nano/golden.py`, whose hooks are not those of the `hf` adapter, so that
//! neither hides a mistake of the other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llorch_models::ResolveOptions;
use llorch_models::progress::Progress;
use llorch_trace::Bundle;

use super::bundles::NAMES;
use crate::assets;
use crate::provision::{self, ProvisionOptions};
use crate::references::RefName;
use crate::supervise::{AdapterCommand, ToolEvent, run_tool_with};

const SCRIPT: &str = "refs/nano/golden.py";
const SUITE: &str = "golden/suites/canonical.toml";
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Points that the summary lists one by one.
const LISTED: usize = 20;

/// Record nano's goldens again with Hugging Face transformers, in float32 and float64.
///
/// Shows what would change; writes only with --yes, both bundles or neither.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The folder that holds hf-f32 and hf-f64
    #[arg(long, value_name = "DIR", default_value = "golden/nano")]
    pub dir: PathBuf,
    /// Overwrite them
    #[arg(long)]
    pub yes: bool,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

/// What stops the command, with its exit code.
#[derive(Debug)]
struct Stop {
    code: u8,
    message: String,
}

fn stop(code: u8) -> impl Fn(&dyn std::fmt::Display) -> Stop {
    move |error| Stop { code, message: error.to_string() }
}

/// Exit code: 0 where nothing changes or what changes was written, 1 where it was not, 2 usage, 3
/// where nothing could run.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    match record(args) {
        Ok(code) => Ok(code),
        Err(Stop { code, message }) => {
            llorch_models::errln!("error: {message}");
            Ok(code)
        }
    }
}

fn record(args: &Args) -> Result<u8, Stop> {
    if !args.dir.is_dir() {
        let message = format!(
            "failed to find {}: run this from a checkout, or name the folder with --dir",
            args.dir.display()
        );
        return Err(Stop { code: 2, message });
    }
    // On the same file system, so that the last step is a rename.
    let fresh = tempfile::Builder::new()
        .prefix(".golden-")
        .tempdir_in(&args.dir)
        .map_err(|e| stop(3)(&format!("failed to write to {}: {e}", args.dir.display())))?;
    let _cleanup = crate::supervise::remove_on_interrupt(fresh.path());
    record_into(fresh.path(), args.offline)?;
    let mut lines = Vec::new();
    for name in NAMES {
        let new = Bundle::open(&fresh.path().join(name)).map_err(|e| stop(3)(&e))?;
        let old = match args.dir.join(name) {
            path if path.exists() => Some(Bundle::open(&path).map_err(|e| stop(3)(&e))?),
            _ => None,
        };
        lines.extend(difference(name, old.as_ref(), &new).map_err(|e| stop(3)(&e))?);
    }
    if lines.is_empty() {
        println!("nothing changes: {} is what Hugging Face gives", args.dir.display());
        return Ok(0);
    }
    println!("{}", lines.join("\n"));
    if !args.yes {
        println!("\nnothing was written; --yes writes it to {}", args.dir.display());
        return Ok(1);
    }
    replace(fresh.path(), &args.dir)?;
    println!("\nwrote {} to {}", NAMES.join(" and "), args.dir.display());
    Ok(0)
}

fn record_into(out: &Path, offline: bool) -> Result<(), Stop> {
    let nano =
        llorch_models::resolve("nano", &ResolveOptions { offline: true, ..Default::default() })
            .map_err(|e| stop(e.exit_code())(&e))?;
    let hf: RefName = "hf".parse().map_err(|e| stop(3)(&e))?;
    let reference = hf.resolve().map_err(|e| stop(3)(&e))?;
    let options = ProvisionOptions { offline, quiet: false, allow: true };
    let python = provision::ensure(&reference, None, &options).map_err(|e| stop(3)(&e))?.program;
    let sources =
        assets::extract().map_err(|e| stop(3)(&format!("failed to unpack {SCRIPT}: {e}")))?;
    let suite = out.join("suite.toml");
    fs::write(&suite, assets::get(SUITE).unwrap_or_default())
        .map_err(|e| stop(3)(&format!("failed to write {}: {e}", suite.display())))?;
    let path = |p: &Path| p.to_string_lossy().into_owned();
    let command = AdapterCommand::new("golden.py", python)
        .arg(path(&sources.join(SCRIPT)))
        .args([path(&nano.dir), path(&suite), path(out)])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let bar = Progress::new(false).open("golden record", "running Hugging Face's GPT-2");
    bar.say(&format!("recording with {}", command.display()));
    run_tool_with(&command, TIMEOUT, None, &mut |event| {
        if let ToolEvent::Line(line) = event {
            bar.detail(line);
        }
    })
    .map_err(|e| stop(3)(&e))?;
    Ok(())
}

/// What changes between two bundles, a line each; nothing if no value does.
pub fn difference(
    name: &str,
    old: Option<&Bundle>,
    new: &Bundle,
) -> llorch_trace::Result<Vec<String>> {
    let Some(old) = old else {
        return Ok(vec![format!("{name}: new, {} tensors", new.manifest.tensors.len())]);
    };
    let keys = |b: &Bundle| -> BTreeSet<(String, usize, String)> {
        b.manifest.tensors.iter().map(|e| (e.case.clone(), e.step, e.point.clone())).collect()
    };
    let (before, after) = (keys(old), keys(new));
    let mut lines = Vec::new();
    let count = |n: usize, what: &str| format!("{name}: {n} tensors {what}");
    let gone = before.difference(&after).count();
    let added = after.difference(&before).count();
    lines.extend((gone > 0).then(|| count(gone, "are gone")));
    lines.extend((added > 0).then(|| count(added, "are new")));
    let mut changed: Vec<(f64, String)> = Vec::new();
    for (case, step, point) in before.intersection(&after) {
        let (a, b) = (old.get(case, *step, point)?, new.get(case, *step, point)?);
        let place = format!("{case}, step {step}, {point}");
        if a.shape != b.shape {
            changed.push((
                f64::INFINITY,
                format!("{place}: shape {:?} becomes {:?}", a.shape, b.shape),
            ));
        } else if a != b {
            // Unequal NaNs or infinities have no difference; they come first.
            let each = (0..a.len())
                .map(|i| if a.get(i) == b.get(i) { 0.0 } else { (a.get(i) - b.get(i)).abs() });
            let most = each.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            changed.push((most, format!("{place}: max |new−old| {most:.2e}")));
        }
    }
    changed.sort_by(|a, b| b.0.total_cmp(&a.0));
    lines.extend((!changed.is_empty()).then(|| count(changed.len(), "change, those most first:")));
    lines.extend(changed.iter().take(LISTED).map(|(_, line)| format!("  {line}")));
    for (case, record) in &new.manifest.cases {
        let old = old.manifest.cases.get(case);
        if old.is_some_and(|old| old.generated != record.generated) {
            lines.push(format!(
                "{name}: {case} goes on with {:?}, before with {:?}",
                record.text.as_deref().unwrap_or_default(),
                old.and_then(|o| o.text.as_deref()).unwrap_or_default()
            ));
        }
    }
    Ok(lines)
}

/// Both bundles take the places of the old ones, or neither.
fn replace(fresh: &Path, dir: &Path) -> Result<(), Stop> {
    let failed = |what: &Path, e: std::io::Error| {
        stop(3)(&format!("failed to replace {}: {e}", what.display()))
    };
    let aside = fresh.join("old");
    fs::create_dir(&aside).map_err(|e| failed(&aside, e))?;
    let mut done: Vec<&str> = Vec::new();
    for name in NAMES {
        let (place, kept) = (dir.join(name), aside.join(name));
        let moved = match place.exists() {
            true => fs::rename(&place, &kept),
            false => Ok(()),
        };
        if let Err(error) = moved.and_then(|()| fs::rename(fresh.join(name), &place)) {
            // Put back what was moved: the folder is as it was.
            done.push(name);
            for name in done {
                if aside.join(name).exists() {
                    let _ = fs::remove_dir_all(dir.join(name));
                    let _ = fs::rename(aside.join(name), dir.join(name));
                }
            }
            return Err(failed(&place, error));
        }
        done.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llorch_trace::bundle::CaseRecord;
    use llorch_trace::{BundleWriter, Manifest, Tensor};

    fn bundle(dir: &Path, values: Vec<f32>, text: &str) -> Bundle {
        let mut writer = BundleWriter::create(dir).unwrap();
        writer.add("hello", 0, "ln_f#rows=0", &Tensor::f32(vec![1, values.len()], values)).unwrap();
        let generated = Some(vec![text.len() as u32]);
        let record = CaseRecord { ids: vec![1], generated, text: Some(text.into()) };
        writer
            .finish(Manifest { cases: [("hello".into(), record)].into(), ..Manifest::default() })
            .unwrap()
    }

    #[test]
    fn what_changes_is_said_and_equality_is_silence() {
        let dir = tempfile::tempdir().unwrap();
        let old = bundle(&dir.path().join("old"), vec![1.0, 2.0], "a");
        assert!(difference("x", Some(&old), &old).unwrap().is_empty());
        let new = bundle(&dir.path().join("new"), vec![1.0, 2.5], "ab");
        let lines = difference("x", Some(&old), &new).unwrap().join("\n");
        assert!(
            lines.contains("max |new−old| 5.00e-1") && lines.contains("goes on with \"ab\""),
            "{lines}"
        );
        let wide = bundle(&dir.path().join("wide"), vec![1.0], "a");
        let lines = difference("x", Some(&old), &wide).unwrap().join("\n");
        assert!(lines.contains("shape [1, 2] becomes [1, 1]"), "{lines}");
        assert_eq!(difference("x", None, &new).unwrap(), ["x: new, 1 tensors"]);
    }

    #[test]
    fn both_bundles_are_replaced_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, place) = (dir.path().join("fresh"), dir.path().join("golden"));
        for name in NAMES {
            bundle(&fresh.join(name), vec![2.0], "new");
            bundle(&place.join(name), vec![1.0], "old");
        }
        // The second is missing: the first goes back.
        fs::rename(fresh.join(NAMES[1]), dir.path().join("elsewhere")).unwrap();
        assert!(replace(&fresh, &place).is_err());
        let text = |name: &str| {
            Bundle::open(&place.join(name)).unwrap().manifest.cases["hello"].text.clone().unwrap()
        };
        assert_eq!((text(NAMES[0]), text(NAMES[1])), ("old".into(), "old".into()));
        for name in NAMES {
            bundle(&fresh.join(name), vec![2.0], "new");
        }
        fs::remove_dir_all(fresh.join("old")).unwrap();
        replace(&fresh, &place).map_err(|s| s.message).unwrap();
        assert_eq!((text(NAMES[0]), text(NAMES[1])), ("new".into(), "new".into()));
    }
}
