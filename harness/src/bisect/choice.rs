//! The choice of a token and what it is drawn from, in words.

use llorch_trace::protocol::Sampling;
use llorch_trace::{Point, Stage};

use super::memory::Memory;
use super::scan::Finding;
use super::signatures::Explanation;
use crate::oracle::{Inputs, softmax};
use crate::sampling::replay;

/// What the chosen token is instead of that with the largest logit.
pub fn explain(memory: &Memory<'_>, finding: &Finding) -> Option<String> {
    if finding.point.stage != Stage::Argmax {
        return None;
    }
    let chosen = memory.tensor(finding.step, finding.point)?.values.first().copied()?;
    let logits = memory.tensor(finding.step, Point::new(Stage::LogitsLast))?.values;
    let logit = *logits.get(chosen.max(0.0) as usize)?;
    let better = logits.iter().filter(|l| **l > logit).count();
    let last = logits.len().checked_sub(1)?;
    Some(match better {
        0 => "with the highest id of equal logits".to_string(),
        1 => "with the token of the second largest logit".to_string(),
        n if n == last => "with the token of the smallest logit".to_string(),
        _ => "with a token that is not the best".to_string(),
    })
}

/// How far probabilities may be from those that a mistake would make.
const NEAR: f64 = 1e-6;

/// The mistake in temperature or filters that makes the distribution that was given.
pub fn distribution(memory: &Memory<'_>, finding: &Finding) -> Vec<Explanation> {
    let last = Point::new(Stage::LogitsLast);
    let of = |point| Some(memory.tensor(finding.step, point)?.values);
    let sampling = memory.case().sampling;
    let (true, Some(given), Some(logits)) =
        (finding.point.stage == Stage::NextProbs, of(finding.point), of(last))
    else {
        return Vec::new();
    };
    let near = |probs: &[f64]| {
        probs.len() == given.len()
            && probs.iter().zip(&given).all(|(a, b)| (a - b).abs() <= NEAR + 1e-5 * a.abs())
    };
    let with = |change: &dyn Fn(&mut Sampling)| {
        let mut changed = sampling;
        change(&mut changed);
        changed != sampling && near(&replay(&logits, &changed))
    };
    let tau = sampling.temperature;
    let mut found = Vec::new();
    let mut say_as = |slug: Option<&'static str>, fits: bool, text: &str| {
        if fits {
            found.push(Explanation { slug, text: text.to_string() });
        }
    };
    let mut say = |fits: bool, text: &str| say_as(None, fits, text);
    if tau > 0.0 {
        say(with(&|s| s.temperature = 1.0), "without the temperature");
        say(with(&|s| s.temperature = 1.0 / tau), "with logits multiplied by the temperature");
        say(with(&|s| s.top_k = 0), "without top-k");
        say(with(&|s| s.top_k += 1), "with top-k one token too many");
        say(with(&|s| s.top_k = s.top_k.saturating_sub(1).max(1)), "with top-k one token too few");
        say(with(&|s| s.top_p = 1.0), "without top-p");
        let whole = softmax(&logits.iter().map(|l| l / tau).collect::<Vec<_>>());
        let cut: Vec<f64> = replay(&logits, &sampling)
            .iter()
            .zip(&whole)
            .map(|(p, w)| if *p > 0.0 { *w } else { 0.0 })
            .collect();
        let filters = cut.contains(&0.0);
        // What is cut off and not made up for is a constant factor of the rest.
        let text = "without normalising again behind the filters";
        say_as(Some("scaled"), filters && near(&cut), text);
    } else {
        let best = crate::oracle::argmax(&logits) as usize;
        let one: Vec<f64> = (0..logits.len()).map(|i| f64::from(u8::from(i == best))).collect();
        say(near(&one), "with all of it on the best token");
    }
    found
}
