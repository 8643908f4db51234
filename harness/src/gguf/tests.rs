//! What is written is read back here by a reader of its own; `tests/gguf.rs` has readers of other hands.

use std::fs;
use std::path::Path;

use llorch_trace::TensorData;
use serde_json::json;

use super::format::{ALIGNMENT, Value};
use super::*;

/// As much of GGUF as the tests look at.
struct Read {
    values: Vec<(String, Value)>,
    /// Name, sizes as in the file, offset.
    tensors: Vec<(String, Vec<u64>, u64)>,
    data: Vec<u8>,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk::<N>().unwrap();
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8(text.to_vec()).unwrap()
    }

    fn value(&mut self) -> Value {
        match self.u32() {
            4 => Value::U32(self.u32()),
            6 => Value::F32(f32::from_le_bytes(self.bytes())),
            7 => Value::Bool(self.bytes::<1>() == [1]),
            8 => Value::Text(self.text()),
            9 => match (self.u32(), self.u64()) {
                (8, n) => Value::Texts((0..n).map(|_| self.text()).collect()),
                (5, n) => Value::I32s((0..n).map(|_| self.u32() as i32).collect()),
                other => panic!("{other:?}"),
            },
            other => panic!("type {other}"),
        }
    }
}

fn read(path: &Path) -> Read {
    let all = fs::read(path).unwrap();
    let mut at = Cursor(&all);
    assert_eq!((&at.bytes::<4>(), at.u32()), (b"GGUF", 3));
    let (tensors, values) = (at.u64(), at.u64());
    let values = (0..values).map(|_| (at.text(), at.value())).collect();
    let tensors = (0..tensors)
        .map(|_| {
            let name = at.text();
            let sizes = (0..at.u32()).map(|_| at.u64()).collect();
            assert_eq!(at.u32(), 0, "{name} is no F32");
            (name, sizes, at.u64())
        })
        .collect();
    let start = (all.len() - at.0.len()).next_multiple_of(ALIGNMENT as usize);
    Read { values, tensors, data: all[start..].to_vec() }
}

impl Read {
    fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn tensor(&self, name: &str) -> (Vec<u64>, Vec<f32>) {
        let (_, sizes, offset) = self.tensors.iter().find(|(n, ..)| n == name).unwrap();
        assert_eq!(offset % ALIGNMENT, 0);
        let elements = sizes.iter().product::<u64>() as usize;
        let (values, _) = self.data[*offset as usize..].as_chunks::<4>();
        (sizes.clone(), values[..elements].iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// A model of one layer, 2 wide, in the dtype of `convert`; every tensor counts up from its own number.
fn folder(dir: &Path, prefix: &str, tied: bool, dtype: safetensors::Dtype) {
    let (e, f, v, p) = (2, 8, 5, 3);
    let config = json!({"n_layer": 1, "n_head": 1, "n_embd": e, "vocab_size": v, "n_positions": p,
        "tie_word_embeddings": tied, "bos_token_id": 4, "eos_token_id": 4});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add =
        |name: &str, shape: &[usize]| shapes.push((format!("{prefix}{name}"), shape.into()));
    add("wte.weight", &[v, e]);
    add("wpe.weight", &[p, e]);
    for (name, sizes) in [
        ("attn.c_attn", [e, 3 * e]),
        ("attn.c_proj", [e, e]),
        ("mlp.c_fc", [e, f]),
        ("mlp.c_proj", [f, e]),
    ] {
        add(&format!("h.0.{name}.weight"), &sizes);
        add(&format!("h.0.{name}.bias"), &sizes[1..]);
    }
    for name in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        add(&format!("{name}.weight"), &[e]);
        add(&format!("{name}.bias"), &[e]);
    }
    // Files in the wild hold masks that nobody needs.
    add("h.0.attn.bias", &[1, 1, p, p]);
    if !tied {
        shapes.push(("lm_head.weight".into(), vec![v, e]));
    }
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .enumerate()
        .map(|(n, (_, shape))| {
            let values = (0..shape.iter().product::<usize>()).map(|i| n as f32 + i as f32 / 64.0);
            match dtype {
                safetensors::Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                safetensors::Dtype::F16 => {
                    values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect()
                }
                _ => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
            }
        })
        .collect();
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

const F32: safetensors::Dtype = safetensors::Dtype::F32;
const F16: safetensors::Dtype = safetensors::Dtype::F16;

#[test]
fn every_tensor_is_there_under_llama_cpps_name_and_conv1d_is_turned() {
    for (prefix, dtype) in [("", F32), ("transformer.", F16)] {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), prefix, true, dtype);
        let file = dir.path().join("out.gguf");
        let written = write(dir.path(), "tiny", &file).unwrap();
        assert_eq!((written.tensors, written.tokens), (16, None));
        assert_eq!(written.bytes, fs::metadata(&file).unwrap().len());
        let read = read(&file);
        assert_eq!(read.tensors.len(), 16);
        let stored = SafetensorsFile::open(&dir.path().join("model.safetensors")).unwrap();
        let of = |name: &str| widened(&stored.get(&format!("{prefix}{name}")).unwrap());
        assert_eq!(read.tensor("token_embd.weight"), (vec![2, 5], of("wte.weight")));
        assert_eq!(read.tensor("position_embd.weight"), (vec![2, 3], of("wpe.weight")));
        assert_eq!(read.tensor("blk.0.attn_qkv.bias"), (vec![6], of("h.0.attn.c_attn.bias")));
        assert_eq!(read.tensor("output_norm.bias"), (vec![2], of("ln_f.bias")));
        // [in 2, out 6]: the first output's weights are the first column.
        let (sizes, turned) = read.tensor("blk.0.attn_qkv.weight");
        let plain = of("h.0.attn.c_attn.weight");
        assert_eq!(
            (sizes, &turned[..4]),
            (vec![2, 6], &[plain[0], plain[6], plain[1], plain[7]][..])
        );
        let (sizes, turned) = read.tensor("blk.0.ffn_down.weight");
        let plain = of("h.0.mlp.c_proj.weight");
        assert_eq!((sizes, &turned[..3]), (vec![8, 2], &[plain[0], plain[2], plain[4]][..]));
        assert_eq!(read.value("general.architecture"), Some(&Value::Text("gpt2".into())));
        assert_eq!(read.value("gpt2.feed_forward_length"), Some(&Value::U32(8)));
        assert_eq!(read.value("gpt2.attention.layer_norm_epsilon"), Some(&Value::F32(1e-5)));
        assert_eq!(read.value("tokenizer.ggml.model"), Some(&Value::Text("no_vocab".into())));
    }
}

#[test]
fn a_head_of_its_own_is_written() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), "transformer.", false, F32);
    let file = dir.path().join("out.gguf");
    write(dir.path(), "tiny", &file).unwrap();
    let stored = SafetensorsFile::open(&dir.path().join("model.safetensors")).unwrap();
    let TensorData::F32(head) = stored.get("lm_head.weight").unwrap().data else { panic!() };
    assert_eq!(read(&file).tensor("output.weight"), (vec![2, 5], head));
}

#[test]
fn both_forms_of_a_vocabulary_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), "", true, F32);
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 4});
    let added = json!([{"id": 4, "content": "<|endoftext|>", "special": true}]);
    let file = dir.path().join("out.gguf");
    let one = dir.path().join("tokenizer.json");
    let mut seen = Vec::new();
    for merges in [json!([["a", "b"]]), json!(["a b"])] {
        let text = json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges},
            "added_tokens": added, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}});
        fs::write(&one, text.to_string()).unwrap();
        assert_eq!(write(dir.path(), "tiny", &file).unwrap().tokens, Some(5));
        seen.push(read(&file).values);
    }
    fs::remove_file(&one).unwrap();
    fs::write(dir.path().join("vocab.json"), vocab.to_string()).unwrap();
    fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
    write(dir.path(), "tiny", &file).unwrap();
    seen.push(read(&file).values);
    assert!(seen.iter().all(|values| *values == seen[0]), "{seen:#?}");

    let read = read(&file);
    let tokens = ["a", "b", "ab", "[PAD3]", "<|endoftext|>"].map(String::from).to_vec();
    assert_eq!(read.value("tokenizer.ggml.tokens"), Some(&Value::Texts(tokens)));
    assert_eq!(read.value("tokenizer.ggml.token_type"), Some(&Value::I32s(vec![1, 1, 1, 5, 3])));
    assert_eq!(read.value("tokenizer.ggml.merges"), Some(&Value::Texts(vec!["a b".into()])));
    assert_eq!(read.value("tokenizer.ggml.eos_token_id"), Some(&Value::U32(4)));
}

/// The message for a folder after `spoil` has been at it.
fn refusal(spoil: impl Fn(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), "", true, F32);
    spoil(dir.path());
    let file = dir.path().join("out.gguf");
    let error = write(dir.path(), "tiny", &file).unwrap_err();
    assert!(!file.exists(), "{error}");
    let left = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("gguf")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[test]
fn what_llama_cpp_has_no_setting_for_is_refused_by_name() {
    for (key, value, told) in [
        (
            "activation_function",
            json!("gelu"),
            "`activation_function` is \"gelu\"; llama.cpp's gpt2 knows \"gelu_new\" only",
        ),
        ("scale_attn_by_inverse_layer_idx", json!(true), "knows false only"),
        ("layer_norm_epsilon", json!(0), "`layer_norm_epsilon` is 0"),
        ("n_embd", json!(4), "`wte.weight` is [5, 2], expected [5, 4]"),
        ("n_layer", json!(2), "no tensor `h.1.ln_1.weight`"),
    ] {
        let message = refusal(|dir| {
            let path = dir.join("config.json");
            let mut config: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config[key] = value.clone();
            fs::write(&path, config.to_string()).unwrap();
        });
        assert!(message.contains(told), "{message}");
    }
}

#[test]
fn storage_that_f32_can_not_hold_is_refused() {
    let message = refusal(|dir| folder(dir, "", true, safetensors::Dtype::F64));
    assert!(
        message.contains("`wte.weight` is stored as f64, expected f32, f16 or bf16"),
        "{message}"
    );
}

#[test]
fn a_vocabulary_that_would_come_out_wrong_is_refused() {
    let tokenizer = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut text = json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
            "added_tokens": [], "pre_tokenizer": {"type": "ByteLevel"}, "normalizer": null});
        change(&mut text);
        refusal(|dir| fs::write(dir.join("tokenizer.json"), text.to_string()).unwrap())
    };
    for (change, told) in [
        (
            &(|t: &mut serde_json::Value| t["model"]["type"] = "Unigram".into())
                as &dyn Fn(&mut serde_json::Value),
            "model Unigram",
        ),
        (&|t| t["pre_tokenizer"]["type"] = "Sequence".into(), "pre-tokenizer Sequence"),
        (&|t| t["pre_tokenizer"]["add_prefix_space"] = true.into(), "adds a space"),
        (
            &|t| t["model"]["vocab"]["c"] = 5.into(),
            "token \"c\" has id 5; config.json's vocab_size is 5",
        ),
        (
            &|t| t["added_tokens"] = json!([{"id": 0, "content": "x"}]),
            "id 0 is both \"a\" and \"x\"",
        ),
        (
            &|t| t["added_tokens"] = json!([{"id": 2, "content": "a"}]),
            "two ids have the token \"a\"",
        ),
        (&|t| *t = json!([1]), "tokenizer.json"),
    ] {
        let message = tokenizer(change);
        assert!(message.contains(told), "{message}");
    }
    let message = refusal(|dir| {
        fs::write(dir.join("vocab.json"), json!({"a": 0}).to_string()).unwrap();
        fs::write(dir.join("merges.txt"), "#version: 0.2\na b c\n").unwrap();
    });
    assert!(message.contains("line 2 is \"a b c\"; expected two parts"), "{message}");
}

#[test]
fn a_place_that_can_not_be_written_is_of_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), "", true, F32);
    for place in [dir.path().to_owned(), dir.path().join("none/out.gguf")] {
        let error = write(dir.path(), "tiny", &place).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains(place.to_str().unwrap()), "{error}");
    }
}
