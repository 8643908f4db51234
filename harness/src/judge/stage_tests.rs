//! The judge on the shipped model with tensors that the oracle made, rounded to f32 as an honest engine
//! would, and with one of them wrong.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use llorch_trace::protocol::{Deviation, Sampling};
use llorch_trace::{BundleWriter, Dtype, Manifest, Point, Stage, Tensor, all_points};

use super::testing::evidence;
use super::*;
use crate::oracle::{Inputs, Job, Oracle};
use crate::result::{Deviates, Role, RunVerdict};

struct Bench {
    dir: tempfile::TempDir,
    plan: Plan,
    truth: Truth,
}

/// What is done to one stage of an implementation; all that follow compute from it.
type Bug<'a> = &'a dyn Fn(Point, &mut Vec<f64>);

impl Bench {
    fn new() -> Bench {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let oracle = Oracle::open(&root.join("golden/models/nano")).unwrap();
        let continuation = oracle.continue_greedily(&[15496, 13], 2).unwrap();
        let case = Case {
            name: "c".into(),
            prompt: None,
            ids: vec![15496, 13],
            max_new_tokens: 2,
            sampling: Sampling::default(),
            forced_ids: continuation.ids.clone(),
        };
        let points = all_points(oracle.dims.n_layer).into_iter();
        let points = points.filter(|p| !p.is_integer() && p.stage != Stage::NextProbs).collect();
        let plan =
            Plan { model_dir: "/nowhere".into(), dims: oracle.dims, cases: vec![case], points };
        let continuations = BTreeMap::from([("c".to_string(), continuation)]);
        let truth = Truth { continuations, oracle: Some(oracle) };
        Bench { dir: tempfile::tempdir().unwrap(), plan, truth }
    }

    /// Stage after stage from its own rounded outputs, as an engine in f32 computes.
    fn evidence(&self, name: &str, role: Role, bug: Bug<'_>) -> Evidence {
        let oracle = self.truth.oracle.as_ref().unwrap();
        let mut writer = BundleWriter::create(&self.dir.path().join(name)).unwrap();
        let mut own = Own { case: &self.plan.cases[0], tensors: BTreeMap::new() };
        for step in 0..2 {
            for point in &self.plan.points {
                let job = Job { step, inputs: &own, u: 0.0 };
                let mut value = oracle.replay(*point, job).unwrap().unwrap().value;
                bug(*point, &mut value.values);
                let rounded: Vec<f32> = value.values.iter().map(|v| *v as f32).collect();
                let tensor = Tensor::f32(value.shape, rounded);
                writer.add("c", step, &point.to_string(), &tensor).unwrap();
                own.tensors.insert((step, *point), Numbers::of(&tensor));
            }
        }
        evidence(name, role, writer.finish(Manifest::default()).unwrap())
    }

    fn judge(&self, evidence: &[Evidence]) -> Verdicts {
        judge(&self.plan, evidence, &self.truth, &JudgeOptions::default())
    }
}

struct Own<'a> {
    case: &'a Case,
    tensors: BTreeMap<(usize, Point), Numbers>,
}

impl Inputs for Own<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        self.tensors.get(&(step, point)).cloned()
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        self.case.fed(step)
    }

    fn past(&self, step: usize) -> usize {
        self.case.past(step)
    }
}

fn honest(_: Point, _: &mut Vec<f64>) {}

/// The point's values scaled: too little for any class, far too much for rounding.
fn scaled(name: &'static str, by: f64) -> impl Fn(Point, &mut Vec<f64>) {
    move |point, values| {
        if point.to_string() == name {
            values.iter_mut().for_each(|v| *v *= by);
        }
    }
}

fn find<'a>(verdicts: &'a Verdicts, who: &str, point: &str, step: usize) -> &'a Row {
    let is = |r: &&Row| {
        r.kind == RowKind::Oracle && r.a == who && r.point.to_string() == point && r.step == step
    };
    verdicts.rows.iter().find(is).unwrap()
}

#[test]
fn honest_rounding_passes_at_every_stage_with_both_errors() {
    let bench = Bench::new();
    let all = [
        bench.evidence("ours", Role::Subject, &honest),
        bench.evidence("ref", Role::Reference, &honest),
    ];
    let verdicts = bench.judge(&all);
    assert_eq!((verdicts.verdict, verdicts.odd.len()), (RunVerdict::Pass, 0));
    let oracle = verdicts.rows.iter().filter(|r| r.kind == RowKind::Oracle);
    let mut n = 0;
    for row in oracle {
        let local =
            row.local.as_ref().unwrap_or_else(|| panic!("{} has no local error", row.point));
        assert!(local.of_band.unwrap() <= 1.0 && row.inherited.is_some(), "{row:?}");
        n += 1;
    }
    assert_eq!(n, 2 * 2 * bench.plan.points.len());
}

#[test]
fn a_small_error_in_a_deep_layer_fails_by_its_certificate_and_is_inherited_after_it() {
    let bench = Bench::new();
    let all = [
        bench.evidence("ours", Role::Subject, &scaled("h.2.attn.out", 1.0 + 1e-4)),
        bench.evidence("ref", Role::Reference, &honest),
    ];
    let verdicts = bench.judge(&all);
    assert_eq!(verdicts.verdict, RunVerdict::Fail);
    let row = find(&verdicts, "ours", "h.2.attn.out", 0);
    let local = row.local.as_ref().unwrap();
    assert!(row.verdict == Verdict::Fail && local.certificate.is_some(), "{row:?}");
    assert!(local.ratio.unwrap() > 10.0, "{:?}", local.ratio);
    assert!(row.metrics.as_ref().unwrap().max_abs.unwrap() < 1e-3, "no class would have seen it");
    let after = find(&verdicts, "ours", "h.2", 0);
    let [local, inherited] = [after.local.as_ref().unwrap().max_abs, after.inherited];
    assert!(after.verdict == Verdict::Pass && inherited > local, "{after:?}");
    assert_eq!(verdicts.odd[0].point.to_string(), "h.2.attn.out");
    assert_eq!((verdicts.odd.len(), verdicts.odd[0].layers.as_slice()), (1, &[2][..]));
}

#[test]
fn a_reference_that_is_wrong_is_named_and_the_subject_does_not_answer_for_it() {
    let bench = Bench::new();
    let all = [
        bench.evidence("ours", Role::Subject, &honest),
        bench.evidence("bad", Role::Reference, &scaled("h.0.mlp.act", 1.01)),
        bench.evidence("worse", Role::Reference, &scaled("embeddings", 1.01)),
    ];
    let verdicts = bench.judge(&all);
    assert_eq!(verdicts.verdict, RunVerdict::Pass);
    let odd: Vec<(&str, String)> =
        verdicts.odd.iter().map(|o| (o.name.as_str(), o.point.to_string())).collect();
    assert_eq!(odd, [("bad", "h.0.mlp.act".into()), ("worse", "embeddings".into())]);
    let pair = |b: &str, point: &str| {
        let is = |r: &&Row| r.a == "ours" && r.b == b && r.point.to_string() == point;
        verdicts.rows.iter().find(is).unwrap()
    };
    let row = pair("bad", "h.0.mlp.act");
    assert_eq!((row.verdict, row.blame.as_slice()), (Verdict::Fail, &["bad".to_string()][..]));
    assert_eq!(pair("bad", "h.0.mlp.fc").verdict, Verdict::Pass);
    // Neither has a say about what honest rounding is.
    assert_eq!(find(&verdicts, "ours", "h.1", 0).ratio, None);
}

#[test]
fn a_declared_deviation_carries_on_without_blame_and_without_a_vote() {
    let deviating_by = |by: f64, bound: f64| {
        let bench = Bench::new();
        let act = scaled("h.0.mlp.act", by);
        let mut reference = bench.evidence("ref", Role::Reference, &act);
        reference.hello.as_mut().unwrap().deviations =
            vec![Deviation { point: "h.*.mlp.act".into(), bound, reason: "a table".into() }];
        bench.judge(&[bench.evidence("ours", Role::Subject, &honest), reference])
    };
    let declared = deviating_by(1.002, 5e-3);
    assert_eq!((declared.verdict, declared.odd.len()), (RunVerdict::Pass, 0));
    assert!(find(&declared, "ref", "h.0.mlp.act", 0).reason.contains("declares a deviation"));
    assert!(declared.rows.iter().all(|r| r.verdict != Verdict::Fail), "what follows is attributed");
    for point in ["h.0.mlp.act", "h.0.mlp.out", "h.1.attn.q", "logits"] {
        assert_eq!(find(&declared, "ours", point, 0).ratio, None, "it has no vote at {point}");
        let pair = |r: &&Row| r.b == "ref" && r.step == 0 && r.point.to_string() == point;
        let pair = declared.rows.iter().find(pair).unwrap();
        assert_eq!(pair.deviates, ["ref"], "{point}");
    }
    let local = find(&declared, "ours", "h.1.attn.q", 0).local.as_ref().unwrap();
    assert!(local.ratio.is_some(), "what its stages do by themselves is rounding");
    assert!(find(&declared, "ours", "h.0.attn.q", 0).ratio.is_some());
    // A deviation as small as this passes the class everywhere, and has no vote either.
    let by_a_hair = deviating_by(1.0 + 3e-5, 5e-3);
    assert_eq!(find(&by_a_hair, "ref", "logits", 0).deviation, None, "within the class");
    assert_eq!(find(&by_a_hair, "ours", "logits", 0).ratio, None);
    let too_much = deviating_by(1.002, 1e-4);
    assert_eq!(too_much.odd[0].name, "ref");
}

#[test]
fn two_that_inherit_in_opposite_directions_may_differ_by_more_than_either_from_the_oracle() {
    let bench = Bench::new();
    let deviating = |name: String, by: f64| {
        let act =
            move |point: Point, values: &mut Vec<f64>| scaled("h.0.mlp.act", by)(point, values);
        let mut reference = bench.evidence(&name, Role::Reference, &act);
        reference.hello.as_mut().unwrap().deviations =
            vec![Deviation { point: "h.*.mlp.act".into(), bound: 0.1, reason: "a table".into() }];
        reference
    };
    let mut met = 0;
    for n in 0..24 {
        let by = 1e-5 * 1.4f64.powi(n);
        let (up, down) = (format!("up-{n}"), format!("down-{n}"));
        let ours = bench.evidence(&format!("ours-{n}"), Role::Subject, &honest);
        let pair_of = [ours, deviating(up.clone(), 1.0 + by), deviating(down.clone(), 1.0 - by)];
        let verdicts = bench.judge(&pair_of);
        let exceeds = |r: &Row| r.metrics.as_ref().is_some_and(|m| m.exceeding > 0);
        let alone = |who: &str, point: &str| exceeds(find(&verdicts, who, point, 0));
        for row in verdicts.rows.iter().filter(|r| r.kind == RowKind::Pair && r.step == 0) {
            let point = row.point.to_string();
            let declared = point.ends_with("mlp.act");
            let is_pair = row.a == up && row.b == down && !declared;
            if is_pair && exceeds(row) && !alone(&up, &point) && !alone(&down, &point) {
                met += 1;
                assert_eq!(row.verdict, Verdict::Pass, "{row:?}");
                assert!(row.reason.contains("inherited"), "{row:?}");
            }
        }
    }
    assert!(met > 0, "no such pair came about");
}

#[test]
fn what_an_earlier_deviation_hands_down_comes_on_top_of_a_later_one() {
    let bench = Bench::new();
    let deviating = |by: f64| {
        let (first, second) = (scaled("h.0.mlp.act", 1.5), scaled("h.1.mlp.act", by));
        let both = |point: Point, values: &mut Vec<f64>| {
            first(point, values);
            second(point, values);
        };
        let mut reference = bench.evidence("ref", Role::Reference, &both);
        let declared =
            |point: &str, bound| Deviation { point: point.into(), bound, reason: "a table".into() };
        reference.hello.as_mut().unwrap().deviations =
            vec![declared("h.0.mlp.act", 0.6), declared("h.1.mlp.act", 2.1e-3)];
        bench.judge(&[bench.evidence("ours", Role::Subject, &honest), reference])
    };
    let pair = |verdicts: &Verdicts| {
        let is_pair = |r: &&Row| r.kind == RowKind::Pair && r.step == 0;
        let mut rows = verdicts.rows.iter().filter(is_pair);
        rows.find(|r| r.point.to_string() == "h.1.mlp.act").unwrap().clone()
    };
    let within = deviating(1.002);
    assert_eq!((within.verdict, within.odd.len()), (RunVerdict::Pass, 0));
    let row = pair(&within);
    assert!(
        row.metrics.as_ref().unwrap().max_abs.unwrap() > 2.1e-3,
        "it inherits nothing: {row:?}"
    );
    assert_eq!((row.verdict, row.deviation), (Verdict::Pass, Some(Deviates::Inherited)));
    assert!(row.reason.contains("by itself is within what is declared"), "{}", row.reason);
    assert_eq!(find(&within, "ref", "h.1.mlp.act", 0).deviation, Some(Deviates::Declared));

    let beyond = deviating(1.01);
    assert_eq!((beyond.odd[0].name.as_str(), pair(&beyond).verdict), ("ref", Verdict::Fail));
    assert_eq!(beyond.odd[0].point.to_string(), "h.1.mlp.act");
}

#[test]
fn after_a_stage_that_is_wrong_by_itself_a_declared_deviation_excuses_nothing() {
    let bench = Bench::new();
    let (table, wrong) = (scaled("h.0.mlp.act", 1.002), scaled("h.1.attn.out", 1.1));
    let both = |point: Point, values: &mut Vec<f64>| {
        table(point, values);
        wrong(point, values);
    };
    let mut reference = bench.evidence("ref", Role::Reference, &both);
    reference.hello.as_mut().unwrap().deviations =
        vec![Deviation { point: "h.*.mlp.act".into(), bound: 5e-3, reason: "a table".into() }];
    let verdicts = bench.judge(&[bench.evidence("ours", Role::Subject, &honest), reference]);
    let deviation = |point: &str, step| find(&verdicts, "ref", point, step).deviation;
    assert_eq!(deviation("h.0", 0), Some(Deviates::Inherited));
    for (point, step) in [("h.1.attn.out", 0), ("h.1", 0), ("h.1.attn.out", 1), ("h.1", 1)] {
        assert_eq!(deviation(point, step), None, "{point} at step {step}");
    }
}

#[test]
fn without_its_inputs_a_stage_has_no_local_error() {
    let mut bench = Bench::new();
    bench.plan.points.retain(|p| p.stage == Stage::Embeddings || p.stage == Stage::Ln1);
    bench.plan.points.retain(|p| p.layer != Some(0) || p.stage == Stage::Ln1);
    let points = all_points(4).into_iter();
    let all: Vec<Point> =
        points.filter(|p| !p.is_integer() && p.stage != Stage::NextProbs).collect();
    let shown = std::mem::replace(&mut bench.plan.points, all);
    let evidence = |name: &str, role| {
        let whole = bench.evidence(name, role, &honest);
        let mut writer =
            BundleWriter::create(&bench.dir.path().join(format!("{name}-some"))).unwrap();
        for step in 0..2 {
            for point in &shown {
                let (name, bundle) = (point.to_string(), whole.bundle.as_ref().unwrap());
                let tensor = bundle.get("c", step, &name).unwrap();
                writer.add("c", step, &name, &tensor).unwrap();
            }
        }
        Evidence { bundle: Some(writer.finish(Manifest::default()).unwrap()), ..whole }
    };
    let all = [evidence("ours", Role::Subject), evidence("ref", Role::Reference)];
    bench.plan.points = shown.clone();
    let verdicts = bench.judge(&all);
    let row = find(&verdicts, "ours", "h.2.ln_1", 0);
    assert_eq!(row.local_unchecked.as_deref(), Some("h.1 was not captured"));
    assert_eq!((row.verdict, &row.local), (Verdict::Pass, &None));
    assert!(find(&verdicts, "ours", "h.0.ln_1", 0).local.is_some());
}

#[test]
fn what_limits_says_is_just_seen_is_seen_and_much_less_is_not() {
    let bench = Bench::new();
    let evidence = bench.evidence("ours", Role::Subject, &honest);
    let oracle = bench.truth.oracle.as_ref().unwrap();
    let limits = crate::limits::measure(&bench.plan, &evidence, oracle).unwrap();
    for name in ["h.1.ln_1", "h.2.attn.q", "h.3.attn.scores", "h.1.mlp.act", "h.2", "logits"] {
        let point: Point = name.parse().unwrap();
        let limit = limits.iter().find(|l| l.stage == point.stage).unwrap();
        let verdict = |by: f64| {
            let name: &'static str = name;
            let ours = bench.evidence("ours", Role::Subject, &scaled(name, 1.0 + by));
            let other = bench.evidence("ref", Role::Reference, &honest);
            let verdicts = bench.judge(&[ours, other]);
            find(&verdicts, "ours", name, 0).verdict
        };
        // An honest error of the size of one rounding may hide or show as much again.
        assert_eq!(verdict(2.0 * limit.factor_fail), Verdict::Fail, "{name}: {limit:?}");
        assert_ne!(verdict(0.1 * limit.best), Verdict::Fail, "{name}: {limit:?}");
    }
}

/// Every stage's output rounded to a narrow dtype, and declared so or not.
fn narrow(bench: &Bench, name: &str, dtype: Dtype, declared: bool, bug: Bug<'_>) -> Evidence {
    let rounds = |point: Point, values: &mut Vec<f64>| {
        bug(point, values);
        values.iter_mut().for_each(|v| *v = crate::compare::round(*v, dtype));
    };
    let mut evidence = bench.evidence(name, Role::Subject, &rounds);
    evidence.computes = declared.then_some(dtype);
    evidence
}

#[test]
fn who_computes_in_less_than_f32_is_held_to_its_own_rounding_and_to_no_class() {
    let bench = Bench::new();
    for dtype in [Dtype::BF16, Dtype::F16] {
        let name = format!("ours-{dtype}");
        let reference = bench.evidence(&format!("ref-{dtype}"), Role::Reference, &honest);
        let verdicts = bench.judge(&[narrow(&bench, &name, dtype, true, &honest), reference]);
        assert_eq!(verdicts.verdict, RunVerdict::Pass, "{dtype}");
        let row = find(&verdicts, &name, "h.3", 0);
        assert!(row.metrics.as_ref().unwrap().exceeding > 0, "f32's class would do: {row:?}");
        assert!(row.reason.contains(&format!("computes in {dtype}")), "{row:?}");
        assert!(row.local.as_ref().unwrap().of_bound.unwrap() <= 1.0, "{row:?}");
    }
}

/// What leaves the projection in f32 may be kept in the narrow dtype: that rounds once, not twice as far.
#[test]
fn a_cache_in_the_declared_dtype_is_one_rounding_off_its_keys() {
    let bench = Bench::new();
    let verdict = |off: f64| {
        let kept = |point: Point, values: &mut Vec<f64>| {
            if matches!(point.stage, Stage::CacheK | Stage::CacheV) {
                for v in values {
                    let rounded = crate::compare::round(*v, Dtype::BF16);
                    *v += off * (rounded - *v);
                }
            }
        };
        let mut ours = bench.evidence("ours", Role::Subject, &kept);
        ours.computes = Some(Dtype::BF16);
        let reference = bench.evidence("ref", Role::Reference, &honest);
        find(&bench.judge(&[ours, reference]), "ours", "h.1.attn.cache.k", 0).verdict
    };
    assert_eq!(verdict(1.0), Verdict::Pass);
    assert_eq!(verdict(3.0), Verdict::Fail);
}

#[test]
fn the_same_numbers_declared_as_f32_fail() {
    let bench = Bench::new();
    let reference = bench.evidence("ref", Role::Reference, &honest);
    let verdicts = bench.judge(&[narrow(&bench, "ours", Dtype::BF16, false, &honest), reference]);
    assert_eq!(verdicts.verdict, RunVerdict::Fail);
}

#[test]
fn a_bug_in_a_narrow_dtype_is_found_where_it_is() {
    let bench = Bench::new();
    let reverse = |point: Point, values: &mut Vec<f64>| {
        if point.to_string() == "h.2.attn.out" {
            values.reverse();
        }
    };
    let reference = bench.evidence("ref", Role::Reference, &honest);
    let ours = narrow(&bench, "ours", Dtype::BF16, true, &reverse);
    let verdicts = bench.judge(&[ours, reference]);
    assert_eq!(verdicts.verdict, RunVerdict::Fail);
    let wrong: Vec<String> = verdicts
        .rows
        .iter()
        .filter(|r| r.kind == RowKind::Oracle && r.verdict == Verdict::Fail)
        .map(|r| r.point.to_string())
        .collect();
    assert!(!wrong.is_empty() && wrong.iter().all(|p| p == "h.2.attn.out"), "{wrong:?}");
}

#[test]
fn a_narrow_reference_widens_no_margin() {
    let bench = Bench::new();
    let ours = bench.evidence("ours", Role::Subject, &honest);
    let mut reference = narrow(&bench, "ref", Dtype::BF16, true, &honest);
    reference.role = Role::Reference;
    let all = [ours, reference];
    let options = JudgeOptions::default();
    let rows = OracleRows::of(&bench.plan, &all, &bench.truth, &options, Beforehand::default());
    assert_eq!(rows.admitted_error(&all, "c", 0), 0.0);
    assert!(rows.logits_error(&all, "c", 0, ["ours", "ref"]) > 0.0);
    let row = |who: &str| {
        rows.at("c", 0, Point::new(Stage::LogitsLast)).iter().find(|r| r.a == who).unwrap().ratio
    };
    assert_eq!(row("ours"), None);
}

/// Whatever of an implementation was recomputed before the others had answered, and however much of it.
#[test]
fn what_is_done_beforehand_changes_no_row() {
    let bench = Bench::new();
    let ours = bench.evidence("ours", Role::Subject, &scaled("h.2.attn.out", 1.001));
    let all = [
        ours,
        bench.evidence("ref", Role::Reference, &honest),
        narrow(&bench, "half", Dtype::F16, true, &honest),
    ];
    let options = JudgeOptions::default();
    let at_once = bench.judge(&all);
    let after = |whose: &[usize], points: usize| {
        let mut beforehand = Beforehand::default();
        let plan = Plan { points: bench.plan.points[..points].to_vec(), ..bench.plan.clone() };
        for who in whose {
            beforehand.add(&plan, &all[*who], &bench.truth, &options, &AtomicBool::new(false));
        }
        let verdicts = judge_the_rest(&bench.plan, &all, &bench.truth, &options, beforehand);
        serde_json::to_value(verdicts.rows).unwrap()
    };
    let expected = serde_json::to_value(at_once.rows).unwrap();
    let n = bench.plan.points.len();
    for (whose, points) in [(&[0][..], n), (&[2, 0, 1], n), (&[1, 0], n / 2)] {
        assert!(after(whose, points) == expected, "{whose:?}, {points} points");
    }
    // One that was stopped at once has done nothing.
    let mut stopped = Beforehand::default();
    stopped.add(&bench.plan, &all[0], &bench.truth, &options, &AtomicBool::new(true));
    assert!(stopped.is_empty());
}
