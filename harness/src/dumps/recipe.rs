//! How a foreign tensor becomes ours: declared steps, each named in the output.

use llorch_trace::{Point, Stage, Tensor, TensorData};

use super::alias::Layout;

/// What is known of a model's sizes and of one step's; what isn't known restrains nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    pub heads: Option<usize>,
    /// E.
    pub width: Option<usize>,
    /// T, tokens of this step.
    pub tokens: Option<usize>,
    /// S, keys visible: cached and new.
    pub keys: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// ggml counts axes from the fastest: the same bytes, the shape read backwards.
    FromGgmlOrder,
    DropBatch,
    /// A third of the last axis.
    Third {
        which: usize,
    },
    /// `[T,E]` → `[H,T,D]`.
    SplitHeads {
        heads: usize,
    },
    /// `[T,H,D]` → `[H,T,D]`.
    HeadsFirst,
    /// `[H,T,D]` → `[T,E]`.
    MergeHeads,
    /// `[T,H,D]` → `[T,E]`, the same bytes.
    JoinHeads,
    /// Keys beyond those visible: padding.
    CropKeys {
        keys: usize,
    },
    /// `[E]` → `[1,E]`.
    AddTokens,
    /// `[1,1]` → `[]`.
    ToScalar,
    /// ggml's four axes as they are printed, of which the slowest ones are 1.
    FromPrinted {
        axes: usize,
    },
    /// `[1,E]` → the last row of `[T,E]`: llama.cpp drops the others in its last layer.
    LastRow {
        tokens: usize,
    },
    /// Nothing moves: which of two things of one name it is.
    AfterGain,
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Recipe::FromGgmlOrder => f.write_str("read the shape backwards (ggml's order)"),
            Recipe::DropBatch => f.write_str("drop the batch axis"),
            Recipe::Third { which: 0 } => f.write_str("first third of merged q, k, v"),
            Recipe::Third { which: 1 } => f.write_str("second third of merged q, k, v"),
            Recipe::Third { .. } => f.write_str("last third of merged q, k, v"),
            Recipe::SplitHeads { heads } => write!(f, "[T,E] → [H,T,D], H = {heads}"),
            Recipe::HeadsFirst => f.write_str("[T,H,D] → [H,T,D]"),
            Recipe::MergeHeads => f.write_str("[H,T,D] → [T,E]"),
            Recipe::JoinHeads => f.write_str("[T,H,D] → [T,E]"),
            Recipe::CropKeys { keys } => write!(f, "drop the padding after key {keys}"),
            Recipe::AddTokens => f.write_str("[E] → [1,E]"),
            Recipe::ToScalar => f.write_str("[1,1] → []"),
            Recipe::FromPrinted { .. } => f.write_str("read the shape backwards (ggml's order)"),
            Recipe::LastRow { tokens } => {
                write!(
                    f,
                    "the last token's row alone, row {} of {tokens}",
                    tokens.saturating_sub(1)
                )
            }
            Recipe::AfterGain => f.write_str(
                "after gain and bias, as TransformerLens before 4 takes it (there is no hook_out)",
            ),
        }
    }
}

/// Steps in one sentence, empty if there are none.
pub fn sentence(recipes: &[Recipe]) -> String {
    recipes.iter().map(Recipe::to_string).collect::<Vec<_>>().join("; ")
}

impl Recipe {
    /// The shape afterwards; `None` where the recipe does not fit.
    pub fn shape(&self, shape: &[usize]) -> Option<Vec<usize>> {
        match (*self, shape) {
            (Recipe::FromGgmlOrder, _) => {
                // ggml always has four axes; the slowest ones of 1 are no axes of the tensor.
                let axes = shape.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
                Some(shape.get(..axes)?.iter().rev().copied().collect())
            }
            (Recipe::DropBatch, [1, rest @ ..]) => Some(rest.to_vec()),
            (Recipe::Third { .. }, [rows @ .., n]) if n % 3 == 0 => {
                Some(rows.iter().copied().chain([n / 3]).collect())
            }
            (Recipe::SplitHeads { heads }, [t, e]) if heads > 0 && e % heads == 0 => {
                Some(vec![heads, *t, e / heads])
            }
            (Recipe::HeadsFirst, [t, h, d]) => Some(vec![*h, *t, *d]),
            (Recipe::MergeHeads, [h, t, d]) => Some(vec![*t, h * d]),
            (Recipe::JoinHeads, [t, h, d]) => Some(vec![*t, h * d]),
            (Recipe::CropKeys { keys }, [h, t, s]) if keys < *s => Some(vec![*h, *t, keys]),
            (Recipe::AddTokens, [e]) => Some(vec![1, *e]),
            (Recipe::ToScalar, [1, 1]) => Some(vec![]),
            (Recipe::FromPrinted { axes }, [_, _, _, _]) if axes <= 4 => {
                let (kept, slow) = shape.split_at(axes);
                slow.iter().all(|n| *n == 1).then(|| kept.iter().rev().copied().collect())
            }
            (Recipe::LastRow { tokens }, [1, e]) if tokens > 1 => Some(vec![tokens, *e]),
            (Recipe::AfterGain, _) => Some(shape.to_vec()),
            _ => None,
        }
    }

    /// Whether all elements stay where they are: another shape of the same bytes.
    fn moves_nothing(&self) -> bool {
        match self {
            Recipe::FromGgmlOrder
            | Recipe::DropBatch
            | Recipe::JoinHeads
            | Recipe::AddTokens
            | Recipe::ToScalar
            | Recipe::AfterGain => true,
            Recipe::Third { .. }
            | Recipe::SplitHeads { .. }
            | Recipe::HeadsFirst
            | Recipe::MergeHeads
            | Recipe::CropKeys { .. }
            | Recipe::FromPrinted { .. }
            | Recipe::LastRow { .. } => false,
        }
    }

    /// Which element of the old tensor becomes element `i` of the new one.
    fn gather(&self, old: &[usize], new: &[usize], i: usize) -> usize {
        match (*self, old, new) {
            (Recipe::Third { which }, [.., n], _) => {
                let part = n / 3;
                i / part * n + which * part + i % part
            }
            // new[h,t,d] = old[t, h·D + d], and the same for old[t,h,d]
            (Recipe::SplitHeads { .. } | Recipe::HeadsFirst, _, [heads, tokens, d]) => {
                let (h, t) = (i / d / tokens, i / d % tokens);
                (t * heads + h) * d + i % d
            }
            // new[t, h·D + d] = old[h,t,d]
            (Recipe::MergeHeads, [_, tokens, d], [_, e]) => {
                let (t, h) = (i / e, i % e / d);
                (h * tokens + t) * d + i % d
            }
            (Recipe::CropKeys { keys }, [.., s], _) => i / keys * s + i % keys,
            _ => i,
        }
    }

    /// Which element of the new tensor element `i` of the old one becomes; the inverse of
    /// [`Recipe::gather`] where that has one.
    fn scatter(&self, old: &[usize], new: &[usize], i: usize) -> Option<usize> {
        match (*self, old, new) {
            (Recipe::Third { which }, [.., n], _) => {
                let part = n / 3;
                (i % n / part == which).then(|| i / n * part + i % part)
            }
            (Recipe::SplitHeads { .. } | Recipe::HeadsFirst, _, [heads, tokens, d]) => {
                let (t, h) = (i / d / heads, i / d % heads);
                Some((h * tokens + t) * d + i % d)
            }
            (Recipe::MergeHeads, [heads, tokens, d], _) => {
                let (h, t) = (i / d / tokens, i / d % tokens);
                Some((t * heads + h) * d + i % d)
            }
            (Recipe::CropKeys { keys }, [.., s], _) => (i % s < keys).then(|| i / s * keys + i % s),
            (Recipe::LastRow { tokens }, [_, e], _) => Some((tokens - 1) * e + i),
            _ => Some(i),
        }
    }

    fn apply(&self, tensor: Tensor) -> Option<Tensor> {
        fn pick<T: Copy>(old: &[T], n: usize, at: impl Fn(usize) -> usize) -> Option<Vec<T>> {
            (0..n).map(|i| old.get(at(i)).copied()).collect()
        }
        let shape = self.shape(&tensor.shape)?;
        if matches!(self, Recipe::LastRow { .. }) {
            return None; // the other rows aren't there
        }
        let n = shape.iter().product();
        let at = |i| self.gather(&tensor.shape, &shape, i);
        let data = match &tensor.data {
            TensorData::F32(v) => TensorData::F32(pick(v, n, at)?),
            TensorData::F64(v) => TensorData::F64(pick(v, n, at)?),
            TensorData::F16(v) => TensorData::F16(pick(v, n, at)?),
            TensorData::BF16(v) => TensorData::BF16(pick(v, n, at)?),
            TensorData::I64(v) => TensorData::I64(pick(v, n, at)?),
        };
        Some(Tensor::new(shape, data))
    }
}

/// `None` where a recipe does not fit, which a planned one always does.
pub fn apply(recipes: &[Recipe], tensor: Tensor) -> Option<Tensor> {
    recipes.iter().try_fold(tensor, |tensor, recipe| recipe.apply(tensor))
}

/// The shape of the same elements in the same order, where the recipes do no more than that.
pub fn reshaped(recipes: &[Recipe], shape: &[usize]) -> Option<Vec<usize>> {
    recipes.iter().all(Recipe::moves_nothing).then(|| shape_after(recipes, shape)).flatten()
}

/// Where element `i` of a tensor of that shape goes; `None` where it is dropped.
pub fn place_after(recipes: &[Recipe], shape: &[usize], i: usize) -> Option<usize> {
    let mut old = shape.to_vec();
    let mut at = i;
    for recipe in recipes {
        let new = recipe.shape(&old)?;
        at = recipe.scatter(&old, &new, at)?;
        old = new;
    }
    Some(at)
}

pub fn shape_after(recipes: &[Recipe], shape: &[usize]) -> Option<Vec<usize>> {
    recipes.iter().try_fold(shape.to_vec(), |shape, recipe| recipe.shape(&shape))
}

/// Whether a tensor of this shape can be the point, as far as the sizes are known.
fn fits(point: Point, shape: &[usize], sizes: Sizes) -> bool {
    let is = |found: usize, known: Option<usize>| known.is_none_or(|n| n == found);
    let heads = |h: usize, d: usize| is(h, sizes.heads) && is(h * d, sizes.width);
    match (point.stage, shape) {
        (Stage::Tokens, [t]) => is(*t, sizes.tokens),
        (Stage::Generated, [_]) | (Stage::Argmax, []) => true,
        (Stage::Q | Stage::K | Stage::V, [h, t, d]) => is(*t, sizes.tokens) && heads(*h, *d),
        (Stage::CacheK | Stage::CacheV, [h, s, d]) => is(*s, sizes.keys) && heads(*h, *d),
        (Stage::Scores | Stage::Probs, [h, t, s]) => {
            is(*h, sizes.heads) && is(*t, sizes.tokens) && is(*s, sizes.keys)
        }
        (Stage::LogitsLast | Stage::NextProbs, [_]) => true,
        (Stage::Fc | Stage::Act | Stage::Logits, [t, _]) => is(*t, sizes.tokens),
        (stage, [t, e]) if is_width_stage(stage) => is(*t, sizes.tokens) && is(*e, sizes.width),
        _ => false,
    }
}

/// Stages of shape `[T,E]`.
pub fn is_width_stage(stage: Stage) -> bool {
    use Stage::*;
    matches!(stage, Embeddings | Ln1 | Context | AttnOut | ResidMid | Ln2 | MlpOut | Block | LnF)
}

/// How a source writes shapes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Rows,
    /// ggml's order or NumPy's.
    Either,
    /// ggml's, always four axes.
    Printed,
}

/// The recipes that make the shape that of the point; of several, those with the fewest steps.
/// The error is a sentence.
pub fn plan(
    point: Point,
    shape: &[usize],
    layout: Layout,
    third: Option<usize>,
    order: Order,
    sizes: Sizes,
) -> Result<Vec<Recipe>, String> {
    let mut found: Vec<Vec<Recipe>> = Vec::new();
    for recipes in candidates(point.stage, layout, third, order, sizes) {
        let Some(after) = shape_after(&recipes, shape) else { continue };
        if fits(point, &after, sizes) {
            found.push(recipes);
        }
    }
    found.sort_by_key(Vec::len);
    let expected = expected(point, sizes);
    match found.as_slice() {
        [] => {
            let mut why = format!("shape {shape:?} does not become {expected} by any known recipe");
            let heads = matches!(point.stage, Stage::Q | Stage::K | Stage::V);
            if heads && sizes.heads.is_none() {
                why += "; how many heads there are isn't known: say it with --heads N or --config config.json";
            }
            Err(why)
        }
        [first, second, ..] if first.len() == second.len() => Err(format!(
            "shape {shape:?} becomes {expected} in two ways, `{}` and `{}`, and its name says not which",
            sentence(first),
            sentence(second)
        )),
        [first, ..] => Ok(first.clone()),
    }
}

fn candidates(
    stage: Stage,
    layout: Layout,
    third: Option<usize>,
    order: Order,
    sizes: Sizes,
) -> Vec<Vec<Recipe>> {
    use Recipe::*;
    let fronts = match order {
        Order::Rows => vec![vec![], vec![DropBatch]],
        Order::Either => {
            vec![vec![], vec![DropBatch], vec![FromGgmlOrder], vec![FromGgmlOrder, DropBatch]]
        }
        Order::Printed => vec![vec![FromPrinted { axes: axes(stage, layout) }]],
    };
    let split = sizes.heads.map(|heads| vec![SplitHeads { heads }]);
    let ends: Vec<Vec<Recipe>> = match (stage, layout, third) {
        (_, Layout::Norm, _) => vec![vec![AfterGain]],
        (_, Layout::Merged, Some(which)) => {
            let then = |r: Recipe| vec![Third { which }, r];
            sizes.heads.map(|heads| then(SplitHeads { heads })).into_iter().collect()
        }
        (Stage::Q | Stage::K | Stage::V, Layout::TokensHeads, _) => {
            [vec![HeadsFirst]].into_iter().chain(split).collect()
        }
        (Stage::Q | Stage::K | Stage::V | Stage::CacheK | Stage::CacheV, ..) => {
            [vec![], vec![HeadsFirst]].into_iter().chain(split).collect()
        }
        (Stage::Context, Layout::TokensHeads, _) => vec![vec![], vec![JoinHeads]],
        (Stage::Context, ..) => vec![vec![], vec![JoinHeads], vec![MergeHeads]],
        (Stage::Scores | Stage::Probs, ..) => {
            let crop = sizes.keys.map(|keys| vec![CropKeys { keys }]);
            [vec![]].into_iter().chain(crop).collect()
        }
        (Stage::Argmax, ..) => vec![vec![], vec![ToScalar]],
        (Stage::Tokens | Stage::Generated | Stage::LogitsLast | Stage::NextProbs, ..) => {
            vec![vec![]]
        }
        // llama.cpp keeps of the last layer what the next token needs.
        _ if order == Order::Printed && stage != Stage::LogitsLast => {
            let last = sizes.tokens.map(|tokens| vec![LastRow { tokens }]);
            [vec![]].into_iter().chain(last).collect()
        }
        // One token may be written without its axis, but only where one token is expected.
        _ if sizes.tokens == Some(1) => vec![vec![], vec![AddTokens]],
        _ => vec![vec![]],
    };
    let join = |front: &Vec<Recipe>, end: &Vec<Recipe>| [front.as_slice(), end].concat();
    fronts.iter().flat_map(|f| ends.iter().map(move |e| join(f, e))).collect()
}

/// Axes of a native tensor without a batch.
pub fn axes(stage: Stage, layout: Layout) -> usize {
    match stage {
        Stage::Tokens | Stage::LogitsLast | Stage::NextProbs => 1,
        Stage::Q | Stage::K | Stage::V if layout == Layout::Merged => 2,
        Stage::Q | Stage::K | Stage::V | Stage::CacheK | Stage::CacheV => 3,
        Stage::Scores | Stage::Probs => 3,
        Stage::Context if layout == Layout::TokensHeads => 3,
        _ => 2,
    }
}

/// The shape of a point with letters where sizes aren't known, for messages.
fn expected(point: Point, sizes: Sizes) -> String {
    let show = |n: Option<usize>, letter: &str| n.map_or(letter.to_string(), |n| n.to_string());
    let (h, e) = (show(sizes.heads, "H"), show(sizes.width, "E"));
    let (t, s) = (show(sizes.tokens, "T"), show(sizes.keys, "S"));
    let d = match (sizes.heads, sizes.width) {
        (Some(heads), Some(width)) if heads > 0 => (width / heads).to_string(),
        _ => "D".to_string(),
    };
    match point.stage {
        Stage::Tokens => format!("[{t}]"),
        Stage::Generated => "[N]".into(),
        Stage::Argmax => "[]".into(),
        Stage::Q | Stage::K | Stage::V => format!("[{h},{t},{d}]"),
        Stage::CacheK | Stage::CacheV => format!("[{h},{s},{d}]"),
        Stage::Scores | Stage::Probs => format!("[{h},{t},{s}]"),
        Stage::Fc | Stage::Act => format!("[{t},4E]"),
        Stage::Logits => format!("[{t},V]"),
        Stage::LogitsLast | Stage::NextProbs => "[V]".into(),
        _ => format!("[{t},{e}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { heads: Some(2), width: Some(6), tokens: Some(4), keys: Some(5) };

    fn planned(
        point: &str,
        shape: &[usize],
        layout: Layout,
        sizes: Sizes,
    ) -> Result<Vec<Recipe>, String> {
        let third = (layout == Layout::Merged).then_some(1);
        plan(point.parse().unwrap(), shape, layout, third, Order::Rows, sizes)
    }

    #[test]
    fn shapes_decide_what_names_leave_open() {
        use Recipe::*;
        let q = |shape: &[usize]| planned("h.0.attn.q", shape, Layout::Ours, SIZES).unwrap();
        assert_eq!(q(&[2, 4, 3]), []);
        assert_eq!(q(&[1, 2, 4, 3]), [DropBatch]);
        assert_eq!(q(&[4, 2, 3]), [HeadsFirst]);
        assert_eq!(q(&[1, 4, 2, 3]), [DropBatch, HeadsFirst]);
        assert_eq!(q(&[4, 6]), [SplitHeads { heads: 2 }]);
        assert_eq!(q(&[1, 4, 6]), [DropBatch, SplitHeads { heads: 2 }]);
        let merged = planned("h.0.attn.k", &[1, 4, 18], Layout::Merged, SIZES).unwrap();
        assert_eq!(merged, [DropBatch, Third { which: 1 }, SplitHeads { heads: 2 }]);
        let context =
            planned("h.0.attn.context", &[1, 4, 2, 3], Layout::TokensHeads, SIZES).unwrap();
        assert_eq!(context, [DropBatch, JoinHeads]);
        let probs = planned("h.0.attn.probs", &[2, 4, 256], Layout::Ours, SIZES).unwrap();
        assert_eq!(probs, [CropKeys { keys: 5 }]);
        assert_eq!(planned("argmax", &[1], Layout::Ours, SIZES).unwrap(), [DropBatch]);
        assert_eq!(planned("argmax", &[1, 1], Layout::Ours, SIZES).unwrap(), [ToScalar]);
    }

    #[test]
    fn a_square_of_heads_and_tokens_is_taken_as_the_contract_says_or_refused() {
        let square = Sizes { heads: Some(4), width: Some(12), ..SIZES };
        assert_eq!(planned("h.0.attn.q", &[4, 4, 3], Layout::Ours, square).unwrap(), []);
        let declared = planned("h.0.attn.q", &[4, 4, 3], Layout::TokensHeads, square).unwrap();
        assert_eq!(declared, [Recipe::HeadsFirst]);
        let error = planned("h.0.attn.context", &[4, 4, 3], Layout::Ours, square).unwrap_err();
        assert!(error.contains("in two ways"), "{error}");
    }

    #[test]
    fn what_fits_nothing_says_what_was_expected() {
        let error = planned("h.0.ln_1", &[2, 4, 6], Layout::Ours, SIZES).unwrap_err();
        assert!(error.contains("[2, 4, 6] does not become [4,6]"), "{error}");
        let unknown = Sizes { heads: None, ..SIZES };
        let error = planned("h.0.attn.k", &[1, 4, 18], Layout::Merged, unknown).unwrap_err();
        assert!(error.contains("--heads"), "{error}");
    }

    #[test]
    fn ggml_shapes_are_read_backwards() {
        let point: Point = "h.0.attn.q".parse().unwrap();
        let recipes =
            plan(point, &[3, 2, 4, 1], Layout::TokensHeads, None, Order::Either, SIZES).unwrap();
        assert_eq!(recipes, [Recipe::FromGgmlOrder, Recipe::HeadsFirst]);
    }

    #[test]
    fn elements_go_where_they_belong() {
        // old[t,h,d] = 100t + 10h + d
        let value = |t: usize, h: usize, d: usize| (100 * t + 10 * h + d) as f32;
        let mut old = Vec::new();
        for t in 0..4 {
            for h in 0..2 {
                old.extend((0..3).map(|d| value(t, h, d)));
            }
        }
        let mut heads_first = Vec::new();
        for h in 0..2 {
            for t in 0..4 {
                heads_first.extend((0..3).map(|d| value(t, h, d)));
            }
        }
        let thd = Tensor::f32(vec![4, 2, 3], old.clone());
        let htd = Tensor::f32(vec![2, 4, 3], heads_first);
        let rows = Tensor::f32(vec![4, 6], old);
        assert_eq!(apply(&[Recipe::HeadsFirst], thd.clone()).unwrap(), htd);
        assert_eq!(apply(&[Recipe::SplitHeads { heads: 2 }], rows.clone()).unwrap(), htd);
        assert_eq!(apply(&[Recipe::MergeHeads], htd).unwrap(), rows);
        assert_eq!(apply(&[Recipe::JoinHeads], thd).unwrap(), rows);
        let third = apply(&[Recipe::Third { which: 2 }], rows).unwrap();
        assert_eq!(
            third,
            Tensor::f32(vec![4, 2], vec![11., 12., 111., 112., 211., 212., 311., 312.])
        );
        let padded = Tensor::i64(vec![1, 2, 3], vec![1, 2, 0, 3, 4, 0]);
        let cropped = apply(&[Recipe::CropKeys { keys: 2 }], padded).unwrap();
        assert_eq!(cropped, Tensor::i64(vec![1, 2, 2], vec![1, 2, 3, 4]));
    }
}
