//! Text to token ids and back, by the `tokenizers` crate.
//!
//! That crate panics on some damaged files, so every call into it goes through one boundary,
//! `guarded`, where a panic becomes an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::error::{Error, Result};

/// Marks the end of a document; a special token, matched in text as Hugging Face does.
const END_OF_TEXT: &str = "<|endoftext|>";

#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or `vocab.json` and `merges.txt`, from a model folder.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let whole = dir.join("tokenizer.json");
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        let (path, inner) = if whole.is_file() {
            let bytes = std::fs::read(&whole).map_err(|e| Error::io("read", &whole, e))?;
            let inner = guarded(|| Inner::from_bytes(bytes).map_err(|e| e.to_string()));
            (whole, inner)
        } else if vocab.is_file() && merges.is_file() {
            let inner = guarded(|| byte_level_bpe(&vocab, &merges));
            (vocab, inner)
        } else {
            let what = "the folder holds neither tokenizer.json nor vocab.json with merges.txt";
            return Err(Error::tokenizer(dir, what));
        };
        let inner = inner.map_err(|what| Error::tokenizer(&path, what))?;
        Ok(Tokenizer { inner, path })
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.inner.encode_fast(text, false).map_err(|e| e.to_string()));
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(what) => {
                Err(Error::tokenizer(&self.path, format!("it can't encode the text: {what}")))
            }
        }
    }

    /// Special tokens are spelled out; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false).map_err(|e| e.to_string())).map_err(|what| {
            Error::tokenizer(&self.path, format!("it can't decode {ids:?}: {what}"))
        })
    }

    /// The token's own spelling, in the byte-level alphabet; `None` for an id that isn't in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        guarded(|| Ok(self.inner.id_to_token(id))).ok().flatten()
    }

    /// The text of one token by itself. Where its bytes are no UTF-8, they are spelled out as OpenAI's API does: `bytes:\xe2\x80`;
    /// so no two tokens have the same.
    pub fn piece(&self, id: u32) -> String {
        let text = self.decode(&[id]).unwrap_or_default();
        if !text.contains(char::REPLACEMENT_CHARACTER) {
            return text;
        }
        let bytes = self.token(id).and_then(|token| token.chars().map(byte_of).collect());
        let bytes: Vec<u8> = match bytes {
            Some(bytes) => bytes,
            None => return text,
        };
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => {
                let spelled = e.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", spelled.collect::<String>())
            }
        }
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// GPT-2's own form of BPE: over bytes, split before by its regular expression, no space put in front.
fn byte_level_bpe(vocab: &Path, merges: &Path) -> Result<Inner, String> {
    let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
        .build()
        .map_err(|e| e.to_string())?;
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    if inner.token_to_id(END_OF_TEXT).is_some() {
        inner
            .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
            .map_err(|e| e.to_string())?;
    }
    Ok(inner)
}

/// The byte that a character of the byte-level alphabet stands for: printable ones of Latin-1 for themselves, the other 68 are
/// U+0100 and on, in their order (GPT-2's `bytes_to_unicode`).
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let c = u32::from(c);
    match u8::try_from(c) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|byte| !printable(*byte)).nth((c - 0x100) as usize),
    }
}

/// Runs `f`; a panic inside becomes an error, and the usual report of it on stderr is left out.
fn guarded<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    thread_local! {
        static GUARDED: Cell<bool> = const { Cell::new(false) };
    }
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                report(info);
            }
        }));
    });
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(false);
    result.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("the tokenizer panicked: {}", said.unwrap_or_default()))
    })
}

/// Turns ids into text as they come: what was given out never changes, and a character whose bytes
/// are spread over several tokens comes out when it is whole.
#[derive(Debug, Default)]
pub struct TextStream {
    ids: Vec<u32>,
    /// Bytes of text given out.
    given: usize,
}

impl TextStream {
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// The text that `id` completes; empty while a character is unfinished.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        // A replacement character at the end may yet become a real one. Those before it won't: what is unfinished is shown as one.
        let whole = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text).len();
        let piece = self.give(&text, whole);
        if whole == text.len() {
            // Bytes follow one another: what comes next doesn't depend on what was whole before it.
            self.ids.clear();
            self.given = 0;
        }
        Ok(piece)
    }

    /// What is left: replacement characters for bytes that never became a character.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.ids)?;
        Ok(self.give(&text, text.len()))
    }

    fn give(&mut self, text: &str, until: usize) -> String {
        let new = text.get(self.given..until).unwrap_or_default().to_owned();
        self.given = self.given.max(until);
        new
    }
}
