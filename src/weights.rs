//! Weights: one `model.safetensors`, checked, and its matrices packed for the kernels.
//!
//! F16 and BF16 are widened, which is exact. Nothing that the model needs may be missing or of another
//! shape, and nothing may be left over. The file is mapped, read once from beginning to end, and let go of piece
//! by piece: loading takes little more memory than the weights do.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::ops::parallel::for_each_chunk;
use crate::packed::{Format, Layout, PANEL, Packed, pack_panel};
use crate::team::Team;

pub const FILE: &str = "model.safetensors";

/// All parameters of a model, its matrices in the form `M`.
#[derive(Debug)]
pub struct Weights<M = Packed> {
    /// Token embeddings: V outputs of E inputs.
    pub wte: M,
    /// Position embeddings, `[P, E]` in rows.
    pub wpe: Vec<f32>,
    pub blocks: Vec<Block<M>>,
    pub ln_f: Norm,
    /// E inputs, V outputs, where the head isn't `wte`.
    pub lm_head: Option<M>,
}

/// One transformer block; I is the width of the MLP.
#[derive(Debug)]
pub struct Block<M = Packed> {
    pub ln_1: Norm,
    /// E inputs, 3E outputs: q, k and v side by side.
    pub attn_c_attn: Linear<M>,
    /// E inputs, E outputs
    pub attn_c_proj: Linear<M>,
    pub ln_2: Norm,
    /// E inputs, I outputs
    pub mlp_c_fc: Linear<M>,
    /// I inputs, E outputs
    pub mlp_c_proj: Linear<M>,
}

/// Gain and bias of a layer normalization, `[E]` each.
#[derive(Debug)]
pub struct Norm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

#[derive(Debug)]
pub struct Linear<M = Packed> {
    pub weight: M,
    /// One for each output.
    pub bias: Vec<f32>,
}

impl<M> Weights<M> {
    /// The same with each matrix turned into something else, in the order of a forward pass.
    fn map<N>(self, mut f: impl FnMut(M) -> N) -> Weights<N> {
        let wte = f(self.wte);
        let mut linear = |l: Linear<M>| Linear { weight: f(l.weight), bias: l.bias };
        let blocks = self.blocks.into_iter().map(|b| Block {
            ln_1: b.ln_1,
            attn_c_attn: linear(b.attn_c_attn),
            attn_c_proj: linear(b.attn_c_proj),
            ln_2: b.ln_2,
            mlp_c_fc: linear(b.mlp_c_fc),
            mlp_c_proj: linear(b.mlp_c_proj),
        });
        let blocks = blocks.collect();
        Weights { wte, wpe: self.wpe, blocks, ln_f: self.ln_f, lm_head: self.lm_head.map(f) }
    }
}

/// A matrix as the file has it.
#[derive(Debug, Clone, Copy)]
struct Stored<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    layout: Layout,
    inputs: usize,
    outputs: usize,
}

impl Stored<'_> {
    /// Reads the elements from `at` on.
    fn read(&self, at: usize, out: &mut [f32]) {
        widen(self.bytes, self.dtype, at, out);
    }
}

/// Elements from `at` on, of one of the dtypes that `take` lets through.
fn widen(bytes: &[u8], dtype: Dtype, at: usize, out: &mut [f32]) {
    if dtype == Dtype::F32 {
        let bytes = bytes[4 * at..4 * (at + out.len())].as_chunks::<4>().0;
        out.iter_mut().zip(bytes).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        return;
    }
    let bytes = bytes[2 * at..2 * (at + out.len())].as_chunks::<2>().0;
    let one: fn([u8; 2]) -> f32 = match dtype {
        Dtype::F16 => |b| half::f16::from_le_bytes(b).to_f32(),
        _ => |b| half::bf16::from_le_bytes(b).to_f32(),
    };
    out.iter_mut().zip(bytes).for_each(|(x, b)| *x = one(*b));
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

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    // SAFETY: the map is read-only, and the file is a model that nobody rewrites in place while it
    // runs; one who truncates it ends the process with a bus error, which docs/SECURITY.md says.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
    Ok(map)
}

fn parse<'a>(map: &'a Mmap, path: &Path) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(map)
        .map_err(|e| Error::weights(path, format!("not a whole safetensors file: {e}")))
}

impl Weights {
    /// Reads `model.safetensors` in `dir`; `team` shares the packing.
    pub fn load(dir: &Path, config: &Config, format: Format, team: &Team) -> Result<Weights> {
        let path = file_in(dir)?;
        let map = map(&path)?;
        let tensors = parse(&map, &path)?;
        let stored = stored(&path, &tensors, config)?;
        let mut words = 0;
        let placed = stored.map(|m| {
            let begin = words;
            words += format.size(m.inputs, m.outputs);
            (m, begin)
        });
        let no_memory = |e: std::io::Error| {
            Error::internal("reserve memory for the weights", format!("{} bytes: {e}", words * 4))
        };
        let mut memory = Memory::new(words).map_err(no_memory)?;
        let mut rest = memory.as_mut_slice::<u32>();
        let placed = placed.map(|(m, begin)| {
            let size = format.size(m.inputs, m.outputs);
            let (own, others) = std::mem::take(&mut rest).split_at_mut(size);
            rest = others;
            pack(&m, &map, format, team, own);
            (m.inputs, m.outputs, begin)
        });
        let memory = Arc::new(memory);
        let packed =
            |(inputs, outputs, begin)| Packed::at(memory.clone(), begin, inputs, outputs, format);
        Ok(placed.map(packed))
    }

    /// Whether `load` would take it, without packing anything.
    pub fn check(dir: &Path, config: &Config) -> Result<()> {
        let path = file_in(dir)?;
        let map = map(&path)?;
        stored(&path, &parse(&map, &path)?, config).map(|_| ())
    }
}

/// Packs a matrix, some panels at a time, and lets go of what has been read of the file.
fn pack(matrix: &Stored<'_>, map: &Mmap, format: Format, team: &Team, out: &mut [u32]) {
    /// Words between two releases: 8 MB.
    const SLAB: usize = 1 << 21;
    let panel = format.size(matrix.inputs, PANEL);
    let panels = (SLAB / panel).max(1);
    for (slab, out) in out.chunks_mut(panels * panel).enumerate() {
        for_each_chunk(team, out, panel, usize::MAX, |p, out| {
            let read = |at: usize, out: &mut [f32]| matrix.read(at, out);
            let shape = (matrix.inputs, matrix.outputs);
            pack_panel(&read, matrix.layout, format, shape, slab * panels + p, out);
        });
        // Rows of outputs have been read to their end with their slab, columns only with the last.
        if matrix.layout == Layout::OutputsByInputs {
            let width = matrix.bytes.len() / matrix.outputs;
            let rows = slab * panels * PANEL..matrix.outputs.min((slab + 1) * panels * PANEL);
            release(map, &matrix.bytes[rows.start * width..rows.end * width]);
        }
    }
    if matrix.layout == Layout::InputsByOutputs {
        release(map, matrix.bytes);
    }
}

/// Tells the system that these bytes of the map won't be read again. They may be: then they come from the file.
fn release(map: &Mmap, bytes: &[u8]) {
    #[cfg(unix)]
    {
        let begin = bytes.as_ptr().addr() - map.as_ptr().addr();
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: pages of a read-only map of a file hold what the file holds, dropped and read again or not.
        // Advice: where it isn't taken, they stay.
        let _ = unsafe { map.unchecked_advise_range(advice, begin, bytes.len()) };
    }
}

/// All tensors of a model, each where it lies in the file.
fn stored<'a>(
    path: &'a Path,
    tensors: &SafeTensors<'a>,
    config: &Config,
) -> Result<Weights<Stored<'a>>> {
    use Layout::OutputsByInputs;
    let mut file = Source::new(path, tensors)?;
    let (e, i, v) = (config.n_embd, config.n_inner, config.vocab_size);
    let wte = file.matrix("wte.weight", OutputsByInputs, e, v)?;
    let wpe = file.take("wpe.weight", &[config.n_positions, e])?.floats();
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
        Some(file.matrix("lm_head.weight", OutputsByInputs, e, v)?)
    };
    file.finish()?;
    Ok(Weights { wte, wpe, blocks, ln_f, lm_head })
}

/// A tensor of a known shape.
struct Taken<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    len: usize,
}

impl Taken<'_> {
    fn floats(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len];
        widen(self.bytes, self.dtype, 0, &mut values);
        values
    }
}

/// The tensors of a file that have not been taken yet.
struct Source<'a> {
    path: &'a Path,
    /// Under their names without `transformer.`
    left: BTreeMap<String, safetensors::tensor::TensorView<'a>>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, tensors: &SafeTensors<'a>) -> Result<Source<'a>> {
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
        Ok(Source { path, left })
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), width)?,
            bias: self.vector(&format!("{name}.bias"), width)?,
        })
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear<Stored<'a>>> {
        let weight = format!("{name}.weight");
        Ok(Linear {
            weight: self.matrix(&weight, Layout::InputsByOutputs, inputs, outputs)?,
            bias: self.vector(&format!("{name}.bias"), outputs)?,
        })
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        Ok(self.take(name, &[n])?.floats())
    }

    fn matrix(
        &mut self,
        name: &str,
        layout: Layout,
        inputs: usize,
        outputs: usize,
    ) -> Result<Stored<'a>> {
        let shape = match layout {
            Layout::InputsByOutputs => [inputs, outputs],
            Layout::OutputsByInputs => [outputs, inputs],
        };
        let Taken { bytes, dtype, .. } = self.take(name, &shape)?;
        Ok(Stored { bytes, dtype, layout, inputs, outputs })
    }

    fn take(&mut self, name: &str, expected: &[usize]) -> Result<Taken<'a>> {
        let Some(view) = self.left.remove(name) else {
            let what = format!("tensor {name:?} is missing; expected it with shape {expected:?}");
            return Err(Error::weights(self.path, what));
        };
        if view.shape() != expected {
            let what =
                format!("tensor {name:?} has shape {:?}; expected {expected:?}", view.shape());
            return Err(Error::weights(self.path, what));
        }
        match view.dtype() {
            dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                Ok(Taken { bytes: view.data(), dtype, len: expected.iter().product() })
            }
            other => {
                let what = format!("tensor {name:?} is {other:?}; expected F32, F16 or BF16");
                Err(Error::weights(self.path, what))
            }
        }
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
