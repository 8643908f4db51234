//! Weights: one `model.safetensors`, memory-mapped, as views whose shapes have been checked.
//!
//! F32 tensors are used where they lie in the map, without a copy (unless misaligned); F16 and BF16
//! are widened once, which is exact. Nothing that the model needs may be missing or of another
//! shape, and nothing may be left over.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use ndarray::ArrayView2;
use safetensors::{Dtype, SafeTensors};

use crate::config::Config;
use crate::error::{Error, Result};

pub const FILE: &str = "model.safetensors";

/// All parameters of a model. Matrices of linear layers are `[in, out]` (Conv1D).
#[derive(Debug)]
pub struct Weights {
    /// Token embeddings, `[V, E]`.
    pub wte: Matrix,
    /// Position embeddings, `[P, E]`.
    pub wpe: Matrix,
    pub blocks: Vec<Block>,
    pub ln_f: Norm,
    /// `[V, E]`, where the head isn't `wte`.
    pub lm_head: Option<Matrix>,
}

/// One transformer block; I is the width of the MLP.
#[derive(Debug)]
pub struct Block {
    pub ln_1: Norm,
    /// `[E, 3E]`: q, k and v side by side.
    pub attn_c_attn: Linear,
    /// `[E, E]`
    pub attn_c_proj: Linear,
    pub ln_2: Norm,
    /// `[E, I]`
    pub mlp_c_fc: Linear,
    /// `[I, E]`
    pub mlp_c_proj: Linear,
}

/// Gain and bias of a layer normalization, `[E]` each.
#[derive(Debug)]
pub struct Norm {
    pub weight: Floats,
    pub bias: Floats,
}

#[derive(Debug)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Floats,
}

#[derive(Debug)]
pub struct Matrix {
    values: Floats,
    rows: usize,
    columns: usize,
}

impl Matrix {
    pub fn view(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.rows, self.columns), &self.values)
            .expect("the shape was checked against the data when it was loaded")
    }
}

/// f32 values, in the mapped file or widened in memory.
#[derive(Debug, Clone)]
pub enum Floats {
    Mapped { map: Arc<Mmap>, begin: usize, bytes: usize },
    Owned(Vec<f32>),
}

impl std::ops::Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Floats::Owned(values) => values,
            Floats::Mapped { map, begin, bytes } => {
                // SAFETY: any four bytes are an f32, and reading them needs no more than alignment,
                // which `align_to` sees to.
                let (before, values, after) =
                    unsafe { map[*begin..begin + bytes].align_to::<f32>() };
                debug_assert!(before.is_empty() && after.is_empty());
                values
            }
        }
    }
}

/// A tensor as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// As it stands in the file, with its prefix.
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// Lists the tensors of a weights file in the order of their names.
pub fn list(path: &Path) -> Result<Vec<TensorInfo>> {
    let map = map(path)?;
    let tensors = parse(&map, path)?;
    let mut rows: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, view)| TensorInfo {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
        })
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

/// The weights file of a model folder, or why there is none that can be used.
pub fn file_in(dir: &Path) -> Result<std::path::PathBuf> {
    let path = dir.join(FILE);
    if path.is_file() {
        return Ok(path);
    }
    let found = |name: &str| dir.join(name).is_file();
    let what = if found("model.safetensors.index.json") {
        "the folder holds a sharded checkpoint (model.safetensors.index.json); expected one \
         model.safetensors: load it in transformers and call save_pretrained with a larger max_shard_size"
    } else if found("pytorch_model.bin") || found("pytorch_model.bin.index.json") {
        "the folder holds only pytorch_model.bin, a pickle, which may run code when it is read; expected \
         model.safetensors: load it in transformers and call save_pretrained"
    } else if !dir.is_dir() {
        "no such folder"
    } else {
        "the folder holds no model.safetensors"
    };
    Err(Error::weights(dir, what))
}

fn map(path: &Path) -> Result<Arc<Mmap>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    // SAFETY: the map is read-only, and the file is a model that nobody rewrites in place while it
    // runs; one who truncates it ends the process with a bus error, which docs/SECURITY.md says.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
    Ok(Arc::new(map))
}

fn parse<'a>(map: &'a Mmap, path: &Path) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(map)
        .map_err(|e| Error::weights(path, format!("not a whole safetensors file: {e}")))
}

impl Weights {
    /// Maps and checks `model.safetensors` in `dir`.
    pub fn load(dir: &Path, config: &Config) -> Result<Weights> {
        let path = file_in(dir)?;
        let map = map(&path)?;
        let tensors = parse(&map, &path)?;
        let mut file = Source::new(&path, map.clone(), &tensors)?;
        let (e, i, v) = (config.n_embd, config.n_inner, config.vocab_size);
        let wte = file.matrix("wte.weight", v, e)?;
        let wpe = file.matrix("wpe.weight", config.n_positions, e)?;
        let mut blocks = Vec::with_capacity(config.n_layer);
        for layer in 0..config.n_layer {
            blocks.push(Block {
                ln_1: file.norm(&format!("h.{layer}.ln_1"), e)?,
                attn_c_attn: file.linear(&format!("h.{layer}.attn.c_attn"), e, 3 * e)?,
                attn_c_proj: file.linear(&format!("h.{layer}.attn.c_proj"), e, e)?,
                ln_2: file.norm(&format!("h.{layer}.ln_2"), e)?,
                mlp_c_fc: file.linear(&format!("h.{layer}.mlp.c_fc"), e, i)?,
                mlp_c_proj: file.linear(&format!("h.{layer}.mlp.c_proj"), i, e)?,
            });
        }
        let ln_f = file.norm("ln_f", e)?;
        let lm_head = if config.tie_word_embeddings {
            // Some files repeat the tied matrix; Hugging Face takes wte then, and so does this.
            file.left.remove("lm_head.weight");
            None
        } else {
            Some(file.matrix("lm_head.weight", v, e)?)
        };
        file.finish()?;
        Ok(Weights { wte, wpe, blocks, ln_f, lm_head })
    }
}

/// The tensors of a file that have not been taken yet.
struct Source<'a> {
    path: &'a Path,
    map: Arc<Mmap>,
    /// Under their names without `transformer.`
    left: BTreeMap<String, safetensors::tensor::TensorView<'a>>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, map: Arc<Mmap>, tensors: &SafeTensors<'a>) -> Result<Source<'a>> {
        let mut left = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let plain = name.strip_prefix("transformer.").unwrap_or(name);
            if is_buffer(plain) {
                continue;
            }
            if left.insert(plain.to_owned(), view).is_some() {
                let what =
                    format!("tensor {plain:?} is there twice, with and without \"transformer.\"");
                return Err(Error::weights(path, what));
            }
        }
        Ok(Source { path, map, left })
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), width)?,
            bias: self.vector(&format!("{name}.bias"), width)?,
        })
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), inputs, outputs)?,
            bias: self.vector(&format!("{name}.bias"), outputs)?,
        })
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Floats> {
        self.take(name, &[n])
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        Ok(Matrix { values: self.take(name, &[rows, columns])?, rows, columns })
    }

    fn take(&mut self, name: &str, expected: &[usize]) -> Result<Floats> {
        let Some(view) = self.left.remove(name) else {
            let what = format!("tensor {name:?} is missing; expected it with shape {expected:?}");
            return Err(Error::weights(self.path, what));
        };
        if view.shape() != expected {
            let what =
                format!("tensor {name:?} has shape {:?}; expected {expected:?}", view.shape());
            return Err(Error::weights(self.path, what));
        }
        let bytes = view.data();
        let widen = |one: fn([u8; 2]) -> f32| {
            Floats::Owned(bytes.as_chunks::<2>().0.iter().map(|b| one(*b)).collect())
        };
        Ok(match view.dtype() {
            Dtype::F32
                if cfg!(target_endian = "little")
                    && bytes.as_ptr().addr() % align_of::<f32>() == 0 =>
            {
                let begin = bytes.as_ptr().addr() - self.map.as_ptr().addr();
                Floats::Mapped { map: self.map.clone(), begin, bytes: bytes.len() }
            }
            Dtype::F32 => Floats::Owned(
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            ),
            Dtype::F16 => widen(|b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => widen(|b| half::bf16::from_le_bytes(b).to_f32()),
            other => {
                let what = format!("tensor {name:?} is {other:?}; expected F32, F16 or BF16");
                return Err(Error::weights(self.path, what));
            }
        })
    }

    /// Refuses what no part of the model asked for: a file for another architecture, most likely.
    fn finish(self) -> Result<()> {
        let Some((name, view)) = self.left.first_key_value() else { return Ok(()) };
        let others = match self.left.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        let what = format!(
            "tensor {name:?} of shape {:?}{others} has no place in this model; expected only what config.json implies",
            view.shape()
        );
        Err(Error::weights(self.path, what))
    }
}

/// Causal masks that older checkpoints store: constants, not parameters.
fn is_buffer(name: &str) -> bool {
    name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
}
