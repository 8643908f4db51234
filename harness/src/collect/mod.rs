//! Collects the evidence of one implementation: every case through its adapter, every announced
//! tensor checked and put into a bundle, everything that goes wrong written down as a [`Fault`] where
//! it happened, so that the rest still counts.
//!
//! Each case is run twice: once with the forced tokens and all points captured, and, where
//! checkpoint 12 is wanted, once left to itself, with nothing captured. Where stages are isolated, it is
//! run once for each group of stages that can share a run.

mod case_run;
mod isolated;
pub mod tensors;

pub use isolated::CANNOT_INJECT;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llorch_models::progress::{Bar, Progress};
use llorch_trace::bundle::{CaseRecord, Manifest};
use llorch_trace::protocol::Inject;
use llorch_trace::{BundleWriter, Dtype, Precision, Stage};

use crate::evidence::{Case, Evidence, Fault, FaultKind, Plan};
use crate::isolate::Isolation;
use crate::lineup::{UNNAMED, file_name, is_name};
use crate::result::Role;
use crate::supervise::{AdapterCommand, Failure, FailureKind, Finished, Forced, Limits, Session};

/// What is the same for all implementations of a run.
#[derive(Debug)]
pub struct Settings<'a> {
    pub plan: &'a Plan,
    pub limits: Limits,
    pub dtype: Dtype,
    pub threads: usize,
    /// Where bundles and stderr files go.
    pub out: &'a Path,
    /// Which model, for the manifest.
    pub model: serde_json::Value,
    /// Names that a subject may not take for itself.
    pub taken: Vec<String>,
    /// Where stages are isolated: what is put in front of which.
    pub isolation: Option<&'a Isolation>,
    /// By case: what is put in the place of its tensors.
    pub inject: BTreeMap<String, Vec<Inject>>,
}

/// A failure of ours, not of the implementation: a full disk, for instance.
#[derive(Debug, thiserror::Error)]
#[error("failed to save what {name} gave: {message}")]
pub struct CollectError {
    pub name: String,
    pub message: String,
}

/// How often an adapter is started again after it crashed or hung. A crash may be of one case; the
/// next one tells.
const RESTARTS: usize = 1;

const NOT_RUN: &str = "not run, because it had failed before: ";

/// Runs all cases through one implementation, with a line about each thing that is done.
pub fn collect(
    command: &AdapterCommand,
    role: Role,
    settings: &Settings<'_>,
    progress: &Progress,
) -> Result<Evidence, CollectError> {
    let began = Instant::now();
    let mut collection = Collection::new(command.clone(), role, settings, progress);
    let mut evidence = match collection.start() {
        Started::Missing(reason) => {
            let mut evidence = empty(&command.name, role);
            evidence.missing = Some((reason, None));
            evidence
        }
        Started::Failed => {
            collection.stop();
            collection.evidence
        }
        Started::Running => {
            collection.run_all()?;
            collection.evidence
        }
    };
    evidence.seconds = began.elapsed().as_secs_f64();
    Ok(evidence)
}

/// What is known of an implementation that gave nothing.
pub fn empty(name: &str, role: Role) -> Evidence {
    Evidence {
        name: name.to_string(),
        role,
        hello: None,
        lock_sha256: None,
        computes: None,
        bundle: None,
        generated: BTreeMap::new(),
        tokenized: BTreeMap::new(),
        served: None,
        faults: Vec::new(),
        missing: None,
        seconds: 0.0,
    }
}

enum Started {
    Running,
    /// It never ran at all.
    Missing(String),
    /// It ran and failed; the fault is written down.
    Failed,
}

struct Collection<'a> {
    command: AdapterCommand,
    settings: &'a Settings<'a>,
    bar: Bar,
    evidence: Evidence,
    session: Option<Session>,
    starts: usize,
    bundle: Option<BundleWriter>,
    /// Points that are captured, by name.
    wanted: Vec<String>,
}

impl<'a> Collection<'a> {
    fn new(
        command: AdapterCommand,
        role: Role,
        settings: &'a Settings<'a>,
        progress: &Progress,
    ) -> Self {
        let captured = settings.plan.captured();
        let points = llorch_trace::all_points(settings.plan.dims.n_layer);
        let names = points.iter().filter(|p| captured.contains_point(**p));
        let wanted = names.map(|p| p.to_string()).collect();
        let mut evidence = empty(&command.name, role);
        evidence.lock_sha256.clone_from(&command.lock_sha256);
        let bar = progress.steps(&command.name, "case", settings.plan.cases.len());
        Self { command, settings, bar, evidence, session: None, starts: 0, bundle: None, wanted }
    }

    fn say(&self, what: &str) {
        self.bar.say(&format!("{}: {what}", self.evidence.name));
    }

    fn stderr_file(&self) -> PathBuf {
        let name = file_name(&self.evidence.name);
        let nth = if self.starts > 1 { format!(".{}", self.starts) } else { String::new() };
        self.settings.out.join(format!("{name}.stderr{nth}.txt"))
    }

    /// Starts the adapter, greets it and loads the model.
    fn start(&mut self) -> Started {
        self.starts += 1;
        let stderr = self.stderr_file();
        self.bar.doing("starting");
        let mut session = match Session::start(&self.command, &self.settings.limits, &stderr) {
            Ok(session) => session,
            Err(failure) if failure.kind == FailureKind::Spawn => {
                return Started::Missing(failure.message);
            }
            Err(failure) => {
                self.fault(None, &failure);
                return Started::Failed;
            }
        };
        if self.evidence.hello.is_none() {
            let hello = session.hello().clone();
            if self.evidence.name == UNNAMED {
                self.rename(&hello.name, &stderr);
            }
            self.declare(&hello);
            self.evidence.hello = Some(hello);
        }
        self.bar.doing("loading the model");
        let dtype = self.dtype();
        let loaded = session.load(&self.settings.plan.model_dir, dtype, self.settings.threads);
        self.session = Some(session);
        match loaded {
            Ok(Precision::Float(computes)) => {
                self.evidence.computes = Some(computes);
                Started::Running
            }
            Ok(precision @ Precision::Int8) => {
                let name = &self.evidence.name;
                let message = format!(
                    "{name} computes in {precision}, for which stages have no bound; `llorch-diff bench` compares its logits"
                );
                self.fault(None, &Failure::new(FailureKind::Unsupported, message));
                Started::Failed
            }
            Err(failure) => {
                self.fault(None, &failure);
                Started::Failed
            }
        }
    }

    /// A dtype narrower than f32 is asked of the subject: references are there to be right, and stay in f32
    /// unless their own variant says otherwise.
    fn dtype(&self) -> Dtype {
        let asked = self.settings.dtype;
        let is_narrow = asked.unit_roundoff() > Dtype::F32.unit_roundoff();
        if self.evidence.role == Role::Reference && is_narrow { Dtype::F32 } else { asked }
    }

    /// A subject is known by its own name, if that is free and fit to be one.
    fn rename(&mut self, name: &str, stderr: &Path) {
        let taken = self.settings.taken.iter().any(|t| t == name) || name == "oracle";
        self.evidence.name = match (is_name(name), taken) {
            (true, false) => name.to_string(),
            (true, true) => format!("{UNNAMED}-{name}"),
            (false, _) => return,
        };
        self.bar.rename(&self.evidence.name);
        // It writes on through its open descriptor.
        let _ = std::fs::rename(stderr, self.stderr_file());
    }

    /// Capabilities that are absent, as faults of the kind that lowers nothing.
    fn declare(&mut self, hello: &llorch_trace::protocol::HelloResponse) {
        let unsupported = |step, message: &str| Fault {
            case: None,
            step,
            point: None,
            kind: FaultKind::Unsupported,
            message: message.to_string(),
        };
        if !hello.can("capture") {
            self.evidence.faults.push(unsupported(None, "captures no tensors"));
        } else if !hello.can("generate") {
            let last = self.settings.plan.cases.iter().map(Case::steps).max().unwrap_or(1);
            let steps = (1..last).map(|n| unsupported(Some(n), "has no decode steps"));
            self.evidence.faults.extend(steps);
        }
        if let Some(isolation) = self.settings.isolation {
            self.declare_isolation(hello, isolation);
        }
    }

    /// Writes a failed conversation down; `case` absent means that nothing can be had.
    fn fault(&mut self, case: Option<&Case>, failure: &Failure) {
        let kind = match failure.kind {
            FailureKind::Unsupported => FaultKind::Unsupported,
            _ => FaultKind::Process,
        };
        let case_name = case.map(|c| c.name.clone());
        let message = self.told(failure);
        let at = case_name.as_ref().map(|c| format!("{c}: ")).unwrap_or_default();
        self.say(&format!("{at}{}: {message}", failure.kind));
        self.evidence.faults.push(Fault {
            case: case_name,
            step: None,
            point: None,
            kind,
            message,
        });
    }

    /// What went wrong, for where the implementation's name stands in front already.
    fn told(&self, failure: &Failure) -> String {
        failure.without_name(&self.command.name).to_string()
    }

    fn run_all(&mut self) -> Result<(), CollectError> {
        let dir = self.settings.out.join(file_name(&self.evidence.name));
        // Half a bundle is none: an interrupted run leaves no folder without a manifest behind.
        let _cleanup = crate::supervise::remove_on_interrupt(&dir);
        let writer = BundleWriter::create(&dir).map_err(|e| self.unsaved(e.to_string()))?;
        self.bundle = Some(writer);
        for (n, case) in self.settings.plan.cases.iter().enumerate() {
            self.bar.set(n as u64);
            self.bar.detail(&case.name);
            if let Some(isolation) = self.settings.isolation {
                self.isolate(case, isolation)?;
                continue;
            }
            self.tokenize(case);
            self.capture(case)?;
            self.generate(case);
        }
        self.stop();
        self.close_bundle()
    }

    /// Makes sure of a living session, within the restarts allowed; the error says why there is none.
    fn revive(&mut self) -> Result<(), String> {
        if self.session.as_ref().is_some_and(|s| s.dead().is_none()) {
            return Ok(());
        }
        self.stop();
        if self.starts <= RESTARTS {
            self.say("starting it again");
            if let Started::Running = self.start() {
                return Ok(());
            }
            self.stop();
        }
        let failure = self.evidence.faults.iter().rev().find(|f| f.kind == FaultKind::Process);
        let first_line = failure.and_then(|f| f.message.lines().next()).unwrap_or("it failed");
        let first_line = first_line.strip_prefix(NOT_RUN).unwrap_or(first_line);
        Err(format!("{NOT_RUN}{first_line}"))
    }

    fn stop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let died = session.dead().is_some();
        let Finished { exit, leaked, forced, .. } = session.finish();
        if leaked > 0 {
            self.say(&format!("left {leaked} processes behind, which were ended"));
        }
        if died {
            return;
        }
        match exit.filter(|exit| !exit.success()) {
            Some(_) if forced != Forced::No => {
                self.say("did not end when its input ended; it was made to");
            }
            Some(exit) => self.say(&format!("ended with {exit} after its last case")),
            None => {}
        }
    }

    fn close_bundle(&mut self) -> Result<(), CollectError> {
        let Some(writer) = self.bundle.take() else { return Ok(()) };
        let generated = &self.evidence.generated;
        let record = |case: &Case| {
            let free = generated.get(&case.name);
            let record = CaseRecord {
                ids: case.ids.clone(),
                generated: free.map(|g| g.ids.clone()),
                text: free.and_then(|g| g.text.clone()),
            };
            (case.name.clone(), record)
        };
        let manifest = Manifest {
            implementation: self.evidence.name.clone(),
            hello: self.evidence.hello.clone(),
            model: self.settings.model.clone(),
            cases: self.settings.plan.cases.iter().map(record).collect(),
            provenance: serde_json::json!({
                "producer": concat!("llorch-diff ", env!("CARGO_PKG_VERSION")),
                "dtype": self.evidence.computes.unwrap_or_else(|| self.dtype()),
                "threads": self.settings.threads,
            }),
            ..Manifest::default()
        };
        let bundle = writer.finish(manifest).map_err(|e| self.unsaved(e.to_string()))?;
        self.evidence.bundle = Some(bundle);
        Ok(())
    }

    fn unsaved(&self, message: String) -> CollectError {
        CollectError { name: self.evidence.name.clone(), message }
    }

    fn can(&self, capability: &str) -> bool {
        self.evidence.hello.as_ref().is_some_and(|h| h.can(capability))
    }

    fn wants(&self, stage: Stage) -> bool {
        self.settings.plan.points.iter().any(|p| p.stage == stage)
    }
}
