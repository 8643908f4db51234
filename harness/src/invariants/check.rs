//! All checks of one subject: which runs are made, in which process, and who looks at them.
//!
//! Three processes, one after another: one in which everything is run, a second that makes the same
//! runs, a third that makes them with another number of threads.

use std::path::Path;

use llorch_models::progress::Progress;

use super::finding::{Findings, Invariant};
use super::norm::Norms;
use super::rule::Rule;
use super::runs::{Run, Subject, ask};
use super::{cache, causality, draws, logits, norm, prefill, probabilities, repeat};
use crate::evidence::Case;
use crate::live::{Captured, Live, LiveError, Setup};
use crate::result::UncheckedKind;
use crate::supervise::AdapterCommand;

/// Cases from whose logits tokens are drawn: one is often peaked, two seldom both are.
const DRAWN_CASES: usize = 2;

/// What everything is checked on.
#[derive(Debug)]
pub struct Job<'a> {
    pub command: &'a AdapterCommand,
    pub model_dir: &'a Path,
    pub cases: &'a [Case],
    pub setup: &'a Setup,
}

impl Job<'_> {
    /// The other number of threads: 1, or 2 where that is the number asked for.
    pub fn other_threads(&self) -> usize {
        if self.setup.threads == 1 { 2 } else { 1 }
    }

    fn start(&self, threads: usize) -> Result<Live, LiveError> {
        let setup = Setup { threads, ..self.setup.clone() };
        Live::start_with(self.command, self.model_dir, &setup)
    }
}

/// What was found of whom.
#[derive(Debug)]
pub struct Checked {
    /// Absent where it never said hello.
    pub subject: Option<Subject>,
    pub findings: Findings,
}

/// Makes all runs and checks. The error is that the subject could not be started.
pub fn check(job: &Job<'_>, progress: &Progress) -> Result<Checked, LiveError> {
    // Each case in the first process, then all of them twice more.
    let bar = progress.steps(&job.command.name, "part", job.cases.len() + 2);
    bar.doing("loading the model");
    let mut live = job.start(job.setup.threads)?;
    let subject = Subject::of(&live);
    let mut findings = Findings::default();
    state_rules(&subject, job, &mut findings);
    let norms = Norms::open(job.model_dir);
    let mut bases: Vec<Option<Captured>> = Vec::new();
    for (i, case) in job.cases.iter().enumerate() {
        bar.set(i as u64);
        bar.detail(&case.name);
        let base = one_case(&mut live, &subject, case, &norms, &mut findings);
        if i < DRAWN_CASES && base.is_some() {
            draws::check(&mut live, &subject, case, &mut findings);
        }
        bar.say(&format!("{}: checked in one process", case.name));
        bases.push(base);
    }
    live.finish();
    bar.set(job.cases.len() as u64);
    bar.detail("the same in a second process");
    let rule = Rule::of_repeating(&subject.hello);
    again(job, job.setup.threads, &subject, &bases, (Invariant::Processes, &rule), &mut findings);
    bar.say("the same in a second process: done");
    bar.set(job.cases.len() as u64 + 1);
    bar.detail("the same with another number of threads");
    let rule = Rule::of_recomputing(&subject.hello);
    again(job, job.other_threads(), &subject, &bases, (Invariant::Threads, &rule), &mut findings);
    bar.say(&format!("the same with {} thread(s): done", job.other_threads()));
    Ok(Checked { subject: Some(subject), findings })
}

/// Everything that the first process is asked of one case; gives the run that others are held to.
fn one_case(
    live: &mut Live,
    subject: &Subject,
    case: &Case,
    norms: &Result<Norms, String>,
    findings: &mut Findings,
) -> Option<Captured> {
    if !subject.can("capture") {
        for invariant in Invariant::ALL {
            findings.of(invariant).uncheck(UncheckedKind::Unsupported, "it captures no tensors");
        }
        return None;
    }
    let case = &as_it_runs(subject, case);
    let base = match live.run(subject.ask_free(case)) {
        Ok(base) => base,
        Err(error) => {
            Invariant::ALL.into_iter().for_each(|i| findings.of(i).trouble(&error));
            return None;
        }
    };
    let run = Run { case, captured: &base };
    if base.generated.len() != case.max_new_tokens {
        let (found, expected) = (base.generated.len(), case.max_new_tokens);
        let what = format!("{}: generated {found} tokens; expected {expected}", case.name);
        findings.of(Invariant::Argmax).error(what);
        return None;
    }
    cache::check(subject, &run, findings.of(Invariant::Cache));
    probabilities::sums(subject, &run, findings.of(Invariant::Sums));
    probabilities::masked(subject, &run, findings.of(Invariant::Masked));
    probabilities::next(subject, &run, findings.of(Invariant::NextProbs));
    logits::last(subject, &run, findings.of(Invariant::LastLogits));
    logits::argmax_and_token(subject, &run, findings.of(Invariant::Argmax));
    norms_of(subject, norms, &run, findings);

    let finding = findings.of(Invariant::Repeat);
    if let Some(second) = ask(live, subject.ask_free(case), &mut [finding]) {
        repeat::check(subject, &Rule::of_repeating(&subject.hello), &run, &second, finding);
    }
    sequences(live, subject, &run, findings);
    Some(base)
}

/// Without decode steps a case is its prefill.
fn as_it_runs(subject: &Subject, case: &Case) -> Case {
    let new = if subject.can("generate") { case.max_new_tokens } else { 0 };
    Case { max_new_tokens: new, ..case.clone() }
}

fn norms_of(
    subject: &Subject,
    norms: &Result<Norms, String>,
    run: &Run<'_>,
    findings: &mut Findings,
) {
    let mut mean = std::mem::take(findings.of(Invariant::NormMean));
    let variance = findings.of(Invariant::NormVariance);
    match norms {
        Ok(norms) => norm::check(subject, norms, run, &mut mean, variance),
        Err(what) => {
            mean.uncheck(UncheckedKind::Missing, what.clone());
            variance.uncheck(UncheckedKind::Missing, what.clone());
        }
    }
    *findings.of(Invariant::NormMean) = mean;
}

/// The case's tokens in other ways: all at once, one by one, with other tokens behind them.
fn sequences(live: &mut Live, subject: &Subject, run: &Run<'_>, findings: &mut Findings) {
    let (case, fed) = (run.case, run.fed());
    let rule = Rule::of_recomputing(&subject.hello);
    let mut causality = std::mem::take(findings.of(Invariant::Causality));
    let prefill = findings.of(Invariant::Prefill);
    let whole = subject.ask_prefill(case, fed.clone());
    if let Some(whole) = ask(live, whole, &mut [prefill, &mut causality]) {
        if fed.len() == 1 {
            // One token is the same either way, and has nothing before it.
        } else if !subject.can("generate") {
            prefill.uncheck(UncheckedKind::Unsupported, "it has no decode steps");
        } else if let Some(singly) = ask(live, subject.ask_one_by_one(case, &fed), &mut [prefill]) {
            prefill::check(subject, &rule, run, &whole, &singly, prefill);
        }
        for cut in causality::cuts(fed.len()) {
            let other = causality::changed(&fed, cut, subject.dims.vocab_size);
            let other = subject.ask_prefill(case, other);
            if let Some(other) = ask(live, other, &mut [&mut causality]) {
                let pair = (&whole, &other);
                causality::check(subject, &rule, &case.name, cut, pair, &mut causality);
            }
        }
    }
    *findings.of(Invariant::Causality) = causality;
}

/// The runs of all cases in a process of their own.
fn again(
    job: &Job<'_>,
    threads: usize,
    subject: &Subject,
    bases: &[Option<Captured>],
    (invariant, rule): (Invariant, &Rule),
    findings: &mut Findings,
) {
    let finding = findings.of(invariant);
    if bases.iter().all(Option::is_none) {
        return;
    }
    let mut live = match job.start(threads) {
        Ok(live) => live,
        Err(error) => return finding.trouble(&error),
    };
    for (case, base) in job.cases.iter().zip(bases) {
        let Some(base) = base else { continue };
        let case = &as_it_runs(subject, case);
        // The same request in the same form; where bits may differ, the same tokens are fed.
        let request = match rule.bits {
            true => subject.ask_free(case),
            false => subject.ask_fed(case, &base.generated),
        };
        let run = Run { case, captured: base };
        if let Some(second) = ask(&mut live, request, &mut [&mut *finding]) {
            repeat::check(subject, rule, &run, &second, finding);
        }
    }
    live.finish();
}

/// By what each invariant is judged, and what it lacks where nothing comes to be compared.
fn state_rules(subject: &Subject, job: &Job<'_>, findings: &mut Findings) {
    let recomputing = Rule::of_recomputing(&subject.hello).words;
    let repeating = Rule::of_repeating(&subject.hello).words;
    let threads = format!("{} against {}; {recomputing}", job.setup.threads, job.other_threads());
    let rules: [(Invariant, &str); Invariant::ALL.len()] = [
        (Invariant::Cache, cache::RULE),
        (Invariant::Prefill, &recomputing),
        (Invariant::Sums, probabilities::SUM_RULE),
        (Invariant::Masked, probabilities::MASKED_RULE),
        (Invariant::NextProbs, probabilities::NEXT_RULE),
        (Invariant::Causality, &recomputing),
        (Invariant::Repeat, &repeating),
        (Invariant::Processes, &repeating),
        (Invariant::Threads, &threads),
        (Invariant::NormMean, norm::RULE),
        (Invariant::NormVariance, norm::RULE),
        (Invariant::LastLogits, logits::LAST_RULE),
        (Invariant::Argmax, logits::ARGMAX_RULE),
        (Invariant::Draws, draws::RULE),
        (Invariant::Seed, draws::SEED_RULE),
        (Invariant::FirstDraw, draws::FIRST_RULE),
    ];
    for (invariant, rule) in rules {
        findings.of(invariant).rule = rule.to_string();
    }
}
