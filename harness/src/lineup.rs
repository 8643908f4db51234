//! Who takes part in a run: the subject and the references, from names and commands to what can be
//! started.

use std::path::Path;

use llorch_trace::Dtype;
use llorch_trace::protocol::Worth;

use crate::provision::{self, Missing, ProvisionOptions, Provisioner};
use crate::references::{self, RefName, RefNameError, Reference, Release};
use crate::result::Role;
use crate::supervise::{AdapterCommand, CommandError};

/// The references of a run in which none is named.
pub const JURY: [&str; 4] = ["hf", "tinygrad", "candle", "llamacpp"];
/// Names every reference but those that ask to be named themselves.
pub const EVERYBODY: &str = "all";
/// Names no reference at all: the oracle is enough for `bisect`.
pub const NOBODY: &str = "none";
/// The name of our own engine in results.
pub const ENGINE: &str = "llorch-cpud";
/// The name of a subject until it has said hello.
pub const UNNAMED: &str = "subject";

/// One who takes part.
#[derive(Debug, Clone)]
pub struct Member {
    /// A subject given as a command is named by its own hello.
    pub name: String,
    pub role: Role,
    pub worth: Option<Worth>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    /// Our engine, built from the checkout or installed beside us.
    Engine,
    /// A reference with an adapter of ours, provisioned before it is started: as pinned, unless a release
    /// is named.
    Provisioned { reference: Box<Reference>, variant: Option<String>, release: Option<Release> },
    /// A command of the user's.
    Command(AdapterCommand),
    /// A running daemon, by its address.
    Http(String),
}

#[derive(Debug, thiserror::Error)]
pub enum LineupError {
    #[error(transparent)]
    Name(#[from] RefNameError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "failed to read `{text}` as a reference: its name must be a word of letters, digits, - _ and . that isn't {taken}"
    )]
    CustomName { text: String, taken: &'static str },
    #[error(
        "failed to use {url} as the subject: https is not supported, because a daemon speaks plain http; expected http://HOST:PORT"
    )]
    Https { url: String },
    #[error(
        "failed to line up the references: --ref none asks for no other; found {name} beside it"
    )]
    NoneAndOthers { name: String },
    #[error("failed to line up the references: {name} is named twice")]
    Twice { name: String },
}

/// The subject: our engine, any command that speaks the protocol, or a running daemon.
pub fn subject(command: Option<&str>) -> Result<Member, LineupError> {
    let source = match command {
        None => Source::Engine,
        Some(url) if url.starts_with("https://") => {
            return Err(LineupError::Https { url: url.to_string() });
        }
        Some(url) if url.starts_with("http://") => {
            Source::Http(url.trim_end_matches('/').to_string())
        }
        Some(line) => Source::Command(AdapterCommand::from_words(UNNAMED, line)?),
    };
    let name = match source {
        Source::Engine | Source::Http(_) => ENGINE,
        _ => UNNAMED,
    };
    Ok(Member { name: name.into(), role: Role::Subject, worth: None, source })
}

/// The references in the order in which they are named: `NAME`, `NAME:VARIANT`, either `@latest`, `all`, or
/// `NAME=COMMAND`.
pub fn references(named: &[String]) -> Result<Vec<Member>, LineupError> {
    if named.iter().any(|name| name == NOBODY) {
        return match named.iter().find(|name| *name != NOBODY) {
            None => Ok(Vec::new()),
            Some(other) => Err(LineupError::NoneAndOthers { name: other.clone() }),
        };
    }
    let jury: Vec<String> = JURY.iter().map(|name| name.to_string()).collect();
    let named = if named.is_empty() { &jury } else { named };
    let mut members: Vec<Member> = Vec::new();
    for text in &with_everybody(named) {
        let member = reference(text)?;
        if members.iter().any(|m| m.name == member.name) {
            return Err(LineupError::Twice { name: member.name });
        }
        members.push(member);
    }
    Ok(members)
}

/// `all` written out, without those that are named beside it.
fn with_everybody(named: &[String]) -> Vec<String> {
    let everybody = || references::all().into_iter().filter(|r| !r.hidden && !r.only_by_name);
    let mut written = Vec::new();
    for name in named {
        match name.as_str() {
            EVERYBODY => {
                let names = |r: Reference| {
                    let graphs: Vec<String> =
                        r.graphs.iter().map(|graph| format!("{}:{graph}", r.name)).collect();
                    std::iter::once(r.name).chain(graphs)
                };
                let others = everybody().flat_map(names);
                written.extend(others.filter(|other| !named.contains(other)));
            }
            _ => written.push(name.clone()),
        }
    }
    written
}

fn reference(text: &str) -> Result<Member, LineupError> {
    if let Some((name, line)) = text.split_once('=') {
        const TAKEN: &str = "oracle, llorch-cpud or subject";
        let taken = ["oracle", ENGINE, UNNAMED].contains(&name);
        if taken || !is_name(name) {
            return Err(LineupError::CustomName { text: text.into(), taken: TAKEN });
        }
        let source = Source::Command(AdapterCommand::from_words(name, line)?);
        return Ok(Member { name: name.into(), role: Role::Reference, worth: None, source });
    }
    let name: RefName = text.parse()?;
    let reference = name.resolve()?;
    let worth = Some(reference.worth);
    let source = Source::Provisioned {
        reference: Box::new(reference),
        variant: name.variant.clone(),
        release: name.release.clone(),
    };
    Ok(Member { name: name.to_string(), role: Role::Reference, worth, source })
}

/// A name that may stand in reports, keys and, through [`file_name`], on disk.
pub fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.len() <= 64 && name.split(':').count() <= 2 && name.split(':').all(is_word)
}

/// The name as part of a path: colons are not welcome everywhere.
pub fn file_name(name: &str) -> String {
    name.replace(':', "-")
}

impl Member {
    /// Where it listens, if it is a daemon that runs already.
    pub fn address(&self) -> Option<&str> {
        match &self.source {
            Source::Http(url) => Some(url),
            _ => None,
        }
    }

    /// Whether it takes a look at a registry to know what it is, whatever is installed.
    pub fn is_newest(&self) -> bool {
        matches!(&self.source, Source::Provisioned { release: Some(_), .. })
    }

    /// What starts it; installs a reference first if it may.
    pub fn command(&self, options: &ProvisionOptions) -> Result<AdapterCommand, Missing> {
        match &self.source {
            Source::Command(command) => Ok(command.clone()),
            Source::Http(url) => over_http(url),
            Source::Engine => provision::engine_command(options),
            Source::Provisioned { reference, variant, release } => {
                let provisioner = Provisioner::new(*options);
                let mut command =
                    provisioner.ensure_release(reference, variant.as_deref(), release.as_ref())?;
                command.name.clone_from(&self.name);
                Ok(command)
            }
        }
    }

    /// Our own engine has a daemon too: what starts it on a free port, given what starts the adapter and the dtype
    /// that it is asked to compute in.
    pub fn daemon(&self, adapter: &AdapterCommand, dtype: Dtype) -> Option<AdapterCommand> {
        let ours = match &self.source {
            Source::Engine => true,
            Source::Command(command) => is_our_engine(&command.program),
            Source::Provisioned { .. } | Source::Http(_) => false,
        };
        let trace = adapter.args.iter().position(|word| word == "trace")?;
        let mut daemon = adapter.clone();
        daemon.args[trace] = "serve".into();
        daemon.args.truncate(trace + 1);
        let dtype = if dtype == Dtype::BF16 { &["--dtype", "bf16"][..] } else { &[] };
        ours.then(|| daemon.args(["--port", "0", "--offline"]).args(dtype.iter().copied()))
    }
}

/// This program speaks the protocol for a daemon.
fn over_http(url: &str) -> Result<AdapterCommand, Missing> {
    let program = std::env::current_exe().map_err(|error| Missing {
        reason: format!("failed to find this program, which speaks for {url}: {error}"),
        mend: "start llorch-diff by its path".into(),
    })?;
    Ok(AdapterCommand::new(ENGINE, program).args(["adapter", "http", url]))
}

fn is_our_engine(program: &Path) -> bool {
    program.file_stem().is_some_and(|stem| stem == ENGINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_may_be_commands() {
        let named = ["mine=python3 'my adapter.py' --fast".to_string()];
        let members = references(&named).unwrap();
        assert_eq!(members[0].name, "mine");
        let Source::Command(command) = &members[0].source else { panic!() };
        assert_eq!(command.args, ["my adapter.py", "--fast"]);
    }

    #[test]
    fn all_is_every_reference_once_but_those_that_are_only_named() {
        let names = |named: &[&str]| -> Vec<String> {
            let named: Vec<String> = named.iter().map(|n| n.to_string()).collect();
            super::references(&named).unwrap().into_iter().map(|m| m.name).collect()
        };
        let all = names(&[EVERYBODY]);
        for name in JURY.iter().chain(&["numpy", "tinygrad-upstream", "candle:upstream"]) {
            assert!(all.iter().any(|n| n == name), "{name}: {all:?}");
        }
        assert!(!all.iter().any(|n| n == "bug"), "{all:?}");
        let named = names(&["candle", EVERYBODY, "hf:f64"]);
        assert_eq!((named[0].as_str(), named.last().unwrap().as_str()), ("candle", "hf:f64"));
        assert_eq!(named.len(), all.len() + 1);
        let twice: Vec<String> = vec![EVERYBODY.into(), EVERYBODY.into()];
        assert!(super::references(&twice).is_err());
    }

    #[test]
    fn names_that_would_mislead_are_refused() {
        for text in
            ["oracle=x", "llorch-cpud=x", "a b=x", "../x=y", "=x", "a:b:c=x", "mine=", "mine='x"]
        {
            assert!(references(&[text.to_string()]).is_err(), "{text}");
        }
        let twice = ["a=x".to_string(), "a=y".to_string()];
        assert!(references(&twice).unwrap_err().to_string().contains("a is named twice"));
    }
}
