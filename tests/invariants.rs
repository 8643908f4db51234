//! `llorch-diff invariants`: the engine keeps all of them, and each is seen to be broken by a bug that
//! breaks it.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::collections::BTreeSet;

use run_support::seeded::bug_adapter;
use run_support::{Place, assert_conforms, diff, fake, texts};
use serde_json::Value;

const ALL: [&str; 16] = [
    "cache",
    "prefill",
    "sums",
    "masked",
    "next_probs",
    "causality",
    "repeat",
    "processes",
    "threads",
    "norm_mean",
    "norm_variance",
    "last_logits",
    "argmax",
    "draws",
    "seed",
    "first_draw",
];

fn invariants(mut command: std::process::Command, arguments: &[&str]) -> (Value, i32, String) {
    let output = command.args(["--format", "json"]).args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    let report = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("invariants", &report);
    (report, output.status.code().unwrap(), stderr)
}

fn row<'a>(report: &'a Value, invariant: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().find(|r| r["invariant"] == invariant).unwrap_or_else(|| panic!("no {invariant}"))
}

fn with_verdict(report: &Value, verdict: &str) -> BTreeSet<String> {
    let rows = report["rows"].as_array().unwrap().iter().filter(|r| r["verdict"] == verdict);
    rows.map(|r| r["invariant"].as_str().unwrap().to_string()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| n.to_string()).collect()
}

/// The tiny model and a suite in which tokens are drawn as well.
fn place() -> Place {
    let place = Place::new();
    let suite = "schema = \"llorch.suite/1\"\n\
        [[case]]\nname = \"greedy\"\nids = [3, 1, 4, 1, 5]\nmax_new_tokens = 3\n\
        [[case]]\nname = \"drawn\"\nids = [7]\nmax_new_tokens = 3\n\
        sampling = { temperature = 0.9, top_k = 8, top_p = 0.9, seed = 3 }\n";
    std::fs::write(place.path("suite.toml"), suite).unwrap();
    // The shared one is of a kind that the oracle doesn't know; adapters that compute don't either.
    let config = place.path("model/config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    json["activation_function"] = "gelu_new".into();
    std::fs::write(config, json.to_string()).unwrap();
    place
}

fn of_subject(place: &Place, subject: &str) -> (Value, i32, String) {
    invariants(place.command("invariants"), &["--threads", "2", "--subject", subject])
}

#[test]
fn the_engine_keeps_all_invariants_bit_for_bit() {
    let mut command = diff();
    command.arg("invariants");
    let (report, code, stderr) = invariants(command, &["--threads", "2"]);
    assert_eq!((code, &report["verdict"]), (0, &"PASS".into()), "{stderr}\n{report:#}");
    assert_eq!(with_verdict(&report, "PASS"), set(&ALL));
    assert_eq!(report["unchecked"], serde_json::json!([]));
    for invariant in ["prefill", "causality", "repeat", "processes", "threads"] {
        let row = row(&report, invariant);
        assert!(row["rule"].as_str().unwrap().contains("bit for bit"), "{row}");
        assert!(row["comparisons"].as_u64().unwrap() > 1_000_000, "{row}");
        assert_eq!(row["largest"], 0.0, "{row}");
    }
    // Every layer's norms twice and the last, for every token of every step.
    let rows: u64 = (2 + 9) + (1 + 2) + (81 + 2) + (42 + 2) + (4 + 2);
    assert_eq!(row(&report, "norm_mean")["comparisons"], 9 * rows);
}

#[test]
fn an_honest_stranger_passes_within_tolerances() {
    let place = place();
    let (report, code, stderr) = of_subject(&place, bug_adapter());
    assert_eq!((code, &report["verdict"]), (0, &"PASS".into()), "{stderr}\n{report:#}");
    assert_eq!(with_verdict(&report, "PASS"), set(&ALL));
    let rule = |invariant| row(&report, invariant)["rule"].as_str().unwrap().to_string();
    assert!(rule("prefill").contains("tolerance of each checkpoint"), "{}", rule("prefill"));
    assert!(rule("processes").contains("it declares `deterministic`"), "{}", rule("processes"));
}

/// Each invariant is broken by one of these at least.
#[test]
fn each_invariant_is_seen_to_be_broken() {
    // The bug, what must FAIL, and what must not.
    let bugs: [(&str, &[&str], &[&str]); 20] = [
        ("stale_cache", &["cache", "prefill"], &["repeat", "processes", "norm_mean"]),
        ("restarted_positions", &["prefill"], &["cache", "causality", "repeat"]),
        ("scaled:point=h.1.attn.probs:value=1.001", &["sums"], &["masked", "repeat"]),
        ("unnormalised_probs", &["sums", "next_probs"], &["cache", "masked"]),
        ("mask_off", &["masked", "causality"], &["cache", "repeat", "norm_mean"]),
        ("ignored_top_p", &["next_probs", "draws"], &["seed", "first_draw", "sums"]),
        ("missing_mask", &["causality", "prefill", "masked"], &["repeat", "processes"]),
        ("left_over", &["repeat"], &["cache", "sums", "norm_mean"]),
        ("of_process", &["processes"], &["repeat", "prefill", "causality"]),
        ("lost_part", &["threads"], &["repeat", "processes", "prefill", "causality"]),
        ("uncentred_norm:layer=1", &["norm_mean"], &["repeat", "prefill"]),
        ("eps:value=1e-3:layer=0", &["norm_variance"], &["norm_mean", "prefill"]),
        ("unbiased_variance:layer=1:which=ln_2", &["norm_variance"], &["norm_mean"]),
        ("logit_off", &["last_logits"], &["cache", "norm_variance", "repeat"]),
        ("second_best", &["argmax"], &["last_logits", "repeat", "prefill"]),
        ("ignored_temperature", &["draws", "next_probs"], &["seed", "sums", "first_draw"]),
        ("top_k_plus_one", &["draws", "next_probs"], &["seed", "sums", "first_draw"]),
        ("biased_generator", &["draws"], &["next_probs", "seed", "first_draw"]),
        ("unseeded", &["seed"], &["draws", "next_probs"]),
        ("other_sampler", &["first_draw"], &["draws", "seed", "next_probs"]),
    ];
    let (place, adapter) = (place(), bug_adapter());
    let mut seen = BTreeSet::new();
    for (bug, broken, kept) in bugs {
        let (report, code, stderr) = of_subject(&place, &format!("{adapter} --bug {bug}"));
        assert_eq!((code, &report["verdict"]), (1, &"FAIL".into()), "{bug}\n{stderr}\n{report:#}");
        let failed = with_verdict(&report, "FAIL");
        assert!(set(broken).is_subset(&failed), "{bug}: {failed:?}\n{report:#}");
        assert!(set(kept).is_disjoint(&failed), "{bug}: {failed:?}\n{report:#}");
        seen.extend(set(broken));
    }
    assert_eq!(seen, set(&ALL), "an invariant that no bug breaks");
}

#[test]
fn a_failure_says_where_it_is_first() {
    let (place, adapter) = (place(), bug_adapter());
    let subject = format!("{adapter} --bug stale_cache:layer=1:which=k");
    let (report, ..) = of_subject(&place, &subject);
    let first = &row(&report, "cache")["first"];
    let found = (&first["case"], &first["step"], &first["point"], &first["index"]);
    let expected =
        ("greedy".into(), 1.into(), "h.1.attn.cache.k".into(), serde_json::json!([0, 5, 0]));
    assert_eq!(found, (&expected.0, &expected.1, &expected.2, &expected.3));
    let output = place.command("invariants").args(["--subject", &subject]).output().unwrap();
    let (stdout, _) = texts(&output);
    let line = stdout.lines().next().unwrap();
    assert!(line.starts_with("FAIL · bug breaks "), "{line}");
    assert!(line.contains("the cache is k and v of all steps so far"), "{line}");
    assert!(stdout.contains("first at case greedy, h.1.attn.cache.k, step 1 [0,5,0]"), "{stdout}");
}

#[test]
fn what_a_subject_cannot_do_is_unchecked_and_lowers_nothing() {
    let place = place();
    let (report, code, stderr) = of_subject(&place, &fake("--only 'h.*.attn.*'"));
    assert_eq!((code, &report["verdict"]), (0, &"PASS".into()), "{stderr}\n{report:#}");
    assert_eq!(
        with_verdict(&report, "PASS"),
        set(&["cache", "sums", "masked", "causality", "repeat", "processes", "threads"])
    );
    let unchecked = report["unchecked"].as_array().unwrap();
    assert!(unchecked.iter().all(|u| u["kind"] == "unsupported"), "{unchecked:#?}");
    for (what, reason) in [
        ("prefill = token by token", "it has no decode steps"),
        ("draws follow the probabilities", "it does not declare `draw`"),
        ("layer norms: mean 0", "not written yet"),
    ] {
        let says = |u: &&Value| {
            u["what"] == what && u["reason"].as_str().is_some_and(|r| r.contains(reason))
        };
        assert!(unchecked.iter().any(|u| says(&u)), "{what}: {unchecked:#?}");
    }
}

#[test]
fn a_prompt_too_short_to_show_anything_makes_it_incomplete() {
    let place = place();
    let suite =
        "schema = \"llorch.suite/1\"\n[[case]]\nname = \"one\"\nids = [7]\nmax_new_tokens = 1\n";
    std::fs::write(place.path("suite.toml"), suite).unwrap();
    let (report, code, stderr) = of_subject(&place, bug_adapter());
    assert_eq!((code, &report["verdict"]), (4, &"INCOMPLETE".into()), "{stderr}\n{report:#}");
    assert_eq!(with_verdict(&report, "UNCHECKED"), set(&["prefill", "masked", "causality"]));
}

#[test]
fn a_subject_that_breaks_is_an_error_and_one_that_is_not_there_an_unfit_environment() {
    let place = place();
    let broken = [
        ("--mode crash", "ended (signal 11"),
        ("--mode drop --point h.0.ln_1", "h.0.ln_1 at step 0 was asked for and did not come"),
        ("--mode wrong-shape --point h.0.ln_1", "h.0.ln_1"),
        ("--mode garbage", "something else than protocol messages"),
        ("--mode error-internal", "an error of class internal"),
        ("--mode error-at-load", "not enough memory"),
        ("--mode too-few-tokens", "generated 2 tokens; expected 3"),
    ];
    for (options, expected) in broken {
        let (report, code, _) = of_subject(&place, &fake(options));
        assert_eq!((code, &report["verdict"]), (5, &"ERROR".into()), "{options}\n{report:#}");
        let reasons: Vec<_> =
            report["rows"].as_array().unwrap().iter().map(|r| &r["reason"]).collect();
        let told = reasons.iter().any(|r| r.as_str().unwrap().contains(expected));
        assert!(told, "{options}: expected {expected}\n{reasons:#?}");
    }
    for (subject, code, expected) in [
        ("/no/such/engine", 3, "failed to start"),
        ("http://127.0.0.1:1", 2, "nobody can set the threads of a running daemon"),
        ("'unclosed", 2, "unclosed"),
    ] {
        let output = place.command("invariants").args(["--subject", subject]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{subject}: {}", texts(&output).1);
        assert!(texts(&output).1.contains(expected), "{subject}: {}", texts(&output).1);
    }
}
