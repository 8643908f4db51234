//! The tokenizer against one by other hands, in both forms of its files, and against damage.

use llorch_cpud::Tokenizer;
use llorch_cpud::sampler::SplitMix64;
use llorch_cpud::tokenizer::TextStream;
use serde_json::Value;

use crate::support::repository;

fn nano() -> Tokenizer {
    Tokenizer::load(&repository().join("golden/models/nano")).unwrap()
}

/// From vocab.json and merges.txt alone.
fn nano_in_two_files() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(repository().join("golden/models/nano").join(file), dir.path().join(file))
            .unwrap();
    }
    Tokenizer::load(dir.path()).unwrap()
}

#[test]
fn ten_thousand_strings_as_tiktoken_has_them() {
    let golden = std::fs::read_to_string(repository().join("golden/tokenizer/gpt2.jsonl")).unwrap();
    let tokenizers = [nano(), nano_in_two_files()];
    let mut lines = 0;
    for line in golden.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let text = case["text"].as_str().unwrap();
        let want: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        for tokenizer in &tokenizers {
            assert_eq!(tokenizer.encode(text).unwrap(), want, "{text:?}");
        }
        assert_eq!(tokenizers[0].decode(&want).unwrap(), text);
        assert_eq!(tokenizers[1].decode(&want).unwrap(), text);
        lines += 1;
    }
    assert_eq!(lines, 10_000);
}

#[test]
fn the_canonical_prompt() {
    let tokenizer = nano();
    assert_eq!(tokenizer.encode("Hello.").unwrap(), [15496, 13]);
    assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.token(13).as_deref()), (50257, Some(".")));
    assert_eq!(tokenizer.token(60_000), None);
}

#[test]
fn a_stream_gives_whole_characters_and_all_of_them() {
    let tokenizer = nano();
    let text = "naïve 日本語 🙂🏳️‍🌈 \u{fffd} e\u{301} end";
    let ids = tokenizer.encode(text).unwrap();
    let mut stream = TextStream::new();
    let mut pieces: Vec<String> =
        ids.iter().map(|&id| stream.push(&tokenizer, id).unwrap()).collect();
    pieces.push(stream.finish(&tokenizer).unwrap());
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().any(String::is_empty), "some characters take several tokens");

    // Any ids at all, also such as make no UTF-8: the pieces are the whole, and never a part of a
    // character.
    let mut rng = SplitMix64::new(1);
    for _ in 0..300 {
        let ids: Vec<u32> = (0..12).map(|_| (rng.next_u64() % 256) as u32).collect();
        let mut stream = TextStream::new();
        let mut streamed = String::new();
        for &id in &ids {
            streamed += &stream.push(&tokenizer, id).unwrap();
        }
        streamed += &stream.finish(&tokenizer).unwrap();
        assert_eq!(streamed, tokenizer.decode(&ids).unwrap(), "{ids:?}");
    }
}

#[test]
fn missing_and_damaged_files_are_errors_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("neither tokenizer.json nor vocab.json"), "{error}");
    let path = dir.path().join("tokenizer.json");
    for damaged in ["", "{}", "[]", "{\"model\": 3}", "\u{0}"] {
        std::fs::write(&path, damaged).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
    // A small file of the real form, with each of many bytes changed: one in twenty of these makes
    // the crate panic.
    let whole = br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":4,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":true,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":"","end_of_word_suffix":"","fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2,"c":3},"merges":[["a","b"]]}}"#;
    std::fs::write(&path, whole).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().encode("abc").unwrap(), [2, 3]);
    for at in 0..whole.len() {
        for flip in [0x01, 0x04, 0x10] {
            let mut bytes = whole.to_vec();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::load(dir.path()) {
                let _ = tokenizer.encode("ab cab").map(|ids| tokenizer.decode(&ids));
                let _ = tokenizer.decode(&[0, 4, 99]);
            }
        }
    }
}
