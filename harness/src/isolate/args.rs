//! What `--isolate` may be asked.

use std::path::PathBuf;

use llorch_trace::protocol::Sampling;
use llorch_trace::{Dims, Point};

use super::stages;
use crate::evidence::Case;
use crate::plan::Filter;
use crate::run::RunError;

/// The case without `--prompt` and `--suite`: "The quick brown fox jumps over the lazy dog. Why?" in
/// GPT-2's tokens. In a smaller vocabulary they are wrapped around.
const TWELVE: [u32; 12] = [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13, 4162, 30];

/// The prefill, and one decode step for the cache.
const STEPS: usize = 2;

#[derive(Debug, Clone, Default, clap::Args)]
pub struct IsolateArgs {
    /// Each stage by itself: put the same input in front of it in every implementation, and compare what
    /// comes out. Checkpoints 1 to 7 of the first and the last layer, if nothing else is asked for
    #[arg(long)]
    pub isolate: bool,

    /// With --isolate: the stages whose outputs fit this glob, such as 'h.*.ln_*'; may be repeated
    #[arg(long = "point", value_name = "GLOB", requires = "isolate")]
    pub points: Vec<String>,

    /// With --isolate: the input. The oracle's own tensors, random ones (the seed is 0 unless given), or
    /// a .npy file with the shape of the stage's input
    #[arg(long, value_name = "oracle|random[:SEED]|FILE", requires = "isolate", value_parser = input)]
    pub input: Option<Input>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Oracle,
    Random(u64),
    File(PathBuf),
}

/// What was asked, understood.
#[derive(Debug, Clone)]
pub struct Ask {
    pub input: Input,
    globs: Vec<String>,
    filter: Filter,
    /// Neither prompts nor a suite were named.
    pub own_case: bool,
}

fn input(text: &str) -> Result<Input, String> {
    match text.split_once(':') {
        _ if text == "oracle" => Ok(Input::Oracle),
        _ if text == "random" => Ok(Input::Random(0)),
        Some(("random", seed)) => match seed.parse() {
            Ok(seed) => Ok(Input::Random(seed)),
            Err(_) => Err(format!("found seed {seed:?}; expected a whole number")),
        },
        _ if text.is_empty() => Err("found nothing; expected oracle, random or a file".into()),
        _ => Ok(Input::File(PathBuf::from(text))),
    }
}

impl IsolateArgs {
    pub fn ask(&self, filter: &Filter, own_case: bool) -> Option<Ask> {
        self.isolate.then(|| Ask {
            input: self.input.clone().unwrap_or(Input::Oracle),
            globs: self.points.clone(),
            filter: filter.clone(),
            own_case,
        })
    }
}

impl Ask {
    /// The stages, in data-flow order.
    pub fn stages(&self, dims: &Dims) -> Result<Vec<Point>, RunError> {
        stages::select(&self.filter, &self.globs, dims)
    }

    pub fn case(&self, dims: &Dims) -> Case {
        let tokens = self.tokens(dims, TWELVE.len());
        Case {
            name: "twelve".into(),
            prompt: None,
            ids: tokens,
            max_new_tokens: 0,
            sampling: Sampling::default(),
            forced_ids: Vec::new(),
        }
    }

    /// So many of the default tokens, from the first again after the last; no more than there are
    /// positions.
    pub fn tokens(&self, dims: &Dims, n: usize) -> Vec<u32> {
        let wrap = |id: &u32| id % u32::try_from(dims.vocab_size).unwrap_or(u32::MAX);
        TWELVE.iter().cycle().map(wrap).take(n.min(dims.n_positions)).collect()
    }

    /// Isolation looks at the prefill and at one decode step; a file is one tensor, that of the prefill.
    pub fn fit(&self, case: &mut Case, dims: &Dims) {
        let steps = if matches!(self.input, Input::File(_)) { 1 } else { STEPS };
        let room = case.ids.len() + steps - 1 <= dims.n_positions;
        case.max_new_tokens = if room && steps > 1 { steps } else { 0 };
        case.sampling = Sampling::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_by_their_first_word() {
        assert_eq!(input("oracle"), Ok(Input::Oracle));
        assert_eq!(input("random"), Ok(Input::Random(0)));
        assert_eq!(input("random:17"), Ok(Input::Random(17)));
        assert_eq!(input("x.npy"), Ok(Input::File("x.npy".into())));
        assert!(input("random:x").unwrap_err().contains("found seed \"x\""));
        assert!(input("").is_err());
    }
}
