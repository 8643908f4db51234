//! The forward pass. T tokens of this step, S keys so far, E width, H heads, D = E/H, F inner width,
//! V vocabulary.

use llorch_trace::{Dims, Point, Stage};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, Axis, concatenate, s};

use super::ops;
use super::product::{Layout, Matrix};
use super::{Oracle, OracleError, Result};

/// Keys and values of every layer so far, [H, S, D] each.
#[derive(Debug)]
pub struct Cache {
    keys: Vec<Array3<f64>>,
    values: Vec<Array3<f64>>,
    length: usize,
}

impl Cache {
    pub fn new(dims: &Dims) -> Cache {
        let empty = || vec![Array3::zeros((dims.n_head, 0, dims.head_dim())); dims.n_layer];
        Cache { keys: empty(), values: empty(), length: 0 }
    }
}

/// New tokens after what is cached of a sequence.
#[derive(Debug)]
pub struct Fed<'a> {
    pub ids: &'a [u32],
    pub cache: &'a mut Cache,
}

/// Everything before the head, to ln_f's output [T, E]: the rows of all sequences one below the other, so that every
/// weight is read once for all. `see` is shown each stage as it is computed, and what has heads sequence by sequence.
pub fn blocks(
    oracle: &Oracle,
    fed: &mut [Fed<'_>],
    see: &mut dyn FnMut(Point, ArrayD<f64>),
) -> Result<Array2<f64>> {
    let parts = fed.iter().map(|one| embeddings(oracle, one.ids, one.cache.length));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let mut x = concatenate(Axis(0), &parts).map_err(|e| OracleError::Input(e.to_string()))?; // [T, E]
    see(Point::new(Stage::Embeddings), x.clone().into_dyn());
    for layer in 0..oracle.dims.n_layer {
        let mut show = |stage, tensor| see(Point::of_layer(stage, layer), tensor);
        let normed = layer_norm(oracle, &x, &format!("h.{layer}.ln_1"))?;
        show(Stage::Ln1, normed.clone().into_dyn());
        let attention = attention(oracle, &normed, layer, fed, &mut show)?;
        show(Stage::AttnOut, attention.clone().into_dyn());
        x += &attention;
        show(Stage::ResidMid, x.clone().into_dyn());
        let normed = layer_norm(oracle, &x, &format!("h.{layer}.ln_2"))?;
        show(Stage::Ln2, normed.clone().into_dyn());
        let fc = linear(oracle, &normed, &format!("h.{layer}.mlp.c_fc"))?; // [T, F]
        show(Stage::Fc, fc.clone().into_dyn());
        let act = fc.mapv(ops::gelu_new);
        show(Stage::Act, act.clone().into_dyn());
        let mlp = linear(oracle, &act, &format!("h.{layer}.mlp.c_proj"))?; // [T, E]
        show(Stage::MlpOut, mlp.clone().into_dyn());
        x += &mlp;
        show(Stage::Block, x.clone().into_dyn());
    }
    fed.iter_mut().for_each(|one| one.cache.length += one.ids.len());
    let x = layer_norm(oracle, &x, "ln_f")?;
    see(Point::new(Stage::LnF), x.clone().into_dyn());
    Ok(x)
}

/// Causal self-attention from ln_1's output through c_proj, [T, E] to [T, E].
fn attention(
    oracle: &Oracle,
    x: &Array2<f64>,
    layer: usize,
    fed: &mut [Fed<'_>],
    show: &mut dyn FnMut(Stage, ArrayD<f64>),
) -> Result<Array2<f64>> {
    let e = oracle.dims.n_embd;
    let qkv = linear(oracle, x, &format!("h.{layer}.attn.c_attn"))?; // [T, 3E]
    let mut contexts = Array2::zeros((x.nrows(), e));
    let mut begin = 0;
    for Fed { ids, cache } in fed {
        let rows = begin..begin + ids.len();
        begin = rows.end;
        let third = |i: usize| {
            let part = qkv.slice(s![rows.clone(), i * e..(i + 1) * e]);
            ops::split_heads(part, oracle.dims.n_head) // [H, T, D]
        };
        let (q, k, v) = (third(0), third(1), third(2));
        show(Stage::Q, q.clone().into_dyn());
        show(Stage::K, k.clone().into_dyn());
        show(Stage::V, v.clone().into_dyn());
        let extend = |past: &Array3<f64>, new: &Array3<f64>| {
            concatenate(Axis(1), &[past.view(), new.view()])
                .map_err(|e| OracleError::Input(e.to_string()))
        };
        cache.keys[layer] = extend(&cache.keys[layer], &k)?; // [H, S, D]
        cache.values[layer] = extend(&cache.values[layer], &v)?;
        let (keys, values) = (&cache.keys[layer], &cache.values[layer]);
        let scores = ops::scores(q.view(), keys.view(), oracle.scale(layer)); // [H, T, S]
        let probs = ops::causal_softmax(scores.view());
        show(Stage::Scores, scores.into_dyn());
        let context = ops::context(probs.view(), values.view()); // [T, E]
        show(Stage::Probs, probs.into_dyn());
        contexts.slice_mut(s![rows, ..]).assign(&context);
        show(Stage::Context, context.into_dyn());
    }
    linear(oracle, &contexts, &format!("h.{layer}.attn.c_proj"))
}

/// wte[ids] + wpe[positions], [T, E].
pub fn embeddings(oracle: &Oracle, ids: &[u32], past: usize) -> Result<Array2<f64>> {
    let mut x = oracle.weights.rows("wpe.weight", past..past + ids.len())?;
    for (mut row, id) in x.rows_mut().into_iter().zip(ids) {
        let id = *id as usize;
        row += &oracle.weights.rows("wte.weight", id..id + 1)?.row(0);
    }
    Ok(x)
}

fn layer_norm(oracle: &Oracle, x: &Array2<f64>, name: &str) -> Result<Array2<f64>> {
    let weight = oracle.weights.vector(&format!("{name}.weight"))?;
    let bias = oracle.weights.vector(&format!("{name}.bias"))?;
    fits(name, weight.len(), x.ncols())?;
    fits(name, bias.len(), x.ncols())?;
    Ok(ops::layer_norm(x.view(), weight.view(), bias.view(), oracle.eps))
}

fn linear(oracle: &Oracle, x: &Array2<f64>, name: &str) -> Result<Array2<f64>> {
    let weight = oracle.weights.stored(&format!("{name}.weight"), Layout::ByInput)?;
    let bias = oracle.weights.vector(&format!("{name}.bias"))?;
    fits(name, weight.inputs(), x.ncols())?;
    fits(name, bias.len(), weight.outputs())?;
    Ok(weight.times(x.view(), 0..bias.len()) + bias)
}

/// x · wteᵀ, [T, E] to [T, V]: the head is tied to the token embeddings.
pub fn head(oracle: &Oracle, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    Ok(head_of(oracle, x)?.times(x, 0..oracle.dims.vocab_size))
}

/// The head, and the same of absolute values, which bounds its rounding.
pub fn head_and_magnitude(
    oracle: &Oracle,
    x: ArrayView2<'_, f64>,
) -> Result<(Array2<f64>, Array2<f64>)> {
    Ok(head_of(oracle, x)?.times_with_magnitude(x, 0..oracle.dims.vocab_size))
}

fn head_of(oracle: &Oracle, x: ArrayView2<'_, f64>) -> Result<Matrix> {
    let wte = oracle.weights.stored("wte.weight", Layout::ByOutput)?;
    fits("wte", wte.inputs(), x.ncols())?;
    fits("wte", wte.outputs(), oracle.dims.vocab_size)?;
    Ok(wte)
}

pub fn fits(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(OracleError::Input(format!(
        "{name}: its weights are for a width of {found}, not {expected}"
    )))
}
