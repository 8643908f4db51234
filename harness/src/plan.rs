//! From filters and a suite to what is to be compared: points and cases.

use llorch_trace::points::CHECKPOINTS;
use llorch_trace::{Dims, Point, Stage, all_points, checkpoint};

use crate::evidence::Case;
use crate::result::{Unchecked, UncheckedKind};
use crate::suite::{Suite, SuiteCase};

/// `--checkpoint` and `--layer`; empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub checkpoints: Vec<u8>,
    pub layers: Vec<usize>,
}

/// What was asked for does not fit the model. All are mistakes of usage.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("failed to find checkpoint {found:?}; expected a number from 0 to 12, or {known}")]
    Checkpoint { found: String, known: String },
    #[error("failed to find layer {found}; the model has layers 0 to {last}")]
    Layer { found: usize, last: usize },
    #[error("failed to plan: no point of these checkpoints is in layer {layers:?}")]
    Nothing { layers: Vec<usize> },
    #[error(
        "failed to plan case {case}: {ids} ids and {new} new tokens need {needed} positions; the model has {have}"
    )]
    Overflow { case: String, ids: usize, new: usize, needed: usize, have: usize },
    #[error(
        "failed to plan case {case}: token id {id} is outside the model's vocabulary of {vocab}"
    )]
    Vocabulary { case: String, id: u32, vocab: usize },
    #[error("failed to plan case {case}: its prompt has no token ids, and {reason}")]
    Tokenize { case: String, reason: String },
}

impl Filter {
    /// Checkpoints by number, slug or name.
    pub fn new(checkpoints: &[String], layers: &[usize]) -> Result<Filter, PlanError> {
        let number = |text: &String| match checkpoint(text) {
            Some(found) => Ok(found.number),
            None => {
                let known: Vec<String> = CHECKPOINTS.iter().map(|c| c.slug.to_string()).collect();
                Err(PlanError::Checkpoint { found: text.clone(), known: known.join(", ") })
            }
        };
        let checkpoints = checkpoints.iter().map(number).collect::<Result<_, _>>()?;
        Ok(Filter { checkpoints, layers: layers.to_vec() })
    }

    /// The points that pass, in data-flow order, `generated` included. With layers asked for, points
    /// that have no layer pass only if their checkpoint was asked for by name: `--layer 3` means
    /// that layer alone.
    pub fn points(&self, dims: &Dims) -> Result<Vec<Point>, PlanError> {
        if let Some(&found) = self.layers.iter().find(|&&layer| layer >= dims.n_layer) {
            return Err(PlanError::Layer { found, last: dims.n_layer - 1 });
        }
        let named = |p: &Point| self.checkpoints.contains(&p.checkpoint().number);
        let by_checkpoint = |p: &Point| self.checkpoints.is_empty() || named(p);
        let by_layer = |p: &Point| match p.layer {
            _ if self.layers.is_empty() => true,
            Some(layer) => self.layers.contains(&layer),
            None => named(p),
        };
        let mut points = all_points(dims.n_layer);
        points.push(Point::new(Stage::Generated));
        points.retain(|p| by_checkpoint(p) && by_layer(p));
        if points.is_empty() {
            return Err(PlanError::Nothing { layers: self.layers.clone() });
        }
        Ok(points)
    }
}

/// Turns text into token ids, or says why it can't.
pub type Tokenizer<'a> = dyn FnMut(&str) -> Result<Vec<u32>, String> + 'a;

/// The cases of a suite in this model, without forced ids yet, and those left out.
///
/// A user's case that does not fit is refused. The canonical suite's belong to GPT-2: in a model with
/// fewer positions a case that is too long is left out, and said to be; in one with a smaller
/// vocabulary the ids come from the model's own tokenizer.
pub fn cases(
    suite: &Suite,
    dims: &Dims,
    tokenize: &mut Tokenizer<'_>,
) -> Result<(Vec<Case>, Vec<Unchecked>), PlanError> {
    let (mut cases, mut left_out) = (Vec::new(), Vec::new());
    for case in &suite.cases {
        let ids = ids(case, suite.is_canonical(), dims, tokenize)?;
        let needed = ids.len() + case.max_new_tokens.max(1) - 1;
        if needed > dims.n_positions {
            let overflow = PlanError::Overflow {
                case: case.name.clone(),
                ids: ids.len(),
                new: case.max_new_tokens,
                needed,
                have: dims.n_positions,
            };
            if !suite.is_canonical() {
                return Err(overflow);
            }
            left_out.push(Unchecked {
                what: format!("case {}", case.name),
                kind: UncheckedKind::Unsupported,
                reason: format!("it needs {needed} positions; the model has {}", dims.n_positions),
            });
            continue;
        }
        cases.push(Case {
            name: case.name.clone(),
            prompt: case.prompt.clone(),
            ids,
            max_new_tokens: case.max_new_tokens,
            sampling: case.sampling,
            forced_ids: Vec::new(),
        });
    }
    Ok((cases, left_out))
}

fn ids(
    case: &SuiteCase,
    canonical: bool,
    dims: &Dims,
    tokenize: &mut Tokenizer<'_>,
) -> Result<Vec<u32>, PlanError> {
    let outside = |ids: &[u32]| ids.iter().copied().find(|&id| id as usize >= dims.vocab_size);
    let given = match &case.ids {
        Some(ids) if canonical && outside(ids).is_some() => None,
        given => given.clone(),
    };
    let ids = match (given, &case.prompt) {
        (Some(ids), _) => ids,
        (None, Some(prompt)) => tokenize(prompt)
            .map_err(|reason| PlanError::Tokenize { case: case.name.clone(), reason })?,
        (None, None) => Vec::new(),
    };
    if ids.is_empty() {
        let reason = "the tokenizer makes no token of it".to_string();
        return Err(PlanError::Tokenize { case: case.name.clone(), reason });
    }
    match outside(&ids) {
        None => Ok(ids),
        Some(id) => {
            Err(PlanError::Vocabulary { case: case.name.clone(), id, vocab: dims.vocab_size })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims =
        Dims { n_layer: 4, n_head: 4, n_embd: 8, n_inner: 32, vocab_size: 50257, n_positions: 32 };

    fn names(checkpoints: &[&str], layers: &[usize]) -> Vec<String> {
        let checkpoints: Vec<String> = checkpoints.iter().map(|c| c.to_string()).collect();
        let points = Filter::new(&checkpoints, layers).unwrap().points(&DIMS).unwrap();
        points.iter().map(Point::to_string).collect()
    }

    #[test]
    fn filters_by_checkpoint_and_layer() {
        assert_eq!(names(&[], &[]).len(), 2 + 4 * 16 + 5 + 1);
        assert_eq!(names(&["qkv"], &[3]), ["h.3.attn.q", "h.3.attn.k", "h.3.attn.v"]);
        assert_eq!(names(&["4", "End to end"], &[])[7..], ["h.3.attn.probs", "generated"]);
        assert_eq!(names(&["8"], &[2]), ["h.2", "ln_f", "logits"]);
        assert!(names(&[], &[1]).iter().all(|n| n == "h.1" || n.starts_with("h.1.")));
    }

    #[test]
    fn what_does_not_exist_is_a_usage_error() {
        let error = Filter::new(&["scor".into()], &[]).unwrap_err().to_string();
        assert!(error.contains("\"scor\"") && error.contains("foundation, ln, qkv"), "{error}");
        let layer = Filter { layers: vec![4], ..Filter::default() }.points(&DIMS).unwrap_err();
        assert!(layer.to_string().contains("layers 0 to 3"), "{layer}");
        let none = Filter::new(&["7".into()], &[2]).unwrap().points(&DIMS).unwrap_err();
        assert!(matches!(none, PlanError::Nothing { .. }));
    }

    #[test]
    fn a_canonical_case_that_is_too_long_is_left_out_and_a_users_is_refused() {
        let mut suite = Suite::canonical().unwrap();
        let mut nobody = |_: &str| Err("nobody is asked".to_string());
        let (found, left_out) = cases(&suite, &DIMS, &mut nobody).unwrap();
        assert_eq!(
            found.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["hello", "one", "sampled"]
        );
        assert_eq!(left_out.len(), 2);
        assert!(left_out[0].reason.contains("83 positions; the model has 32"), "{left_out:?}");
        suite.name = "mine.toml".into();
        let error = cases(&suite, &DIMS, &mut nobody).unwrap_err().to_string();
        assert!(error.contains("case long: 81 ids and 3 new tokens need 83 positions"), "{error}");
    }

    #[test]
    fn a_small_vocabulary_takes_the_models_own_tokenizer() {
        let suite = Suite::canonical().unwrap();
        let dims = Dims { vocab_size: 300, n_positions: 1024, ..DIMS };
        let (found, _) =
            cases(&suite, &dims, &mut |text| Ok(text.bytes().map(u32::from).collect())).unwrap();
        assert_eq!(found[0].ids, [72, 101, 108, 108, 111, 46]);
        let error = cases(&suite, &dims, &mut |_| Ok(vec![300])).unwrap_err().to_string();
        assert!(error.contains("token id 300 is outside"), "{error}");
    }
}
