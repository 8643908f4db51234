//! What each implementation generated, side by side: where they part, and how close that choice was.

use super::tensors::Tensors;
use super::vocabulary::Vocabulary;
use crate::result::{CaseRecord, RunResult};

/// One greedy case.
#[derive(Debug)]
pub struct Continuation<'a> {
    pub case: &'a CaseRecord,
    pub texts: Vec<Generated>,
    /// The first token at which somebody parts from the oracle's continuation, or the closest choice
    /// of the subject's where nobody does; None where no logits were saved.
    pub choice: Option<Choice>,
}

#[derive(Debug)]
pub struct Generated {
    pub name: String,
    /// Before the first different token, that token, and after it.
    pub before: String,
    pub different: Option<String>,
    pub after: String,
    pub count: usize,
}

#[derive(Debug)]
pub struct Choice {
    pub step: usize,
    /// Whether somebody parts there.
    pub parts: bool,
    pub candidates: Vec<Candidates>,
}

/// The likeliest next tokens of one implementation.
#[derive(Debug)]
pub struct Candidates {
    pub name: String,
    pub margin: f64,
    pub top: Vec<(u32, String, f64)>,
}

const TOP: usize = 5;
/// Of the oracle's bundle.
const ORACLE: &str = "oracle";

pub fn continuations<'a>(
    result: &'a RunResult,
    tensors: &mut Tensors<'_>,
    vocabulary: &Vocabulary,
) -> Vec<Continuation<'a>> {
    // Of a checkpoint that the strategy left out nothing is shown.
    let left_out = result.strategy.as_ref().is_some_and(|s| s.left_out.contains(&12));
    let greedy =
        |c: &&CaseRecord| c.sampling.temperature == 0.0 && !c.generated.is_empty() && !left_out;
    result.cases.iter().filter(greedy).map(|c| one(result, c, tensors, vocabulary)).collect()
}

fn one<'a>(
    result: &'a RunResult,
    case: &'a CaseRecord,
    tensors: &mut Tensors<'_>,
    vocabulary: &Vocabulary,
) -> Continuation<'a> {
    let mut texts = Vec::new();
    let mut parted: Option<usize> = None;
    for name in result.implementations.iter().map(|i| &i.name) {
        let Some(generated) = case.generated.get(name) else { continue };
        let ids = &generated.ids;
        // A continuation that ends early parts where it ends.
        let longest = ids.len().max(case.forced_ids.len());
        let different = (0..longest).find(|i| ids.get(*i) != case.forced_ids.get(*i));
        if let Some(i) = different {
            parted = Some(parted.map_or(i, |known| known.min(i)));
        }
        texts.push(text(name, ids, different, generated.text.as_deref(), vocabulary));
    }
    let subject = result.subject_name();
    let step = match parted {
        Some(step) => Some(step),
        None => closest(subject, case, tensors),
    };
    let mut names: Vec<&str> = texts.iter().map(|t| t.name.as_str()).collect();
    names.push(ORACLE);
    let choice = step.and_then(|step| {
        let of = |name: &str| candidates(name, case, step, tensors, vocabulary);
        let candidates: Vec<Candidates> = names.into_iter().filter_map(of).collect();
        let choice = Choice { step, parts: parted.is_some(), candidates };
        (!choice.candidates.is_empty()).then_some(choice)
    });
    Continuation { case, texts, choice }
}

fn text(
    name: &str,
    ids: &[u32],
    different: Option<usize>,
    whole: Option<&str>,
    vocabulary: &Vocabulary,
) -> Generated {
    let known = ids.iter().all(|id| vocabulary.text(*id).is_some());
    let join = |ids: &[u32]| -> String {
        match known {
            true => ids.iter().filter_map(|id| vocabulary.text(*id)).collect(),
            false => ids.iter().map(|id| format!("{id} ")).collect(),
        }
    };
    let split = different.map_or(ids.len(), |i| i.min(ids.len()));
    let different = different.map(|i| ids.get(i).map_or("(ends)".into(), |id| join(&[*id])));
    let before = match (&different, whole, known) {
        (None, Some(whole), false) => whole.to_string(),
        _ => join(&ids[..split]),
    };
    let after = join(ids.get(split + 1..).unwrap_or_default());
    Generated { name: name.into(), before, different, after, count: ids.len() }
}

/// The step at which the subject's first two candidates are nearest.
fn closest(subject: &str, case: &CaseRecord, tensors: &mut Tensors<'_>) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for step in 0..case.max_new_tokens {
        let Ok(logits) = tensors.get(subject, &case.name, step, "logits.last") else { continue };
        let top = top(&logits.to_f64(), 2);
        if let [(_, first), (_, second)] = top[..]
            && best.is_none_or(|(margin, _)| first - second < margin)
        {
            best = Some((first - second, step));
        }
    }
    best.map(|(_, step)| step)
}

fn candidates(
    name: &str,
    case: &CaseRecord,
    step: usize,
    tensors: &mut Tensors<'_>,
    vocabulary: &Vocabulary,
) -> Option<Candidates> {
    let logits = tensors.get(name, &case.name, step, "logits.last").ok()?.to_f64();
    let top = top(&logits, TOP);
    let margin = match top[..] {
        [(_, first), (_, second), ..] => first - second,
        _ => return None,
    };
    let named = top.into_iter().map(|(id, v)| (id, vocabulary.quoted(id), v)).collect();
    Some(Candidates { name: name.into(), margin, top: named })
}

/// The largest, the lowest id first among equals.
fn top(logits: &[f64], n: usize) -> Vec<(u32, f64)> {
    let mut best: Vec<(u32, f64)> = Vec::with_capacity(n + 1);
    for (id, v) in logits.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
        let at = best.partition_point(|(_, w)| w >= v);
        if at < n {
            best.insert(at, (id as u32, *v));
            best.truncate(n);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_is_in_order_and_nan_is_no_candidate() {
        let logits = [1.0, f64::NAN, 3.0, 3.0, -1.0, 2.0];
        assert_eq!(top(&logits, 3), [(2, 3.0), (3, 3.0), (5, 2.0)]);
    }

    #[test]
    fn the_first_different_token_is_marked_also_where_one_ends_early() {
        let none = Vocabulary::default();
        let t = text("x", &[5, 6, 7], Some(1), None, &none);
        assert_eq!(
            (t.before.as_str(), t.different.as_deref(), t.after.as_str()),
            ("5 ", Some("6 "), "7 ")
        );
        let t = text("x", &[5], Some(1), None, &none);
        assert_eq!((t.before.as_str(), t.different.as_deref()), ("5 ", Some("(ends)")));
        let t = text("x", &[5], None, Some(" whole"), &none);
        assert_eq!((t.before.as_str(), t.different), (" whole", None));
    }
}
