//! `llorch-diff run` with our own engine on the shipped model, against itself: what needs no
//! reference, the daemon's part of checkpoints 0 and 12 above all.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use run_support::daemon::engine;
use run_support::{assert_conforms, diff, rows, texts};
use serde_json::Value;

fn run(arguments: &[&str]) -> (Value, i32, String) {
    let output = diff().args(["run", "--format", "json"]).args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    let result = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"));
    assert_conforms("result", &result);
    (result, output.status.code().unwrap(), stderr)
}

#[test]
fn the_engine_agrees_with_itself_with_the_oracle_and_with_its_daemon() {
    let again = format!("again={}", engine());
    let (result, code, stderr) = run(&["--ref", &again]);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    for checkpoint in 0..13 {
        let passed = rows(&result, &[("kind", "pair"), ("verdict", "PASS")]);
        assert!(passed.iter().any(|r| r["checkpoint"] == checkpoint), "checkpoint {checkpoint}");
    }
    let oracle = rows(&result, &[("kind", "oracle"), ("a", "llorch-cpud"), ("verdict", "PASS")]);
    let (steps, points) = (10 + 3 + 3 + 3 + 3, 4 * 16 + 4);
    assert_eq!(oracle.len(), steps * points, "every stage at every step of every case");
    let local = oracle.iter().filter(|r| r["local"]["verdict"] == "PASS");
    assert_eq!(local.count(), steps * points, "each stage is right by itself");
    for (point, cases) in [("tokens", 5), ("generated", 4)] {
        let served = rows(&result, &[("kind", "self"), ("point", point), ("verdict", "PASS")]);
        let over_http = |r: &&&Value| r["reason"].as_str().unwrap().contains("over HTTP");
        assert_eq!(served.iter().filter(over_http).count(), cases, "{point}");
    }
}

/// In bf16, daemon included, in all cases: right by the rounding of bf16, and not by that of f32.
#[test]
fn the_engine_in_bf16_is_right_stage_by_stage() {
    let again = format!("again={}", engine());
    let (result, code, stderr) = run(&["--ref", &again, "--dtype", "bf16"]);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    let oracle = rows(&result, &[("kind", "oracle"), ("a", "llorch-cpud")]);
    let passed = oracle.iter().filter(|r| r["local"]["verdict"] == "PASS").count();
    assert!(passed == oracle.len() && passed > 600, "{passed} of {}", oracle.len());
    let largest = oracle.iter().filter_map(|r| r["local"]["max_abs"].as_f64()).fold(0.0, f64::max);
    assert!(largest > 1e-3, "{largest:e} is the rounding of f32");
}

/// Whatever instructions the kernels are made of: the same bits, and right. (`env` is how a user would force it.)
#[test]
fn every_dispatch_path_passes_with_the_same_bits() {
    let forced = |level: &str| format!("env LLORCH_SIMD={level} {}", engine());
    let (portable, avx2) = (forced("portable"), forced("avx2"));
    let (result, code, stderr) = run(&[
        "--ref",
        &format!("portable={portable}"),
        "--ref",
        &format!("avx2={avx2}"),
        "--prompt",
        "Hello.",
    ]);
    assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{stderr}");
    for other in ["portable", "avx2"] {
        let pairs = rows(&result, &[("kind", "pair"), ("a", "llorch-cpud"), ("b", other)]);
        assert!(pairs.len() > 700, "{} rows with {other}", pairs.len());
        for checkpoint in 0..13 {
            assert!(pairs.iter().any(|r| r["checkpoint"] == checkpoint), "{other}: {checkpoint}");
        }
        let differing = pairs.iter().find(|r| r["max_abs"].as_f64().is_some_and(|d| d > 0.0));
        assert!(differing.is_none(), "{differing:?}");
    }
    for subject in [portable, avx2] {
        let again = format!("again={}", engine());
        let (result, code, stderr) =
            run(&["--subject", &subject, "--ref", &again, "--dtype", "bf16", "--prompt", "Hello."]);
        assert_eq!((code, &result["verdict"]), (0, &"PASS".into()), "{subject}: {stderr}");
    }
}

#[test]
fn a_saved_run_is_judged_again_offline_by_other_tolerances() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let again = format!("again={}", engine());
    let (saved, code, stderr) = run(&["--ref", &again, "--prompt", "Hello.", "--out", out]);
    assert_eq!(code, 0, "{stderr}");
    let judge = |arguments: &[&str]| {
        let judge =
            diff().args(["judge", out, "--format", "json"]).args(arguments).output().unwrap();
        let (stdout, stderr) = texts(&judge);
        (serde_json::from_str(&stdout).unwrap_or(Value::Null), judge.status.code(), stderr)
    };
    let (same, code, stderr) = judge(&[]);
    assert_eq!((code, &same["rows"]), (Some(0), &saved["rows"]), "{stderr}");
    // Equal to itself, but to the oracle only within rounding.
    let (strict, code, _) = judge(&["--tolerance", "qkv=1e-12"]);
    assert_conforms("result", &strict);
    assert_eq!((code, &strict["verdict"]), (Some(1), &"FAIL".into()));
    assert_eq!(strict["tolerances"], serde_json::json!({ "2": 1e-12 }));
    let failed = rows(&strict, &[("verdict", "FAIL")]);
    assert!(failed.iter().all(|r| r["checkpoint"] == 2 && r["kind"] == "oracle"), "{failed:#?}");
    let (_, code, stderr) = judge(&["--tolerance", "nosuch=1"]);
    assert!(code == Some(2) && stderr.contains("no checkpoint \"nosuch\""), "{stderr}");

    let limits = diff().args(["limits", out, "--format", "json"]).output().unwrap();
    let limits: Value = serde_json::from_str(&texts(&limits).0).unwrap();
    assert_conforms("limits", &limits);
    assert_eq!(limits["limits"].as_array().unwrap().len(), 20, "every stage");
    let nobody = diff().args(["limits", out, "--of", "nobody"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(2), "{}", texts(&nobody).1);

    // Without the weights the totals are still judged, and the rest is said to be unchecked.
    let evidence = std::path::Path::new(out).join("evidence.json");
    let result = std::path::Path::new(out).join("result.json");
    for file in [&evidence, &result] {
        let text = std::fs::read_to_string(file).unwrap();
        let sha256 = saved["model"]["sha256"].as_str().unwrap();
        std::fs::write(file, text.replace(sha256, &"0".repeat(64))).unwrap();
    }
    let (without, code, _) = judge(&[]);
    assert_eq!((code, &without["verdict"]), (Some(4), &"INCOMPLETE".into()));
    let unchecked = without["unchecked"].as_array().unwrap();
    assert!(unchecked.iter().any(|u| u["what"].as_str().unwrap().contains("local errors")));
}
