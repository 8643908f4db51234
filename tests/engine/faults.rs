//! Damaged and unfit models, impossible requests: each an error that names the file, what was found
//! and what was expected; none a panic or a wrong answer.

use std::ops::ControlFlow;
use std::path::Path;

use llorch_cpud::Model;
use llorch_cpud::generate::{Options, Step, generate};
use llorch_cpud::model::Rows;
use llorch_cpud::packed::Format;
use llorch_cpud::probe::NoProbe;
use llorch_cpud::sampler::Sampling;

use crate::support::{TinyModel, prompt};

fn load_error(dir: &Path) -> String {
    Model::load(dir, Format::F32, 1).unwrap_err().to_string()
}

fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_tensor_of_another_shape() {
    let mut tiny = TinyModel::new(4, 96);
    tiny.tensors.get_mut("h.1.attn.c_proj.weight").unwrap().0 = vec![48, 192];
    assert_names(
        &tiny.error(),
        &["model.safetensors", "h.1.attn.c_proj.weight", "[48, 192]", "[96, 96]"],
    );
    // Stored [out, in], as torch's Linear has it: another shape unless it is square.
    let mut tiny = TinyModel::new(4, 96);
    tiny.tensors.get_mut("h.0.mlp.c_fc.weight").unwrap().0 = vec![384, 96];
    assert_names(&tiny.error(), &["h.0.mlp.c_fc.weight", "[384, 96]", "[96, 384]"]);
}

#[test]
fn tensors_missing_and_left_over() {
    let mut tiny = TinyModel::new(4, 96);
    tiny.tensors.remove("h.0.ln_2.bias");
    assert_names(&tiny.error(), &["h.0.ln_2.bias", "is missing", "[96]"]);
    let mut tiny = TinyModel::new(4, 96);
    tiny.config["n_layer"] = 1.into();
    assert_names(&tiny.error(), &["h.1.attn.c_attn.bias", "(and 11 more)", "no place"]);
    let mut tiny = TinyModel::new(4, 96);
    tiny.tensors.insert("transformer.wpe.weight".into(), (vec![160, 96], vec![0.0; 160 * 96]));
    assert_names(&tiny.error(), &["wpe.weight", "twice"]);
    let mut tiny = TinyModel::new(4, 96);
    tiny.config["vocab_size"] = 301.into();
    assert_names(&tiny.error(), &["wte.weight", "[300, 96]", "[301, 96]"]);
}

#[test]
fn a_dtype_that_is_no_float() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel::new(4, 96);
    tiny.write(dir.path());
    let text = tiny.safetensors();
    let at = text.windows(5).position(|w| w == b"\"F32\"").unwrap();
    let mut bytes = text.clone();
    bytes[at + 1] = b'I';
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    assert_names(&load_error(dir.path()), &["I32", "expected F32, F16 or BF16"]);
}

#[test]
fn weights_cut_short_or_scrambled() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel::new(4, 96);
    tiny.write(dir.path());
    let path = dir.path().join("model.safetensors");
    let whole = tiny.safetensors();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for keep in [0, 1, 7, 8, 9, header / 2, header - 1, header, header + 1, whole.len() - 1] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        assert_names(&load_error(dir.path()), &["model.safetensors"]);
    }
    // A header that claims 2^60 bytes, and every byte of it changed in turn: an error, or a model
    // whose names and shapes still fit.
    let mut bytes = whole.clone();
    bytes[7] = 0x10;
    std::fs::write(&path, &bytes).unwrap();
    assert_names(&load_error(dir.path()), &["model.safetensors"]);
    for at in (0..header).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x11;
        std::fs::write(&path, &bytes).unwrap();
        let _ = Model::load(dir.path(), Format::F32, 1);
    }
}

#[test]
fn folders_without_weights_that_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel::new(4, 96);
    std::fs::write(dir.path().join("config.json"), tiny.config.to_string()).unwrap();
    assert_names(&load_error(dir.path()), &["no model.safetensors"]);
    std::fs::write(dir.path().join("pytorch_model.bin"), b"pickle").unwrap();
    assert_names(&load_error(dir.path()), &["pytorch_model.bin", "save_pretrained"]);
    std::fs::write(dir.path().join("model.safetensors.index.json"), b"{}").unwrap();
    assert_names(&load_error(dir.path()), &["sharded", "save_pretrained"]);
    assert_names(&load_error(Path::new("/nowhere/at/all")), &["/nowhere/at/all"]);
}

#[test]
fn a_config_that_is_no_json_or_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, b"{\"n_layer\": ").unwrap();
    assert_names(&load_error(dir.path()), &["config.json", "not JSON"]);
    std::fs::write(&config, b"\xff\xfe").unwrap();
    assert_names(&load_error(dir.path()), &["config.json"]);
    let mut tiny = TinyModel::new(4, 96);
    tiny.config["activation_function"] = "gelu".into();
    assert_names(&tiny.error(), &["config.json", "activation_function", "\"gelu\"", "gelu_new"]);
}

#[test]
fn requests_that_can_not_be_met() {
    let model = TinyModel::new(4, 96).load(1);
    let error = |ids: &[u32], options: Options| {
        let mut cache = model.new_cache();
        let mut steps = 0;
        let on_token = |_: &Step<'_>| {
            steps += 1;
            ControlFlow::Continue(())
        };
        let error =
            generate(&model, &mut cache, ids, &options, &mut NoProbe, on_token).unwrap_err();
        assert_eq!((steps, cache.len(), error.exit_code()), (0, 0, 2), "nothing was computed");
        error.to_string()
    };
    let new = |n| Options { max_new_tokens: n, ..Options::default() };
    assert_names(&error(&[], new(1)), &["no tokens"]);
    assert_names(&error(&[1, 300], new(1)), &["token id 300", "0 to 299"]);
    assert_names(
        &error(&prompt(150), new(12)),
        &["150 prompt tokens", "12 new", "161 positions", "160"],
    );
    assert_names(&error(&prompt(161), new(0)), &["161 prompt tokens", "160"]);
    assert_names(&error(&[1], new(usize::MAX)), &["160"]);
    let forced = Options { forced_ids: Some(vec![1]), ..new(2) };
    assert_names(&error(&[1], forced), &["1 forced ids", "2"]);
    let forced = Options { forced_ids: Some(vec![300]), ..new(1) };
    assert_names(&error(&[1], forced), &["token id 300"]);
    let sampling = Sampling { top_p: -1.0, ..Sampling::default() };
    assert_names(&error(&[1], Options { sampling, ..new(1) }), &["top_p is -1"]);
}

#[test]
fn the_last_position_can_be_used_and_no_more() {
    let model = TinyModel::new(4, 96).load(1);
    let mut cache = model.new_cache();
    let options = Options { max_new_tokens: 11, ..Options::default() };
    let on_token = |_: &Step<'_>| ControlFlow::Continue(());
    let done =
        generate(&model, &mut cache, &prompt(150), &options, &mut NoProbe, on_token).unwrap();
    assert_eq!((done.ids.len(), cache.len()), (11, 160));
    let error = model.forward(&[1], &mut cache, Rows::Last, &mut NoProbe).unwrap_err();
    assert_names(&error.to_string(), &["161", "160"]);
    assert_eq!(cache.len(), 160);
}

#[test]
fn weights_that_are_not_finite_end_in_an_error_not_in_a_token() {
    let mut tiny = TinyModel::new(4, 96);
    tiny.tensors.get_mut("h.1.mlp.c_fc.bias").unwrap().1[5] = f32::NAN;
    let model = tiny.load(1);
    let options = Options { max_new_tokens: 1, ..Options::default() };
    let on_token = |_: &Step<'_>| ControlFlow::Continue(());
    let mut cache = model.new_cache();
    let error =
        generate(&model, &mut cache, &[1, 2], &options, &mut NoProbe, on_token).unwrap_err();
    assert_names(&error.to_string(), &["300 of 300 values are NaN"]);
    assert_eq!(error.exit_code(), 5);
}
