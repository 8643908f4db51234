//! `export --gguf`: what comes out is read by the `gguf` package, and loaded and run by llama.cpp's own
//! programs' API, which is installed first where it isn't yet.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::path::{Path, PathBuf};
use std::process::Command;

use run_support::{diff, repository, texts};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out
}

/// A Python with the `gguf` package, from its pins, in an environment that is made once.
fn gguf_python() -> PathBuf {
    let pins = root().join("tests/gguf/requirements.lock");
    let key = &llorch_trace::hash::sha256_bytes(&std::fs::read(&pins).unwrap())[..16];
    let home = llorch_models::cache_dir().join("envs").join(format!("test-gguf-{key}"));
    let python = home.join("bin/python");
    if !home.join("done").exists() {
        ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        let pip = ["-m", "pip", "install", "-q", "--require-hashes", "-r"];
        ran(Command::new(&python).args(pip).arg(&pins));
        std::fs::write(home.join("done"), "").unwrap();
    }
    python
}

fn export(model: &str, file: &Path) -> (String, String, i32) {
    let output = diff()
        .args(["export", "--offline", "--model", model, "--gguf"])
        .arg(file)
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    (out, err, output.status.code().unwrap())
}

#[test]
fn another_reader_finds_the_model_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let python = gguf_python();
    for (model, tensors) in [("nano", 52), ("synth:tiny", 76)] {
        std::fs::write(&file, "what was there before").unwrap();
        let (out, err, code) = export(model, &file);
        assert_eq!((out.as_str(), code), ("", 0), "{err}");
        assert!(err.contains(&format!("{tensors} tensors in F32, ")), "{err}");
        let resolved = llorch_models::resolve(model, &Default::default()).unwrap();
        let read = Command::new(&python)
            .arg(root().join("tests/gguf/read.py"))
            .args([&file, &resolved.dir])
            .output()
            .unwrap();
        let (read, said) = texts(&read);
        let found: Value = serde_json::from_str(&read).unwrap_or_else(|e| panic!("{e}\n{said}"));
        assert_eq!(found["general.architecture"], "gpt2");
        assert_eq!(found["general.name"], model);
        assert_eq!((&found["tensors"], &found["general.file_type"]), (&json!(tensors), &json!(0)));
        if resolved.has_tokenizer() {
            assert_eq!(found["tokenizer.ggml.model"], "gpt2");
            assert_eq!(found["tokenizer.ggml.pre"], "gpt-2");
            assert_eq!(found["tokens"], 50257);
            assert_eq!(found["control"], json!([50256]));
            assert_eq!(found["tokenizer.ggml.eos_token_id"], 50256);
        } else {
            assert_eq!(found["tokenizer.ggml.model"], "no_vocab");
            assert!(err.contains("no vocabulary: the model has no tokenizer files"), "{err}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something lies beside it");
}

#[test]
fn llama_cpp_generates_our_greedy_text_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nano.gguf");
    assert_eq!(export("nano", &file).2, 0);
    ran(diff().args(["adapters", "setup", "llamacpp"]));
    let command = ran(diff().args(["adapters", "command", "llamacpp"]));
    let mut words = command.split_whitespace().map(|word| word.trim_matches('\''));
    let python =
        words.find(|word| word.ends_with("/bin/python")).expect("no Python in the command");
    // Chosen so that no choice is closer than the f16 of llama.cpp's GELU.
    let prompts = ["Hello.", "The LORD", "Naïve café — 東京"];
    let theirs = ran(Command::new(python)
        .arg(root().join("tests/gguf/generate.py"))
        .arg(&file)
        .arg("12")
        .args(prompts));
    let theirs: Vec<Value> = theirs.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(theirs.len(), prompts.len());
    for (prompt, theirs) in prompts.iter().zip(theirs) {
        let npy = dir.path().join("npy");
        let _ = std::fs::remove_dir_all(&npy);
        ran(diff()
            .args(["export", "-n", "12", "--points", "generated", "--points", "tokens"])
            .args(["--prompt", prompt, "--npy"])
            .arg(&npy));
        let ids = |name: &str| -> Vec<u32> {
            let path = npy.join("prompt").join(format!("checkpoint_{name}_llorch-cpud.npy"));
            let read = llorch_trace::files::read_npy(&path).unwrap();
            read.to_f64().into_iter().map(|id| id as u32).collect()
        };
        assert_eq!(theirs["ids"], json!(ids("00_tokens")), "{prompt}");
        let text = ours(&ids("12_generated"));
        assert_eq!(theirs["text"], text.as_str(), "{prompt}");
    }
}

/// Text of ids by nano's vocabulary: bytes are kept as characters, each of its own.
fn ours(ids: &[u32]) -> String {
    let path = root().join("golden/models/nano/vocab.json");
    let vocab: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let vocab = vocab.as_object().unwrap();
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    // Bytes that have no visible character get those from U+0100 on, in their order.
    let mut hidden = 0x100..;
    let shown: Vec<char> = (0..=255u8)
        .map(|byte| {
            if plain(byte) { byte as char } else { char::from_u32(hidden.next().unwrap()).unwrap() }
        })
        .collect();
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|id| {
            vocab.iter().find(|(_, v)| v.as_u64() == Some(u64::from(*id))).unwrap().0.chars()
        })
        .map(|c| shown.iter().position(|s| *s == c).unwrap() as u8)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn what_can_not_be_exported_is_told_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.gguf");
    let (_, err, code) = export(dir.path().join("nothing").to_str().unwrap(), &file);
    assert_eq!(code, 2, "{err}");
    let relu = run_support::Place::new();
    let (_, err, code) = export(relu.path("model").to_str().unwrap(), &file);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("`activation_function` is \"relu\"; llama.cpp's gpt2 knows \"gelu_new\" only"),
        "{err}"
    );
    assert!(!file.exists());
    let (_, err, code) = export("nano", dir.path());
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("it is a folder; expected the name of a file"), "{err}");

    // What is no file can't be replaced by one, and a model isn't replaced by its own export.
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (_, err, code) = export("nano", &socket);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("it is a device or a pipe; expected the name of a file"), "{err}");
    assert!(!std::fs::metadata(&socket).unwrap().is_file());
    let copy = dir.path().join("nano");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(repository().join("golden/models/nano")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let weights = copy.join("model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    let (_, err, code) = export(copy.to_str().unwrap(), &weights);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("it is a file of the model that is read; expected another name"), "{err}");
    assert!(std::fs::read(&weights).unwrap() == before);
    for (arguments, told) in [
        (&["export"][..], "expected --npy DIR or --gguf FILE"),
        (&["export", "--gguf", "x", "--npy", "y"], "cannot be used with"),
        (&["export", "--gguf", "x", "--ref", "hf"], "cannot be used with"),
    ] {
        let output = diff().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(texts(&output).1.contains(told), "{}", texts(&output).1);
    }
}
