//! The order of a run: model, subject, prompts, oracle; then the subject and the references through
//! all cases, the references as they become ready; then the judge.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use llorch_models::progress::Progress;
use llorch_models::{ResolveOptions, ResolvedModel};
use llorch_trace::{Dims, Dtype};

use super::args::Request;
use super::assemble::{self, Facts};
use super::out_dir::OutDir;
use super::provisioning::Provisioning;
use super::scout::Scout;
use super::verdicts::tell_pair;
use super::{RunError, ahead};
use crate::collect::{self, Settings, collect};
use crate::evidence::{Evidence, Plan};
use crate::guides::assess::assess;
use crate::isolate::{Ask, Isolation, Source};
use crate::judge::{Beforehand, JudgeOptions, Verdicts, isolated, judge, judge_the_rest};
use crate::lineup::{Member, file_name};
use crate::machine::Machine;
use crate::oracle::{Oracle, Truth};
use crate::plan::{self, PlanError};
use crate::provision::Missing;
use crate::remote::client::{Client, Health};
use crate::result::{Means, Role, RunResult, Unchecked, UncheckedKind, Verdict};
use crate::saved::{self, Collected};
use crate::served;
use crate::supervise::{AdapterCommand, Failure, FailureKind, Limits, Session};
use crate::text::{count, rfc3339};

/// A finished run.
#[derive(Debug)]
pub struct Outcome {
    pub result: RunResult,
    pub collected: Collected,
    /// Keeps the tensors while they may be looked at.
    pub out: OutDir,
}

pub fn execute(request: &Request) -> Result<Outcome, RunError> {
    let (began, started) = (Instant::now(), SystemTime::now());
    let progress = Progress::new(false);
    let options =
        ResolveOptions { offline: request.provision.offline, ..ResolveOptions::default() };
    let model = llorch_models::resolve(&request.model, &options)?;
    progress.say(&format!("model {}: {}, {}", model.name, model.kind, model.source));
    let config = model.dir.join("config.json");
    let dims = Dims::from_config_file(&config).map_err(|e| RunError::Usage(e.to_string()))?;
    let points = match &request.isolate {
        Some(ask) => ask.stages(&dims)?,
        None => request.filter.points(&dims)?,
    };
    // Found now: without a subject there is nothing to install references for.
    let subject = request.subject.command(&request.provision).map_err(no_subject)?;
    let out = OutDir::create(request.out.as_deref())?;
    greet(request, &subject, &model, out.path())?;

    let mut run = Run {
        request,
        progress: &progress,
        model: &model,
        plan: Plan { model_dir: model.dir.clone(), dims, cases: Vec::new(), points },
        truth: Truth::default(),
        isolation: None,
        unchecked: Vec::new(),
        seconds: BTreeMap::new(),
        judging: JudgeOptions {
            values: request.values,
            progress: progress.clone(),
            ..JudgeOptions::default()
        },
        beforehand: Beforehand::default(),
        out: out.path(),
    };
    let provisioning = Provisioning::new(request.references.len());
    let evidence = std::thread::scope(|scope| {
        scope.spawn(|| provisioning.work(&request.references, &request.provision));
        let evidence = run.evidence(&subject, &provisioning);
        provisioning.stop();
        evidence
    })?;

    let Run {
        plan,
        truth,
        isolation,
        mut unchecked,
        mut seconds,
        judging: options,
        beforehand,
        ..
    } = run;
    unchecked.extend(assemble::real_weights(&model));
    let collected = Collected { plan, evidence, truth, unchecked, isolation };
    let judging = Instant::now();
    let verdicts = match collected.isolation {
        Some(_) => collected_verdicts(&collected, &options),
        None => {
            let Collected { plan, evidence, truth, .. } = &collected;
            judge_the_rest(plan, evidence, truth, &options, beforehand)
        }
    };
    seconds.insert("judge".into(), judging.elapsed().as_secs_f64());
    seconds.insert("total".into(), began.elapsed().as_secs_f64());
    let model = assemble::model_record(&model)?;
    let facts = Facts {
        model,
        started: rfc3339(started),
        seconds,
        command: request.command.clone(),
        means: Means { dtype: request.dtype.to_string(), threads: request.threads },
        machine: Some(Machine::here()),
        partition: request.partition.clone(),
    };
    let mut result = assemble::result(&collected, verdicts, facts);
    if let Some(strategy) = request.strategy {
        strategy.apply(&mut result, &collected);
    }
    result.assessment = Some(assess(&result));
    saved::write_evidence(out.path(), &collected)?;
    saved::write_result(out.path(), &result)?;
    if out.is_kept() {
        progress.say(&format!("everything is in {}", out.path().display()));
    }
    Ok(Outcome { result, collected, out })
}

pub fn collected_verdicts(collected: &Collected, options: &JudgeOptions) -> Verdicts {
    let Collected { plan, evidence, truth, isolation, .. } = collected;
    verdicts(plan, evidence, truth, isolation.as_ref(), options)
}

fn verdicts(
    plan: &Plan,
    evidence: &[Evidence],
    truth: &Truth,
    isolation: Option<&Isolation>,
    options: &JudgeOptions,
) -> Verdicts {
    match isolation {
        Some(isolation) => isolated::judge(plan, evidence, truth, isolation, options),
        None => judge(plan, evidence, truth, options),
    }
}

fn no_subject(missing: Missing) -> RunError {
    RunError::Environment(format!("failed to find the subject: {missing}"))
}

/// A subject that can't even say hello, or a daemon that serves something else, ends the run before references are
/// installed and run for it.
fn greet(
    request: &Request,
    command: &AdapterCommand,
    model: &ResolvedModel,
    out: &Path,
) -> Result<(), RunError> {
    reach(&request.subject, &request.limits)?;
    let failed = |failure: Failure| {
        if failure.kind == FailureKind::Spawn {
            return RunError::Environment(failure.to_string());
        }
        let told = failure.without_name(&command.name);
        RunError::Subject(format!("{}: {}: {told}", command.name, failure.kind))
    };
    let stderr = out.join(format!("{}.stderr.txt", file_name(&command.name)));
    let mut session = Session::start(command, &request.limits, &stderr).map_err(failed)?;
    // Whatever it computes with was loaded before: that it is the right model is soon known.
    if request.subject.address().is_some() {
        session.load(&model.dir, request.dtype, request.threads).map_err(failed)?;
    }
    session.finish();
    Ok(())
}

/// A daemon that is not there is nobody's failure.
fn reach(subject: &Member, limits: &Limits) -> Result<(), RunError> {
    let Some(url) = subject.address() else { return Ok(()) };
    let client =
        Client::new(url, Some(limits.hello)).map_err(|e| RunError::Environment(e.to_string()))?;
    match client.health() {
        Health::Unreachable(why) => Err(RunError::Environment(client.unreachable(&why))),
        Health::Failed(reason) => Err(RunError::Environment(reason)),
        Health::Ready | Health::Loading => Ok(()),
    }
}

struct Run<'a> {
    request: &'a Request,
    progress: &'a Progress,
    model: &'a ResolvedModel,
    plan: Plan,
    truth: Truth,
    /// What stages are given, where they are isolated.
    isolation: Option<Isolation>,
    unchecked: Vec<Unchecked>,
    seconds: BTreeMap<String, f64>,
    judging: JudgeOptions,
    /// What of the judge's work was done while references were at work.
    beforehand: Beforehand,
    out: &'a Path,
}

impl Run<'_> {
    /// The subject's, then that of the references in the order in which they were named.
    fn evidence(
        &mut self,
        subject: &AdapterCommand,
        provisioning: &Provisioning,
    ) -> Result<Vec<Evidence>, RunError> {
        self.prepare(subject, provisioning)?;
        let references = &self.request.references;
        let taken = references.iter().map(|m| m.name.clone()).collect();
        let settings = Settings {
            plan: &self.plan,
            limits: self.request.limits.clone(),
            dtype: self.request.dtype,
            threads: self.request.threads,
            out: self.out,
            model: serde_json::json!({
                "name": self.model.name,
                "revision": self.model.revision,
                "sha256": self.model.weights_sha256(),
            }),
            taken,
            isolation: self.isolation.as_ref(),
            inject: BTreeMap::new(),
        };
        let progress = self.progress;
        let mut first = collect(subject, Role::Subject, &settings, progress)?;
        if let Some(daemon) = self.request.subject.daemon(subject, settings.dtype) {
            first.served = served::ask(&daemon, &first.name, &settings, progress);
        }
        if let Some((reason, _)) = &first.missing {
            return Err(RunError::Environment(reason.clone()));
        }
        let (answered, waiting) = channel();
        let jury = Jury {
            run: self,
            settings: &settings,
            provisioning,
            answered: self.isolation.is_none().then_some(answered),
            state: Mutex::new(Heard { evidence: Vec::new(), places: Vec::new(), error: None }),
        };
        jury.recompute(&first);
        jury.state.lock().unwrap_or_else(PoisonError::into_inner).evidence.push(first);
        let enough = AtomicBool::new(false);
        let (jury, beforehand) = std::thread::scope(|scope| {
            let ahead = scope.spawn(|| {
                ahead::recompute(&self.plan, &self.truth, &self.judging, waiting, &enough)
            });
            std::thread::scope(|scope| {
                for _ in 0..self.request.jobs.min(references.len()) {
                    scope.spawn(|| jury.work());
                }
            });
            // What is left goes to all cores.
            enough.store(true, Ordering::Relaxed);
            let mut jury = jury;
            jury.answered = None;
            let beforehand = ahead.join().unwrap_or_else(|panic| resume_unwind(panic));
            (jury, beforehand)
        });
        let heard = jury.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = heard.error {
            return Err(error);
        }
        let mut evidence = heard.evidence;
        let subject = evidence.remove(0);
        let mut by_place: BTreeMap<usize, Evidence> =
            heard.places.into_iter().zip(evidence).collect();
        let mut all = vec![subject];
        for (i, member) in references.iter().enumerate() {
            all.push(by_place.remove(&i).unwrap_or_else(|| {
                let mut skipped = collect::empty(&member.name, Role::Reference);
                let reason = "skipped: --fail-fast stopped the run at an earlier reference";
                skipped.missing = Some((reason.into(), None));
                skipped
            }));
        }
        self.seconds.extend(all.iter().map(|e| (e.name.clone(), e.seconds)));
        self.beforehand = beforehand;
        Ok(all)
    }

    /// Cases with their ids and the tokens that decode steps are fed.
    fn prepare(
        &mut self,
        subject: &AdapterCommand,
        provisioning: &Provisioning,
    ) -> Result<(), RunError> {
        let request = self.request;
        let scratch = tempfile::Builder::new().prefix("llorch-scout-").tempdir().map_err(|e| {
            RunError::Environment(format!("failed to create a temporary folder: {e}"))
        })?;
        let _cleanup = crate::supervise::remove_on_interrupt(scratch.path());
        let mut scout = Scout::new(
            self.model.dir.clone(),
            request.limits.clone(),
            request.dtype,
            request.threads,
            scratch.path().to_path_buf(),
        );
        scout.add(&request.subject.name, || Ok(subject.clone()));
        for (i, member) in request.references.iter().enumerate() {
            scout.add(&member.name, move || {
                provisioning.wait(i).map_err(|missing| missing.to_string())
            });
        }
        // Whoever takes part may have no tokenizer; the model's files are there all the same. Tokens
        // hang on no dtype, and our engine computes in this one.
        scout.add_in(Dtype::F32, "llorch-cpud", move || {
            let engine = crate::provision::engine_command(&request.provision);
            engine.map_err(|missing| missing.to_string())
        });
        let own_case = request.isolate.as_ref().filter(|ask| ask.own_case);
        let (cases, left_out) = match own_case {
            Some(ask) => (vec![ask.case(&self.plan.dims)], Vec::new()),
            None => plan::cases(&request.suite, &self.plan.dims, &mut |text| scout.tokenize(text))?,
        };
        if cases.is_empty() {
            return Err(RunError::Usage(
                "failed to plan: no case of the suite fits the model".into(),
            ));
        }
        self.plan.cases = cases;
        self.unchecked.extend(left_out);
        let began = Instant::now();
        if let Some(ask) = &request.isolate {
            self.isolate(ask)?;
            self.seconds.insert("oracle".into(), began.elapsed().as_secs_f64());
            return Ok(());
        }
        if let Err(reason) = self.ask_oracle() {
            // Then no margin is known and nothing is held against float64; pairs still compare.
            self.progress.say(&reason);
            let what = "the float64 oracle".to_string();
            self.unchecked.push(Unchecked { what, kind: UncheckedKind::Unsupported, reason });
            self.truth = Truth::default();
            self.force_by(&mut scout)?;
        }
        self.seconds.insert("oracle".into(), began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Inputs for all stages; without the oracle there is nothing to hold a stage against.
    fn isolate(&mut self, ask: &Ask) -> Result<(), RunError> {
        let source = Source::open(ask, &mut self.plan)?;
        self.ask_oracle().map_err(|e| RunError::Usage(format!("failed to isolate: {e}")))?;
        if let Some(oracle) = &self.truth.oracle {
            let isolation = source.isolation(&self.plan, oracle, self.request.dtype, self.out)?;
            self.isolation = Some(isolation);
        }
        Ok(())
    }

    fn ask_oracle(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let oracle = Oracle::open(&self.plan.model_dir).map_err(|e| e.to_string())?;
        let prompts: Vec<(&[u32], usize)> =
            self.plan.cases.iter().map(|case| (&case.ids[..], case.max_new_tokens)).collect();
        let steps = prompts.iter().map(|(_, n)| (*n).max(1)).max().unwrap_or(0);
        let bar = self.progress.steps("oracle", "step", steps);
        let continuations = oracle.continue_all(&prompts, &mut |done| bar.set(done as u64));
        let continuations = continuations.map_err(|e| e.to_string())?;
        for (case, continuation) in self.plan.cases.iter_mut().zip(continuations) {
            case.forced_ids.clone_from(&continuation.ids);
            self.truth.continuations.insert(case.name.clone(), continuation);
        }
        drop(bar);
        self.truth.oracle = Some(oracle);
        let (n, took) = (self.plan.cases.len(), began.elapsed().as_secs_f64());
        self.progress.say(&format!("oracle: {} in float64, {took:.1} s", count(n, "case")));
        Ok(())
    }

    /// Without an oracle, the first implementation that generates says what is fed.
    fn force_by(&mut self, scout: &mut Scout<'_>) -> Result<(), RunError> {
        for case in self.plan.cases.iter_mut().filter(|c| c.max_new_tokens > 0) {
            let ids = scout.continue_greedily(&case.ids, case.max_new_tokens);
            case.forced_ids = ids.map_err(|reason| {
                RunError::from(PlanError::Tokenize { case: case.name.clone(), reason })
            })?;
        }
        Ok(())
    }
}

/// The references at work, `--jobs` at a time.
struct Jury<'a, 'r> {
    run: &'a Run<'r>,
    settings: &'a Settings<'a>,
    provisioning: &'a Provisioning,
    /// To whoever recomputes stages meanwhile.
    answered: Option<Sender<Evidence>>,
    state: Mutex<Heard>,
}

struct Heard {
    /// The subject's, then that of references as they finished.
    evidence: Vec<Evidence>,
    /// Which reference each of those is.
    places: Vec<usize>,
    error: Option<RunError>,
}

impl Jury<'_, '_> {
    fn recompute(&self, evidence: &Evidence) {
        if let Some(answered) = &self.answered
            && evidence.missing.is_none()
        {
            // Nobody listens where there is no oracle, or no room.
            let _ = answered.send(evidence.clone());
        }
    }

    fn work(&self) {
        while let Some((place, answer)) = self.provisioning.next() {
            let heard = self.hear(place, answer);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match heard {
                Ok(evidence) => {
                    self.recompute(&evidence);
                    state.evidence.push(evidence);
                    state.places.push(place);
                    let failed = self.show_last(&mut state.evidence);
                    if failed && self.run.request.fail_fast {
                        self.provisioning.stop();
                    }
                }
                Err(error) => {
                    state.error.get_or_insert(error);
                    self.provisioning.stop();
                }
            }
        }
    }

    fn hear(
        &self,
        place: usize,
        answer: Result<AdapterCommand, Missing>,
    ) -> Result<Evidence, RunError> {
        let name = &self.run.request.references[place].name;
        let progress = self.run.progress;
        match answer {
            Ok(command) => Ok(collect(&command, Role::Reference, self.settings, progress)?),
            Err(missing) => {
                progress.say(&format!("{name}: {missing}"));
                let mut evidence = collect::empty(name, Role::Reference);
                let mend = Some(missing.mend).filter(|mend| !mend.is_empty());
                evidence.missing = Some((missing.reason, mend));
                Ok(evidence)
            }
        }
    }

    /// Judges the one that came last against the subject, streams the verdicts, and says whether
    /// there is a FAIL.
    fn show_last(&self, evidence: &mut [Evidence]) -> bool {
        let last = evidence.len() - 1;
        if evidence[last].missing.is_some() {
            return false;
        }
        let run = self.run;
        // Less than f32 is judged by its stages, and those are recomputed once, when all have answered.
        for e in [&evidence[0], &evidence[last]] {
            if let Some(dtype) = e.narrow() {
                let name = &evidence[last].name;
                run.progress.say(&format!(
                    "{name}: judged at the end, because {} computes in {dtype}",
                    e.name
                ));
                return false;
            }
        }
        evidence.swap(1, last);
        let options = JudgeOptions { stages: false, ..JudgeOptions::default() };
        let isolation = run.isolation.as_ref();
        let verdicts = verdicts(&run.plan, &evidence[..2], &run.truth, isolation, &options);
        let deviating = evidence[..2].iter().find(|e| e.declares_deviations());
        let deviating = deviating.map(|e| e.name.as_str());
        // With a strategy, what it leaves out is not told here either.
        if run.request.strategy.is_none() {
            let pair = (evidence[0].name.as_str(), evidence[1].name.as_str());
            tell_pair(run.progress, pair, deviating, &verdicts.rows);
        }
        let failed = verdicts.rows.iter().any(|row| row.verdict == Verdict::Fail);
        let failed = failed && deviating.is_none();
        evidence.swap(1, last);
        failed
    }
}
