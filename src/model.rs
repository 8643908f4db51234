//! GPT-2's forward pass, to be read beside the paper (Radford et al. 2019).
//!
//! T tokens of this call, S tokens of the sequence so far with them, E width, H heads, D = E/H,
//! I width of the MLP, V vocabulary. Every tensor of the contract passes its probe under its name
//! before anything reads it.

use std::path::Path;

use llorch_trace::{Point, Stage};
use ndarray::{Array, Array1, Array2, Axis, Dimension, s};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, LayerCache};
use crate::ops::activation::activate;
use crate::ops::attention::{context, merge_heads, scores, split_heads};
use crate::ops::embedding::embed;
use crate::ops::layer_norm::layer_norm;
use crate::ops::linear::linear;
use crate::ops::lm_head::logits;
use crate::ops::softmax::causal_softmax;
use crate::probe::Probe;
use crate::weights::Weights;

/// More than any machine computes with: a mistyped number would start threads for minutes.
pub const MAX_THREADS: usize = 1024;

/// A model that is ready to run: its configuration, its weights, and the threads it runs on.
#[derive(Debug)]
pub struct Model {
    config: Config,
    weights: Weights,
    pool: rayon::ThreadPool,
}

/// For which of the tokens logits are wanted: the head is the largest matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Last,
    All,
}

impl Model {
    /// Loads `config.json` and `model.safetensors` from a folder. 0 threads: as many as the machine has.
    pub fn load(dir: &Path, threads: usize) -> Result<Model> {
        if threads > MAX_THREADS {
            let what = format!("{threads} were asked for; expected 0 to {MAX_THREADS}");
            return Err(Error::input("start the threads", what));
        }
        let config = Config::from_file(&dir.join("config.json"))?;
        let weights = Weights::load(dir, &config)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("llorch-{i}"))
            .build()
            .map_err(|e| Error::internal("start the threads", e.to_string()))?;
        Ok(Model { config, weights, pool })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// An empty cache that fits this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config)
    }

    /// Runs `ids` after what `cache` holds, adds them to it, and returns logits: `[1, V]` of the last
    /// token, or `[T, V]`.
    ///
    /// # Errors
    /// No token, one outside the vocabulary, more than there are positions for, or the probe's own.
    /// The cache then holds what it held before.
    pub fn forward<P: Probe>(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        rows: Rows,
        probe: &mut P,
    ) -> Result<Array2<f32>> {
        if ids.is_empty() {
            return Err(Error::input("run the model", "there are no tokens; expected one or more"));
        }
        if cache.len() + ids.len() > self.config.n_positions {
            let n_positions = self.config.n_positions;
            return Err(Error::ContextOverflow {
                prompt: cache.len() + ids.len(),
                new: 0,
                n_positions,
            });
        }
        self.pool.install(|| self.run(ids, cache, rows, probe))
    }

    fn run<P: Probe>(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        rows: Rows,
        probe: &mut P,
    ) -> Result<Array2<f32>> {
        let Config { n_head: heads, layer_norm_epsilon: eps, activation, .. } = self.config;
        let Weights { wte, wpe, blocks, ln_f, lm_head } = &self.weights;
        let past = cache.len(); // tokens before these
        let len = past + ids.len(); // S

        let mut ids = ids.to_vec(); // [T]
        let mut tap = Tap { probe: &mut *probe, layer: None };
        tap.ids(Stage::Tokens, &mut ids)?;
        self.check_vocabulary(&ids)?;
        let mut x = embed(&ids, past, wte.view(), wpe.view()); // [T, E]
        tap.see(Stage::Embeddings, &mut x)?;

        for (i, block) in blocks.iter().enumerate() {
            let mut tap = Tap { probe: &mut *probe, layer: Some(i) };

            // Attention, on the normalized stream.
            let mut ln_1 = layer_norm(x.view(), &block.ln_1.weight, &block.ln_1.bias, eps); // [T, E]
            tap.see(Stage::Ln1, &mut ln_1)?;
            let c_attn = &block.attn_c_attn;
            let qkv = linear(ln_1.view(), c_attn.weight.view(), &c_attn.bias); // [T, 3E]
            let [mut q, mut k, mut v] = split_heads(qkv.view(), heads); // [H, T, D] each
            tap.see(Stage::Q, &mut q)?;
            tap.see(Stage::K, &mut k)?;
            tap.see(Stage::V, &mut v)?;
            cache.layer_mut(i).store(past, k.view(), v.view());
            tap.see_cache(cache.layer_mut(i), len)?; // [H, S, D] each
            let scale = self.config.attention_scale(i); // 1/√D
            let mut attention = scores(q.view(), cache.layer(i), len, scale); // [H, T, S]
            tap.see(Stage::Scores, &mut attention)?;
            causal_softmax(&mut attention); // [H, T, S]
            tap.see(Stage::Probs, &mut attention)?;
            let by_head = context(attention.view(), cache.layer(i)); // [H, T, D]
            let mut merged = merge_heads(by_head.view()); // [T, E]
            tap.see(Stage::Context, &mut merged)?;
            let c_proj = &block.attn_c_proj;
            let mut attn_out = linear(merged.view(), c_proj.weight.view(), &c_proj.bias); // [T, E]
            tap.see(Stage::AttnOut, &mut attn_out)?;
            x += &attn_out; // [T, E]
            tap.see(Stage::ResidMid, &mut x)?;

            // MLP, likewise.
            let mut ln_2 = layer_norm(x.view(), &block.ln_2.weight, &block.ln_2.bias, eps); // [T, E]
            tap.see(Stage::Ln2, &mut ln_2)?;
            let c_fc = &block.mlp_c_fc;
            let mut hidden = linear(ln_2.view(), c_fc.weight.view(), &c_fc.bias); // [T, I]
            tap.see(Stage::Fc, &mut hidden)?;
            activate(&mut hidden, activation); // [T, I]
            tap.see(Stage::Act, &mut hidden)?;
            let c_proj = &block.mlp_c_proj;
            let mut mlp_out = linear(hidden.view(), c_proj.weight.view(), &c_proj.bias); // [T, E]
            tap.see(Stage::MlpOut, &mut mlp_out)?;
            x += &mlp_out; // [T, E]
            tap.see(Stage::Block, &mut x)?;
        }
        cache.advance(ids.len());

        // The head, for the rows that somebody asked for: R is 1 or T.
        let mut tap = Tap { probe: &mut *probe, layer: None };
        if rows == Rows::Last && !tap.wants(Stage::LnF) && !tap.wants(Stage::Logits) {
            x = x.slice(s![-1.., ..]).to_owned(); // [1, E]
        }
        let mut x = layer_norm(x.view(), &ln_f.weight, &ln_f.bias, eps); // [R, E]
        tap.see(Stage::LnF, &mut x)?;
        if rows == Rows::Last && !tap.wants(Stage::Logits) {
            x = x.slice(s![-1.., ..]).to_owned(); // [1, E]
        }
        let head = lm_head.as_ref().unwrap_or(wte); // [V, E]
        let mut logits = logits(x.view(), head.view()); // [R, V]
        tap.see(Stage::Logits, &mut logits)?;
        if tap.wants(Stage::LogitsLast) {
            let mut last: Array1<f32> = logits.row(logits.nrows() - 1).to_owned(); // [V]
            tap.see(Stage::LogitsLast, &mut last)?;
            let row = logits.nrows() - 1;
            logits.row_mut(row).assign(&last);
        }
        if rows == Rows::Last && logits.nrows() > 1 {
            logits = logits.select(Axis(0), &[logits.nrows() - 1]); // [1, V]
        }
        Ok(logits)
    }

    fn check_vocabulary(&self, ids: &[u32]) -> Result<()> {
        let size = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= size) {
            None => Ok(()),
            Some(id) => {
                let what =
                    format!("token id {id} is outside the vocabulary; expected 0 to {}", size - 1);
                Err(Error::input("run the model", what))
            }
        }
    }
}

/// A probe at one layer. With [`NoProbe`](crate::probe::NoProbe) all of it compiles to nothing.
struct Tap<'a, P> {
    probe: &'a mut P,
    layer: Option<usize>,
}

impl<P: Probe> Tap<'_, P> {
    #[inline(always)]
    fn wants(&self, stage: Stage) -> bool {
        self.probe.wants(Point { stage, layer: self.layer })
    }

    #[inline(always)]
    fn see<D: Dimension>(&mut self, stage: Stage, value: &mut Array<f32, D>) -> Result<()> {
        if self.wants(stage) {
            self.probe.tensor(Point { stage, layer: self.layer }, value.view_mut().into_dyn())?;
        }
        Ok(())
    }

    #[inline(always)]
    fn ids(&mut self, stage: Stage, ids: &mut [u32]) -> Result<()> {
        if self.wants(stage) {
            let shape = [ids.len()];
            self.probe.ids(Point { stage, layer: self.layer }, &shape, ids)?;
        }
        Ok(())
    }

    /// The cache keeps its own layout: a probe gets a copy in the contract's, which is stored back.
    #[inline(always)]
    fn see_cache(&mut self, cache: &mut LayerCache, len: usize) -> Result<()> {
        if self.wants(Stage::CacheK) || self.wants(Stage::CacheV) {
            let (mut keys, mut values) = (cache.keys(len), cache.values(len)); // [H, S, D] each
            self.see(Stage::CacheK, &mut keys)?;
            self.see(Stage::CacheV, &mut values)?;
            cache.store(0, keys.view(), values.view());
        }
        Ok(())
    }
}
