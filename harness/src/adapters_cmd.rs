//! `llorch-diff adapters`: what references there are, installing them, what is wrong with them.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};

use llorch_models::progress::Progress;

use crate::jury::{self, JuryArgs};
use crate::provision::disk::human_bytes;
use crate::provision::doctor::{self, State};
use crate::provision::newest;
use crate::provision::prune::{self, Outcome};
use crate::provision::status::{Status, status, versions};
use crate::provision::{Missing, ProvisionOptions, Provisioner, engine_command};
use crate::references::{self, RefName, RefNameError, Reference};
use crate::supervise::{AdapterCommand, interrupted};

/// The environment can't do what was asked (docs: exit codes).
const ENVIRONMENT: u8 = 3;
const USAGE: u8 = 2;

/// Reference implementations: list, install, examine, remove
#[derive(Debug, Args)]
pub struct AdaptersArgs {
    #[command(subcommand)]
    pub command: AdaptersCommand,
}

#[derive(Debug, Subcommand)]
pub enum AdaptersCommand {
    /// List the references: what each is worth, its versions, whether it is installed
    List,
    /// Install references now instead of at the first run
    Setup(SetupArgs),
    /// Examine the machine and start every installed adapter
    Doctor,
    /// Remove what the current pins don't use from the cache, newest releases (hf@latest) first
    Prune(PruneArgs),
    /// Print the command line that runs an adapter, to run it by hand
    Command(CommandArgs),
    /// Examine the references that are named: run them, and write what each is worth, how far it is from float64
    /// at each stage, and what it can't show
    Jury(Box<JuryArgs>),
}

#[derive(Debug, Args)]
pub struct SetupArgs {
    /// References to install, e.g. hf, or hf@latest for its newest release
    #[arg(value_name = "NAME[@latest]")]
    pub names: Vec<String>,
    /// Install them all, but those that take long: they are installed by their names
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Don't touch the network; report what is missing
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Remove everything that can be made again, not only what is out of date
    #[arg(long)]
    pub all: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct CommandArgs {
    /// A reference with or without a variant (candle:upstream) and release (hf@latest, as it was resolved
    /// last), or llorch-cpud
    #[arg(value_name = "NAME")]
    pub name: String,
}

pub fn run(args: &AdaptersArgs) -> anyhow::Result<ExitCode> {
    let code = match &args.command {
        AdaptersCommand::List => list(),
        AdaptersCommand::Setup(args) => setup(args),
        AdaptersCommand::Doctor => examine(),
        AdaptersCommand::Prune(args) => prune_cache(args),
        AdaptersCommand::Command(args) => print_command(args),
        AdaptersCommand::Jury(args) => return jury::run(args),
    };
    Ok(ExitCode::from(code))
}

fn visible() -> Vec<Reference> {
    references::all().into_iter().filter(|reference| !reference.hidden).collect()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

/// Stdout may be a pipe whose reader has left (`| head`): that is no error.
fn print(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn list() -> u8 {
    let provisioner = Provisioner::new(ProvisionOptions::default());
    let mut table =
        table(&["name", "variants", "worth", "status", "size", "versions", "what it is"]);
    for reference in visible() {
        let state = status(&provisioner, &reference);
        let size = match &state {
            Status::Ready { bytes, .. } => human_bytes(*bytes),
            _ => format!("({})", human_bytes(reference.disk_mb * 1_000_000)),
        };
        table.add_row([
            reference.name.clone(),
            reference
                .variants
                .iter()
                .map(|variant| format!(":{variant}"))
                .collect::<Vec<_>>()
                .join(" "),
            reference.worth.to_string(),
            state.label().to_owned(),
            size,
            versions(&provisioner, &reference),
            reference.summary.clone(),
        ]);
    }
    for (record, reference, release) in newest::known(&provisioner) {
        let state = status(&release, &reference);
        let size = match &state {
            Status::Ready { bytes, .. } => human_bytes(*bytes),
            _ => format!("({})", human_bytes(reference.disk_mb * 1_000_000)),
        };
        table.add_row([
            record.name.clone(),
            String::new(),
            reference.worth.to_string(),
            state.label().to_owned(),
            size,
            record.versions,
            format!("throw-away: its newest release of {}", record.resolved),
        ]);
    }
    print(table);
    print(format!("cache: {}", provisioner.cache.display()));
    0
}

fn setup(args: &SetupArgs) -> u8 {
    let chosen: Vec<(Reference, RefName)> = if args.names.is_empty() {
        let pinned = |reference: Reference| {
            let name = RefName { name: reference.name.clone(), variant: None, release: None };
            (reference, name)
        };
        visible().into_iter().filter(|r| !r.only_by_name).map(pinned).collect()
    } else {
        let named = |name: &String| {
            let name: RefName = name.parse()?;
            Ok::<_, RefNameError>((name.resolve()?, name))
        };
        let found: Result<Vec<_>, _> = args.names.iter().map(named).collect();
        match found {
            Ok(references) => references,
            Err(error) => {
                llorch_models::errln!("{error}");
                return USAGE;
            }
        }
    };
    let options = ProvisionOptions { offline: args.offline, ..ProvisionOptions::default() };
    let provisioner = Provisioner::new(options);
    let mut code = 0;
    for (reference, name) in &chosen {
        if interrupted() {
            break;
        }
        let ready = provisioner.release(reference, name.release.as_ref()).and_then(|release| {
            release.ensure(reference, None)?;
            Ok(versions(&release, reference))
        });
        match ready {
            Ok(versions) => print(format!("{name}: ready ({versions})")),
            Err(Missing { reason, mend }) => {
                let mend = match mend.as_str() {
                    "" => String::new(),
                    mend => format!("\n  to mend it: {mend}"),
                };
                print(format!("{name}: {reason}{mend}"));
                code = ENVIRONMENT;
            }
        }
    }
    code
}

fn examine() -> u8 {
    let provisioner = Provisioner::new(ProvisionOptions::default());
    let bar = Progress::new(false).open("", "examining this machine");
    let checks =
        doctor::examine(&provisioner, &mut |check| bar.say(&format!("checked {}", check.what)));
    drop(bar);
    let mut table = table(&["", "what", "found", "to mend it"]);
    for check in &checks {
        let sign = match check.state {
            State::Good => "ok",
            State::Idle => "-",
            State::Bad => "BAD",
        };
        table.add_row([sign, &check.what, &check.found, &check.mend]);
    }
    print(table);
    let bad = checks.iter().filter(|check| check.state == State::Bad).count();
    match bad {
        0 => print("Nothing is wrong."),
        1 => print("One thing is wrong."),
        _ => print(format!("{bad} things are wrong.")),
    }
    if bad == 0 { 0 } else { ENVIRONMENT }
}

fn prune_cache(args: &PruneArgs) -> u8 {
    let provisioner = Provisioner::new(ProvisionOptions::default());
    let candidates = prune::candidates(&provisioner, &references::all(), args.all);
    let (mut freed, mut code) = (0, 0);
    for candidate in &candidates {
        let size = human_bytes(candidate.bytes);
        let what = if candidate.throw_away { " (of a newest release)" } else { "" };
        let path = format!("{}{what}", candidate.path.display());
        if args.dry_run {
            print(format!("would remove {path}, {size}"));
            freed += candidate.bytes;
            continue;
        }
        match prune::remove(candidate) {
            Outcome::Removed => {
                print(format!("removed {path}, {size}"));
                freed += candidate.bytes;
            }
            Outcome::InUse => print(format!("kept {path}: another llorch-diff uses it")),
            Outcome::Failed(error) => {
                print(format!("failed to remove {path}: {error}"));
                code = ENVIRONMENT;
            }
        }
    }
    match (candidates.is_empty(), args.dry_run) {
        (true, _) => print(format!("nothing to remove in {}", provisioner.cache.display())),
        (false, true) => print(format!("{} in all", human_bytes(freed))),
        (false, false) => print(format!("freed {}", human_bytes(freed))),
    }
    code
}

fn print_command(args: &CommandArgs) -> u8 {
    let options = ProvisionOptions { allow: false, ..ProvisionOptions::default() };
    let command: Result<AdapterCommand, Missing> = if args.name == crate::provision::engine::ENGINE
    {
        engine_command(&options)
    } else {
        let name = match args.name.parse::<RefName>() {
            Ok(name) => name,
            Err(error) => {
                llorch_models::errln!("{error}");
                return USAGE;
            }
        };
        match name.resolve() {
            Ok(reference) => Provisioner::new(options).ensure_release(
                &reference,
                name.variant.as_deref(),
                name.release.as_ref(),
            ),
            Err(error) => {
                llorch_models::errln!("{error}");
                return USAGE;
            }
        }
    };
    match command {
        Ok(command) => {
            print(command.display());
            0
        }
        Err(Missing { reason, mend }) => {
            llorch_models::errln!("{reason}\n  to mend it: {mend}");
            ENVIRONMENT
        }
    }
}
