//! `llorch-diff golden record`: nano's goldens anew, by Hugging Face's GPT-2 in its pinned
//! environment. What changes becomes pending, beside the accepted goldens; `golden review` decides.
//!
//! The recorder is `refs/nano/golden.py`, whose hooks are not those of the `hf` adapter, so that
//! neither hides a mistake of the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use llorch_models::ResolveOptions;
use llorch_models::progress::Progress;

use super::bundles::NAMES;
use super::review::changes::{Unit, units};
use super::review::commit::{PENDING, RECORD, RECORDING, failed};
use super::review::disk;
use super::review::mixture::copied;
use super::review::pending::{self, Held, Record, by, whole};
use super::review::place::{DEFAULT, Place};
use super::stop::{self, Stop};
use crate::assets;
use crate::provision::{self, ProvisionOptions};
use crate::references::RefName;
use crate::report::numbers::figure;
use crate::supervise::{AdapterCommand, run_tool_told};
use crate::text::{count, rfc3339, shell_word};

const SCRIPT: &str = "refs/nano/golden.py";
const SUITE: &str = "golden/suites/canonical.toml";
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Units that the summary lists one by one.
const LISTED: usize = 10;

/// Record nano's goldens again with Hugging Face transformers, in float32 and float64.
///
/// What changes is kept as pending beside the accepted goldens, which are not touched: `golden review`
/// shows it and accepts or rejects. If no tensor and no text changes, nothing is left pending.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  nothing changes
  1  something does, and is pending now
  2  usage, or goldens that can't be read
  3  environment: the recorder could not run, a file could not be written")]
pub struct Args {
    /// The folder that holds hf-f32 and hf-f64
    #[arg(long, value_name = "DIR", default_value = DEFAULT)]
    pub dir: PathBuf,
    /// Take bundles that were recorded elsewhere (hf-f32, hf-f64 in this folder) and record nothing
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

pub fn run(args: &Args) -> anyhow::Result<u8> {
    Ok(stop::exit_code(record(args)))
}

fn record(args: &Args) -> Result<u8, Stop> {
    let mut command = "llorch-diff golden record".to_string();
    if let Some(from) = &args.from {
        command += &format!(" --from {}", shell_word(&from.display().to_string()));
    }
    let place = Place::enter(&args.dir)?;
    let names = record_with(&place, &command, &|out| match &args.from {
        Some(from) => take(from, out),
        None => record_into(out, args.offline),
    })?;
    let dir = args.dir.display();
    let again = match args.dir.as_path() == Path::new(DEFAULT) {
        true => String::new(),
        false => format!(" --dir {}", shell_word(&dir.to_string())),
    };
    let said = match names.is_empty() {
        true => {
            format!("nothing changes: {dir} is what Hugging Face gives, and nothing is pending")
        }
        false => format!(
            "\n{} pending in {}; nothing accepted was touched. Decide with `llorch-diff golden review{again}`",
            match names.len() {
                1 => "1 unit is".to_string(),
                n => format!("{n} units are"),
            },
            args.dir.join(PENDING).display()
        ),
    };
    stop::print(&said)?;
    Ok(u8::from(!names.is_empty()))
}

/// Makes pending what `recorder` writes and what differs from the accepted goldens; the names of the
/// units that are pending then.
pub(super) fn record_with(
    place: &Place,
    command: &str,
    recorder: &dyn Fn(&Path) -> Result<(), Stop>,
) -> Result<Vec<String>, Stop> {
    let dir = &place.dir;
    // On the same file system, so that the last step is a rename.
    let fresh = tempfile::Builder::new()
        .prefix(RECORDING)
        .tempdir_in(dir)
        .map_err(|e| failed("write to", dir, &e))?;
    let _cleanup = crate::supervise::remove_on_interrupt(fresh.path());
    recorder(fresh.path())?;
    disk::step();
    let next = fresh.path().join(PENDING);
    fs::create_dir(&next).map_err(|e| failed("create", &next, &e))?;
    let mut held = BTreeMap::new();
    let mut names = Vec::new();
    for name in NAMES {
        let recorded = fresh.path().join(name);
        let new = whole(&recorded)?;
        let accepted = dir.join(name);
        let old = match accepted.exists() {
            true => Some(whole(&accepted)?),
            false => None,
        };
        let units = units(name, old.as_ref(), &new).map_err(Stop::input)?;
        if units.is_empty() {
            continue;
        }
        tell(name, &by(&new.manifest), &units)?;
        names.extend(units.into_iter().map(|u| u.name));
        held.insert(name.to_string(), Held::of(&new, &accepted)?);
        let target = next.join(name);
        disk::rename(&recorded, &target).map_err(|e| failed("write", &target, &e))?;
    }
    let pending = dir.join(PENDING);
    if held.is_empty() {
        if pending.exists() {
            // In one step; what is left of it goes with the folder of this recording.
            disk::rename(&pending, &fresh.path().join("superseded"))
                .map_err(|e| failed("remove", &pending, &e))?;
        }
        return Ok(names);
    }
    let record = Record {
        schema: pending::SCHEMA.into(),
        recorded: rfc3339(SystemTime::now()),
        command: command.to_string(),
        bundles: held,
        rejected: Vec::new(),
    };
    let path = next.join(RECORD);
    let text = serde_json::to_vec_pretty(&record).map_err(Stop::environment)?;
    disk::write(&path, &text).map_err(|e| failed("write", &path, &e))?;
    // Where it takes two steps nothing is pending in between; nothing accepted is concerned.
    disk::replace(&pending, &next, &fresh.path().join("superseded"))
        .map_err(|e| failed("write", &pending, &e))?;
    Ok(names)
}

fn tell(name: &str, by: &str, units: &[Unit]) -> Result<(), Stop> {
    let tensors = units.iter().map(|u| u.tensors.len()).sum();
    let mut text =
        format!("{name}: {} change, in {}", count(tensors, "tensor"), count(units.len(), "unit"));
    text += &format!("; recorded by {by}\n");
    for unit in units.iter().take(LISTED) {
        let most = unit.most();
        let most = match most.is_finite() {
            true => format!(", max |new−old| {}", figure(most)),
            false => ", not all of them comparable".into(),
        };
        text += &format!("  {}: {}{most}\n", unit.name, count(unit.tensors.len(), "tensor"));
    }
    if units.len() > LISTED {
        text += &format!("  and {} more\n", units.len() - LISTED);
    }
    stop::print(&text)
}

/// Bundles that somebody else recorded.
fn take(from: &Path, out: &Path) -> Result<(), Stop> {
    for name in NAMES {
        copied(&whole(&from.join(name))?, &out.join(name))?;
    }
    Ok(())
}

fn record_into(out: &Path, offline: bool) -> Result<(), Stop> {
    let nano =
        llorch_models::resolve("nano", &ResolveOptions { offline: true, ..Default::default() })
            .map_err(|e| Stop { code: e.exit_code(), message: e.to_string() })?;
    let hf: RefName = "hf".parse().map_err(Stop::environment)?;
    let reference = hf.resolve().map_err(Stop::environment)?;
    let options = ProvisionOptions { offline, quiet: false, allow: true };
    let python = provision::ensure(&reference, None, &options).map_err(Stop::environment)?.program;
    let sources = assets::extract()
        .map_err(|e| Stop::environment(format!("failed to unpack {SCRIPT}: {e}")))?;
    let suite = out.join("suite.toml");
    fs::write(&suite, assets::get(SUITE).unwrap_or_default())
        .map_err(|e| failed("write", &suite, &e))?;
    let path = |p: &Path| p.to_string_lossy().into_owned();
    let command = AdapterCommand::new("golden.py", python)
        .arg(path(&sources.join(SCRIPT)))
        .args([path(&nano.dir), path(&suite), path(out)])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let bar = Progress::new(false).open("golden record", "running Hugging Face's GPT-2");
    bar.say(&format!("recording with {}", command.display()));
    run_tool_told(&command, TIMEOUT, None, &bar).map_err(Stop::environment)?;
    Ok(())
}
