//! The oracle: GPT-2 in float64, written to be read beside the paper and to be obviously right.
//!
//! It shares no code with the engine that it judges. Weights are widened from the file's f32 or f16,
//! so its only error is that of float64 sums, some 10⁻¹³ of what an fp32 implementation shows.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3; the form
//! of each stage is that of Hugging Face's `GPT2LMHeadModel`.

use std::ops::Range;
use std::path::Path;

use llorch_trace::Dims;
use llorch_trace::files::SafetensorsFile;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, s};

/// Rows of the tied head that are widened to float64 at a time: bounds its memory at some 25 MB for
/// GPT-2's width, where the whole table would be 300 MB.
const HEAD_ROWS: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    #[error(transparent)]
    File(#[from] llorch_trace::Error),
    #[error("failed to run the oracle: {0}")]
    Input(String),
}

type Result<T> = std::result::Result<T, OracleError>;

/// A model on disk; weights are read stage by stage, so that memory stays small.
#[derive(Debug)]
pub struct Oracle {
    weights: SafetensorsFile,
    prefix: &'static str,
    pub dims: Dims,
    eps: f64,
    scale_by_layer: bool,
    scale: bool,
}

/// The greedy continuation of a prompt, and the logits of every step.
#[derive(Debug, Clone)]
pub struct Continuation {
    pub ids: Vec<u32>,
    /// By step: `[V]` logits of the last position.
    pub logits: Vec<Vec<f64>>,
}

/// Keys and values of one layer, `[S, E]` each, heads side by side.
#[derive(Debug, Clone)]
struct LayerCache {
    k: Array2<f64>,
    v: Array2<f64>,
}

impl Oracle {
    pub fn open(model_dir: &Path) -> Result<Oracle> {
        let path = model_dir.join("config.json");
        let dims = Dims::from_config_file(&path)?;
        let text = std::fs::read_to_string(&path)
            .map_err(|e| OracleError::Input(format!("failed to read {}: {e}", path.display())))?;
        let config: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| OracleError::Input(format!("{} is not JSON: {e}", path.display())))?;
        let flag = |key: &str, default| config.get(key).map_or(Some(default), |v| v.as_bool());
        let refuse = |what: String| Err(OracleError::Input(format!("{}: {what}", path.display())));
        let activation = config.get("activation_function").and_then(|v| v.as_str());
        if !matches!(activation, None | Some("gelu_new" | "gelu_pytorch_tanh")) {
            return refuse(format!("activation_function {activation:?}; it knows gelu_new only"));
        }
        if flag("tie_word_embeddings", true) != Some(true) {
            return refuse("tie_word_embeddings is not true; it knows the tied head only".into());
        }
        let eps = config.get("layer_norm_epsilon").map_or(Some(1e-5), |v| v.as_f64());
        let Some(eps) = eps else { return refuse("layer_norm_epsilon is no number".into()) };
        let weights = SafetensorsFile::open(&model_dir.join("model.safetensors"))?;
        let prefix = if weights.contains("wte.weight") { "" } else { "transformer." };
        Ok(Oracle {
            weights,
            prefix,
            dims,
            eps,
            scale: flag("scale_attn_weights", true).unwrap_or(true),
            scale_by_layer: flag("scale_attn_by_inverse_layer_idx", false).unwrap_or(false),
        })
    }

    /// `n` greedy tokens after `ids`, the lowest id of equals, and the logits of max(n, 1) steps.
    pub fn continue_greedily(&self, ids: &[u32], n: usize) -> Result<Continuation> {
        self.check(ids, n)?;
        let mut caches = vec![None; self.dims.n_layer];
        let mut out = Continuation { ids: Vec::new(), logits: Vec::new() };
        let mut fed = ids.to_vec();
        for step in 0..n.max(1) {
            let past = if step == 0 { 0 } else { ids.len() + step - 1 };
            let logits = self.forward(&fed, past, &mut caches)?;
            let next = argmax(&logits);
            out.logits.push(logits);
            if n > 0 {
                out.ids.push(next);
            }
            fed = vec![next];
        }
        Ok(out)
    }

    fn check(&self, ids: &[u32], n: usize) -> Result<()> {
        let refuse = |what: String| Err(OracleError::Input(what));
        if ids.is_empty() {
            return refuse("no token ids were given".into());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.dims.vocab_size) {
            return refuse(format!(
                "token id {id} is outside the vocabulary of {}",
                self.dims.vocab_size
            ));
        }
        let length = ids.len() + n.saturating_sub(1);
        if length > self.dims.n_positions {
            return refuse(format!(
                "{} tokens and {n} new ones need {length} positions; the model has {}",
                ids.len(),
                self.dims.n_positions
            ));
        }
        Ok(())
    }

    /// Logits `[V]` of the last of `ids`, which follow `past` cached positions.
    fn forward(
        &self,
        ids: &[u32],
        past: usize,
        caches: &mut [Option<LayerCache>],
    ) -> Result<Vec<f64>> {
        let mut x = self.embeddings(ids, past)?; // [T, E]
        for (i, cache) in caches.iter_mut().enumerate() {
            let h = format!("h.{i}.");
            let attention =
                self.attention(&h, i, &self.layer_norm(&x, &format!("{h}ln_1"))?, cache)?;
            x += &attention; // resid_mid
            let normed = self.layer_norm(&x, &format!("{h}ln_2"))?;
            let fc = self.linear(&normed, &format!("{h}mlp.c_fc"))?; // [T, 4E]
            x += &self.linear(&fc.mapv(gelu_new), &format!("{h}mlp.c_proj"))?;
        }
        let last = self.layer_norm(&x.slice(s![-1.., ..]).to_owned(), "ln_f")?;
        self.head(last.row(0))
    }

    /// wte[ids] + wpe[positions], [T, E].
    fn embeddings(&self, ids: &[u32], past: usize) -> Result<Array2<f64>> {
        let mut x = self.rows("wpe.weight", past..past + ids.len())?;
        for (mut row, id) in x.rows_mut().into_iter().zip(ids) {
            let id = *id as usize;
            row += &self.rows("wte.weight", id..id + 1)?.row(0);
        }
        Ok(x)
    }

    /// (x − mean) / √(variance + eps) · weight + bias, over each row, the variance biased.
    fn layer_norm(&self, x: &Array2<f64>, name: &str) -> Result<Array2<f64>> {
        let weight = self.vector(&format!("{name}.weight"))?;
        let bias = self.vector(&format!("{name}.bias"))?;
        let mut y = x.clone();
        for mut row in y.rows_mut() {
            let mean = row.mean().unwrap_or(0.0);
            let variance = row.mapv(|v| (v - mean).powi(2)).mean().unwrap_or(0.0);
            let inverse = 1.0 / (variance + self.eps).sqrt();
            Zip::from(&mut row)
                .and(&weight)
                .and(&bias)
                .for_each(|v, w, b| *v = (*v - mean) * inverse * w + b);
        }
        Ok(y)
    }

    /// Hugging Face's Conv1D: x · W + b with W as [in, out].
    fn linear(&self, x: &Array2<f64>, name: &str) -> Result<Array2<f64>> {
        let weight = self.matrix(&format!("{name}.weight"))?;
        if weight.nrows() != x.ncols() {
            let (found, expected) = (weight.nrows(), x.ncols());
            return Err(OracleError::Input(format!(
                "{name}.weight has {found} rows; expected {expected}"
            )));
        }
        Ok(x.dot(&weight) + &self.vector(&format!("{name}.bias"))?)
    }

    /// Causal self-attention after ln_1, through c_proj, [T, E].
    fn attention(
        &self,
        h: &str,
        layer: usize,
        x: &Array2<f64>,
        cache: &mut Option<LayerCache>,
    ) -> Result<Array2<f64>> {
        let (e, d, t) = (self.dims.n_embd, self.dims.head_dim(), x.nrows());
        let qkv = self.linear(x, &format!("{h}attn.c_attn"))?; // [T, 3E]
        let (q, k, v) =
            (qkv.slice(s![.., ..e]), qkv.slice(s![.., e..2 * e]), qkv.slice(s![.., 2 * e..]));
        let (k, v) = match cache.take() {
            None => (k.to_owned(), v.to_owned()),
            Some(past) => (below(past.k.view(), k)?, below(past.v.view(), v)?),
        };
        let visible = k.nrows(); // S
        let mut scale = if self.scale { 1.0 / (d as f64).sqrt() } else { 1.0 };
        if self.scale_by_layer {
            scale /= layer as f64 + 1.0;
        }
        let mut context = Array2::zeros((t, e));
        for head in 0..self.dims.n_head {
            let columns = s![.., head * d..(head + 1) * d];
            let mut scores = q.slice(columns).dot(&k.slice(columns).t()) * scale; // [T, S]
            for (row, mut cells) in scores.rows_mut().into_iter().enumerate() {
                let seen = visible - t + row + 1;
                cells.slice_mut(s![seen..]).fill(f64::NEG_INFINITY);
                let probs = softmax(cells.as_slice().unwrap_or_default());
                cells.assign(&Array1::from(probs));
            }
            context.slice_mut(columns).assign(&scores.dot(&v.slice(columns)));
        }
        *cache = Some(LayerCache { k, v });
        self.linear(&context, &format!("{h}attn.c_proj"))
    }

    /// x · wteᵀ, [V]: the head is tied to the token embeddings.
    fn head(&self, x: ArrayView1<'_, f64>) -> Result<Vec<f64>> {
        let vocab = self.dims.vocab_size;
        let mut logits = Vec::with_capacity(vocab);
        for begin in (0..vocab).step_by(HEAD_ROWS) {
            let rows = begin..vocab.min(begin + HEAD_ROWS);
            logits.extend(self.rows("wte.weight", rows)?.dot(&x));
        }
        Ok(logits)
    }

    /// Rows of a matrix, widened.
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Array2<f64>> {
        let tensor = self.weights.get_rows(&format!("{}{name}", self.prefix), rows)?;
        let [rows, columns] = tensor.shape[..] else {
            return Err(OracleError::Input(format!("{name} is no matrix: {:?}", tensor.shape)));
        };
        let matrix = Array2::from_shape_vec((rows, columns), tensor.to_f64());
        matrix.map_err(|e| OracleError::Input(format!("{name}: {e}")))
    }

    fn matrix(&self, name: &str) -> Result<Array2<f64>> {
        let shape = self.weights.shape(&format!("{}{name}", self.prefix))?;
        self.rows(name, 0..shape.first().copied().unwrap_or(0))
    }

    fn vector(&self, name: &str) -> Result<Array1<f64>> {
        Ok(Array1::from(self.weights.get(&format!("{}{name}", self.prefix))?.to_f64()))
    }
}

fn below(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    ndarray::concatenate(Axis(0), &[a, b]).map_err(|e| OracleError::Input(e.to_string()))
}

/// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): Hendrycks and Gimpel 2016, arXiv:1606.08415.
pub fn gelu_new(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// exp(x − max) over its sum; −∞ becomes exactly 0.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|v| v / sum).collect()
}

/// The lowest index of the largest value.
pub fn argmax(x: &[f64]) -> u32 {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best as u32
}
