//! Checkpoints and points: the names under which tensors are compared.
//!
//! A *checkpoint* is one of 13 stages of GPT-2, each with a tolerance class. A *point* is one tensor
//! at one stage, `h.3.attn.scores` for instance; names follow Hugging Face's modules where those
//! exist. Points order themselves as data flows through the model, which is the order in which a
//! divergence is looked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::dims::Dims;
use crate::error::Error;

/// How far two honest fp32 implementations may differ at a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Class {
    /// Equal, bit for bit.
    Exact,
    /// |a − b| ≤ tolerance · max(1, |a|, |b|), element by element.
    Mixed(f64),
}

#[derive(Debug, PartialEq)]
pub struct Checkpoint {
    pub number: u8,
    pub slug: &'static str,
    pub name: &'static str,
    pub class: Class,
}

const fn stage(number: u8, slug: &'static str, name: &'static str, class: Class) -> Checkpoint {
    Checkpoint { number, slug, name, class }
}

pub static CHECKPOINTS: [Checkpoint; 13] = [
    stage(0, "foundation", "Foundation", Class::Exact),
    stage(1, "ln", "Layer normalization", Class::Mixed(1e-5)),
    stage(2, "qkv", "QKV projection", Class::Mixed(1e-4)),
    stage(3, "cache", "KV cache state", Class::Mixed(1e-4)),
    stage(4, "scores", "Attention scores", Class::Mixed(1e-4)),
    stage(5, "attn", "Attention output", Class::Mixed(1e-4)),
    stage(6, "ffn", "FFN output", Class::Mixed(1e-4)),
    stage(7, "block", "First block", Class::Mixed(1e-4)),
    stage(8, "logits", "Full logits", Class::Mixed(1e-3)),
    stage(9, "last", "Selected logits", Class::Mixed(1e-3)),
    stage(10, "argmax", "Argmax", Class::Exact),
    stage(11, "softmax", "Softmax probabilities", Class::Mixed(1e-6)),
    stage(12, "e2e", "End to end", Class::Exact),
];

/// Looks a checkpoint up by number, slug or name; letter case does not matter.
pub fn checkpoint(text: &str) -> Option<&'static Checkpoint> {
    let text = text.trim();
    if let Ok(number) = text.parse::<u8>() {
        return CHECKPOINTS.iter().find(|c| c.number == number);
    }
    CHECKPOINTS
        .iter()
        .find(|c| c.slug.eq_ignore_ascii_case(text) || c.name.eq_ignore_ascii_case(text))
}

/// What a point is, whichever its layer. The order is that of the data inside one layer or outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Tokens,
    Embeddings,
    Ln1,
    Q,
    K,
    V,
    CacheK,
    CacheV,
    Scores,
    Probs,
    Context,
    AttnOut,
    ResidMid,
    Ln2,
    Fc,
    Act,
    MlpOut,
    Block,
    LnF,
    Logits,
    LogitsLast,
    Argmax,
    NextProbs,
    Generated,
}

// One row a stage: name after `h.i.` (or whole), whether it has a layer, checkpoint number.
// `Block` belongs to checkpoint 7 in layer 0 and to 8 elsewhere.
static STAGES: [(Stage, &str, bool, u8); 24] = [
    (Stage::Tokens, "tokens", false, 0),
    (Stage::Embeddings, "embeddings", false, 0),
    (Stage::Ln1, "ln_1", true, 1),
    (Stage::Q, "attn.q", true, 2),
    (Stage::K, "attn.k", true, 2),
    (Stage::V, "attn.v", true, 2),
    (Stage::CacheK, "attn.cache.k", true, 3),
    (Stage::CacheV, "attn.cache.v", true, 3),
    (Stage::Scores, "attn.scores", true, 4),
    (Stage::Probs, "attn.probs", true, 4),
    (Stage::Context, "attn.context", true, 5),
    (Stage::AttnOut, "attn.out", true, 5),
    (Stage::ResidMid, "resid_mid", true, 5),
    (Stage::Ln2, "ln_2", true, 6),
    (Stage::Fc, "mlp.fc", true, 6),
    (Stage::Act, "mlp.act", true, 6),
    (Stage::MlpOut, "mlp.out", true, 6),
    (Stage::Block, "", true, 7),
    (Stage::LnF, "ln_f", false, 8),
    (Stage::Logits, "logits", false, 8),
    (Stage::LogitsLast, "logits.last", false, 9),
    (Stage::Argmax, "argmax", false, 10),
    (Stage::NextProbs, "next.probs", false, 11),
    (Stage::Generated, "generated", false, 12),
];

/// One tensor's name: a stage, and the layer for those stages that every block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    pub stage: Stage,
    pub layer: Option<usize>,
}

impl Stage {
    fn row(self) -> &'static (Stage, &'static str, bool, u8) {
        // STAGES lists the stages in the order of the enum; a test holds it to that.
        &STAGES[self as usize]
    }

    pub fn has_layer(self) -> bool {
        self.row().2
    }

    pub fn all() -> impl Iterator<Item = Stage> {
        STAGES.iter().map(|row| row.0)
    }

    /// True for masked square-ish tensors, of which only the causal cells mean anything.
    pub fn is_causal(self) -> bool {
        matches!(self, Stage::Scores | Stage::Probs)
    }
}

impl Point {
    pub fn new(stage: Stage) -> Point {
        Point { stage, layer: None }
    }

    pub fn of_layer(stage: Stage, layer: usize) -> Point {
        Point { stage, layer: stage.has_layer().then_some(layer) }
    }

    pub fn checkpoint(&self) -> &'static Checkpoint {
        let number = match (self.stage, self.layer) {
            (Stage::Block, Some(layer)) if layer > 0 => 8,
            _ => self.stage.row().3,
        };
        &CHECKPOINTS[number as usize]
    }

    /// Token ids: compared as whole numbers.
    pub fn is_integer(&self) -> bool {
        matches!(self.stage, Stage::Tokens | Stage::Argmax | Stage::Generated)
    }

    /// The shape without a batch axis: `t` tokens in this step, `s` keys visible (cached and new).
    /// `Generated` has the length of the generation, which a step does not tell: `t` stands for it.
    pub fn shape(&self, d: &Dims, t: usize, s: usize) -> Vec<usize> {
        match self.stage {
            Stage::Tokens | Stage::Generated => vec![t],
            Stage::Q | Stage::K | Stage::V => vec![d.n_head, t, d.head_dim()],
            Stage::CacheK | Stage::CacheV => vec![d.n_head, s, d.head_dim()],
            Stage::Scores | Stage::Probs => vec![d.n_head, t, s],
            Stage::Fc | Stage::Act => vec![t, d.n_inner],
            Stage::Logits => vec![t, d.vocab_size],
            Stage::LogitsLast | Stage::NextProbs => vec![d.vocab_size],
            Stage::Argmax => vec![],
            Stage::Embeddings
            | Stage::Ln1
            | Stage::Context
            | Stage::AttnOut
            | Stage::ResidMid
            | Stage::Ln2
            | Stage::MlpOut
            | Stage::Block
            | Stage::LnF => vec![t, d.n_embd],
        }
    }

    /// Position in the data flow: before the blocks, inside block i, after the blocks.
    fn flow_key(&self) -> (u8, usize, Stage) {
        match self.layer {
            Some(layer) => (1, layer, self.stage),
            None if self.stage <= Stage::Embeddings => (0, 0, self.stage),
            None => (2, 0, self.stage),
        }
    }
}

impl Ord for Point {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.flow_key().cmp(&other.flow_key())
    }
}

impl PartialOrd for Point {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.stage.row().1;
        match self.layer {
            None => f.pad(name),
            Some(layer) if name.is_empty() => f.pad(&format!("h.{layer}")),
            Some(layer) => f.pad(&format!("h.{layer}.{name}")),
        }
    }
}

impl FromStr for Point {
    type Err = Error;

    fn from_str(text: &str) -> Result<Point, Error> {
        let unknown =
            || Error::Name(format!("{text:?} is no point; `llorch-diff points` lists them"));
        let find = |name: &str, has_layer: bool| {
            STAGES.iter().find(|row| row.1 == name && row.2 == has_layer).map(|row| row.0)
        };
        let Some(rest) = text.strip_prefix("h.") else {
            return find(text, false).map(Point::new).ok_or_else(unknown);
        };
        let (layer, name) = rest.split_once('.').unwrap_or((rest, ""));
        // `h.03` would be a second spelling of `h.3`.
        let layer: usize = match layer.parse() {
            Ok(n) if layer == format!("{n}") => n,
            _ => return Err(unknown()),
        };
        if name.is_empty() && rest.contains('.') {
            return Err(unknown());
        }
        find(name, true).map(|stage| Point::of_layer(stage, layer)).ok_or_else(unknown)
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Point, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Every tensor point of a model in data-flow order; `generated`, which is no tensor, is left out.
pub fn all_points(n_layer: usize) -> Vec<Point> {
    let outside = |range: fn(&Stage) -> bool| {
        Stage::all().filter(|s| !s.has_layer()).filter(range).map(Point::new)
    };
    let before = outside(|s| *s <= Stage::Embeddings);
    let blocks = (0..n_layer).flat_map(|layer| {
        Stage::all().filter(|s| s.has_layer()).map(move |s| Point::of_layer(s, layer))
    });
    let after = outside(|s| *s > Stage::Embeddings && *s != Stage::Generated);
    before.chain(blocks).chain(after).collect()
}

/// Points asked for by glob: `*` stands for any run of characters, dots included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointSet {
    globs: Vec<String>,
}

impl PointSet {
    pub fn new(globs: &[impl AsRef<str>]) -> PointSet {
        PointSet { globs: globs.iter().map(|g| g.as_ref().to_string()).collect() }
    }

    pub fn none() -> PointSet {
        PointSet::default()
    }

    pub fn all() -> PointSet {
        PointSet::new(&["*"])
    }

    pub fn is_empty(&self) -> bool {
        self.globs.is_empty()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.globs.iter().any(|g| glob_matches(g, name))
    }

    pub fn contains_point(&self, point: Point) -> bool {
        !self.globs.is_empty() && self.contains(&point.to_string())
    }
}

/// Greedy matching with one place to fall back to: linear in practice, never exponential.
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    let (p, n) = (pattern.as_bytes(), name.as_bytes());
    let (mut i, mut j) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while j < n.len() {
        if i < p.len() && p[i] == b'*' {
            star = Some((i, j));
            i += 1;
        } else if i < p.len() && p[i] == n[j] {
            i += 1;
            j += 1;
        } else if let Some((at, matched)) = star {
            // Let the last star swallow one character more.
            star = Some((at, matched + 1));
            i = at + 1;
            j = matched + 1;
        } else {
            return false;
        }
    }
    p[i..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims =
        Dims { n_layer: 2, n_head: 4, n_embd: 8, n_inner: 32, vocab_size: 100, n_positions: 16 };

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in STAGES.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
        }
        for (i, c) in CHECKPOINTS.iter().enumerate() {
            assert_eq!(c.number as usize, i);
        }
    }

    #[test]
    fn names_go_there_and_back_and_sort_as_data_flows() {
        let points = all_points(12);
        let mut sorted = points.clone();
        sorted.sort();
        assert_eq!(points, sorted);
        for point in points {
            assert_eq!(point.to_string().parse::<Point>().unwrap(), point);
        }
        let names: Vec<_> = all_points(1).iter().map(Point::to_string).collect();
        assert_eq!(
            names.join(" "),
            "tokens embeddings h.0.ln_1 h.0.attn.q h.0.attn.k h.0.attn.v h.0.attn.cache.k \
             h.0.attn.cache.v h.0.attn.scores h.0.attn.probs h.0.attn.context h.0.attn.out \
             h.0.resid_mid h.0.ln_2 h.0.mlp.fc h.0.mlp.act h.0.mlp.out h.0 ln_f logits \
             logits.last argmax next.probs"
        );
    }

    #[test]
    fn refuses_what_is_no_point() {
        for text in
            ["", "h", "h.", "h.x", "h.03", "h.1.", "h.1.attn", "ln_1", "h.-1", "logits.", "H.0"]
        {
            assert!(text.parse::<Point>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_first_block_is_checkpoint_7_and_later_ones_8() {
        let of = |name: &str| name.parse::<Point>().unwrap().checkpoint().number;
        assert_eq!((of("h.0"), of("h.1"), of("h.5.mlp.act"), of("generated")), (7, 8, 6, 12));
    }

    #[test]
    fn shapes_follow_the_contract() {
        let shape = |name: &str| name.parse::<Point>().unwrap().shape(&DIMS, 3, 5);
        assert_eq!(shape("h.1.attn.q"), [4, 3, 2]);
        assert_eq!(shape("h.1.attn.cache.v"), [4, 5, 2]);
        assert_eq!(shape("h.1.attn.probs"), [4, 3, 5]);
        assert_eq!(shape("h.0.mlp.fc"), [3, 32]);
        assert_eq!(shape("logits"), [3, 100]);
        assert_eq!(shape("argmax"), [0; 0]);
    }

    #[test]
    fn checkpoints_are_found_by_number_slug_and_name() {
        for text in ["4", "scores", "SCORES", "Attention Scores"] {
            assert_eq!(checkpoint(text).unwrap().number, 4);
        }
        assert!(checkpoint("13").is_none() && checkpoint("score").is_none());
    }

    #[test]
    fn globs_cross_dots() {
        let yes = [
            ("*", "h.0"),
            ("h.*.attn.q", "h.11.attn.q"),
            ("*q", "h.0.attn.q"),
            ("h.*", "h.1.mlp.fc"),
            ("logits*", "logits.last"),
            ("h.0", "h.0"),
            ("*.*.*", "h.0.ln_1"),
            ("", ""),
        ];
        for (p, n) in yes {
            assert!(glob_matches(p, n), "{p} {n}");
        }
        for (p, n) in [("h.0", "h.0.ln_1"), ("h.*.q", "h.0.attn.k"), ("", "h.0"), ("a*b", "ac")] {
            assert!(!glob_matches(p, n), "{p} {n}");
        }
        assert!(!PointSet::none().contains("h.0") && PointSet::all().contains("h.0"));
    }
}
