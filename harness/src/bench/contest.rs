//! The order of a bench: model, oracle, engines; then for each dtype and number of threads, those that can: all loaded,
//! judged, asked in turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use llorch_models::progress::{Bar, Progress};
use llorch_models::{ResolveOptions, ResolvedModel};
use llorch_trace::{Dims, Dtype, Precision};

use super::args::Plan;
use super::batch::Batch;
use super::limits::{self, Meter};
use super::measure::{self, Job};
use super::record::{
    BenchResult, CheckRecord, Engine, MachineRecord, Metric, Row, SCHEMA, Settings, Unmeasured,
    Why, median,
};
use super::truth::{self, Expected};
use crate::lineup::{Member, UNNAMED, is_name};
use crate::live::{Live, LiveError};
use crate::machine::{self, Machine};
use crate::oracle::{Oracle, OracleError};
use crate::run::RunError;
use crate::run::assemble::model_record;
use crate::supervise::{AdapterCommand, FailureKind, Limits, await_exit, interrupted};
use crate::text::{count, rfc3339};

/// Threads of some libraries look for work for a while after they are done: the next engine waits until they sleep.
const PAUSE: Duration = Duration::from_millis(300);
/// An engine that takes longer for its part of a round is asked less often.
const PATIENCE: f64 = 20.0;
/// Processes are started this often for the first token, at most.
const COLD_STARTS: usize = 3;
/// Memory that a loaded engine may take while it converts weights, in sizes of the weights in f32.
const ROOM: u64 = 3;

/// Who takes part, and how it is started.
struct Entrant {
    name: String,
    version: String,
    command: AdapterCommand,
    checks: Vec<CheckRecord>,
}

struct Contest<'a> {
    plan: &'a Plan,
    progress: Progress,
    model: ResolvedModel,
    dims: Dims,
    limits: Limits,
    expected: Vec<Expected>,
    meter: Option<Meter>,
    entrants: Vec<Entrant>,
    rows: Vec<Row>,
    unmeasured: Vec<Unmeasured>,
    /// What the machine did for each.
    machine: Vec<(Job, Rates)>,
}

/// What the machine did in each round, a second.
#[derive(Debug, Default)]
struct Rates {
    /// Bytes.
    read: Vec<f64>,
    /// Floating-point operations.
    operations: Vec<f64>,
}

/// By metric and prompt.
type Samples = BTreeMap<(Metric, usize), Vec<f64>>;

/// One that is loaded and right.
struct Runner {
    entrant: usize,
    live: Live,
    samples: Samples,
    rounds: usize,
    /// Of one that computes several sequences at once.
    batch: Option<Batch>,
}

impl Runner {
    fn keep(&mut self, metric: Metric, prompt: usize, sample: f64) {
        self.samples.entry((metric, prompt)).or_default().push(sample);
    }
}

pub fn hold(plan: &Plan) -> Result<BenchResult, RunError> {
    let (began, started) = (Instant::now(), SystemTime::now());
    let progress = Progress::new(false);
    let options = ResolveOptions { offline: plan.access.offline, ..ResolveOptions::default() };
    let model = llorch_models::resolve(&plan.model, &options)?;
    progress.say(&format!("model {}: {}, {}", model.name, model.kind, model.source));
    let config = model.dir.join("config.json");
    let dims = Dims::from_config_file(&config).map_err(|e| RunError::Usage(e.to_string()))?;
    let prompts = prompts(plan, &dims)?;

    let mut contest = Contest {
        plan,
        progress,
        model,
        dims,
        limits: plan.access.limits(),
        expected: Vec::new(),
        meter: None,
        entrants: Vec::new(),
        rows: Vec::new(),
        unmeasured: Vec::new(),
        machine: Vec::new(),
    };
    contest.invite()?;
    contest.ask_the_oracle(&prompts).map_err(|error| RunError::Environment(error.to_string()))?;
    contest.meter = Meter::new();
    for &precision in &plan.precisions {
        for &threads in &plan.threads {
            contest.heat(Job { precision, threads })?;
        }
    }
    contest.result(prompts, rfc3339(started), began)
}

/// Lengths that fit into the model with what is decoded after them.
fn prompts(plan: &Plan, dims: &Dims) -> Result<Vec<usize>, RunError> {
    let room = (dims.n_positions + 1).saturating_sub(plan.decode.max(truth::STEPS) + 1);
    if room == 0 {
        return Err(RunError::Usage(format!(
            "failed to decode {} tokens: the model has {} positions",
            plan.decode, dims.n_positions
        )));
    }
    if plan.prompts.is_empty() {
        let mut fitting = vec![2.min(room), 512.min(room)];
        fitting.dedup();
        return Ok(fitting);
    }
    match plan.prompts.iter().find(|&&prompt| prompt > room) {
        Some(prompt) => Err(RunError::Usage(format!(
            "failed to bench a prompt of {prompt} tokens and {} after it: the model has {} positions, which leave \
             {room} for the prompt",
            plan.decode, dims.n_positions
        ))),
        None => Ok(plan.prompts.clone()),
    }
}

/// "Hello." and ids that are spread over the vocabulary: the same for everybody, always.
fn ids(length: usize, vocabulary: usize) -> Vec<u32> {
    let hello = [15496usize, 13];
    let others = (2..).map(|i: usize| i * 7919);
    hello.into_iter().chain(others).take(length).map(|id| (id % vocabulary) as u32).collect()
}

impl Contest<'_> {
    /// Everybody who can be had. Without the subject there is nothing to compare.
    fn invite(&mut self) -> Result<(), RunError> {
        let provision = self.plan.access.provision();
        let mut take = |member: &Member| match member.command(&provision) {
            Ok(command) => {
                let (name, version) = (member.name.clone(), String::new());
                self.entrants.push(Entrant { name, version, command, checks: Vec::new() });
                Ok(())
            }
            Err(missing) => Err(missing),
        };
        take(&self.plan.subject).map_err(|missing| RunError::Environment(missing.to_string()))?;
        let mut absent = Vec::new();
        for member in &self.plan.peers {
            if let Err(missing) = take(member) {
                absent.push((member.name.clone(), missing.to_string()));
            }
        }
        for (engine, reason) in absent {
            self.leave_out(&engine, None, Why::Missing, reason);
        }
        Ok(())
    }

    fn ask_the_oracle(&mut self, prompts: &[usize]) -> Result<(), OracleError> {
        let oracle = Oracle::open(&self.model.dir)?;
        for &length in prompts {
            let bar =
                self.progress.open("oracle", &format!("{} in float64", count(length, "token")));
            self.expected.push(Expected::of(&oracle, ids(length, self.dims.vocab_size))?);
            drop(bar);
        }
        Ok(())
    }

    /// All engines in one dtype with one number of threads, as many at a time as memory holds.
    fn heat(&mut self, job: Job) -> Result<(), RunError> {
        let peers: Vec<usize> = (1..self.entrants.len()).collect();
        let mut waves: Vec<&[usize]> = peers.chunks(self.seats()).collect();
        if waves.is_empty() {
            waves.push(&[]); // the subject alone
        }
        for peers in waves {
            let mut runners = Vec::new();
            for &entrant in [0].iter().chain(peers) {
                stop_if_interrupted()?;
                runners.extend(self.load(entrant, job));
            }
            if runners.is_empty() {
                continue;
            }
            let machine = self.rounds(job, &mut runners)?;
            self.cold_starts(job, &mut runners)?;
            self.keep(job, &runners, &machine);
            self.machine.push((job, machine));
            for runner in runners {
                runner.live.finish();
            }
        }
        Ok(())
    }

    /// How many peers fit into memory beside the subject.
    fn seats(&self) -> usize {
        let file = self.model.dir.join("model.safetensors");
        let size = std::fs::metadata(file).map_or(0, |meta| meta.len()).max(1);
        let available = machine::available_memory().unwrap_or(u64::MAX);
        let engines = available / 10 * 8 / (ROOM * size);
        usize::try_from(engines).unwrap_or(usize::MAX).saturating_sub(1).max(1)
    }

    /// Starts, loads and judges one.
    fn load(&mut self, entrant: usize, job: Job) -> Option<Runner> {
        let name = self.entrants[entrant].name.clone();
        let bar = self.progress.open(&format!("{name}, {job}"), "loading the model");
        let setup = job.setup(&self.limits);
        let command = self.entrants[entrant].command.clone();
        let mut live = match Live::start_with(&command, &self.model.dir, &setup) {
            Ok(live) => live,
            Err(error) => {
                let why = match &error {
                    LiveError::Adapter(failure) if failure.kind == FailureKind::Unsupported => {
                        Why::Unsupported
                    }
                    _ => Why::Failed,
                };
                self.leave_out(&name, Some(job), why, error.to_string());
                return None;
            }
        };
        self.entrants[entrant].version.clone_from(&live.hello().version);
        if entrant == 0 {
            self.name_the_subject(&live.hello().name);
        }
        let name = self.entrants[entrant].name.clone();
        bar.doing("comparing with the oracle");
        let answers: Result<Vec<_>, String> =
            self.expected.iter().map(|expected| expected.ask(&mut live)).collect();
        let answers = match answers {
            Ok(answers) => answers,
            Err(reason) => {
                live.finish();
                self.leave_out(&name, Some(job), Why::Failed, reason);
                return None;
            }
        };
        let deviations = live.hello().deviations.clone();
        let check = truth::judge(job, self.dims.n_layer, &deviations, &self.expected, &answers);
        let (correct, reason) = (check.correct, wrong(&check));
        let record = CheckRecord { dtype: job.precision, threads: job.threads, check };
        // Of several waves the last: the engine and the question are the same.
        let checks = &mut self.entrants[entrant].checks;
        checks.retain(|c| (c.dtype, c.threads) != (job.precision, job.threads));
        checks.push(record);
        if !correct {
            live.finish();
            self.leave_out(&name, Some(job), Why::Wrong, reason);
            return None;
        }
        let can = self.plan.batch > 1 && live.hello().can("batch");
        let batch = can.then(Batch::default);
        let rounds = self.plan.rounds;
        Some(Runner { entrant, live, samples: Samples::new(), rounds, batch })
    }

    /// A subject given as a command is known by its own name, where that is free and fit to be one.
    fn name_the_subject(&mut self, own: &str) {
        let taken = self.entrants.iter().any(|e| e.name == own);
        if self.entrants[0].name != UNNAMED || taken || !is_name(own) {
            return;
        }
        self.entrants[0].name = own.into();
        for left in self.unmeasured.iter_mut().filter(|left| left.engine == UNNAMED) {
            left.engine = own.into();
        }
    }

    /// Everybody in turn, the machine too; says what that could do meanwhile.
    fn rounds(&mut self, job: Job, runners: &mut Vec<Runner>) -> Result<Rates, RunError> {
        let mut machine = Rates::default();
        let bar = self.progress.steps(&job.to_string(), "round", self.plan.rounds);
        // The first round is not counted: caches and clocks are cold, kernels may be compiled.
        for round in 0..=self.plan.rounds {
            std::thread::sleep(PAUSE);
            let read = self.meter.as_ref().map(|meter| meter.read(job.threads));
            let operations = limits::operations(job);
            if round > 0 {
                machine.read.extend(read);
                machine.operations.extend(operations);
            }
            let mut broken = Vec::new();
            for (at, runner) in runners.iter_mut().enumerate().filter(|(_, r)| round <= r.rounds) {
                stop_if_interrupted()?;
                bar.detail(&self.entrants[runner.entrant].name);
                let began = Instant::now();
                if let Err(reason) = ask(runner, &self.expected, self.plan, round > 0) {
                    broken.push((at, reason));
                }
                let took = began.elapsed().as_secs_f64();
                // The subject, which all ratios are of, is asked as often as was wanted.
                if round == 0 && took > PATIENCE && runner.entrant != 0 {
                    let fitting = (PATIENCE * self.plan.rounds as f64 / took) as usize;
                    runner.rounds = fitting.clamp(1, self.plan.rounds);
                }
            }
            for (at, reason) in broken.into_iter().rev() {
                let runner = runners.remove(at);
                let name = self.entrants[runner.entrant].name.clone();
                runner.live.finish();
                self.leave_out(&name, Some(job), Why::Failed, reason);
            }
            bar.set(round as u64);
        }
        self.tell(job, runners, &bar);
        Ok(machine)
    }

    /// Processes that start while nobody else is loaded would be fairer still, and take as long again; what is
    /// loaded sleeps.
    fn cold_starts(&mut self, job: Job, runners: &mut [Runner]) -> Result<(), RunError> {
        let shortest = self.expected.iter().map(|e| &e.ids).min_by_key(|ids| ids.len());
        let Some(ids) = shortest else { return Ok(()) };
        let bar = self.progress.open("first token", "starting processes");
        for _ in 0..self.plan.rounds.min(COLD_STARTS) {
            for runner in runners.iter_mut() {
                stop_if_interrupted()?;
                std::thread::sleep(PAUSE);
                let entrant = &self.entrants[runner.entrant];
                bar.doing(&entrant.name);
                let setup = job.setup(&self.limits);
                let times = measure::cold_start(&entrant.command, &self.model.dir, &setup, ids);
                // It has just run: what fails now fails for want of memory or by interruption.
                if let Ok(times) = times {
                    runner.keep(Metric::FirstToken, ids.len(), times.first_token);
                    runner.keep(Metric::Load, 0, times.load);
                }
            }
        }
        Ok(())
    }

    /// One line for each engine, so that a long bench shows what it has.
    fn tell(&self, job: Job, runners: &[Runner], bar: &Bar) {
        for runner in runners {
            let rates = runner.samples.iter().filter(|((metric, _), _)| metric.more_is_better());
            let rates: Vec<String> = rates
                .map(|((metric, prompt), samples)| {
                    format!("{}: {:.1}", metric.of(*prompt), median(samples))
                })
                .collect();
            let name = &self.entrants[runner.entrant].name;
            bar.say(&format!("{name}, {job}: {} tokens/s", rates.join(", ")));
        }
    }

    /// Rows of a wave, with ratios to the subject that was measured in the same wave.
    fn keep(&mut self, job: Job, runners: &[Runner], machine: &Rates) {
        let ours = runners.iter().find(|runner| runner.entrant == 0).map(|r| &r.samples);
        for Runner { entrant, samples, .. } in runners.iter() {
            for ((metric, prompt), values) in samples {
                let middle = median(values);
                let beside = ours.and_then(|ours| ours.get(&(*metric, *prompt)));
                let ratio = beside.filter(|_| *entrant != 0).map(|ours| {
                    let ratio = median(ours) / middle;
                    if metric.more_is_better() { ratio } else { ratio.recip() }
                });
                let limit = self.limit(job, *metric, *prompt, machine);
                let Entrant { name, version, .. } = &self.entrants[*entrant];
                let row = Row {
                    engine: name.clone(),
                    version: version.clone(),
                    dtype: job.precision,
                    threads: job.threads,
                    metric: *metric,
                    prompt: *prompt,
                    batch: if *metric == Metric::BatchDecode { self.plan.batch } else { 1 },
                    median: middle,
                    min: values.iter().copied().fold(f64::INFINITY, f64::min),
                    max: values.iter().copied().fold(0.0, f64::max),
                    runs: values.len(),
                    unit: metric.unit().into(),
                    of_limit: limit.map(|limit| middle / limit),
                    ratio,
                    correct: true,
                };
                // The subject is there in every wave: its first figures stand, its ratios are each wave's own.
                let is_there = |r: &Row| r.engine == row.engine && r.is(job, *metric, *prompt);
                if !self.rows.iter().any(is_there) {
                    self.rows.push(row);
                }
            }
        }
    }

    /// What the machine allowed in these rounds, in the unit of the metric.
    fn limit(&self, job: Job, metric: Metric, prompt: usize, machine: &Rates) -> Option<f64> {
        let of = |samples: &[f64]| (!samples.is_empty()).then(|| median(samples));
        match metric {
            Metric::Decode => {
                let seen = prompt + self.plan.decode / 2;
                of(&machine.read).and_then(|bytes| limits::decode(&self.dims, job, seen, 1, bytes))
            }
            Metric::BatchDecode => {
                let (seen, batch) = (prompt + self.plan.decode / 2, self.plan.batch);
                let memory = of(&machine.read)
                    .and_then(|bytes| limits::decode(&self.dims, job, seen, batch, bytes));
                let operations =
                    of(&machine.operations).map(|rate| limits::products(&self.dims, seen, rate));
                memory.map(|limit| operations.map_or(limit, |other| limit.min(other)))
            }
            // Two tokens are read as decoding is: memory is their limit.
            Metric::Prefill if prompt >= 64 => {
                of(&machine.operations).map(|rate| limits::prefill(&self.dims, prompt, rate))
            }
            _ => None,
        }
    }

    fn leave_out(&mut self, engine: &str, job: Option<Job>, why: Why, reason: String) {
        let reason = reason.strip_prefix(&format!("{engine}: ")).unwrap_or(&reason).to_string();
        // What is so in every wave is told once.
        let entry = Unmeasured {
            engine: engine.into(),
            dtype: job.map(|job| job.precision),
            threads: job.map(|job| job.threads),
            why,
            reason,
        };
        if !self.unmeasured.contains(&entry) {
            self.progress.say(&format!("{engine}: {}", entry.reason));
            self.unmeasured.push(entry);
        }
    }

    fn result(
        self,
        prompts: Vec<usize>,
        started: String,
        began: Instant,
    ) -> Result<BenchResult, RunError> {
        let middle = |precision: Option<Precision>, of: fn(&Rates) -> &[f64]| {
            let mut samples: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
            let wanted = |job: &Job| precision.is_none_or(|p| p == job.precision);
            for (job, rates) in self.machine.iter().filter(|(job, _)| wanted(job)) {
                samples.entry(job.threads).or_default().extend(of(rates));
            }
            samples.retain(|_, samples| !samples.is_empty());
            samples.into_iter().map(|(threads, s)| (threads, median(&s) / 1e9)).collect()
        };
        let operations = |precision| middle(Some(precision), |rates| &rates.operations);
        let here = Machine::here();
        let subject = self.entrants[0].name.clone();
        let engines = self.entrants.into_iter();
        Ok(BenchResult {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started,
            seconds: began.elapsed().as_secs_f64(),
            model: model_record(&self.model)?,
            machine: MachineRecord {
                system: here.system,
                cpu: here.cpu,
                cores: here.cores,
                read_gb_s: middle(None, |rates| &rates.read),
                f32_gflop_s: operations(Dtype::F32.into()),
                bf16_gflop_s: operations(Dtype::BF16.into()),
                int8_gop_s: operations(Precision::Int8),
            },
            settings: Settings {
                dtypes: self.plan.precisions.clone(),
                threads: self.plan.threads.clone(),
                prompts,
                decode: self.plan.decode,
                batch: self.plan.batch,
                rounds: self.plan.rounds,
            },
            subject,
            engines: engines
                .map(|e| Engine { name: e.name, version: e.version, checks: e.checks })
                .collect(),
            rows: self.rows,
            unmeasured: self.unmeasured,
        })
    }
}

/// One engine's part of a round.
fn ask(
    runner: &mut Runner,
    expected: &[Expected],
    plan: &Plan,
    counts: bool,
) -> Result<(), String> {
    let decode = plan.decode;
    for expected in expected {
        std::thread::sleep(PAUSE);
        let times = measure::prompt(&mut runner.live, &expected.ids, decode)?;
        if counts {
            let length = expected.ids.len();
            runner.keep(Metric::Prefill, length, length as f64 / times.prefill);
            runner.keep(Metric::Decode, length, decode as f64 / times.decode);
        }
    }
    // What one sequence takes, before there are several.
    if runner.samples.keys().all(|(metric, _)| *metric != Metric::PeakMemory)
        && let Some(bytes) = machine::peak_memory(runner.live.process_id())
    {
        runner.keep(Metric::PeakMemory, 0, bytes as f64);
    }
    for expected in expected {
        if let Some(batch) = &mut runner.batch {
            std::thread::sleep(PAUSE);
            let times = batch.ask(&mut runner.live, &expected.ids, plan)?;
            if counts {
                let tokens = (plan.batch * decode) as f64;
                runner.keep(Metric::BatchDecode, expected.ids.len(), tokens / times.decode);
            }
        }
    }
    Ok(())
}

fn wrong(check: &truth::Check) -> String {
    format!(
        "its logits are not those of the model: off by {:.1e} (noise {:.1e}), at most {:.1e} is rounding; the likeliest \
         token is the oracle's at {} of {} steps",
        check.error, check.noise, check.bound, check.same_top, check.steps
    )
}

fn stop_if_interrupted() -> Result<(), RunError> {
    if interrupted() {
        await_exit(); // the handler ends the process
        return Err(RunError::Environment("interrupted".into()));
    }
    Ok(())
}
