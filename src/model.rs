//! GPT-2's forward pass, to be read beside the paper (Radford et al. 2019).
//!
//! T tokens of this call, S tokens of the sequence so far with them, E width, H heads, D = E/H,
//! I width of the MLP, V vocabulary. Every tensor of the contract passes its probe under its name
//! before anything reads it.

use std::path::Path;

use llorch_trace::{Point, Stage};
use ndarray::{Array, Array1, Array2, ArrayViewMut2, Axis, Dimension};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, LayerCache};
use crate::ops::activation::activate;
use crate::ops::attention::{attend, context, join_heads, merge_heads, scores, split_heads};
use crate::ops::embedding::embed;
use crate::ops::layer_norm::layer_norm;
use crate::ops::linear::{Activate, Add, Store, linear};
use crate::ops::softmax::causal_softmax;
use crate::packed::Format;
use crate::probe::Probe;
use crate::team::Team;
use crate::weights::{Block, Linear, Weights};

/// More than any machine computes with: a mistyped number would start threads for minutes.
pub const MAX_THREADS: usize = 1024;

/// A model that is ready to run: its configuration, its weights, and the threads it runs on.
#[derive(Debug)]
pub struct Model {
    config: Config,
    weights: Weights,
    team: Team,
}

/// For which of the tokens logits are wanted: the head is the largest matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Last,
    All,
}

impl Model {
    /// Loads `config.json` and `model.safetensors` from a folder, its matrices kept in `format`. 0 threads: as
    /// many as the machine has.
    pub fn load(dir: &Path, format: Format, threads: usize) -> Result<Model> {
        if threads > MAX_THREADS {
            let what = format!("{threads} were asked for; expected 0 to {MAX_THREADS}");
            return Err(Error::input("start the threads", what));
        }
        let config = Config::from_file(&dir.join("config.json"))?;
        let team =
            Team::new(threads).map_err(|e| Error::internal("start the threads", e.to_string()))?;
        let weights = Weights::load(dir, &config, format, &team)?;
        Ok(Model { config, weights, team })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    pub fn threads(&self) -> usize {
        self.team.threads()
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
        let Weights { wte, wpe, blocks, ln_f, lm_head } = &self.weights;
        let (past, tokens) = (cache.len(), ids.len());
        let width = self.config.n_embd;

        let mut ids = ids.to_vec(); // [T]
        let mut tap = Tap { probe: &mut *probe, layer: None };
        tap.ids(Stage::Tokens, &mut ids)?;
        self.check_vocabulary(&ids)?;
        let mut x = vec![0.0; tokens * width]; // [T, E], the residual stream
        embed(&ids, past, wte, wpe, &mut x);
        tap.rows(Stage::Embeddings, &mut x, width)?;

        let mut room = Room::new(tokens, &self.config);
        for (i, block) in blocks.iter().enumerate() {
            let mut tap = Tap { probe: &mut *probe, layer: Some(i) };
            self.attention(i, block, cache, &mut x, &mut room, &mut tap)?;
            self.mlp(block, &mut x, &mut room, &mut tap)?;
        }
        cache.advance(tokens);

        // The head, for the rows that somebody asked for: R is 1 or T.
        let mut tap = Tap { probe: &mut *probe, layer: None };
        let last = |x: &mut Vec<f32>| drop(x.drain(..x.len() - width));
        if rows == Rows::Last && !tap.wants(Stage::LnF) && !tap.wants(Stage::Logits) {
            last(&mut x); // [1, E]
        }
        let mut normed = vec![0.0; x.len()]; // [R, E]
        let eps = self.config.layer_norm_epsilon;
        layer_norm(&self.team, &x, &ln_f.weight, &ln_f.bias, eps, &mut normed);
        tap.rows(Stage::LnF, &mut normed, width)?;
        if rows == Rows::Last && !tap.wants(Stage::Logits) {
            last(&mut normed); // [1, E]
        }
        let head = lm_head.as_ref().unwrap_or(wte);
        let mut logits = Array2::zeros((normed.len() / width, self.config.vocab_size)); // [R, V]
        let values = logits.as_slice_mut().expect("fresh arrays are in standard layout");
        linear(&self.team, &normed, head, &[], Store, values);
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

    /// Adds the attention of one block to the residual stream.
    fn attention<P: Probe>(
        &self,
        layer: usize,
        block: &Block,
        cache: &mut KvCache,
        x: &mut [f32],
        room: &mut Room,
        tap: &mut Tap<'_, P>,
    ) -> Result<()> {
        let (team, width, eps) = (&self.team, self.config.n_embd, self.config.layer_norm_epsilon);
        let (heads, head_dim) = (self.config.n_head, self.config.head_dim());
        let past = cache.len(); // tokens before these
        let len = past + x.len() / width; // S
        let Room { normed, wide, narrow } = room;

        layer_norm(team, x, &block.ln_1.weight, &block.ln_1.bias, eps, normed); // [T, E]
        tap.rows(Stage::Ln1, normed, width)?;
        let qkv = &mut wide[..3 * x.len()]; // [T, 3E]
        linear(team, normed, &block.attn_c_attn.weight, &block.attn_c_attn.bias, Store, qkv);
        let shown = [Stage::Q, Stage::K, Stage::V];
        if shown.iter().any(|&stage| tap.wants(stage)) {
            let mut parts = split_heads(qkv, heads, head_dim); // [H, T, D] each
            for (stage, part) in shown.into_iter().zip(&mut parts) {
                tap.see(stage, part)?;
            }
            join_heads(&parts, qkv);
        }
        cache.layer_mut(layer).store_rows(past, qkv);
        tap.see_cache(cache.layer_mut(layer), len)?; // [H, S, D] each
        let scale = self.config.attention_scale(layer); // 1/√D
        let cache = cache.layer(layer);
        if tap.wants(Stage::Scores) || tap.wants(Stage::Probs) {
            let [q, ..] = split_heads(qkv, heads, head_dim); // [H, T, D]
            let mut attention = scores(team, q.view(), cache, len, scale); // [H, T, S]
            tap.see(Stage::Scores, &mut attention)?;
            causal_softmax(team, &mut attention); // [H, T, S]
            tap.see(Stage::Probs, &mut attention)?;
            merge_heads(context(team, attention.view(), cache).view(), normed); // [T, E]
        } else {
            attend(team, qkv, cache, len, scale, normed); // [T, E]
        }
        tap.rows(Stage::Context, normed, width)?;
        self.project(normed, &block.attn_c_proj, Stage::AttnOut, x, narrow, tap)?;
        tap.rows(Stage::ResidMid, x, width)
    }

    /// Adds the MLP of one block to the residual stream.
    fn mlp<P: Probe>(
        &self,
        block: &Block,
        x: &mut [f32],
        room: &mut Room,
        tap: &mut Tap<'_, P>,
    ) -> Result<()> {
        let Config { activation, layer_norm_epsilon: eps, n_embd: width, n_inner: inner, .. } =
            self.config;
        let (team, tokens) = (&self.team, x.len() / width);
        let Room { normed, wide, narrow } = room;

        layer_norm(team, x, &block.ln_2.weight, &block.ln_2.bias, eps, normed); // [T, E]
        tap.rows(Stage::Ln2, normed, width)?;
        let hidden = &mut wide[..tokens * inner]; // [T, I]
        let c_fc = &block.mlp_c_fc;
        if tap.wants(Stage::Fc) {
            linear(team, normed, &c_fc.weight, &c_fc.bias, Store, hidden);
            tap.rows(Stage::Fc, hidden, inner)?;
            activate(team, hidden, activation);
        } else {
            linear(team, normed, &c_fc.weight, &c_fc.bias, Activate(activation), hidden);
        }
        tap.rows(Stage::Act, hidden, inner)?;
        self.project(hidden, &block.mlp_c_proj, Stage::MlpOut, x, narrow, tap)?;
        tap.rows(Stage::Block, x, width)
    }

    /// Adds `c_proj` of `input` to the residual stream, `[T, E]`: at once, or where a probe looks at `stage`,
    /// the addend, after it has.
    fn project<P: Probe>(
        &self,
        input: &[f32],
        c_proj: &Linear,
        stage: Stage,
        x: &mut [f32],
        narrow: &mut [f32],
        tap: &mut Tap<'_, P>,
    ) -> Result<()> {
        let Linear { weight, bias } = c_proj;
        if !tap.wants(stage) {
            linear(&self.team, input, weight, bias, Add, x);
            return Ok(());
        }
        linear(&self.team, input, weight, bias, Store, narrow);
        tap.rows(stage, narrow, self.config.n_embd)?;
        x.iter_mut().zip(narrow).for_each(|(x, y)| *x += *y);
        Ok(())
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

/// Room for what lies between the operations of a block, the same for all blocks.
struct Room {
    /// `[T, E]`
    normed: Vec<f32>,
    /// `[T, 3E]`, then `[T, I]`
    wide: Vec<f32>,
    /// `[T, E]`, used where a probe looks before a sum.
    narrow: Vec<f32>,
}

impl Room {
    fn new(tokens: usize, config: &Config) -> Room {
        let (e, i) = (config.n_embd, config.n_inner);
        let floats = |width: usize| vec![0.0; tokens * width];
        Room { normed: floats(e), wide: floats(i.max(3 * e)), narrow: floats(e) }
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

    /// The same for a matrix in rows of `width`.
    #[inline(always)]
    fn rows(&mut self, stage: Stage, values: &mut [f32], width: usize) -> Result<()> {
        if self.wants(stage) {
            let shape = (values.len() / width, width);
            let view = ArrayViewMut2::from_shape(shape, values).expect("whole rows");
            self.probe.tensor(Point { stage, layer: self.layer }, view.into_dyn())?;
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
