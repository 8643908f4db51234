//! The adapter as the harness meets it: a process, JSON Lines, files.

mod support;

use llorch_trace::protocol::{ErrorClass, Response, Worth};
use llorch_trace::{Point, Stage, Tensor, TensorData, all_points, files::write_npy};
use safetensors::tensor::Dtype;
use serde_json::json;
use support::driver::{Adapter, Case};
use support::oracle;
use support::tiny::{DIMS, Tiny};

const IDS: [u32; 3] = [7, 0, 22];

fn loaded(args: &[&str], storage: Dtype, prefix: &str) -> (Adapter, Tiny) {
    let mut adapter = Adapter::start(args);
    let tiny = Tiny::random();
    tiny.write(adapter.folder.path(), storage, prefix);
    let dtype = if args.contains(&"f64") { "f64" } else { "f32" };
    let answer = adapter.load(dtype);
    assert!(matches!(answer, Response::Loaded { .. }), "{answer:?}");
    (adapter, tiny)
}

/// Every tensor of the case against float64, each at |a − b| ≤ tolerance · max(1, |b|). Gives the
/// number of tensors and the ids that greedy generation chose.
fn check(case: &Case, tiny: &Tiny, steps: usize, tolerance: f64) -> usize {
    let mut ids = IDS.to_vec();
    for step in 0..steps {
        let expected = oracle::points(tiny, &ids);
        let t = if step == 0 { IDS.len() } else { 1 };
        let s = ids.len();
        for ((_, point), tensor) in case.tensors.iter().filter(|((at, _), _)| *at == step) {
            let parsed: Point = point.parse().unwrap();
            assert_eq!(tensor.shape, parsed.shape(&DIMS, t, s), "{point} step {step}");
            let all = &expected[point];
            let rows = new_rows(parsed.stage, all, t, s);
            let values = tensor.to_f64();
            assert_eq!(values.len(), rows.len(), "{point} step {step}");
            for (a, b) in values.iter().zip(&rows) {
                let masked = *b == f64::NEG_INFINITY && *a == f64::NEG_INFINITY;
                assert!(
                    masked || (a - b).abs() <= tolerance * b.abs().max(1.0),
                    "{point} step {step}: {a} {b}"
                );
            }
        }
        ids.push(expected["argmax"][0] as u32);
    }
    assert_eq!(case.done.generated, ids[IDS.len()..]);
    case.tensors.len()
}

/// Of a tensor of the whole sequence of `s` tokens, what belongs to the last `t`.
fn new_rows(stage: Stage, all: &[f64], t: usize, s: usize) -> Vec<f64> {
    let heads = match stage {
        Stage::CacheK | Stage::CacheV | Stage::LogitsLast | Stage::NextProbs | Stage::Argmax => {
            return all.to_vec();
        }
        Stage::Q | Stage::K | Stage::V | Stage::Scores | Stage::Probs => DIMS.n_head,
        _ => 1,
    };
    let width = all.len() / heads / s;
    all.chunks(s * width).flat_map(|head| head[(s - t) * width..].to_vec()).collect()
}

#[test]
fn hello_tells_what_each_variant_is() {
    for (args, name, worth) in [
        (&[][..], "candle", Worth::Kernels),
        (&["--variant", "f64"], "candle:f64", Worth::Kernels),
        (&["--variant", "upstream"], "candle:upstream", Worth::Semantics),
    ] {
        let mut adapter = Adapter::start(args);
        let answer = adapter.ask(&json!({"type": "hello", "protocol": 1, "some_new_field": []}));
        let Response::Hello(hello) = answer else { panic!("{answer:?}") };
        assert_eq!((hello.name.as_str(), hello.worth, hello.protocol), (name, worth, 1));
        let covered: Vec<bool> = all_points(2)
            .iter()
            .map(|p| hello.unsupported_reason(&p.to_string()).is_none())
            .collect();
        assert_eq!(covered.contains(&false), name == "candle:upstream");
        let error = adapter.fails(&json!({"type": "hello", "protocol": 2}));
        assert_eq!(error.class, ErrorClass::Unsupported);
        assert_eq!(adapter.finish(), Some(0));
    }
}

#[test]
fn graph_has_every_point_right_at_every_step() {
    for (args, storage, prefix, tolerance) in [
        (&[][..], Dtype::F32, "", 2e-6),
        (&[], Dtype::F16, "transformer.", 2e-6),
        (&["--variant", "f64"], Dtype::F16, "", 1e-14),
    ] {
        let (mut adapter, tiny) = loaded(args, storage, prefix);
        let case = adapter.run(&IDS, json!({"points": ["*"], "max_new_tokens": 5}));
        assert_eq!(check(&case, &tiny, 5, tolerance), 5 * all_points(DIMS.n_layer).len());
        assert!(case.done.seconds.prefill.is_some() && case.done.seconds.decode.is_some());
        assert_eq!(adapter.finish(), Some(0));
    }
}

#[test]
fn upstream_has_right_what_leaves_its_decoder() {
    let (mut adapter, tiny) = loaded(&["--variant", "upstream"], Dtype::F32, "transformer.");
    let case = adapter.run(&IDS, json!({"points": ["*"], "max_new_tokens": 5}));
    // tokens, ln_f, logits, logits.last, argmax, next.probs
    assert_eq!(check(&case, &tiny, 5, 2e-6), 5 * 6);
    assert_eq!(adapter.finish(), Some(0));
}

#[test]
fn looking_changes_nothing_and_runs_repeat() {
    for args in [&[][..], &["--variant", "upstream"]] {
        let (mut adapter, tiny) = loaded(args, Dtype::F32, "");
        let seen = adapter.run(&IDS, json!({"points": ["*"], "max_new_tokens": 5}));
        let again = adapter.run(&IDS, json!({"points": ["*"], "max_new_tokens": 5}));
        assert_eq!(seen.tensors, again.tensors);
        let unseen = adapter.run(&IDS, json!({"max_new_tokens": 5}));
        assert_eq!((unseen.tensors.len(), &unseen.done.generated), (0, &seen.done.generated));
        let some = adapter.run(&IDS, json!({"points": ["*.last"], "max_new_tokens": 5}));
        assert_eq!(check(&some, &tiny, 5, 2e-6), 5);
    }
}

#[test]
fn prefill_alone_and_forced_ids() {
    let (mut adapter, tiny) = loaded(&[], Dtype::F32, "");
    let alone = adapter.run(&IDS, json!({"points": ["*"]}));
    assert_eq!(alone.tensors.len(), all_points(DIMS.n_layer).len());
    assert!(alone.done.generated.is_empty() && alone.done.seconds.decode.is_none());

    let forced = adapter.run(
        &IDS,
        json!({"points": ["logits.last", "tokens"], "max_new_tokens": 3, "forced_ids": [1, 2, 3]}),
    );
    assert_eq!(forced.done.generated, [1, 2, 3]);
    assert_eq!((forced.get(1, "tokens"), forced.get(2, "tokens")), (vec![1.0], vec![2.0]));
    let expected = &oracle::points(&tiny, &[7, 0, 22, 1, 2])["logits.last"];
    let seen = forced.get(2, "logits.last");
    assert!(seen.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6));
}

/// At every point: what was put there is what comes out, nothing before it changes, the logits do.
#[test]
fn injection_replaces_a_point_before_anything_reads_it() {
    for args in [&[][..], &["--variant", "upstream"]] {
        let (mut adapter, _) = loaded(args, Dtype::F32, "");
        let plain =
            adapter.run(&IDS, json!({"points": ["*"], "max_new_tokens": 2, "forced_ids": [4, 5]}));
        for ((step, name), tensor) in &plain.tensors {
            let point: Point = name.parse().unwrap();
            let path = adapter.folder.path().join("in.npy");
            let put = altered(tensor);
            write_npy(&path, &put).unwrap();
            let case = adapter.run(
                &IDS,
                json!({"points": ["*"], "max_new_tokens": 2, "forced_ids": [4, 5],
                "inject": [{"point": name, "step": step, "file": path}]}),
            );
            for ((at, other), value) in &case.tensors {
                let earlier = (at, other.parse::<Point>().unwrap()) < (step, point);
                assert!(
                    !earlier || *value == plain.tensors[&(*at, other.clone())],
                    "{name} changed {other}"
                );
            }
            let seen = &case.tensors[&(*step, name.clone())];
            if point.stage == Stage::Scores {
                // Masked cells stay masked.
                assert_eq!(causal(seen), causal(&put), "{name} step {step}");
            } else {
                assert_eq!(*seen, put, "{name} step {step}");
            }
            if point < Point::new(Stage::LogitsLast) {
                assert_ne!(
                    case.get(*step, "logits.last"),
                    plain.get(*step, "logits.last"),
                    "{name} step {step}"
                );
            }
        }
    }
}

fn altered(tensor: &Tensor) -> Tensor {
    let data = match &tensor.data {
        TensorData::F32(v) => TensorData::F32(v.iter().map(|x| x.max(-9.0) * 1.5 + 0.25).collect()),
        TensorData::I64(v) => {
            TensorData::I64(v.iter().map(|x| (x + 1) % DIMS.vocab_size as i64).collect())
        }
        other => panic!("{other:?}"),
    };
    Tensor::new(tensor.shape.clone(), data)
}

/// The cells of [H,T,S] whose key the query sees.
fn causal(tensor: &Tensor) -> Vec<f64> {
    let (t, s) = (tensor.shape[1], tensor.shape[2]);
    let visible = |n: &usize| n % s <= s - t + n / s % t;
    (0..tensor.len()).filter(visible).map(|n| tensor.get(n)).collect()
}

#[test]
fn an_injected_cache_is_what_later_steps_remember() {
    let (mut adapter, _) = loaded(&[], Dtype::F32, "");
    let ask = json!({"points": ["*"], "max_new_tokens": 2, "forced_ids": [4, 5]});
    let plain = adapter.run(&IDS, ask.clone());
    let key = (0, "h.0.attn.cache.v".to_string());
    let put = altered(&plain.tensors[&key]);
    let path = adapter.folder.path().join("in.npy");
    write_npy(&path, &put).unwrap();
    let mut ask = ask;
    ask["inject"] = json!([{"point": key.1, "step": 0, "file": path}]);
    let case = adapter.run(&IDS, ask);
    let (later, put) = (case.get(1, "h.0.attn.cache.v"), put.to_f64());
    let per_head = IDS.len() * DIMS.head_dim();
    for head in 0..DIMS.n_head {
        let remembered = &later[head * (per_head + DIMS.head_dim())..][..per_head];
        assert_eq!(remembered, &put[head * per_head..][..per_head]);
    }
}

#[test]
fn sampling_cuts_repeats_and_differs_by_seed() {
    for args in [&[][..], &["--variant", "upstream"]] {
        let (mut adapter, _) = loaded(args, Dtype::F32, "");
        let mut run = |seed: u64| {
            adapter.run(
                &IDS,
                json!({"points": ["next.probs"], "max_new_tokens": 40,
                "sampling": {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "seed": seed}}),
            )
        };
        let first = run(1);
        for (step, id) in first.done.generated.iter().enumerate() {
            let probs = first.get(step, "next.probs");
            let kept = probs.iter().filter(|p| **p > 0.0).count();
            assert!((1..=5).contains(&kept) && probs[*id as usize] > 0.0);
            assert!((probs.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        }
        assert_eq!(first.done.generated, run(1).done.generated);
        assert_ne!(first.done.generated, run(2).done.generated);
    }
}

#[test]
fn bad_requests_are_answered_and_the_next_one_works() {
    let mut adapter = Adapter::start(&[]);
    let tiny = Tiny::random();
    let run = adapter.request(&IDS, json!({"max_new_tokens": 1}));
    let early = adapter.fails(&run);
    assert_eq!((early.class, early.id.as_deref()), (ErrorClass::Input, Some("case")));
    assert!(early.message.contains("no model is loaded"), "{}", early.message);

    // A folder that is missing, of another model, damaged.
    let missing =
        json!({"type": "load", "model_dir": "/nonexistent", "dtype": "f32", "threads": 1});
    assert!(adapter.fails(&missing).message.contains("config.json"));
    tiny.write(adapter.folder.path(), Dtype::F32, "");
    for (extra, class, named) in [
        (json!({"n_inner": 16}), ErrorClass::Input, "mlp.c_fc"),
        (json!({"n_layer": 3}), ErrorClass::Input, "h.2."),
        (json!({"activation_function": "mish2"}), ErrorClass::Unsupported, "mish2"),
    ] {
        tiny.write_config(adapter.folder.path(), extra);
        let Response::Error(error) = adapter.load("f32") else { panic!("{named} was loaded") };
        assert!(error.class == class && error.message.contains(named), "{error:?}");
    }
    tiny.write(adapter.folder.path(), Dtype::F32, "model.");
    let Response::Error(error) = adapter.load("f32") else { panic!() };
    assert!(error.message.contains("wte.weight"), "{error:?}");
    tiny.write(adapter.folder.path(), Dtype::F32, "");
    let Response::Error(error) = adapter.load("bf16") else { panic!() };
    assert_eq!(error.class, ErrorClass::Unsupported);
    assert!(matches!(adapter.load("f32"), Response::Loaded { .. }));

    for (ids, extra, named) in [
        (vec![], json!({}), "empty"),
        (vec![23], json!({}), "vocab_size"),
        (vec![1; 65], json!({}), "context overflow"),
        (vec![1; 60], json!({"max_new_tokens": 6}), "context overflow"),
        (vec![1], json!({"max_new_tokens": 2, "forced_ids": [1]}), "forced_ids"),
        (vec![1], json!({"max_new_tokens": 1, "forced_ids": [99]}), "vocab_size"),
        (vec![1], json!({"sampling": {"temperature": -1}}), "temperature"),
        (vec![1], json!({"sampling": {"temperature": 1, "top_p": 0}}), "top_p"),
        (vec![1], json!({"max_new_tokens": -1}), "run request"),
        (
            vec![1],
            json!({"inject": [{"point": "h.0.nothing", "step": 0, "file": "/x"}]}),
            "h.0.nothing",
        ),
        (vec![1], json!({"inject": [{"point": "ln_f", "step": 1, "file": "/x"}]}), "1 steps"),
        (
            vec![1],
            json!({"inject": [{"point": "ln_f", "step": 0, "file": "/nonexistent"}]}),
            "/nonexistent",
        ),
    ] {
        let request = adapter.request(&ids, extra);
        let error = adapter.fails(&request);
        assert_eq!(
            (error.class, error.id.as_deref()),
            (ErrorClass::Input, Some("case")),
            "{error:?}"
        );
        assert!(error.message.contains(named), "{error:?}");
    }
    let several = adapter.request(&[1], json!({"beside": [[2]]}));
    let several = adapter.fails(&several);
    assert_eq!(several.class, ErrorClass::Unsupported);
    let without_text = adapter.run(&[1], json!({"max_new_tokens": 2, "text": false}));
    assert_eq!((without_text.done.text, without_text.done.generated.len()), (None, 2));
    let unknown = adapter.fails(&json!({"type": "dance", "id": "d"}));
    assert_eq!((unknown.class, unknown.id.as_deref()), (ErrorClass::Unsupported, Some("d")));
    for line in ["{\n", "[]\n", "\u{0}\n", "{\"id\":3}\n"] {
        adapter.send(line);
        let Response::Error(error) = adapter.receive() else { panic!("{line:?}") };
        assert_eq!((error.class, error.id), (ErrorClass::Input, None), "{line:?}");
    }
    // As full as the context allows: 60 ids, 4 of the 5 new tokens fed.
    assert_eq!(adapter.run(&[1; 60], json!({"max_new_tokens": 5})).done.generated.len(), 5);
    assert_eq!(adapter.finish(), Some(0));
}

#[test]
fn an_injected_tensor_of_another_shape_is_refused() {
    let (mut adapter, _) = loaded(&[], Dtype::F32, "");
    let path = adapter.folder.path().join("in.npy");
    write_npy(&path, &Tensor::f32(vec![2, 8], vec![0.0; 16])).unwrap();
    let request =
        adapter.request(&IDS, json!({"inject": [{"point": "ln_f", "step": 0, "file": path}]}));
    assert!(adapter.fails(&request).message.contains("[3, 8]"));
    let (mut upstream, _) = loaded(&["--variant", "upstream"], Dtype::F32, "");
    let request =
        upstream.request(&IDS, json!({"inject": [{"point": "h.0", "step": 0, "file": path}]}));
    assert_eq!(upstream.fails(&request).class, ErrorClass::Unsupported);
}

#[test]
fn upstream_refuses_what_whisper_cannot_be() {
    let mut adapter = Adapter::start(&["--variant", "upstream"]);
    let tiny = Tiny::random();
    tiny.write(adapter.folder.path(), Dtype::F32, "");
    tiny.write_config(adapter.folder.path(), json!({"layer_norm_epsilon": 1e-3}));
    let Response::Error(error) = adapter.load("f32") else { panic!() };
    assert!(error.class == ErrorClass::Unsupported && error.message.contains("layer_norm_epsilon"));
}

#[test]
fn a_cancelled_case_stops_and_the_next_one_runs() {
    let (mut adapter, _) = loaded(&[], Dtype::F32, "");
    // One going on, one waiting behind it; both are cancelled.
    let going = adapter.request(&IDS, json!({"points": ["*"], "max_new_tokens": 60}));
    let waiting = adapter.request(&IDS, json!({"id": "next"}));
    let cancel = |id: &str| json!({"type": "cancel", "id": id});
    adapter.send(&format!("{going}\n{waiting}\n{}\n{}\n", cancel("next"), cancel("case")));
    for id in ["case", "next"] {
        let error = loop {
            match adapter.receive() {
                Response::Tensor(_) => {}
                Response::Error(error) => break error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((error.id.as_deref(), error.class), (Some(id), ErrorClass::Resource));
        assert_eq!(error.message, "cancelled");
    }
    // A cancel for what is over is not answered.
    adapter.send(&format!("{}\n", cancel("case")));
    assert_eq!(adapter.run(&IDS, json!({"max_new_tokens": 2})).done.generated.len(), 2);
    assert_eq!(adapter.finish(), Some(0));
}

#[test]
fn tokenizes_where_the_folder_has_a_tokenizer() {
    let (mut adapter, _) = loaded(&[], Dtype::F32, "");
    let ask = json!({"type": "tokenize", "id": "t", "text": "Hello."});
    assert_eq!(adapter.fails(&ask).class, ErrorClass::Unsupported);
    let folder = adapter.folder.path();
    std::fs::write(folder.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    let error = adapter.fails(&ask);
    assert_eq!((error.class, error.id.as_deref()), (ErrorClass::Input, Some("t")));
    let folder = adapter.folder.path();
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let vocab = json!({"H": 0, "e": 1, "l": 2, "o": 3, ".": 4, "He": 5, "ll": 6, "Hell": 7, "Hello": 8, "<|endoftext|>": 9});
    std::fs::write(folder.join("vocab.json"), vocab.to_string()).unwrap();
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\nH e\nl l\nHe ll\nHell o\n").unwrap();
    let answer = adapter.ask(&ask);
    assert_eq!(answer, Response::Tokens { id: "t".into(), ids: vec![8, 4] });
    let case = adapter.run(&IDS, json!({"max_new_tokens": 2, "forced_ids": [8, 4]}));
    assert_eq!(case.done.text.as_deref(), Some("Hello."));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    assert_eq!(Adapter::start(&["--variant", "f16"]).finish(), Some(2));
}
