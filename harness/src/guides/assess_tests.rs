//! Levels and next checkpoints of results that are made up row by row.

use llorch_trace::Point;
use llorch_trace::protocol::{Sampling, Worth};

use super::assess::{Assessment, Level, assess};
use crate::judge::Overrides;
use crate::result::{
    CaseRecord, Implementation, ModelKind, ModelRecord, Role, Row, RowKind, RunResult, RunVerdict,
    SCHEMA, Status, Verdict,
};

/// A point of each checkpoint.
const POINTS: [&str; 13] = [
    "embeddings",
    "h.0.ln_1",
    "h.0.attn.q",
    "h.0.attn.cache.k",
    "h.0.attn.scores",
    "h.0.attn.out",
    "h.0.mlp.act",
    "h.0",
    "logits",
    "logits.last",
    "argmax",
    "next.probs",
    "generated",
];

fn implementation(name: &str, role: Role) -> Implementation {
    Implementation {
        name: name.into(),
        role,
        lock_sha256: None,
        version: "1".into(),
        worth: Some(Worth::Semantics),
        status: Status::Ok,
        reason: String::new(),
        mend: None,
        recipes: Default::default(),
    }
}

/// `mine` against `x` at every checkpoint, in a cold case and in a warm one.
fn result(kind: ModelKind, verdict: impl Fn(u8) -> Option<Verdict>) -> RunResult {
    let case = |name: &str, temperature: f64| CaseRecord {
        name: name.into(),
        prompt: None,
        ids: vec![1],
        max_new_tokens: 1,
        sampling: Sampling { temperature, ..Sampling::default() },
        forced_ids: vec![1],
        generated: Default::default(),
    };
    let mut rows = Vec::new();
    for case in ["cold", "warm"] {
        for (number, point) in (0u8..).zip(POINTS) {
            if let Some(verdict) = verdict(number) {
                let point: Point = point.parse().unwrap();
                let row = Row::new(case, 0, point, RowKind::Pair, "mine", "x");
                rows.push(Row { verdict, ..row });
            }
        }
    }
    let failed = rows.iter().any(|r| r.verdict == Verdict::Fail);
    RunResult {
        means: Default::default(),
        machine: None,
        schema: SCHEMA.into(),
        verdict: if failed { RunVerdict::Fail } else { RunVerdict::Pass },
        started: String::new(),
        seconds: Default::default(),
        command: Vec::new(),
        model: ModelRecord {
            name: "gpt2".into(),
            kind,
            source: String::new(),
            revision: None,
            sha256: String::new(),
            config: serde_json::Value::Null,
        },
        implementations: vec![
            implementation("mine", Role::Subject),
            implementation("x", Role::Reference),
        ],
        cases: vec![case("cold", 0.0), case("warm", 0.8)],
        rows,
        odd: Vec::new(),
        tolerances: Overrides::default(),
        unchecked: Vec::new(),
        assessment: None,
        strategy: None,
        isolate: None,
        partition: None,
    }
}

fn level(result: &RunResult) -> (Level, String) {
    let Assessment { level, lacking, .. } = assess(result);
    (level.unwrap(), lacking.join("; "))
}

#[test]
fn production_takes_real_weights_and_cases_of_both_kinds() {
    let pass = |_| Some(Verdict::Pass);
    let whole = result(ModelKind::Real, pass);
    assert_eq!(level(&whole), (Level::Production, String::new()));
    assert_eq!(assess(&whole).next, None);
    assert_eq!(assess(&whole).level_line().unwrap(), "production: nothing is lacking");

    let (reached, lacking) = level(&result(ModelKind::Synthetic, pass));
    assert_eq!(reached, Level::Recommended);
    assert_eq!(lacking, "real weights (`llorch-diff run --model gpt2`)");

    let mut cold = whole.clone();
    cold.cases.truncate(1);
    cold.rows.retain(|r| r.case == "cold");
    let (reached, lacking) = level(&cold);
    assert_eq!(reached, Level::Recommended);
    assert!(lacking.contains("a second case") && lacking.contains("above temperature 0"));

    // A case that is there and whose draws nobody looked at counts for nothing.
    let mut unseen = whole.clone();
    let warm = |r: &&mut Row| r.case == "warm" && r.checkpoint == 11;
    unseen.rows.iter_mut().filter(warm).for_each(|r| r.verdict = Verdict::Unchecked);
    assert!(level(&unseen).1.contains("above temperature 0"), "{}", level(&unseen).1);

    let mut broke = whole;
    broke.verdict = RunVerdict::Incomplete;
    assert_eq!(level(&broke), (Level::Recommended, "the run is INCOMPLETE".into()));
}

#[test]
fn recommended_takes_1_to_12_and_minimum_takes_12() {
    let without_0 = result(ModelKind::Real, |n| (n > 0).then_some(Verdict::Pass));
    assert_eq!(level(&without_0), (Level::Recommended, "checkpoint 0 (not compared)".into()));
    let wrong_0 = |n| Some(if n == 0 { Verdict::Fail } else { Verdict::Pass });
    assert_eq!(level(&result(ModelKind::Real, wrong_0)).0, Level::Minimum);

    let some = |n| match n {
        4 | 6 => Some(Verdict::Fail),
        5 => None,
        _ => Some(Verdict::Warn),
    };
    let (reached, lacking) = level(&result(ModelKind::Real, some));
    assert_eq!(reached, Level::Minimum);
    assert_eq!(lacking, "checkpoints 4 and 6 (FAIL); checkpoint 5 (not compared)");
    let without_12 = result(ModelKind::Real, |n| (n < 12).then_some(Verdict::Pass));
    assert_eq!(level(&without_12), (Level::None, "checkpoint 12 (not compared)".into()));
}

#[test]
fn the_next_checkpoint_is_the_first_fault_then_the_first_that_is_open() {
    let next = |verdict: &dyn Fn(u8) -> Option<Verdict>| {
        assess(&result(ModelKind::Real, verdict)).next.map(|n| (n.checkpoint, n.why))
    };
    let found = next(&|n| Some(if n == 5 || n == 2 { Verdict::Fail } else { Verdict::Pass }));
    assert_eq!(found, Some((2, "h.0.attn.q is the first that differs".into())));
    let found = next(&|n| Some(if n == 5 { Verdict::Error } else { Verdict::Pass }));
    assert_eq!(found, Some((5, "h.0.attn.out is the first that could not be compared".into())));
    let found = next(&|n| (n == 4).then_some(Verdict::Pass));
    assert_eq!(found, Some((5, "it was not compared".into())));
    let found = next(&|n| Some(if n == 3 { Verdict::Unchecked } else { Verdict::Pass }));
    assert_eq!(found, Some((3, "no reference checked it".into())));
}
