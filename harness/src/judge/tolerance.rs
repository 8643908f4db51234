//! How far a point may be off, by its place in the model.

use std::collections::BTreeMap;
use std::str::FromStr;

use llorch_trace::{CHECKPOINTS, Class, Point, checkpoint};
use serde::{Deserialize, Serialize};

/// What the total error of a deeper layer is judged at: rounding accumulates over blocks, so that
/// only block 0 is held to its checkpoint's class.
const DEEP: f64 = 1e-3;

/// The relative tolerance of a point, 0 where equality is asked for.
pub fn point_tolerance(point: Point) -> f64 {
    match (point.checkpoint().class, point.layer) {
        (Class::Exact, _) => 0.0,
        (Class::Mixed(t), Some(layer)) if layer > 0 => t.max(DEEP),
        (Class::Mixed(t), _) => t,
    }
}

/// Tolerances that somebody asked for in place of the contract's, by checkpoint. They replace the
/// class in every layer, of total and of local errors; no bound of rounding is moved by them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Overrides(BTreeMap<u8, f64>);

/// One `--tolerance`: `1e-5` for every checkpoint, `4=1e-5` or `scores=1e-5` for one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Override {
    pub checkpoint: Option<u8>,
    pub tolerance: f64,
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Override, String> {
        let (which, value) = match text.split_once('=') {
            None => (None, text),
            Some((name, value)) => {
                let found = checkpoint(name);
                let found = found.ok_or_else(|| format!("there is no checkpoint {name:?}"))?;
                if found.class == Class::Exact {
                    return Err(format!(
                        "checkpoint {} ({}) compares for equality and has no tolerance",
                        found.number, found.slug
                    ));
                }
                (Some(found.number), value)
            }
        };
        match value.trim().parse::<f64>() {
            Ok(t) if t.is_finite() && t > 0.0 => Ok(Override { checkpoint: which, tolerance: t }),
            _ => Err(format!("{value:?} is no tolerance; expected a number above 0, as 1e-5")),
        }
    }
}

impl Overrides {
    /// One without a checkpoint sets all that have a tolerance; one for a checkpoint goes before it,
    /// whichever was given first, and of equals the later.
    pub fn new(all: &[Override]) -> Overrides {
        let mut by_checkpoint = BTreeMap::new();
        for one in all.iter().filter(|one| one.checkpoint.is_none()) {
            let inexact = CHECKPOINTS.iter().filter(|c| c.class != Class::Exact).map(|c| c.number);
            by_checkpoint.extend(inexact.map(|n| (n, one.tolerance)));
        }
        by_checkpoint.extend(all.iter().filter_map(|one| Some((one.checkpoint?, one.tolerance))));
        Overrides(by_checkpoint)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u8, f64)> {
        self.0.iter().map(|(number, tolerance)| (*number, *tolerance))
    }

    pub fn of(&self, point: Point) -> Option<f64> {
        self.0.get(&point.checkpoint().number).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_by_checkpoint_and_spare_what_is_exact() {
        let all: Vec<Override> =
            ["scores=2e-5", "1e-5", "7=3e-5"].iter().map(|t| t.parse().unwrap()).collect();
        let overrides = Overrides::new(&all);
        let of = |name: &str| overrides.of(name.parse().unwrap());
        assert_eq!((of("h.2.attn.q"), of("h.2.attn.scores")), (Some(1e-5), Some(2e-5)));
        assert_eq!((of("h.0"), of("embeddings"), of("argmax")), (Some(3e-5), None, None));
        for text in [
            "", "x", "-1", "0", "1e-400", "nan", "inf", "14=1e-5", "scores=", "scores=x",
            "argmax=1",
        ] {
            assert!(text.parse::<Override>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn block_0_is_held_to_its_class_and_deeper_ones_to_1e_3() {
        let of = |name: &str| point_tolerance(name.parse().unwrap());
        assert_eq!((of("h.0.ln_1"), of("h.1.ln_1")), (1e-5, 1e-3));
        assert_eq!((of("h.0"), of("h.3")), (1e-4, 1e-3));
        assert_eq!((of("embeddings"), of("argmax"), of("logits.last")), (0.0, 0.0, 1e-3));
    }
}
