//! The judge on small made-up evidence: one rule a test.

use std::collections::BTreeMap;
use std::path::Path;

use llorch_trace::protocol::{Sampling, Unsupported};
use llorch_trace::{BundleWriter, Dims, Manifest, Tensor};

use super::testing::evidence;
use super::*;
use crate::evidence::Fault;
use crate::result::{Generation, Role};

const V: usize = 4;

fn plan(points: &[&str]) -> Plan {
    let dims = Dims { n_layer: 1, n_head: 1, n_embd: 2, n_inner: 8, vocab_size: V, n_positions: 8 };
    let case = Case {
        name: "c".into(),
        prompt: None,
        ids: vec![1, 2],
        max_new_tokens: 2,
        sampling: Sampling::default(),
        forced_ids: vec![3, 0],
    };
    let points = points.iter().map(|p| p.parse().unwrap()).collect();
    Plan { model_dir: "/nowhere".into(), dims, cases: vec![case], points }
}

struct Maker {
    dir: tempfile::TempDir,
}

impl Maker {
    fn new() -> Maker {
        Maker { dir: tempfile::tempdir().unwrap() }
    }

    /// Evidence of one implementation: tensors as (point, step, tensor).
    fn evidence(&self, name: &str, role: Role, tensors: &[(&str, usize, Tensor)]) -> Evidence {
        let dir: &Path = self.dir.path();
        let mut writer = BundleWriter::create(&dir.join(name)).unwrap();
        for (point, step, tensor) in tensors {
            writer.add("c", *step, point, tensor).unwrap();
        }
        evidence(name, role, writer.finish(Manifest::default()).unwrap())
    }

    fn two(&self, point: &str, a: Tensor, b: Tensor) -> Vec<Evidence> {
        let both = |t: &Tensor| vec![(point, 0, t.clone()), (point, 1, t.clone())];
        vec![
            self.evidence("ours", Role::Subject, &both(&a)),
            self.evidence("ref", Role::Reference, &both(&b)),
        ]
    }
}

fn run(plan: &Plan, evidence: &[Evidence]) -> Verdicts {
    judge(plan, evidence, &Truth::default(), &JudgeOptions::default())
}

fn logits(values: [f32; V]) -> Tensor {
    Tensor::f32(vec![V], values.to_vec())
}

#[test]
fn equal_tensors_pass_and_different_ones_fail_with_an_excerpt() {
    let maker = Maker::new();
    let plan = plan(&["logits.last"]);
    let same = run(&plan, &maker.two("logits.last", logits([1.; 4]), logits([1.; 4])));
    assert_eq!((same.verdict, same.rows.len()), (RunVerdict::Pass, 2));
    let off = run(&plan, &maker.two("logits.last", logits([1.; 4]), logits([1., 1., 1.1, 1.])));
    assert_eq!(off.verdict, RunVerdict::Fail);
    let row = &off.rows[0];
    assert_eq!(row.metrics.as_ref().unwrap().worst, [2]);
    assert!(row.reason.contains("1 of 4") && row.excerpt.is_some(), "{row:?}");
}

#[test]
fn a_subjects_missing_tensor_is_an_error_and_a_references_makes_the_run_incomplete() {
    let maker = Maker::new();
    let plan = plan(&["logits.last"]);
    let one = [("logits.last", 0, logits([1.; 4]))];
    let both = [("logits.last", 0, logits([1.; 4])), ("logits.last", 1, logits([1.; 4]))];
    let subject_short = [
        maker.evidence("ours", Role::Subject, &one),
        maker.evidence("ref", Role::Reference, &both),
    ];
    let verdicts = run(&plan, &subject_short);
    assert_eq!(verdicts.verdict, RunVerdict::Error);
    assert!(verdicts.rows[1].reason.contains("ours: the tensor did not come"));
    let reference_short = [
        maker.evidence("ours", Role::Subject, &both),
        maker.evidence("ref", Role::Reference, &one),
    ];
    assert_eq!(run(&plan, &reference_short).verdict, RunVerdict::Incomplete);
}

#[test]
fn what_is_declared_unsupported_lowers_nothing_unless_nobody_checked_it() {
    let maker = Maker::new();
    let plan = plan(&["logits.last"]);
    let mut evidence = maker.two("logits.last", logits([1.; 4]), logits([1.; 4]));
    let both = [("logits.last", 0, logits([1.; 4])), ("logits.last", 1, logits([1.; 4]))];
    let mut blind = maker.evidence("blind", Role::Reference, &both);
    blind.hello.as_mut().unwrap().unsupported =
        vec![Unsupported { point: "logits*".into(), reason: "no hook".into() }];
    evidence.push(blind);
    let verdicts = run(&plan, &evidence);
    assert_eq!(verdicts.verdict, RunVerdict::Pass);
    assert!(verdicts.unchecked.iter().any(|u| u.what == "blind: logits*" && u.reason == "no hook"));

    evidence.remove(1);
    let verdicts = run(&plan, &evidence);
    assert_eq!(verdicts.verdict, RunVerdict::Error, "nothing was compared at all");
    assert!(verdicts.unchecked.iter().any(|u| u.reason == "no reference checked it"));
}

#[test]
fn a_missing_reference_makes_the_run_incomplete_and_says_how_to_mend_it() {
    let maker = Maker::new();
    let mut evidence = maker.two("logits.last", logits([1.; 4]), logits([1.; 4]));
    let mut absent = maker.evidence("gone", Role::Reference, &[]);
    absent.hello = None;
    absent.missing = Some(("not installed".into(), Some("llorch-diff adapters setup gone".into())));
    evidence.push(absent);
    let verdicts = run(&plan(&["logits.last"]), &evidence);
    assert_eq!(verdicts.verdict, RunVerdict::Incomplete);
    let line = verdicts.unchecked.iter().find(|u| u.what.starts_with("gone")).unwrap();
    assert!(line.reason.contains("`llorch-diff adapters setup gone`"), "{line:?}");
}

#[test]
fn nan_in_the_subject_fails_its_row_and_names_it() {
    let maker = Maker::new();
    let mut evidence = maker.two("logits.last", logits([1., f32::NAN, 1., 1.]), logits([1.; 4]));
    evidence[0].faults.push(Fault {
        case: Some("c".into()),
        step: Some(0),
        point: Some("logits.last".parse().unwrap()),
        kind: FaultKind::NonFinite,
        message: "1 of 4 values is not finite".into(),
    });
    let verdicts = run(&plan(&["logits.last"]), &evidence);
    assert_eq!(verdicts.verdict, RunVerdict::Fail);
    assert!(verdicts.rows[0].reason.contains("ours has values that are not finite"));
}

#[test]
fn a_stale_cache_row_is_caught_without_any_reference() {
    let maker = Maker::new();
    let k = |v: [f32; 4]| Tensor::f32(vec![1, 2, 2], v.to_vec());
    let k1 = |v: [f32; 2]| Tensor::f32(vec![1, 1, 2], v.to_vec());
    let cache = |last: [f32; 2]| Tensor::f32(vec![1, 3, 2], vec![1., 2., 3., 4., last[0], last[1]]);
    let tensors = |last| {
        vec![
            ("h.0.attn.k", 0, k([1., 2., 3., 4.])),
            ("h.0.attn.k", 1, k1([5., 6.])),
            ("h.0.attn.cache.k", 0, k([1., 2., 3., 4.])),
            ("h.0.attn.cache.k", 1, cache(last)),
        ]
    };
    let plan = plan(&["h.0.attn.cache.k"]);
    let both = |last| {
        [
            maker.evidence("ours", Role::Subject, &tensors(last)),
            maker.evidence("ref", Role::Reference, &tensors(last)),
        ]
    };
    assert_eq!(run(&plan, &both([5., 6.])).verdict, RunVerdict::Pass);
    let stale = run(&plan, &both([3., 4.]));
    let row = stale.rows.iter().find(|r| r.verdict == Verdict::Fail).unwrap();
    assert_eq!((row.kind, row.step), (RowKind::Own, 1));
    assert!(row.reason.contains("its own attn.k"), "{}", row.reason);
}

/// Two generations that differ at token 1, and an oracle whose margin there is `margin`.
fn generations(margin: f64, reference_error: f32) -> Verdicts {
    let maker = Maker::new();
    let truth = vec![vec![0.0, 0.0, 0.0, 9.0], vec![5.0, 5.0 - margin, 0.0, 0.0]];
    let at = |e: f32, step: usize| logits([0, 1, 2, 3].map(|i| truth[step][i] as f32 + e));
    let tensors = |e| vec![("logits.last", 0, at(e, 0)), ("logits.last", 1, at(e, 1))];
    let mut ours = maker.evidence("ours", Role::Subject, &tensors(0.0));
    let mut reference = maker.evidence("ref", Role::Reference, &tensors(reference_error));
    ours.generated.insert("c".into(), Generation { ids: vec![3, 1], text: None });
    reference.generated.insert("c".into(), Generation { ids: vec![3, 0], text: None });
    let oracle = BTreeMap::from([(
        "c".to_string(),
        Continuation { ids: vec![3, 0], logits: truth.clone() },
    )]);
    let truth = Truth { continuations: oracle, oracle: None };
    judge(&plan(&["generated"]), &[ours, reference], &truth, &JudgeOptions::default())
}

#[test]
fn a_choice_between_near_equals_is_ambiguous_and_another_is_wrong() {
    let ambiguous = generations(1e-5, 1e-4);
    assert_eq!(ambiguous.verdict, RunVerdict::Pass, "{:?}", ambiguous.rows);
    assert!(ambiguous.rows[0].reason.contains("ambiguous") && ambiguous.rows[0].step == 1);
    let wrong = generations(0.01, 1e-4);
    assert_eq!(wrong.verdict, RunVerdict::Fail);
    assert!(wrong.rows[0].reason.contains("wrong"), "{}", wrong.rows[0].reason);
}

#[test]
fn a_reference_beyond_the_class_excuses_nothing() {
    // Its error of 0.1 is not admitted, so it can't widen the band to 0.2.
    assert_eq!(generations(0.01, 0.1).verdict, RunVerdict::Fail);
}

#[test]
fn only_causal_cells_count() {
    let maker = Maker::new();
    let scores = |masked: f32| Tensor::f32(vec![1, 2, 2], vec![1., masked, 2., 3.]);
    let later = Tensor::f32(vec![1, 1, 3], vec![1., 2., 3.]);
    let make = |name, role, masked| {
        maker.evidence(
            name,
            role,
            &[("h.0.attn.scores", 0, scores(masked)), ("h.0.attn.scores", 1, later.clone())],
        )
    };
    let evidence =
        [make("ours", Role::Subject, f32::NEG_INFINITY), make("ref", Role::Reference, -3.4e38)];
    let verdicts = run(&plan(&["h.0.attn.scores"]), &evidence);
    assert_eq!(verdicts.verdict, RunVerdict::Pass, "{:?}", verdicts.rows);
    assert_eq!(verdicts.rows[0].metrics.as_ref().unwrap().total, 3);
}

#[test]
fn probabilities_are_held_to_the_softmax_of_their_own_logits() {
    let maker = Maker::new();
    let plan = plan(&["next.probs"]);
    let l = [1.0f32, 2.0, 3.0, 4.0];
    let probs = crate::oracle::softmax(&l.map(f64::from));
    let tensors = |p: Vec<f32>| {
        let p = Tensor::f32(vec![V], p);
        vec![
            ("logits.last", 0, logits(l)),
            ("logits.last", 1, logits(l)),
            ("next.probs", 0, p.clone()),
            ("next.probs", 1, p),
        ]
    };
    let right: Vec<f32> = probs.iter().map(|p| *p as f32).collect();
    let wrong: Vec<f32> = right.iter().map(|p| p * 1.00001).collect();
    let both = |p: &[f32]| {
        [
            maker.evidence("ours", Role::Subject, &tensors(p.to_vec())),
            maker.evidence("ref", Role::Reference, &tensors(p.to_vec())),
        ]
    };
    assert_eq!(run(&plan, &both(&right)).verdict, RunVerdict::Pass);
    let verdicts = run(&plan, &both(&wrong));
    assert!(verdicts.rows.iter().any(|r| r.kind == RowKind::Own && r.verdict == Verdict::Fail));
}

#[test]
fn tokenizers_that_differ_fail_at_checkpoint_0() {
    let maker = Maker::new();
    let fed = [
        ("tokens", 0, Tensor::i64(vec![2], vec![1, 2])),
        ("tokens", 1, Tensor::i64(vec![1], vec![3])),
    ];
    let mut evidence = vec![
        maker.evidence("ours", Role::Subject, &fed),
        maker.evidence("ref", Role::Reference, &fed),
    ];
    let mut judged = |ids: [Vec<u32>; 2]| {
        for (e, ids) in evidence.iter_mut().zip(ids) {
            e.tokenized.insert("c".into(), ids);
        }
        run(&plan(&["tokens"]), &evidence)
    };
    let ours = judged([vec![1, 3], vec![1, 2]]);
    assert_eq!((ours.verdict, ours.odd[0].name.as_str()), (RunVerdict::Fail, "ours"));
    assert!(ours.rows[0].reason.contains("tokenizers differ"), "{}", ours.rows[0].reason);
    // A reference whose tokenizer gives other ids than were fed is named; ours gave them.
    let theirs = judged([vec![1, 2], vec![1, 3]]);
    assert_eq!((theirs.verdict, theirs.odd[0].name.as_str()), (RunVerdict::Pass, "ref"));
    assert_eq!(theirs.rows[0].blame, ["ref"]);
}

#[test]
fn a_declared_deviation_passes_within_its_bound_and_excuses_nothing_else() {
    let maker = Maker::new();
    let verdict = |error: f32, declared: &str| {
        let mut evidence = maker.two("logits.last", logits([0.0; 4]), logits([error, 0., 0., 0.]));
        evidence[1].hello.as_mut().unwrap().deviations = vec![llorch_trace::protocol::Deviation {
            point: declared.into(),
            bound: 0.1,
            reason: "a table".into(),
        }];
        let verdicts = run(&plan(&["logits.last"]), &evidence);
        (verdicts.verdict, verdicts.rows[0].reason.clone())
    };
    let (within, reason) = verdict(0.05, "logits*");
    assert_eq!(
        (within, reason.as_str()),
        (RunVerdict::Pass, "ref declares a deviation within 1e-1 · max(1, |x|): a table")
    );
    assert_eq!(verdict(0.2, "logits*").0, RunVerdict::Fail);
    assert_eq!(verdict(0.05, "next.probs").0, RunVerdict::Fail);
}

#[test]
fn two_that_deviate_at_one_point_may_differ_by_both_bounds_and_no_more() {
    let maker = Maker::new();
    let verdict = |error: f32| {
        let mut evidence = maker.two("logits.last", logits([0.0; 4]), logits([error, 0., 0., 0.]));
        for (one, bound, reason) in [(0, 1e-6, "coarse"), (1, 0.1, "a table")] {
            evidence[one].hello.as_mut().unwrap().deviations =
                vec![llorch_trace::protocol::Deviation {
                    point: "logits*".into(),
                    bound,
                    reason: reason.into(),
                }];
        }
        let verdicts = run(&plan(&["logits.last"]), &evidence);
        (verdicts.rows[0].verdict, verdicts.rows[0].reason.clone())
    };
    let (within, reason) = verdict(0.05);
    assert_eq!(within, Verdict::Pass, "{reason}");
    assert_eq!(
        reason,
        "ours declares a deviation within 1e-6 · max(1, |x|): coarse; \
         ref declares a deviation within 1e-1 · max(1, |x|): a table"
    );
    let (beyond, reason) = verdict(0.2);
    assert_eq!(beyond, Verdict::Fail);
    assert!(reason.contains("and ref declare"), "{reason}");
}
