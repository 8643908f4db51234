//! What the tests of `llorch-diff run` share: a tiny model, fake adapters, the program itself.
#![allow(dead_code)] // each test file uses its own part of it

pub mod browser;
pub mod daemon;
pub mod node;
pub mod reported;
pub mod seeded;
pub mod serving;
pub mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A folder with a GPT-2 of two layers and 32 tokens, and a suite for it.
pub struct Place {
    pub dir: tempfile::TempDir,
}

const V: usize = 32;
const E: usize = 8;
const P: usize = 24;

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir };
        std::fs::create_dir(place.path("model")).unwrap();
        let config = json!({
            "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": E, "n_inner": null,
            "vocab_size": V, "n_positions": P, "layer_norm_epsilon": 1e-5,
            // What the fakes answer is no GPT-2's: the oracle must not know the model.
            "activation_function": "relu", "tie_word_embeddings": true
        });
        std::fs::write(place.path("model/config.json"), config.to_string()).unwrap();
        write_weights(&place.path("model/model.safetensors"));
        let suite = "schema = \"llorch.suite/1\"\n\
            [[case]]\nname = \"first\"\nids = [3, 1, 4]\nmax_new_tokens = 3\n\
            [[case]]\nname = \"second\"\nids = [7]\nmax_new_tokens = 2\n";
        std::fs::write(place.path("suite.toml"), suite).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `llorch-diff COMMAND` on the tiny model and suite, without ever provisioning anything.
    pub fn command(&self, command: &str) -> Command {
        let mut diff = diff();
        diff.arg(command)
            .args(["--model", self.path("model").to_str().unwrap()])
            .args(["--suite", self.path("suite.toml").to_str().unwrap()])
            .args(["--no-provision", "--offline"])
            .env("LLORCH_CACHE", self.path("cache"));
        diff
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command("run").args(arguments).output().unwrap()
    }

    /// The result of a run in JSON and its exit code; it conforms to the schema.
    pub fn result(&self, arguments: &[&str]) -> (Value, i32) {
        let output = self.run(&[&["--format", "json"], arguments].concat());
        let (stdout, stderr) = texts(&output);
        let result: Value = serde_json::from_str(&stdout)
            .unwrap_or_else(|e| panic!("{e}\nstdout: {stdout}\nstderr: {stderr}"));
        assert_conforms("result", &result);
        (result, output.status.code().unwrap())
    }
}

pub fn diff() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llorch-diff"));
    command.env_remove("NO_COLOR").env_remove("COLUMNS").env_remove("LLORCH_CPUD");
    // Runs of tests are nobody's history, unless a test says whose.
    command.env("LLORCH_HISTORY", "none");
    command
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// A fake adapter as a command line.
pub fn fake(options: &str) -> String {
    let script = repository().join("tests/fake_adapter/fake_adapter.py");
    format!("python3 -u '{}' {options}", script.display())
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Panics with every violation of `docs/schemas/NAME.schema.json`.
pub fn assert_conforms(name: &str, value: &Value) {
    let path = repository().join(format!("docs/schemas/{name}.schema.json"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(value)
        .take(5)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{}\n{}", path.display(), errors.join("\n"));
}

/// Rows that fit; every given field must be equal.
pub fn rows<'a>(result: &'a Value, fields: &[(&str, &str)]) -> Vec<&'a Value> {
    let fits = |row: &&Value| fields.iter().all(|(key, expected)| row[*key] == **expected);
    result["rows"].as_array().unwrap().iter().filter(fits).collect()
}

pub fn implementation<'a>(result: &'a Value, name: &str) -> &'a Value {
    let all = result["implementations"].as_array().unwrap();
    all.iter().find(|i| i["name"] == name).unwrap_or_else(|| panic!("no {name} in {all:?}"))
}

/// Every tensor that GPT-2 has, filled with small numbers that differ from one another.
fn write_weights(path: &Path) {
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("wte.weight".into(), vec![V, E]), ("wpe.weight".into(), vec![P, E])];
    for layer in 0..2 {
        let parts: [(&str, Vec<usize>); 12] = [
            ("ln_1.weight", vec![E]),
            ("ln_1.bias", vec![E]),
            ("attn.c_attn.weight", vec![E, 3 * E]),
            ("attn.c_attn.bias", vec![3 * E]),
            ("attn.c_proj.weight", vec![E, E]),
            ("attn.c_proj.bias", vec![E]),
            ("ln_2.weight", vec![E]),
            ("ln_2.bias", vec![E]),
            ("mlp.c_fc.weight", vec![E, 4 * E]),
            ("mlp.c_fc.bias", vec![4 * E]),
            ("mlp.c_proj.weight", vec![4 * E, E]),
            ("mlp.c_proj.bias", vec![E]),
        ];
        tensors.extend(parts.map(|(name, shape)| (format!("h.{layer}.{name}"), shape)));
    }
    tensors.push(("ln_f.weight".into(), vec![E]));
    tensors.push(("ln_f.bias".into(), vec![E]));
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let bytes = (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
