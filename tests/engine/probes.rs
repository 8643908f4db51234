//! The hooks: every point is seen, in order, with its shape; what is put in place is what is read.

use llorch_cpud::model::Rows;
use llorch_cpud::probe::{Injector, NoProbe, Recorder};
use llorch_trace::{Dims, Point, PointSet, Stage, Tensor, TensorData, all_points};

use crate::support::{TinyModel, bits, capture, point, prompt};

#[test]
fn every_point_is_seen_once_in_data_flow_order_with_its_shape() {
    let tiny = TinyModel::new(4, 96);
    let dims = Dims::from_config(&tiny.config).unwrap();
    let mut seen = Vec::new();
    let mut recorder = Recorder::new(PointSet::all(), |_, at, tensor| {
        seen.push((at, tensor.shape));
        Ok(())
    });
    let model = tiny.load(1);
    let mut cache = model.new_cache();
    model.forward(&prompt(3), &mut cache, Rows::Last, &mut NoProbe).unwrap();
    model.forward(&prompt(2), &mut cache, Rows::Last, &mut recorder).unwrap();
    let inside = |at: &Point| !matches!(at.stage, Stage::Argmax | Stage::NextProbs);
    let want: Vec<_> =
        all_points(2).into_iter().filter(inside).map(|at| (at, at.shape(&dims, 2, 5))).collect();
    assert_eq!(seen, want);

    let (captured, _) = capture(&model, &prompt(4), &[1, 2], Injector::default());
    for at in all_points(2) {
        assert_eq!(captured[&(0, at)].shape, at.shape(&dims, 4, 4), "{at}");
        assert_eq!(captured[&(1, at)].shape, at.shape(&dims, 1, 5), "{at}");
    }
}

#[test]
fn a_recorder_keeps_only_what_it_was_asked_for() {
    let model = TinyModel::new(4, 96).load(1);
    let mut seen = Vec::new();
    let mut recorder = Recorder::new(PointSet::new(&["h.1.mlp.*", "tokens"]), |_, at, _| {
        seen.push(at.to_string());
        Ok(())
    });
    model.forward(&prompt(3), &mut model.new_cache(), Rows::Last, &mut recorder).unwrap();
    assert_eq!(seen, ["tokens", "h.1.mlp.fc", "h.1.mlp.act", "h.1.mlp.out"]);
}

/// Something else of the same kind: the row order of floats turned round, ids moved on.
fn changed(tensor: &Tensor) -> Tensor {
    let data = match &tensor.data {
        TensorData::I64(ids) => TensorData::I64(ids.iter().map(|id| (id + 1) % 300).collect()),
        TensorData::F32(values) => TensorData::F32(
            values.iter().enumerate().map(|(i, x)| x * (1.0 + (i % 7) as f32)).collect(),
        ),
        other => panic!("{other:?}"),
    };
    Tensor::new(tensor.shape.clone(), data)
}

#[test]
fn an_injected_tensor_is_read_by_all_that_follows_and_nothing_before() {
    let model = TinyModel::new(4, 96).load(2);
    let ids = prompt(6);
    let run = |injector| capture(&model, &ids, &[9, 8], injector).0;
    let plain = run(Injector::default());
    for step in 0..2 {
        for at in all_points(2) {
            let mut same = Injector::default();
            same.replace(step, at, plain[&(step, at)].clone());
            let same = run(same);
            assert!(plain.iter().all(|(key, t)| bits(t) == bits(&same[key])), "{at} by itself");

            let mut injector = Injector::default();
            let new = changed(&plain[&(step, at)]);
            injector.replace(step, at, new.clone());
            let other = run(injector);
            assert!(bits(&other[&(step, at)]) == bits(&new), "{at} is captured as injected");
            for (key, tensor) in plain.iter().filter(|(key, _)| **key < (step, at)) {
                assert!(
                    bits(tensor) == bits(&other[key]),
                    "{at} in step {step} reached back to {key:?}"
                );
            }
            if !matches!(at.stage, Stage::Argmax | Stage::NextProbs) {
                let end = (step, point("next.probs"));
                assert!(
                    bits(&plain[&end]) != bits(&other[&end]),
                    "nothing read {at} in step {step}"
                );
            }
        }
    }
}

#[test]
fn another_runs_tensor_carries_that_run_on() {
    let model = TinyModel::new(2, 128).load(1);
    let (ids, others) = (prompt(6), [250, 3, 77, 5, 1, 0]);
    let (target, _) = capture(&model, &others, &[], Injector::default());
    for name in ["tokens", "embeddings", "h.0", "h.1", "ln_f", "logits", "logits.last"] {
        let mut injector = Injector::default();
        injector.replace(0, point(name), target[&(0, point(name))].clone());
        let (run, _) = capture(&model, &ids, &[], injector);
        for end in ["logits.last", "argmax", "next.probs"].map(|end| (0, point(end))) {
            assert!(bits(&run[&end]) == bits(&target[&end]), "{name} to {}", end.1);
        }
    }
}

#[test]
fn an_injected_cache_is_what_later_steps_read() {
    let model = TinyModel::new(4, 96).load(1);
    let (plain, _) = capture(&model, &prompt(6), &[9, 8], Injector::default());
    let at = point("h.0.attn.cache.v");
    let mut injector = Injector::default();
    injector.replace(0, at, changed(&plain[&(0, at)]));
    let (other, _) = capture(&model, &prompt(6), &[9, 8], injector);
    let (held, put) = (&other[&(1, at)], changed(&plain[&(0, at)]));
    for h in 0..4 {
        for i in 0..6 * 24 {
            assert_eq!(held.get(h * 7 * 24 + i), put.get(h * 6 * 24 + i));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let model = TinyModel::new(4, 96).load(1);
    let refuse = |name: &str, tensor: Tensor| {
        let mut injector = Injector::default();
        injector.replace(0, point(name), tensor);
        let mut cache = model.new_cache();
        let error = model.forward(&prompt(3), &mut cache, Rows::Last, &mut injector).unwrap_err();
        assert!(cache.is_empty(), "a failed step adds nothing to the cache");
        error.to_string()
    };
    let error = refuse("h.0.attn.q", Tensor::f32(vec![4, 24, 3], vec![0.0; 288]));
    assert!(
        error.contains("h.0.attn.q")
            && error.contains("[4, 24, 3]")
            && error.contains("[4, 3, 24]"),
        "{error}"
    );
    let error = refuse("tokens", Tensor::i64(vec![3], vec![1, 2, 300]));
    assert!(error.contains("token id 300"), "{error}");
    let error = refuse("tokens", Tensor::i64(vec![3], vec![1, 2, -5]));
    assert!(error.contains("-5"), "{error}");
    let error = refuse("tokens", Tensor::f32(vec![3], vec![1.0; 3]));
    assert!(error.contains("expected i64"), "{error}");
}
