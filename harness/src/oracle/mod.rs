//! The oracle: GPT-2 in float64, written to be read beside the paper and to be obviously right.
//!
//! It shares no code with the engine that it judges. Weights are widened from the file's f32 or f16,
//! so its only error is that of float64 sums, some 10⁻¹³ of what an fp32 implementation shows.
//!
//! Reading order: [`ops`] are the operations; [`forward`] is the pass, a page; [`trace`] keeps every
//! stage of it; [`inputs`] says what a stage reads, [`replay`] recomputes it from there, and
//! [`bounds`] says how far rounding may take that stage from it; [`norm_checks`] looks at layer norms
//! before their gain and bias.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3; the form
//! of each stage is that of Hugging Face's `GPT2LMHeadModel`.

pub mod bounds;
mod forward;
mod inputs;
pub mod norm_checks;
pub mod ops;
pub mod product;
pub mod replay;
pub mod trace;
mod truth;
pub mod weights;

use std::path::Path;

use llorch_trace::Dims;
use ndarray::Axis;

pub use ops::{argmax, gelu_new, softmax};
pub use replay::{BoundKind, Inputs, Job, Replayed};
pub use trace::Trace;
pub use truth::Truth;
use weights::Weights;

#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    #[error(transparent)]
    File(#[from] llorch_trace::Error),
    #[error("failed to run the oracle: {0}")]
    Input(String),
}

type Result<T> = std::result::Result<T, OracleError>;

/// A model on disk and the settings that change its mathematics.
#[derive(Debug)]
pub struct Oracle {
    pub weights: Weights,
    pub dims: Dims,
    /// `layer_norm_epsilon`.
    pub eps: f64,
    /// Scores are divided by the layer's number as well, counted from 1.
    pub scale_by_layer: bool,
    scale: bool,
}

/// The greedy continuation of a prompt, and the logits of every step.
#[derive(Debug, Clone, Default)]
pub struct Continuation {
    pub ids: Vec<u32>,
    /// By step: `[V]` logits of the last position.
    pub logits: Vec<Vec<f64>>,
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
        Ok(Oracle {
            weights: Weights::open(&model_dir.join("model.safetensors"))?,
            dims,
            eps,
            scale: flag("scale_attn_weights", true).unwrap_or(true),
            scale_by_layer: flag("scale_attn_by_inverse_layer_idx", false).unwrap_or(false),
        })
    }

    /// What the scores of a layer are multiplied with: 1/√D unless the configuration says otherwise.
    pub fn scale(&self, layer: usize) -> f64 {
        let scale = if self.scale { 1.0 / (self.dims.head_dim() as f64).sqrt() } else { 1.0 };
        if self.scale_by_layer { scale / (layer as f64 + 1.0) } else { scale }
    }

    /// `n` greedy tokens after `ids`, the lowest id of equals, and the logits of max(n, 1) steps.
    pub fn continue_greedily(&self, ids: &[u32], n: usize) -> Result<Continuation> {
        let mut all = self.continue_all(&[(ids, n)], &mut |_| ())?;
        all.pop().ok_or_else(|| OracleError::Input("nothing was asked".into()))
    }

    /// The same of several prompts, all of them a step at a time; `told` how many steps are done.
    pub fn continue_all(
        &self,
        prompts: &[(&[u32], usize)],
        told: &mut dyn FnMut(usize),
    ) -> Result<Vec<Continuation>> {
        prompts.iter().try_for_each(|(ids, n)| self.check(ids, *n))?;
        let mut caches: Vec<_> = prompts.iter().map(|_| forward::Cache::new(&self.dims)).collect();
        let mut all: Vec<_> = prompts.iter().map(|_| Continuation::default()).collect();
        let most = prompts.iter().map(|(_, n)| (*n).max(1)).max().unwrap_or(0);
        for step in 0..most {
            let goes_on = |i: &usize| step < prompts[*i].1.max(1);
            let on: Vec<usize> = (0..prompts.len()).filter(goes_on).collect();
            let mut fed = Vec::new();
            for (i, cache) in caches.iter_mut().enumerate().filter(|(i, _)| goes_on(i)) {
                let ids = match step {
                    0 => prompts[i].0,
                    _ => &all[i].ids[step - 1..],
                };
                fed.push(forward::Fed { ids, cache });
            }
            let x = forward::blocks(self, &mut fed, &mut |_, _| ())?;
            let ends = fed.iter().scan(0, |end, one| {
                *end += one.ids.len();
                Some(*end - 1)
            });
            let last = x.select(Axis(0), &ends.collect::<Vec<_>>());
            let logits = forward::head(self, last.view())?;
            for (i, logits) in on.into_iter().zip(logits.rows()) {
                let logits = logits.to_vec();
                if prompts[i].1 > 0 {
                    all[i].ids.push(argmax(&logits));
                }
                all[i].logits.push(logits);
            }
            told(step + 1);
        }
        Ok(all)
    }

    /// Every stage of `ids` followed by `fed`, one token a decode step.
    pub fn trace(&self, ids: &[u32], fed: &[u32]) -> Result<Trace> {
        self.check(ids, fed.len() + 1)?;
        Trace::run(self, ids, fed)
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
}
