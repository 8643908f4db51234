//! Makes references runnable: virtual environments from lock files, adapters built by cargo, our
//! own engine built from the checkout that it belongs to.
//!
//! What is made lies in the cache under a name that holds the hash of its pins, and counts as made
//! when its stamp is there, which is written last. (A stamp and not a rename at the end: the
//! scripts of a virtual environment hold its path.) One process builds, others wait (`lock`); what
//! was half-made by a process that was killed is made anew. Once made, nothing here needs a
//! network; with [`ProvisionOptions::offline`] nothing here tries one.
//!
//! ```text
//! <cache>/envs/hf-<hash of the lock file>-py3.11/   a virtual environment
//! <cache>/envs/llamacpp-<hash of its pins>-cpu-<hash of the processor>-py3.11/   one that compiles (`built`)
//! <cache>/envs/candle-<hash of its sources>/        a program built by cargo
//! <cache>/build/candle-<hash of Cargo.lock>/        cargo's build folder for it
//! <cache>/adapters/<hash>/                          the adapters' sources, extracted
//! <cache>/latest/hf-<hash of the lock file>/        what `hf@latest` was resolved to
//! <cache>/uv/<version>/, <cache>/uv/cache/          uv, where the machine has none
//! ```
//!
//! Reading order: [`ensure`], `python` and `cargo` (the two kinds of reference), [`newest`] (their newest
//! releases), `built` (what is compiled here), `uv`, [`engine`], `pins`, `find`, [`disk`], `stamp`, [`lock`], then what looks after the cache: [`status`],
//! [`doctor`], [`prune`].

mod built;
mod cargo;
pub mod disk;
pub mod doctor;
pub mod engine;
mod find;
pub mod lock;
pub mod newest;
pub mod pins;
pub mod prune;
mod python;
mod sources;
mod stamp;
pub mod status;
mod uv;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use llorch_models::progress::{Bar, Progress};
use llorch_trace::hash::sha256_bytes;

use crate::assets;
use crate::references::{Kind, Reference, Release};
use crate::supervise::{AdapterCommand, Limits, Session};

pub use engine::engine_command;

/// How far provisioning may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvisionOptions {
    /// Never touch the network.
    pub offline: bool,
    /// Say nothing on stderr.
    pub quiet: bool,
    /// Whether what is missing may be installed at all; if not, it is reported as missing.
    pub allow: bool,
}

impl Default for ProvisionOptions {
    fn default() -> Self {
        Self { offline: false, quiet: false, allow: true }
    }
}

/// Something that can't run here and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Why, in one sentence.
    pub reason: String,
    /// The one command (or step) that mends it; empty where none does.
    pub mend: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mend.as_str() {
            "" => f.write_str(&self.reason),
            mend => write!(f, "{} (to mend it: {mend})", self.reason),
        }
    }
}

impl std::error::Error for Missing {}

/// The command that runs a reference, which is installed first where it isn't yet.
///
/// What is done is told on stderr beforehand, with sizes. The environment stays in use (isn't
/// pruned) until this process ends.
pub fn ensure(
    reference: &Reference,
    variant: Option<&str>,
    options: &ProvisionOptions,
) -> Result<AdapterCommand, Missing> {
    Provisioner::new(*options).ensure(reference, variant)
}

/// Where things come from and where they go. [`ensure`] is this with the real ones; tests have
/// caches, pins and disks of their own.
#[derive(Debug, Clone)]
pub struct Provisioner {
    pub options: ProvisionOptions,
    /// Where environments are made.
    pub cache: PathBuf,
    /// Where `uv` is looked for and installed.
    pub shared_cache: PathBuf,
    /// A folder with `refs/` and `adapters/` in place of the embedded ones.
    pub sources: Option<PathBuf>,
    /// A `uv` in place of the one that is found or installed.
    pub uv: Option<PathBuf>,
    /// Another release than the pinned one.
    pub newest: Option<newest::Newest>,
    /// [`disk::free_space`].
    pub free_space: fn(&Path) -> io::Result<u64>,
    /// What tells this machine's processor from another.
    pub processor: fn() -> String,
}

impl Provisioner {
    pub fn new(options: ProvisionOptions) -> Self {
        let cache = llorch_models::cache_dir();
        Self {
            options,
            shared_cache: cache.clone(),
            cache,
            sources: None,
            uv: None,
            newest: None,
            free_space: disk::free_space,
            processor: built::processor,
        }
    }

    pub fn ensure(
        &self,
        reference: &Reference,
        variant: Option<&str>,
    ) -> Result<AdapterCommand, Missing> {
        let mut command = match reference.kind {
            Kind::Python => python::ensure(self, reference)?,
            Kind::Cargo => cargo::ensure(self, reference)?,
        };
        for (key, value) in &reference.env {
            command = command.env(key, value);
        }
        if let Some(variant) = variant {
            command.name = format!("{}:{variant}", reference.name);
            command = command.args(["--variant", variant]);
        }
        command.lock_sha256 = self.bytes(&lock_path(reference)).map(|lock| sha256_bytes(&lock));
        Ok(command)
    }

    /// The same of another release than the pinned one, which is asked for first.
    pub fn ensure_release(
        &self,
        reference: &Reference,
        variant: Option<&str>,
        release: Option<&Release>,
    ) -> Result<AdapterCommand, Missing> {
        self.release(reference, release)?.ensure(reference, variant)
    }

    /// What provisions this release of a reference.
    pub fn release(
        &self,
        reference: &Reference,
        release: Option<&Release>,
    ) -> Result<Provisioner, Missing> {
        match release {
            None => Ok(self.clone()),
            Some(release) => newest::at(self, reference, release),
        }
    }

    /// The `uv` that makes environments; installed first where the machine has none.
    pub fn uv_program(&self) -> Result<PathBuf, Missing> {
        let python = find::python("3.11")?;
        let bar = Progress::new(self.options.quiet).open("uv", "looking for it");
        Ok(uv::ensure(self, &python.path, &bar)?.path)
    }

    /// The command of a reference that is installed already.
    pub fn installed(&self, reference: &Reference) -> Option<AdapterCommand> {
        let options = ProvisionOptions { allow: false, quiet: true, ..self.options };
        Self { options, ..self.clone() }.ensure(reference, None).ok()
    }

    pub(crate) fn envs(&self) -> PathBuf {
        self.cache.join("envs")
    }

    fn bytes(&self, path: &str) -> Option<Cow<'static, [u8]>> {
        if let Some(bytes) = self.resolved().and_then(|dir| std::fs::read(dir.join(path)).ok()) {
            return Some(Cow::Owned(bytes));
        }
        match &self.sources {
            Some(root) => std::fs::read(root.join(path)).ok().map(Cow::Owned),
            None => assets::get(path),
        }
    }

    pub(crate) fn text(&self, path: &str) -> Option<String> {
        String::from_utf8(self.bytes(path)?.into_owned()).ok()
    }

    /// The folder whose files stand in place of the pinned ones.
    fn resolved(&self) -> Option<&Path> {
        self.newest.as_ref()?.dir.as_deref()
    }

    /// `hf`, or `hf@latest`: how a reference is called in what is told.
    fn called(&self, reference: &Reference) -> String {
        match &self.newest {
            Some(newest) => format!("{}@{}", reference.name, newest.release),
            None => reference.name.clone(),
        }
    }

    /// The folder that holds `adapters/…` on disk.
    fn adapters(&self) -> io::Result<PathBuf> {
        match &self.sources {
            Some(root) => std::path::absolute(root),
            None => assets::extract(),
        }
    }

    /// Refuses where installing is forbidden.
    fn may_install(&self, reference: &Reference) -> Result<(), Missing> {
        let name = &self.called(reference);
        let reason = match self.options {
            ProvisionOptions { allow: false, .. } => format!("{name} isn't installed"),
            ProvisionOptions { offline: true, .. } => {
                format!("{name} isn't installed, and --offline forbids to fetch it")
            }
            _ => return Ok(()),
        };
        Err(Missing { reason, mend: setup_command(name) })
    }
}

/// The lock file of a reference, as a path in the repository.
fn lock_path(reference: &Reference) -> String {
    match (reference.kind, &reference.requirements) {
        (Kind::Cargo, _) => format!("adapters/{}/Cargo.lock", reference.entry),
        (Kind::Python, Some(file)) => format!("refs/{}/{file}", reference.name),
        (Kind::Python, None) => format!("refs/{}/requirements.lock", reference.name),
    }
}

/// A line that stays, about the one that is provisioned.
fn say(bar: &Bar, text: &str) {
    bar.say(&format!("{}: {text}", bar.name()));
}

/// The command that installs a reference.
pub(crate) fn setup_command(name: &str) -> String {
    format!("llorch-diff adapters setup {name}")
}

/// Starts a freshly made adapter and greets it: what doesn't say hello isn't installed well. Also
/// warms Python's bytecode cache, so that the first run doesn't pay for it.
pub(crate) fn say_hello(command: &AdapterCommand) -> Result<String, crate::supervise::Failure> {
    let file = tempfile::NamedTempFile::new().map_err(|error| crate::supervise::Failure {
        kind: crate::supervise::FailureKind::Spawn,
        message: format!("failed to make a temporary file: {error}"),
        stderr_tail: String::new(),
    })?;
    let session = Session::start(command, &Limits::default(), file.path())?;
    let version = session.hello().version.clone();
    session.finish();
    Ok(version)
}
