//! A byte-level BPE vocabulary, from `tokenizer.json` or from `vocab.json` with `merges.txt`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use super::GgufError;
use super::format::Value;

// GGUF's numbers for kinds of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Vocabulary {
    /// By id, in the byte-level form of the files; what is added is plain text.
    pub tokens: Vec<String>,
    kinds: Vec<i32>,
    /// `Ġ t`: the two parts, in order of their rank.
    merges: Vec<String>,
}

/// What of tokenizer.json is read.
#[derive(Debug, Deserialize)]
struct TokenizerFile {
    model: Json,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    normalizer: Json,
}

#[derive(Debug, Deserialize)]
struct Added {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Debug, Deserialize)]
struct Bpe {
    vocab: BTreeMap<String, usize>,
    merges: Vec<Merge>,
}

/// Newer files have pairs, older ones a line.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Vocabulary {
    /// None where the folder has no tokenizer files. `controls` are ids that are never text, in files that
    /// don't say so themselves.
    pub fn read(
        dir: &Path,
        size: usize,
        controls: &[u32],
    ) -> Result<Option<Vocabulary>, GgufError> {
        let (one, vocab, merges) =
            (dir.join("tokenizer.json"), dir.join("vocab.json"), dir.join("merges.txt"));
        let text = |path: &Path| {
            std::fs::read_to_string(path).map_err(|e| GgufError::model(path, e.to_string()))
        };
        if one.is_file() {
            let read = of_tokenizer_json(&text(&one)?, size);
            return read.map(Some).map_err(|what| GgufError::model(&one, what));
        }
        if !(vocab.is_file() && merges.is_file()) {
            return Ok(None);
        }
        let ids = serde_json::from_str(&text(&vocab)?)
            .map_err(|e| GgufError::model(&vocab, e.to_string()))?;
        let pairs = merge_lines(&text(&merges)?).map_err(|what| GgufError::model(&merges, what))?;
        let mut read = of_parts(ids, Vec::new(), pairs, size)
            .map_err(|what| GgufError::model(&vocab, what))?;
        for id in controls {
            read.kinds[*id as usize] = CONTROL; // an id within the vocabulary
        }
        Ok(Some(read))
    }

    pub fn settings(self, bos: Option<u32>, eos: Option<u32>) -> Vec<(String, Value)> {
        let mut all = vec![
            ("model", Value::Text("gpt2".into())),
            ("pre", Value::Text("gpt-2".into())),
            ("tokens", Value::Texts(self.tokens)),
            ("token_type", Value::I32s(self.kinds)),
            ("merges", Value::Texts(self.merges)),
        ];
        all.extend(bos.map(|id| ("bos_token_id", Value::U32(id))));
        all.extend(eos.map(|id| ("eos_token_id", Value::U32(id))));
        // GPT-2 was never shown a token before the text.
        all.push(("add_bos_token", Value::Bool(false)));
        all.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
    }
}

/// llama.cpp's `gpt-2` is plain byte-level BPE; tokens of anything else would come out wrong.
fn of_tokenizer_json(text: &str, size: usize) -> Result<Vocabulary, String> {
    let file: TokenizerFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let kind = |value: &Json| value.get("type").and_then(Json::as_str).unwrap_or("none").to_owned();
    let (model, pre) = (kind(&file.model), kind(&file.pre_tokenizer));
    let is_plain = |key: &str, plain: bool| {
        file.pre_tokenizer.get(key).and_then(Json::as_bool).unwrap_or(plain) == plain
    };
    if model != "BPE" || pre != "ByteLevel" || !file.normalizer.is_null() {
        return Err(format!(
            "a tokenizer of model {model}, pre-tokenizer {pre}, normalizer {}; llama.cpp's gpt-2 is BPE, \
             ByteLevel, none",
            kind(&file.normalizer)
        ));
    }
    if !is_plain("add_prefix_space", false) || !is_plain("use_regex", true) {
        return Err(
            "its pre-tokenizer adds a space or has no regex; llama.cpp's gpt-2 does not".into()
        );
    }
    let bpe: Bpe = serde_json::from_value(file.model).map_err(|e| e.to_string())?;
    let merges = bpe.merges.into_iter().map(|merge| match merge {
        Merge::Pair(left, right) => format!("{left} {right}"),
        Merge::Line(line) => line,
    });
    of_parts(bpe.vocab, file.added_tokens, merges.collect(), size)
}

/// The lines after the one that names the version.
fn merge_lines(text: &str) -> Result<Vec<String>, String> {
    let lines =
        text.lines().enumerate().filter(|(n, line)| !(*n == 0 && line.starts_with("#version")));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(n, line)| match line.split(' ').filter(|part| !part.is_empty()).count() {
            2 => Ok(line.to_owned()),
            _ => Err(format!("line {} is {line:?}; expected two parts", n + 1)),
        })
        .collect()
}

fn of_parts(
    ids: BTreeMap<String, usize>,
    added: Vec<Added>,
    merges: Vec<String>,
    size: usize,
) -> Result<Vocabulary, String> {
    let mut tokens: Vec<Option<String>> = vec![None; size];
    let mut kinds = vec![UNUSED; size];
    let plain = ids.into_iter().map(|(text, id)| (text, id, NORMAL));
    let added = added.into_iter().map(|token| {
        let kind = if token.special { CONTROL } else { USER_DEFINED };
        (token.content, token.id, kind)
    });
    for (text, id, kind) in plain.chain(added) {
        let Some(place) = tokens.get_mut(id) else {
            return Err(format!("token {text:?} has id {id}; config.json's vocab_size is {size}"));
        };
        match place {
            Some(other) if *other != text => {
                return Err(format!("id {id} is both {other:?} and {text:?}"));
            }
            _ => *place = Some(text),
        }
        kinds[id] = kind;
    }
    // A vocabulary may be padded to a rounder size; llama.cpp wants a text for each id.
    let tokens: Vec<String> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, text)| text.unwrap_or_else(|| format!("[PAD{id}]")))
        .collect();
    let mut seen = HashSet::new();
    if let Some(twice) = tokens.iter().find(|text| !seen.insert(*text)) {
        return Err(format!("two ids have the token {twice:?}"));
    }
    Ok(Vocabulary { tokens, kinds, merges })
}
