//! GPT-2's byte-pair encoding by the `tokenizers` crate, the one that Candle's users take.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::failure::{Failure, Result};

/// Read on first use: most cases come as ids.
pub struct LazyTokenizer {
    folder: PathBuf,
    loaded: Option<Tokenizer>,
}

impl LazyTokenizer {
    pub fn new(folder: &Path) -> LazyTokenizer {
        LazyTokenizer { folder: folder.to_path_buf(), loaded: None }
    }

    pub fn encode(&mut self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.get()?.encode(text, false);
        let encoding = encoding.map_err(|e| Failure::input(format!("failed to tokenize: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// None where the folder has no usable tokenizer, or an id no text.
    pub fn decode(&mut self, ids: &[u32]) -> Option<String> {
        self.get().ok()?.decode(ids, false).ok()
    }

    fn get(&mut self) -> Result<&Tokenizer> {
        if self.loaded.is_none() {
            self.loaded = Some(load(&self.folder)?);
        }
        self.loaded.as_ref().ok_or_else(|| Failure::internal("the tokenizer is gone"))
    }
}

/// The crate panics on some damaged files, so this is the one place that catches it.
fn load(folder: &Path) -> Result<Tokenizer> {
    let whole = folder.join("tokenizer.json");
    let parts = (folder.join("vocab.json"), folder.join("merges.txt"));
    let read = || {
        if whole.is_file() {
            Tokenizer::from_file(&whole)
        } else {
            byte_level_bpe(&parts.0, &parts.1)
        }
    };
    if !(whole.is_file() || parts.0.is_file() && parts.1.is_file()) {
        return Err(Failure::unsupported(format!(
            "{} holds neither tokenizer.json nor vocab.json and merges.txt",
            folder.display()
        )));
    }
    let failed = |why: &str| {
        Failure::input(format!("failed to read the tokenizer in {}: {why}", folder.display()))
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(failed(&e.to_string())),
        Err(_) => Err(failed("it is damaged")),
    }
}

fn byte_level_bpe(vocab: &Path, merges: &Path) -> tokenizers::Result<Tokenizer> {
    let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_special_tokens(vec![AddedToken::from("<|endoftext|>", true)])?;
    Ok(tokenizer)
}
