//! One case: its prompt through the tokenizer, the captured run, the free one.

use std::collections::HashSet;
use std::time::Instant;

use llorch_trace::protocol::{DoneMessage, Inject, RunRequest, Sampling, TensorMessage};
use llorch_trace::{BundleWriter, Point, Stage};

use super::{CollectError, Collection, tensors};
use crate::evidence::{Case, Fault, FaultKind};
use crate::result::Generation;
use crate::supervise::{Failure, FailureKind};

/// How much of the time of a case its captured run takes, roughly: the rest is left to itself, without
/// captures.
const CAPTURED: f64 = 0.8;

/// What is asked of one captured run.
pub(super) struct Asked {
    pub id: String,
    pub points: Vec<String>,
    pub inject: Vec<Inject>,
}

/// The captured run as it comes in.
struct Intake<'a> {
    case: &'a Case,
    dims: llorch_trace::Dims,
    wanted: &'a [String],
    out_dir: &'a std::path::Path,
    bundle: &'a mut BundleWriter,
    /// What was announced, good or bad.
    seen: HashSet<(usize, Point)>,
    faults: Vec<Fault>,
    /// Tensors that nobody asked for.
    strays: Vec<String>,
    /// A failure of ours while writing.
    unsaved: Option<String>,
}

impl Intake<'_> {
    fn take(&mut self, message: &TensorMessage) {
        let asked = self.wanted.contains(&message.point) && message.step < self.case.steps();
        let Some(point) = message.point.parse::<Point>().ok().filter(|_| asked) else {
            self.strays.push(format!("{} at step {}", message.point, message.step));
            return tensors::remove_after_reading(message, self.out_dir);
        };
        if !self.seen.insert((message.step, point)) {
            let what = "it came twice, and which is meant isn't known".to_string();
            return self.refuse(message.step, point, FaultKind::MissingTensor, what);
        }
        let read = tensors::read(message, point, self.case, &self.dims, self.out_dir);
        tensors::remove_after_reading(message, self.out_dir);
        let tensor = match read {
            Ok(tensor) => tensor,
            Err((kind, what)) => return self.refuse(message.step, point, kind, what),
        };
        // Kept all the same: the table shows where.
        if let Some(what) = tensors::first_non_finite(&tensor, point) {
            self.refuse(message.step, point, FaultKind::NonFinite, what);
        }
        if self.unsaved.is_none()
            && let Err(error) =
                self.bundle.add(&self.case.name, message.step, &message.point, &tensor)
        {
            self.unsaved = Some(error.to_string());
        }
    }

    fn refuse(&mut self, step: usize, point: Point, kind: FaultKind, message: String) {
        let case = Some(self.case.name.clone());
        self.faults.push(Fault { case, step: Some(step), point: Some(point), kind, message });
    }
}

impl Collection<'_> {
    pub(super) fn tokenize(&mut self, case: &Case) {
        let Some(prompt) = case.prompt.as_ref().filter(|_| self.can("tokenize")) else { return };
        // Without a session the captured run says why.
        if !self.wants(Stage::Tokens) || self.revive().is_err() {
            return;
        }
        let Some(session) = &mut self.session else { return };
        match session.tokenize(prompt) {
            Ok(ids) => {
                self.evidence.tokenized.insert(case.name.clone(), ids);
            }
            // A model without tokenizer files, for instance.
            Err(failure) if failure.kind == FailureKind::Unsupported => {}
            Err(failure) => {
                let told = self.told(&failure);
                self.say(&format!("{}: {}: {told}", case.name, failure.kind));
                let (case, point) = (Some(case.name.clone()), Some(Point::new(Stage::Tokens)));
                let message = format!("tokenize: {told}");
                let kind = FaultKind::Process;
                self.evidence.faults.push(Fault { case, step: Some(0), point, kind, message });
            }
        }
    }

    /// The run with forced tokens, every wanted point captured.
    pub(super) fn capture(&mut self, case: &Case) -> Result<(), CollectError> {
        if self.wanted.is_empty() || !self.can("capture") {
            return Ok(());
        }
        // At temperature 0 these would be other numbers than the case asks for.
        let drop_sampling = case.sampling.temperature > 0.0 && !self.can("sample");
        let points = self.wanted.iter().filter(|p| !drop_sampling || *p != "next.probs");
        let points: Vec<String> = points.cloned().collect();
        let id = format!("{}-captured", case.name);
        let inject = self.settings.inject.get(&case.name).cloned().unwrap_or_default();
        match self.captured_run(case, Asked { id, points, inject })? {
            Ok(()) => {}
            Err(failure) => self.fault(Some(case), &failure),
        }
        Ok(())
    }

    /// One run with forced tokens; the inner error is the adapter's.
    pub(super) fn captured_run(
        &mut self,
        case: &Case,
        asked: Asked,
    ) -> Result<Result<(), Failure>, CollectError> {
        let Asked { id, points, inject } = asked;
        if let Err(message) = self.revive() {
            let (case, kind) = (Some(case.name.clone()), FaultKind::Process);
            self.evidence.faults.push(Fault { case, step: None, point: None, kind, message });
            return Ok(Ok(()));
        }
        let began = Instant::now();
        let scratch = tempfile::Builder::new().prefix("llorch-case-").tempdir();
        let scratch = scratch.map_err(|e| self.unsaved(format!("no temporary folder: {e}")))?;
        let _cleanup = crate::supervise::remove_on_interrupt(scratch.path());
        // Resolved, so that what the adapter calls absolute is below it.
        let out_dir = scratch.path().canonicalize().map_err(|e| self.unsaved(e.to_string()))?;

        let drop_sampling = case.sampling.temperature > 0.0 && !self.can("sample");
        let decodes = self.can("generate");
        let steps = if decodes { case.steps() } else { 1 };
        let request = RunRequest {
            id,
            ids: case.ids.clone(),
            points: points.clone(),
            max_new_tokens: if decodes { case.max_new_tokens } else { 0 },
            forced_ids: (decodes && case.max_new_tokens > 0).then(|| case.forced_ids.clone()),
            sampling: if drop_sampling { Sampling::default() } else { case.sampling },
            inject,
            out_dir: out_dir.clone(),
            ..RunRequest::default()
        };
        let forced = request.forced_ids.clone();
        let (Some(session), Some(bundle)) = (&mut self.session, &mut self.bundle) else {
            return Ok(Ok(()));
        };
        let mut intake = Intake {
            case,
            dims: self.settings.plan.dims,
            wanted: &points,
            out_dir: &out_dir,
            bundle,
            seen: HashSet::new(),
            faults: Vec::new(),
            strays: Vec::new(),
            unsaved: None,
        };
        let expected = steps * points.len();
        let bar = &self.bar;
        let done = session.run(request, &mut |message| {
            intake.take(message);
            let come = intake.seen.len();
            bar.detail(&format!("{}, {come} of {expected} tensors", case.name));
            bar.part(CAPTURED * come as f64 / expected.max(1) as f64);
        });
        let Intake { seen, faults, strays, unsaved, .. } = intake;
        self.evidence.faults.extend(faults);
        if let Some(message) = unsaved {
            return Err(self.unsaved(message));
        }
        if let Some(first) = strays.first() {
            let n = strays.len();
            self.say(&format!(
                "{}: sent {n} tensors that nobody asked for, the first is {first}",
                case.name
            ));
        }
        match done {
            Ok(done) => {
                self.expect_all(case, steps, &points, &seen);
                self.expect_forced(case, forced, &done);
                let took = began.elapsed().as_secs_f64();
                self.say(&format!("{}: {} tensors in {took:.1} s", case.name, seen.len()));
            }
            Err(failure) => return Ok(Err(failure)),
        }
        Ok(Ok(()))
    }

    /// Whatever was asked for, can be captured by its nature, and did not come.
    fn expect_all(
        &mut self,
        case: &Case,
        steps: usize,
        points: &[String],
        seen: &HashSet<(usize, Point)>,
    ) {
        let hello = self.evidence.hello.clone();
        let declared = |p: &Point| {
            hello.as_ref().is_some_and(|h| h.unsupported_reason(&p.to_string()).is_some())
        };
        let expected: Vec<Point> =
            points.iter().filter_map(|p| p.parse().ok()).filter(|p| !declared(p)).collect();
        for step in 0..steps {
            for point in expected.iter().filter(|p| !seen.contains(&(step, **p))) {
                self.evidence.faults.push(Fault {
                    case: Some(case.name.clone()),
                    step: Some(step),
                    point: Some(*point),
                    kind: FaultKind::MissingTensor,
                    message: "the run ended without this tensor".into(),
                });
            }
        }
    }

    /// Forced tokens come back as generated ones; if not, something else was fed.
    fn expect_forced(&mut self, case: &Case, forced: Option<Vec<u32>>, done: &DoneMessage) {
        let Some(forced) = forced.filter(|forced| *forced != done.generated) else { return };
        let message = format!(
            "it was given forced_ids {forced:?} and says that it went on with {:?}",
            done.generated
        );
        self.say(&format!("{}: {message}", case.name));
        let kind = FaultKind::Process;
        self.evidence.faults.push(Fault {
            case: Some(case.name.clone()),
            step: None,
            point: None,
            kind,
            message,
        });
    }

    /// The run that is left to itself; only greedy ones compare.
    pub(super) fn generate(&mut self, case: &Case) {
        let greedy = case.sampling.temperature == 0.0 && case.max_new_tokens > 0;
        if !greedy || !self.wants(Stage::Generated) || !self.can("generate") {
            return;
        }
        if let Err(message) = self.revive() {
            return self.generation_fault(case, message);
        }
        let request = RunRequest {
            id: format!("{}-free", case.name),
            ids: case.ids.clone(),
            max_new_tokens: case.max_new_tokens,
            out_dir: std::env::temp_dir(),
            ..RunRequest::default()
        };
        let Some(session) = &mut self.session else { return };
        let done = match session.run(request, &mut |_| {}) {
            Ok(done) => done,
            Err(failure) => return self.generation_fault(case, self.told(&failure)),
        };
        let (expected, found) = (case.max_new_tokens, done.generated.len());
        if found != expected {
            return self
                .generation_fault(case, format!("generated {found} tokens; expected {expected}"));
        }
        let vocab = self.settings.plan.dims.vocab_size;
        if let Some(id) = done.generated.iter().find(|&&id| id as usize >= vocab) {
            return self
                .generation_fault(case, format!("generated id {id}; the vocabulary has {vocab}"));
        }
        let generation = Generation { ids: done.generated, text: done.text };
        self.evidence.generated.insert(case.name.clone(), generation);
    }

    fn generation_fault(&mut self, case: &Case, message: String) {
        self.say(&format!("{}: left to itself: {message}", case.name));
        self.evidence.faults.push(Fault {
            case: Some(case.name.clone()),
            step: None,
            point: Some(Point::new(Stage::Generated)),
            kind: FaultKind::Process,
            message,
        });
    }
}
