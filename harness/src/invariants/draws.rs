//! A sampler against its probabilities: many draws, one chi-square test for each kind of filter.

use llorch_trace::protocol::Sampling;
use llorch_trace::{Point, Stage, Tensor};

use super::chi_square::{Fit, fit, fit_along_ids};
use super::finding::{Allowed, Finding, Findings, Here, Invariant};
use super::runs::Subject;
use crate::evidence::Case;
use crate::live::{Ask, Live};
use crate::result::UncheckedKind;
use crate::sampling::{Slack, replay, uncertain};

pub const RULE: &str =
    "chi-square of 100,000 draws, bins of 5 expected or more, and 64 along the ids: p < 1e-6 fails";
pub const SEED_RULE: &str = "equal: draws are made from the seed alone; another seed gives others";
pub const FIRST_RULE: &str = "equal: one sampler for both";

pub const DRAWS: usize = 100_000;
/// With ten tests to a case, an honest sampler fails one run in 50,000 of those that change the seed;
/// with the seed fixed it passes always or never.
pub const LEAST_P: f64 = 1e-6;

const ALL: [Invariant; 3] = [Invariant::Draws, Invariant::Seed, Invariant::FirstDraw];

/// Each filter alone, together, and none; colder and warmer.
const KINDS: [Sampling; 5] = [
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 1 },
    Sampling { temperature: 0.7, top_k: 0, top_p: 1.0, seed: 2 },
    Sampling { temperature: 1.3, top_k: 20, top_p: 1.0, seed: 3 },
    Sampling { temperature: 0.9, top_k: 0, top_p: 0.9, seed: 4 },
    Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed: 5 },
];

/// Draws from the first logits of a case.
pub fn check(live: &mut Live, subject: &Subject, case: &Case, findings: &mut Findings) {
    if let Some(lacking) = ["draw", "sample"].into_iter().find(|c| !subject.can(c)) {
        for invariant in ALL {
            let reason = format!("it does not declare `{lacking}`");
            findings.of(invariant).uncheck(UncheckedKind::Unsupported, reason);
        }
        return;
    }
    for kind in KINDS {
        // The token that a run draws, and the logits that it drew from.
        let ask = Ask {
            ids: case.ids.clone(),
            points: vec!["logits.last".into()],
            max_new_tokens: usize::from(subject.can("generate")),
            sampling: kind,
            ..Ask::default()
        };
        let captured = match live.run(ask) {
            Ok(captured) => captured,
            Err(error) => return trouble(findings, &error),
        };
        let point = Point::new(Stage::LogitsLast);
        let finding = findings.of(Invariant::Draws);
        let Some(logits) = subject.tensor(&captured, 0, point, finding) else { return };
        let mut draw = |sampling| live.draw(logits, sampling, DRAWS);
        let all = (draw(kind), draw(kind), draw(Sampling { seed: kind.seed + 1000, ..kind }));
        let (drawn, again, other) = match all {
            (Ok(drawn), Ok(again), Ok(other)) => (drawn, again, other),
            (Err(e), _, _) | (_, Err(e), _) | (_, _, Err(e)) => return trouble(findings, &e),
        };
        let here = Here { case: &case.name, step: 0, point: "draws" };
        follow(here, logits, &kind, &drawn, findings.of(Invariant::Draws));
        same_seed(here, logits, &kind, [&drawn, &again, &other], findings.of(Invariant::Seed));
        match captured.generated.first() {
            Some(&token) => {
                let finding = findings.of(Invariant::FirstDraw);
                let found = f64::from(token);
                finding.take(here, || vec![0], found, f64::from(drawn[0]), Allowed::Bits);
            }
            None => findings
                .of(Invariant::FirstDraw)
                .uncheck(UncheckedKind::Unsupported, "it doesn't generate"),
        }
    }
}

fn trouble(findings: &mut Findings, error: &crate::live::LiveError) {
    for invariant in ALL {
        findings.of(invariant).trouble(error);
    }
}

/// Counts against the float64 replay. Tokens that rounding may put on either side of a cut are taken
/// out of both; of the others, one without probability is never drawn.
fn follow(here: Here<'_>, logits: &Tensor, kind: &Sampling, drawn: &[u32], finding: &mut Finding) {
    let u = logits.dtype().unit_roundoff();
    let logits = logits.to_f64();
    let near = uncertain(&logits, kind, Slack { u, delta: 0.0 });
    let mut expected = replay(&logits, kind);
    let mut counts = vec![0u64; logits.len()];
    drawn.iter().for_each(|&id| counts[id as usize] += 1);
    for i in (0..near.len()).filter(|&i| near[i]) {
        (expected[i], counts[i]) = (0.0, 0);
    }
    let (mass, total) = (expected.iter().sum::<f64>(), counts.iter().sum::<u64>() as f64);
    expected.iter_mut().for_each(|p| *p *= total / mass);
    // How far each token's share is off: shown, but judged all together.
    for i in (0..counts.len()).filter(|&i| counts[i] > 0 || expected[i] > 0.0) {
        let never = expected[i] == 0.0 && counts[i] > 0;
        let allowed = if never { Allowed::Within(0.0) } else { Allowed::Within(f64::INFINITY) };
        let (found, due) = (counts[i] as f64 / total, expected[i] / total);
        finding.take(here, || vec![i], found, due, allowed);
    }
    let words = words(kind);
    for fit in [fit(&counts, &expected), fit_along_ids(&counts, &expected)] {
        let Some(Fit { statistic, bins, p }) = fit else {
            finding.note(format!("{words}: one bin, nothing to test"));
            continue;
        };
        finding.note(format!("{words}: p = {}, χ² = {statistic:.1} over {bins} bins", short(p)));
        finding.hold(here, p >= LEAST_P);
    }
}

fn same_seed(
    here: Here<'_>,
    logits: &Tensor,
    kind: &Sampling,
    [drawn, again, other]: [&Vec<u32>; 3],
    finding: &mut Finding,
) {
    for (i, (a, b)) in again.iter().zip(drawn).enumerate() {
        finding.take(here, || vec![i], f64::from(*a), f64::from(*b), Allowed::Bits);
    }
    let choices = replay(&logits.to_f64(), kind).iter().filter(|p| **p > 0.01).count();
    if choices > 1 && drawn == other {
        finding.note(format!("{}: two seeds give the same draws", words(kind)));
        finding.hold(here, false);
    }
}

fn words(kind: &Sampling) -> String {
    let Sampling { temperature, top_k, top_p, .. } = kind;
    format!("temperature {temperature}, top-k {top_k}, top-p {top_p}")
}

fn short(p: f64) -> String {
    if p >= 1e-3 { format!("{p:.3}") } else { format!("{p:.1e}") }
}
