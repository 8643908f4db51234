//! Full-size GPT-2s computed from a seed: the same bytes on every platform.
//!
//! For the sizes and the traps of the real thing where its weights are not at hand. `plan` says what
//! is in them and why, `tensors` and `blocks` make them, `random` is where the numbers come from, `file`
//! writes them out.

mod blocks;
mod file;
mod plan;
mod random;
mod tensors;

use crate::cache::{check_free_space, publish_dir};
use crate::error::ModelError;
use crate::hash::{hash_file, hex, sha256_shown};
use crate::progress::Progress;
use crate::{ModelKind, ResolveOptions, ResolvedModel, folder, nano};
use file::{Layout, TensorFile};
use plan::{Plan, RECIPE};
use safetensors::tensor::Metadata;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use tensors::Maker;

const VOCAB: usize = 50_257;
const END_OF_TEXT: usize = 50_256;

/// The key of a safetensors file's metadata by which these weights are known wherever they are.
const METADATA_KEY: &str = "llorch.synthetic";
/// Holds the sha256 of the weights as they were computed.
const RECORD: &str = "model.safetensors.sha256";

/// The dimensions of one GPT-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub name: &'static str,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_embd: usize,
    pub n_positions: usize,
}

impl Size {
    fn head_width(&self) -> usize {
        self.n_embd / self.n_head
    }
}

/// The five published sizes, and one for tests.
pub const SIZES: [Size; 6] = [
    Size { name: "gpt2", n_layer: 12, n_head: 12, n_embd: 768, n_positions: 1024 },
    Size { name: "gpt2-medium", n_layer: 24, n_head: 16, n_embd: 1024, n_positions: 1024 },
    Size { name: "gpt2-large", n_layer: 36, n_head: 20, n_embd: 1280, n_positions: 1024 },
    Size { name: "gpt2-xl", n_layer: 48, n_head: 25, n_embd: 1600, n_positions: 1024 },
    Size { name: "distilgpt2", n_layer: 6, n_head: 12, n_embd: 768, n_positions: 1024 },
    Size { name: "tiny", n_layer: 6, n_head: 4, n_embd: 64, n_positions: 256 },
];

/// Whether there is such a size; `name` is what was asked for.
pub fn check_size(name: &str, size: &str) -> Result<(), ModelError> {
    find(name, size).map(drop)
}

fn find(name: &str, size: &str) -> Result<Size, ModelError> {
    let found = SIZES.iter().find(|known| known.name == size);
    found.copied().ok_or_else(|| ModelError::Name {
        name: name.to_owned(),
        reason: format!(
            "there is no synthetic size `{size}`, only {}",
            SIZES.map(|known| known.name).join(", ")
        ),
    })
}

/// Computes the model into the cache, unless it is there, and says where it is.
pub fn resolve(
    name: &str,
    size: &str,
    seed: u64,
    options: &ResolveOptions,
    cache: &Path,
) -> Result<ResolvedModel, ModelError> {
    let size = find(name, size)?;
    let identity = format!("{}, seed {seed}, recipe {RECIPE}", size.name);
    let key = hex(&Sha256::digest(&identity)[..8]);
    let dir = cache.join("models").join(format!("synth-{}-{key}", size.name));
    let layout = layout(size);
    let header = file::header(&layout, &[("format", "pt"), (METADATA_KEY, &identity)]);
    let bytes = file::data_bytes(&layout) + header.len() as u64;
    publish_dir(
        &dir,
        |dir| is_intact(dir, bytes, cache),
        |fresh| {
            check_free_space(&format!("synth:{}", size.name), fresh, bytes)?;
            let what = format!("computing synth:{} from seed {seed}", size.name);
            let progress = Progress::new(options.quiet).bytes(&what, file::data_bytes(&layout));
            let weights = fresh.join("model.safetensors");
            write_tensors(
                Plan::new(size, seed),
                TensorFile::create(&weights, layout.clone(), &header, progress)?,
            )?;
            let sha256 = sha256_shown(&weights).map_err(ModelError::io("read", &weights))?;
            let record = (RECORD, sha256.into_bytes());
            let config = ("config.json", config(size).into_bytes());
            let tokenizer = nano::tokenizer_files().map(|file| (file.name, file.bytes.to_vec()));
            for (name, content) in [config, record].into_iter().chain(tokenizer) {
                let path = fresh.join(name);
                fs::write(&path, content).map_err(ModelError::cache(&path))?;
            }
            Ok(())
        },
    )?;
    let files = folder::hash_files(&dir, cache)?;
    Ok(ResolvedModel {
        name: name.to_owned(),
        kind: ModelKind::Synthetic,
        source: format!("computed: {identity}"),
        revision: None,
        dir,
        files,
    })
}

/// Size, seed and recipe of computed weights, which they carry in their header, so that no path and no
/// repository makes them pass for trained ones.
pub(crate) fn identity(header: &Metadata) -> Option<&str> {
    header.metadata().as_ref()?.get(METADATA_KEY).map(String::as_str)
}

/// Whole, and the weights are what was once computed.
fn is_intact(dir: &Path, bytes: u64, cache: &Path) -> bool {
    let weights = fs::metadata(dir.join("model.safetensors"));
    weights.is_ok_and(|weights| weights.len() == bytes)
        && dir.join("config.json").is_file()
        && nano::tokenizer_files().all(|file| {
            fs::metadata(dir.join(file.name))
                .is_ok_and(|found| found.len() == file.bytes.len() as u64)
        })
        && fs::read_to_string(dir.join(RECORD)).is_ok_and(|recorded| {
            hash_file(dir, "model.safetensors", cache).is_ok_and(|found| found.sha256 == recorded)
        })
}

/// Names and shapes as in the published checkpoints, their causal masks included.
fn layout(size: Size) -> Layout {
    let (e, n) = (size.n_embd, size.n_positions);
    let mut tensors =
        vec![("wte.weight".to_owned(), vec![VOCAB, e]), ("wpe.weight".to_owned(), vec![n, e])];
    for layer in 0..size.n_layer {
        let block = [
            ("ln_1.weight", vec![e]),
            ("ln_1.bias", vec![e]),
            ("attn.bias", vec![1, 1, n, n]),
            ("attn.c_attn.weight", vec![e, 3 * e]),
            ("attn.c_attn.bias", vec![3 * e]),
            ("attn.c_proj.weight", vec![e, e]),
            ("attn.c_proj.bias", vec![e]),
            ("ln_2.weight", vec![e]),
            ("ln_2.bias", vec![e]),
            ("mlp.c_fc.weight", vec![e, 4 * e]),
            ("mlp.c_fc.bias", vec![4 * e]),
            ("mlp.c_proj.weight", vec![4 * e, e]),
            ("mlp.c_proj.bias", vec![e]),
        ];
        tensors.extend(block.map(|(name, shape)| (format!("h.{layer}.{name}"), shape)));
    }
    tensors.extend([("ln_f.weight".to_owned(), vec![e]), ("ln_f.bias".to_owned(), vec![e])]);
    tensors
}

fn write_tensors(plan: Plan, mut out: TensorFile) -> Result<(), ModelError> {
    let size = plan.size;
    let maker = Maker::new(plan);
    for start in (0..VOCAB).step_by(4096) {
        out.write("wte.weight", &maker.token_embeddings(start..VOCAB.min(start + 4096)))?;
    }
    out.write("wpe.weight", &maker.position_embeddings())?;
    let mask = maker.causal_mask();
    for layer in 0..size.n_layer {
        let (plan, at) = (&maker.plan, |name: &str| format!("h.{layer}.{name}"));
        let name = at("ln_1.weight");
        out.write(
            &name,
            &maker.gains(&name, plan.attention_gain(layer), plan.residual_std[layer]),
        )?;
        out.write(&at("ln_1.bias"), &maker.vector(&at("ln_1.bias"), size.n_embd, 0.02))?;
        out.write(&at("attn.bias"), &mask)?;
        let qkv = maker.qkv(layer);
        out.write(&at("attn.c_attn.weight"), &qkv.weight)?;
        out.write(&at("attn.c_attn.bias"), &qkv.bias)?;
        let attention_out = maker.attention_out(layer);
        out.write(&at("attn.c_proj.weight"), &attention_out.weight)?;
        out.write(&at("attn.c_proj.bias"), &attention_out.bias)?;
        let name = at("ln_2.weight");
        out.write(&name, &maker.gains(&name, plan.mlp_gain(layer), plan.mid_std[layer]))?;
        out.write(&at("ln_2.bias"), &maker.vector(&at("ln_2.bias"), size.n_embd, 0.02))?;
        let (fc, mlp_out) = maker.mlp(layer);
        out.write(&at("mlp.c_fc.weight"), &fc.weight)?;
        out.write(&at("mlp.c_fc.bias"), &fc.bias)?;
        out.write(&at("mlp.c_proj.weight"), &mlp_out.weight)?;
        out.write(&at("mlp.c_proj.bias"), &mlp_out.bias)?;
    }
    out.write("ln_f.weight", &maker.final_gains())?;
    out.write("ln_f.bias", &maker.vector("ln_f.bias", size.n_embd, 0.02))?;
    out.finish()
}

fn config(size: Size) -> String {
    let config = json!({
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_layer": size.n_layer,
        "n_head": size.n_head,
        "n_embd": size.n_embd,
        "n_inner": null,
        "n_positions": size.n_positions,
        "n_ctx": size.n_positions,
        "vocab_size": VOCAB,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "tie_word_embeddings": true
    });
    format!("{config:#}\n")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
