//! What the forward pass promises bit for bit, on small random models.

use llorch_cpud::model::{Model, Rows, Sequence};
use llorch_cpud::ops::simd::{self, Level};
use llorch_cpud::packed::Format;
use llorch_cpud::probe::{Injector, NoProbe, Recorder};
use llorch_trace::{Point, PointSet, Stage, Tensor};
use safetensors::Dtype;

use crate::support::{Captured, TinyModel, bits, capture, point, prompt};

/// One with narrow heads, one with heads as wide as GPT-2's.
fn models() -> [TinyModel; 2] {
    [TinyModel::new(4, 96), TinyModel::new(2, 128)]
}

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

fn assert_same(a: &Captured, b: &Captured, what: &str) {
    assert!(a.keys().eq(b.keys()), "{what}: other points");
    for ((step, at), tensor) in a {
        assert!(bits(tensor) == bits(&b[&(*step, *at)]), "{what}: {at} in step {step}");
    }
}

/// Row `t` along the token axis, as [.., D].
fn token_row(tensor: &Tensor, at: Point, t: usize) -> Vec<u64> {
    let by_head = matches!(at.stage, Stage::Q | Stage::K | Stage::V | Stage::Scores | Stage::Probs);
    let all = bits(tensor);
    let (heads, tokens) =
        if by_head { (tensor.shape[0], tensor.shape[1]) } else { (1, tensor.shape[0]) };
    let width = all.len() / heads / tokens;
    (0..heads).flat_map(|h| all[(h * tokens + t) * width..][..width].to_vec()).collect()
}

#[test]
fn prefill_equals_token_by_token_and_any_pieces() {
    for tiny in models() {
        for format in FORMATS {
            pieces_equal_the_whole(&tiny.load_as(format, 2));
        }
    }
}

fn pieces_equal_the_whole(model: &Model) {
    let ids = prompt(75);
    let (whole, _) = capture(model, &ids, &[], Injector::default());
    for pieces in [vec![1; 75], vec![2, 3, 8, 62], vec![70, 5]] {
        let mut cache = model.new_cache();
        let mut begin = 0;
        for piece in pieces {
            let mut seen = Captured::new();
            let mut recorder = Recorder::new(PointSet::all(), |step, at, tensor| {
                seen.insert((step, at), tensor);
                Ok(())
            });
            model
                .forward(&ids[begin..begin + piece], &mut cache, Rows::Last, &mut recorder)
                .unwrap();
            for ((_, at), tensor) in &seen {
                if matches!(at.stage, Stage::CacheK | Stage::CacheV | Stage::LogitsLast) {
                    continue; // of another shape; cache rows are k and v, tested below
                }
                for t in 0..piece {
                    let (mut got, mut want) =
                        (token_row(tensor, *at, t), token_row(&whole[&(0, *at)], *at, begin + t));
                    if matches!(at.stage, Stage::Scores | Stage::Probs) {
                        // The whole has later, masked keys.
                        let keep = |rows: Vec<u64>, keys: usize| -> Vec<u64> {
                            rows.chunks(keys).flat_map(|row| row[..=begin + t].to_vec()).collect()
                        };
                        got = keep(got, begin + piece);
                        want = keep(want, 75);
                    }
                    assert!(got == want, "{at}, token {} in a piece of {piece}", begin + t);
                }
            }
            begin += piece;
        }
        for layer in 0..2 {
            let held = cache.layer(layer).keys(75);
            let want = &whole[&(0, Point::of_layer(Stage::CacheK, layer))];
            assert!(
                held.iter().map(|&x| f64::from(x).to_bits()).eq(bits(want)),
                "keys of layer {layer}"
            );
        }
    }
}

/// Prompts and single tokens, short and long, in one pass and each by itself.
#[test]
fn a_batch_gives_each_sequence_the_bits_it_has_alone() {
    for tiny in models() {
        for format in FORMATS {
            let model = tiny.load_as(format, 2);
            // Tokens held before, new ones, and whose logits are wanted.
            let turns = [
                (0, 75, Rows::Last),
                (70, 1, Rows::Last),
                (0, 2, Rows::All),
                (5, 1, Rows::All),
                (33, 9, Rows::All),
                (64, 1, Rows::Last),
                (0, 1, Rows::Last),
                (11, 1, Rows::Last),
            ];
            let ids = |i: usize, n: usize| prompt(n + i).split_off(i);
            let prepared = || {
                turns.iter().enumerate().map(|(i, &(past, _, _))| {
                    let mut cache = model.new_cache();
                    if past > 0 {
                        let past = &ids(i, past);
                        model.forward(past, &mut cache, Rows::Last, &mut NoProbe).unwrap();
                    }
                    cache
                })
            };
            let new: Vec<Vec<u32>> =
                turns.iter().enumerate().map(|(i, turn)| ids(i + 100, turn.1)).collect();
            let mut caches: Vec<_> = prepared().collect();
            let mut batch: Vec<Sequence<'_>> = caches
                .iter_mut()
                .zip(&new)
                .zip(turns)
                .map(|((cache, ids), (_, _, rows))| Sequence { ids, cache, rows })
                .collect();
            let together = model.forward_batch(&mut batch).unwrap();
            let mut row = 0;
            for (i, mut cache) in prepared().enumerate() {
                let alone = model.forward(&new[i], &mut cache, turns[i].2, &mut NoProbe).unwrap();
                let own = together.slice(ndarray::s![row..row + alone.nrows(), ..]);
                assert!(alone == own, "{format:?}: sequence {i}");
                row += alone.nrows();
                assert_eq!(cache.len(), caches[i].len());
                let len = cache.len();
                assert!(cache.layer(1).keys(len) == caches[i].layer(1).keys(len));
                assert!(cache.layer(1).values(len) == caches[i].layer(1).values(len));
            }
            assert_eq!(row, together.nrows());
        }
    }
}

#[test]
fn a_batch_with_a_bad_sequence_changes_no_cache() {
    let model = models()[0].load(1);
    let (mut good, mut bad) = (model.new_cache(), model.new_cache());
    let too_long = vec![1; model.config().n_positions + 1];
    for ids in [&[][..], &[300], &too_long] {
        let mut batch = [
            Sequence { ids: &[1, 2], cache: &mut good, rows: Rows::Last },
            Sequence { ids, cache: &mut bad, rows: Rows::Last },
        ];
        assert!(model.forward_batch(&mut batch).is_err());
        assert_eq!((good.len(), bad.len()), (0, 0));
    }
    assert_eq!(model.forward_batch(&mut []).unwrap().dim(), (0, 300));
}

#[test]
fn the_cache_holds_the_k_and_v_of_its_run() {
    let model = models()[0].load(1);
    let (captured, _) = capture(&model, &prompt(66), &[5, 6, 7], Injector::default());
    for layer in 0..2 {
        for (cache, own) in [(Stage::CacheK, Stage::K), (Stage::CacheV, Stage::V)] {
            let last = &captured[&(2, Point::of_layer(cache, layer))];
            assert_eq!(last.shape, [4, 68, 24]);
            let rows: Vec<(usize, usize)> =
                (0..66).map(|t| (0, t)).chain([(1, 0), (2, 0)]).collect();
            for (position, (step, t)) in rows.into_iter().enumerate() {
                let new = &captured[&(step, Point::of_layer(own, layer))];
                for h in 0..4 {
                    for d in 0..24 {
                        let a = last.get((h * 68 + position) * 24 + d);
                        let b = new.get((h * new.shape[1] + t) * 24 + d);
                        assert_eq!(
                            a.to_bits(),
                            b.to_bits(),
                            "{cache:?} {layer} [{h}, {position}, {d}]"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn threads_instruction_sets_and_repetition_change_nothing() {
    for tiny in models() {
        let ids = prompt(41);
        let run = |threads| capture(&tiny.load(threads), &ids, &[3, 4], Injector::default()).0;
        let first = run(1);
        assert_same(&first, &run(1), "again");
        assert_same(&first, &run(2), "2 threads");
        assert_same(&first, &run(5), "5 threads");
        let before = simd::level();
        for level in [Level::Portable, Level::Avx2, Level::Avx512] {
            let level = simd::force(level);
            assert_same(&first, &run(2), &format!("{level:?}"));
        }
        simd::force(before);
    }
}

#[test]
fn watching_changes_nothing() {
    let model = models()[1].load(2);
    let ids = prompt(20);
    let mut cache = model.new_cache();
    let plain = model.forward(&ids, &mut cache, Rows::Last, &mut NoProbe).unwrap();
    let all = model.forward(&ids, &mut model.new_cache(), Rows::All, &mut NoProbe).unwrap();
    let (captured, _) = capture(&model, &ids, &[], Injector::default());
    assert_eq!((plain.dim(), all.dim()), ((1, 300), (20, 300)));
    assert!(plain.row(0) == all.row(19));
    let watched = &captured[&(0, point("logits.last"))];
    assert!(plain.iter().map(|&x| f64::from(x)).eq(watched.to_f64()));
    assert!(all.iter().map(|&x| f64::from(x)).eq(captured[&(0, point("logits"))].to_f64()));
}

#[test]
fn later_tokens_do_not_reach_earlier_rows() {
    let model = models()[0].load(2);
    let mut ids = prompt(70);
    let (before, _) = capture(&model, &ids, &[], Injector::default());
    ids[65..].iter_mut().for_each(|id| *id = 299 - *id);
    let (after, _) = capture(&model, &ids, &[], Injector::default());
    for name in ["h.0.attn.context", "h.1.attn.context", "h.1", "ln_f", "logits"] {
        let at = (0, point(name));
        for t in 0..65 {
            assert!(
                token_row(&before[&at], at.1, t) == token_row(&after[&at], at.1, t),
                "{name} {t}"
            );
        }
        assert!(token_row(&before[&at], at.1, 65) != token_row(&after[&at], at.1, 65), "{name}");
    }
}

#[test]
fn a_cache_that_is_cut_back_goes_on_as_if_nothing_had_been() {
    let model = models()[0].load(1);
    let ids = prompt(30);
    let mut cache = model.new_cache();
    model.forward(&ids, &mut cache, Rows::Last, &mut NoProbe).unwrap();
    cache.truncate(10);
    let again = model.forward(&ids[10..], &mut cache, Rows::All, &mut NoProbe).unwrap();
    let whole = model.forward(&ids, &mut model.new_cache(), Rows::All, &mut NoProbe).unwrap();
    assert!(again == whole.slice(ndarray::s![10.., ..]));
}

#[test]
fn prefix_storage_and_alignment_of_the_file_do_not_matter() {
    let mut tiny = TinyModel::new(4, 96);
    // Values that f16 and bf16 hold exactly.
    for (_, values) in tiny.tensors.values_mut() {
        values
            .iter_mut()
            .for_each(|x| *x = half::bf16::from_f32((*x * 64.0).round() / 64.0).to_f32());
    }
    let run = |tiny: &TinyModel| capture(&tiny.load(1), &prompt(9), &[1], Injector::default()).0;
    let plain = run(&tiny);
    tiny.prefix = "transformer.";
    assert_same(&plain, &run(&tiny), "prefix");
    for dtype in [Dtype::F16, Dtype::BF16] {
        tiny.dtype = dtype;
        assert_same(&plain, &run(&tiny), &format!("{dtype:?}"));
    }
    (tiny.dtype, tiny.prefix) = (Dtype::F32, "");
    // Masks that old checkpoints carry, and a copy of the tied head, are left alone.
    let mut old = TinyModel { tensors: tiny.tensors.clone(), config: tiny.config.clone(), ..tiny };
    old.tensors.insert("h.0.attn.bias".into(), (vec![1, 1, 3, 3], vec![1.0; 9]));
    old.tensors.insert("h.1.attn.masked_bias".into(), (vec![], vec![-1e4]));
    old.tensors.insert("lm_head.weight".into(), (vec![300, 96], vec![0.0; 300 * 96]));
    assert_same(&plain, &run(&old), "buffers");
    // The header padded so that no tensor is aligned to 4 bytes.
    let dir = tempfile::tempdir().unwrap();
    tiny.write(dir.path());
    let bytes = tiny.safetensors();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut odd = ((header + 1) as u64).to_le_bytes().to_vec();
    odd.extend(&bytes[8..8 + header]);
    odd.push(b' ');
    odd.extend(&bytes[8 + header..]);
    std::fs::write(dir.path().join("model.safetensors"), odd).unwrap();
    let model = llorch_cpud::Model::load(dir.path(), Format::F32, 1).unwrap();
    assert_same(&plain, &capture(&model, &prompt(9), &[1], Injector::default()).0, "misaligned");
}

#[test]
fn keys_of_the_configuration_change_what_they_say() {
    let run = |key: &str, value: serde_json::Value| {
        let mut tiny = TinyModel::new(4, 96);
        tiny.config[key] = value;
        capture(&tiny.load(1), &prompt(5), &[], Injector::default()).0
    };
    let plain = run("scale_attn_weights", true.into());
    let at = |captured: &Captured, name: &str, i: usize| captured[&(0, point(name))].get(i);
    let unscaled = run("scale_attn_weights", false.into());
    let ratio = at(&unscaled, "h.0.attn.scores", 0) / at(&plain, "h.0.attn.scores", 0);
    assert!((ratio - 24f64.sqrt()).abs() < 1e-5, "{ratio}");
    let inverse = run("scale_attn_by_inverse_layer_idx", true.into());
    assert_eq!(at(&inverse, "h.0.attn.scores", 0), at(&plain, "h.0.attn.scores", 0));
    assert_ne!(at(&inverse, "h.1.attn.probs", 5), at(&plain, "h.1.attn.probs", 5));
    let relu = run("activation_function", "relu".into());
    assert_eq!(at(&relu, "h.0.mlp.act", 3), at(&relu, "h.0.mlp.fc", 3).max(0.0));
    let eps = run("layer_norm_epsilon", 0.5.into());
    assert!(at(&eps, "h.0.ln_1", 0) != at(&plain, "h.0.ln_1", 0));

    let mut untied = TinyModel::new(4, 96);
    untied.config["tie_word_embeddings"] = false.into();
    assert!(untied.error().contains("\"lm_head.weight\" is missing"));
    let head: Vec<f32> = untied.tensors["wte.weight"].1.iter().map(|x| x * 2.0).collect();
    untied.tensors.insert("lm_head.weight".into(), (vec![300, 96], head));
    let untied = capture(&untied.load(1), &prompt(5), &[], Injector::default()).0;
    assert_eq!(at(&untied, "logits.last", 7), 2.0 * at(&plain, "logits.last", 7));
}
