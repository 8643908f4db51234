//! GPT-2's forward pass, to be read beside the paper (Radford et al. 2019).
//!
//! T tokens of this call, S tokens of the sequence so far with them, E width, H heads, D = E/H,
//! I width of the MLP, V vocabulary. Every tensor of the contract passes its probe under its name
//! before anything reads it.

use std::ops::Range;
use std::path::Path;

use llorch_trace::{Point, Stage};
use ndarray::{Array, Array1, Array2, ArrayViewMut2, Axis, Dimension};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, LayerCache};
use crate::ops::activation::activate;
use crate::ops::attention::{Span, attend, context, join_heads, merge_heads, scores, split_heads};
use crate::ops::embedding::embed;
use crate::ops::layer_norm::layer_norm;
use crate::ops::linear::{Then, linear};
use crate::ops::parallel::for_each_chunk;
use crate::ops::softmax::causal_softmax;
use crate::packed::Format;
use crate::probe::{NoProbe, Probe};
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
    /// For none: a part of a prompt that goes on.
    None,
    Last,
    All,
}

/// One sequence's part of a forward pass.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// Its new tokens.
    pub ids: &'a [u32],
    /// What it had before them; they are added.
    pub cache: &'a mut KvCache,
    pub rows: Rows,
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

    /// Calls `f` for each of `items`, shared out among the model's threads.
    pub fn share<T: Send>(&self, items: &mut [T], f: impl Fn(&mut T) + Sync) {
        for_each_chunk(&self.team, items, 1, usize::MAX, |_, one| f(&mut one[0]));
    }

    /// An empty cache that fits this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config, self.weights.wte.format())
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
        self.pass(&mut [Sequence { ids, cache, rows }], probe)
    }

    /// The same for several sequences at once, long and short ones: every weight is read once for all of them. The
    /// logits, `[R, V]`, are those of the first sequence, then of the second, and so on; the same bits as one by one.
    ///
    /// # Errors
    /// As above, for any of them: then none of the caches has changed.
    pub fn forward_batch(&self, batch: &mut [Sequence<'_>]) -> Result<Array2<f32>> {
        self.pass(batch, &mut NoProbe)
    }

    /// A probe sees a batch of one.
    fn pass<P: Probe>(&self, batch: &mut [Sequence<'_>], probe: &mut P) -> Result<Array2<f32>> {
        batch.iter().try_for_each(|sequence| self.check_length(sequence))?;
        let Weights { wte, wpe, blocks, ln_f, lm_head } = &self.weights;
        let width = self.config.n_embd;

        let mut ids: Vec<u32> = batch.iter().flat_map(|s| s.ids).copied().collect(); // [T]
        let mut tap = Tap { probe: &mut *probe, layer: None };
        tap.ids(Stage::Tokens, &mut ids)?;
        self.check_vocabulary(&ids)?;
        let mut x = vec![0.0; ids.len() * width]; // [T, E], the residual stream
        for (sequence, rows) in with_rows(batch) {
            let x = &mut x[rows.start * width..rows.end * width];
            embed(&ids[rows], sequence.cache.len(), wte, wpe, x);
        }
        tap.rows(Stage::Embeddings, &mut x, width)?;

        let mut room = Room::new(ids.len(), &self.config);
        for (i, block) in blocks.iter().enumerate() {
            let mut tap = Tap { probe: &mut *probe, layer: Some(i) };
            self.attention(i, block, batch, &mut x, &mut room, &mut tap)?;
            self.mlp(block, &mut x, &mut room, &mut tap)?;
        }
        batch.iter_mut().for_each(|sequence| sequence.cache.advance(sequence.ids.len()));

        // The head, for the rows that somebody asked for: R of them.
        let asked: Vec<usize> = with_rows(batch)
            .flat_map(|(sequence, rows)| match sequence.rows {
                Rows::None => rows.end..rows.end,
                Rows::Last => rows.end - 1..rows.end,
                Rows::All => rows,
            })
            .collect();
        let select = |all: &[f32]| -> Vec<f32> {
            asked.iter().flat_map(|row| &all[row * width..][..width]).copied().collect()
        };
        if asked.is_empty() {
            return Ok(Array2::zeros((0, self.config.vocab_size)));
        }
        let mut tap = Tap { probe: &mut *probe, layer: None };
        if !tap.wants(Stage::LnF) && !tap.wants(Stage::Logits) {
            x = select(&x); // [R, E]
        }
        let mut normed = vec![0.0; x.len()]; // [R, E], or [T, E] where a probe looks
        let eps = self.config.layer_norm_epsilon;
        layer_norm(&self.team, &x, &ln_f.weight, &ln_f.bias, eps, &mut normed);
        tap.rows(Stage::LnF, &mut normed, width)?;
        if tap.wants(Stage::LnF) && !tap.wants(Stage::Logits) {
            normed = select(&normed); // [R, E]
        }
        let head = lm_head.as_ref().unwrap_or(wte);
        let mut logits = Array2::zeros((normed.len() / width, self.config.vocab_size)); // [R, V]
        let values = logits.as_slice_mut().expect("fresh arrays are in standard layout");
        linear(&self.team, &normed, head, &[], Then::Store, values);
        tap.see(Stage::Logits, &mut logits)?;
        if tap.wants(Stage::LogitsLast) {
            let mut last: Array1<f32> = logits.row(logits.nrows() - 1).to_owned(); // [V]
            tap.see(Stage::LogitsLast, &mut last)?;
            let row = logits.nrows() - 1;
            logits.row_mut(row).assign(&last);
        }
        if logits.nrows() > asked.len() {
            logits = logits.select(Axis(0), &asked); // [R, V]
        }
        Ok(logits)
    }

    /// Adds the attention of one block to the residual stream.
    fn attention<P: Probe>(
        &self,
        layer: usize,
        block: &Block,
        batch: &mut [Sequence<'_>],
        x: &mut [f32],
        room: &mut Room,
        tap: &mut Tap<'_, P>,
    ) -> Result<()> {
        let (team, width, eps) = (&self.team, self.config.n_embd, self.config.layer_norm_epsilon);
        let (heads, head_dim) = (self.config.n_head, self.config.head_dim());
        let Room { normed, wide, narrow } = room;

        layer_norm(team, x, &block.ln_1.weight, &block.ln_1.bias, eps, normed); // [T, E]
        tap.rows(Stage::Ln1, normed, width)?;
        let qkv = &mut wide[..3 * x.len()]; // [T, 3E]
        linear(team, normed, &block.attn_c_attn.weight, &block.attn_c_attn.bias, Then::Store, qkv);
        let shown = [Stage::Q, Stage::K, Stage::V];
        if shown.iter().any(|&stage| tap.wants(stage)) {
            let mut parts = split_heads(qkv, heads, head_dim); // [H, T, D] each
            for (stage, part) in shown.into_iter().zip(&mut parts) {
                tap.see(stage, part)?;
            }
            join_heads(&parts, qkv);
        }
        for (sequence, rows) in with_rows(batch) {
            let past = sequence.cache.len();
            let qkv = &qkv[rows.start * 3 * width..rows.end * 3 * width];
            sequence.cache.layer_mut(layer).store_rows(team, past, qkv);
        }
        let scale = self.config.attention_scale(layer); // 1/√D
        if let [Sequence { ids, cache, .. }] = &mut *batch {
            let len = cache.len() + ids.len(); // S
            tap.see_cache(cache.layer_mut(layer), len)?; // [H, S, D] each
        }
        let spans: Vec<Span<'_>> = with_rows(batch)
            .map(|(Sequence { cache, .. }, rows)| {
                let len = cache.len() + rows.len(); // S
                Span { rows, cache: cache.layer(layer), len }
            })
            .collect();
        if let [Span { cache, len, .. }] = spans[..]
            && (tap.wants(Stage::Scores) || tap.wants(Stage::Probs))
        {
            let [q, ..] = split_heads(qkv, heads, head_dim); // [H, T, D]
            let mut attention = scores(team, q.view(), cache, len, scale); // [H, T, S]
            tap.see(Stage::Scores, &mut attention)?;
            causal_softmax(team, &mut attention); // [H, T, S]
            tap.see(Stage::Probs, &mut attention)?;
            merge_heads(context(team, attention.view(), cache).view(), normed); // [T, E]
        } else {
            attend(team, qkv, &spans, scale, normed); // [T, E]
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
            linear(team, normed, &c_fc.weight, &c_fc.bias, Then::Store, hidden);
            tap.rows(Stage::Fc, hidden, inner)?;
            activate(team, hidden, activation);
        } else {
            linear(team, normed, &c_fc.weight, &c_fc.bias, Then::Activate(activation), hidden);
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
            linear(&self.team, input, weight, bias, Then::Add, x);
            return Ok(());
        }
        linear(&self.team, input, weight, bias, Then::Store, narrow);
        tap.rows(stage, narrow, self.config.n_embd)?;
        x.iter_mut().zip(narrow).for_each(|(x, y)| *x += *y);
        Ok(())
    }

    fn check_length(&self, sequence: &Sequence<'_>) -> Result<()> {
        let Sequence { ids, cache, .. } = sequence;
        let n_positions = self.config.n_positions;
        if ids.is_empty() {
            return Err(Error::input("run the model", "there are no tokens; expected one or more"));
        }
        if cache.len() + ids.len() > n_positions {
            let prompt = cache.len() + ids.len();
            return Err(Error::ContextOverflow { prompt, new: 0, n_positions });
        }
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

/// Each sequence with its rows among those of all.
fn with_rows<'b, 'a>(
    batch: &'b mut [Sequence<'a>],
) -> impl Iterator<Item = (&'b mut Sequence<'a>, Range<usize>)> {
    batch.iter_mut().scan(0, |end, sequence| {
        let begin = *end;
        *end += sequence.ids.len();
        Some((sequence, begin..*end))
    })
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
