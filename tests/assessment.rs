//! What `llorch-diff run` says a run amounts to: the level, the next checkpoint, the likely cause, and
//! where `--strategy` stops. Subjects are the NumPy adapter with and without a seeded bug.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use run_support::seeded::{Short, subject};
use run_support::{Place, assert_conforms, diff, fake, texts};
use serde_json::{Value, json};

struct Run {
    short: Short,
}

impl Run {
    fn new() -> Run {
        Run { short: Short::new() }
    }

    fn text(&self, bugs: &[&str], arguments: &[&str]) -> (String, i32) {
        let output = diff()
            .args(["run", "--quiet", "--ref", "numpy", "--subject", &subject(bugs)])
            .args(["--suite", self.short.suite().to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(!stdout.is_empty(), "{stderr}");
        (stdout, output.status.code().unwrap())
    }

    fn result(&self, bugs: &[&str], arguments: &[&str]) -> (Value, i32) {
        let (stdout, code) = self.text(bugs, &[&["--format", "json"], arguments].concat());
        let result = serde_json::from_str(&stdout).unwrap();
        assert_conforms("result", &result);
        (result, code)
    }
}

fn unchecked(result: &Value) -> Vec<&str> {
    let all = result["unchecked"].as_array().unwrap().iter();
    all.filter_map(|u| u["what"].as_str()).filter(|w| w.starts_with("checkpoint ")).collect()
}

fn checkpoints_with_rows(result: &Value) -> Vec<u64> {
    let rows = result["rows"].as_array().unwrap();
    let mut numbers: Vec<u64> = rows.iter().filter_map(|r| r["checkpoint"].as_u64()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

#[test]
fn a_run_that_passes_tells_its_level_and_what_the_next_one_lacks() {
    let run = Run::new();
    let (result, code) = run.result(&[], &[]);
    let assessment = &result["assessment"];
    assert_eq!((code, &assessment["level"]), (0, &json!("recommended")), "{assessment:#}");
    assert_eq!((&assessment["next"], &assessment["likely"]), (&Value::Null, &Value::Null));
    let lacking: Vec<&str> =
        assessment["lacking"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for part in ["a second case", "above temperature 0", "real weights"] {
        assert!(lacking.iter().any(|l| l.contains(part)), "{part}: {lacking:?}");
    }

    // Some checkpoints only: nothing is claimed of the others.
    let (result, _) = run.result(&[], &["--checkpoint", "ln", "--checkpoint", "qkv"]);
    let assessment = &result["assessment"];
    assert_eq!(assessment["level"], "none", "{assessment:#}");
    assert_eq!(assessment["next"]["checkpoint"], 3, "onwards from the last that passes");
    let (stdout, _) = run.text(&[], &["--checkpoint", "e2e"]);
    assert!(stdout.contains("\nLEVEL minimum · recommended lacks: checkpoints 1, 2, "), "{stdout}");

    // Isolated stages are no run.
    let (result, _) = run.result(&[], &["--isolate", "--checkpoint", "ln"]);
    assert_eq!(result["assessment"]["level"], Value::Null);
}

#[test]
fn a_failure_names_the_stage_first_and_what_people_get_wrong_there() {
    let run = Run::new();
    let (stdout, code) = run.text(&["erf_gelu:layer=1"], &[]);
    assert_eq!(code, 1);
    // By the table alone it would be attention: checkpoint 4 fails too, by what came in.
    for part in [
        "\nLIKELY CAUSE the MLP: ",
        "(a hint; the stage itself is measured)",
        "\nLOOK AT mlp.act at x = −1",
        "\nNEXT checkpoint 6 · FFN output: h.1.mlp.act is the first that is wrong by itself; `llorch-diff explain 6`",
        "    hint: gelu_new is the tanh form",
        "  more of this checkpoint: llorch-diff explain 6",
    ] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    let (markdown, _) = run.text(&["erf_gelu:layer=1"], &["--format", "md"]);
    for part in ["- **Likely cause**: the MLP", "- **Next**: checkpoint 6", "  Hint: gelu_new"] {
        assert!(markdown.contains(part), "{part}\n{markdown}");
    }
    for (bug, checkpoint, pattern) in [
        ("position_shift", 0, "weights-or-positions"),
        ("swapped_qkv:layer=1", 2, "basic-operations"),
        ("stale_cache:layer=1", 3, "cache"),
        ("mask_off:layer=2", 4, "scale-or-mask"),
        ("missing_residual:layer=0:which=mlp", 7, "residual"),
        ("eps:which=ln_f", 8, "head"),
        ("second_best", 10, "choice"),
    ] {
        let (result, code) = run.result(&[bug], &[]);
        let assessment = &result["assessment"];
        assert_eq!((code, &assessment["next"]["checkpoint"]), (1, &json!(checkpoint)), "{bug}");
        assert_eq!(assessment["likely"]["pattern"], pattern, "{bug}: {assessment:#}");
        assert_eq!(assessment["likely"]["stage_is_known"], true, "{bug}");
    }
    // Nothing that is recomputed is wrong: the table has the word.
    let (result, _) = run.result(&["free_second_best:step=2"], &[]);
    let likely = &result["assessment"]["likely"];
    assert_eq!(
        (&likely["pattern"], &likely["stage_is_known"]),
        (&json!("only-e2e"), &json!(false))
    );
    assert_eq!(result["assessment"]["level"], "none");
}

#[test]
fn without_the_oracle_the_first_difference_and_the_table_decide() {
    let place = Place::new();
    let subject = fake("--name mine --mode wrong-value --point h.1.attn.q");
    let x = format!("x={}", fake(""));
    let mut arguments = vec!["--subject", &subject, "--ref", &x, "--timeout", "60"];
    for checkpoint in ["ln", "qkv", "scores", "attn", "ffn", "block"] {
        arguments.extend(["--checkpoint", checkpoint]);
    }
    let (result, code) = place.result(&arguments);
    let assessment = &result["assessment"];
    assert_eq!((code, &assessment["next"]["checkpoint"]), (1, &json!(2)), "{assessment:#}");
    let why = assessment["next"]["why"].as_str().unwrap();
    assert_eq!(why, "h.1.attn.q is the first that differs");
    assert_eq!(assessment["likely"]["pattern"], "operations-or-layout");
    assert_eq!(assessment["likely"]["stage_is_known"], false);
}

#[test]
fn a_strategy_stops_where_it_stops_and_names_what_it_left_out() {
    let run = Run::new();
    let bug = "erf_gelu:layer=1";
    let out = run.short.path("out");
    let arguments = ["--strategy", "sequential", "--out", out.to_str().unwrap()];
    let (result, code) = run.result(&[bug], &arguments);
    let strategy = &result["strategy"];
    assert_eq!((code, &result["verdict"]), (1, &json!("FAIL")));
    assert_eq!(strategy["looked_at"], json!([0, 1, 2, 3, 4, 5, 6]), "{strategy:#}");
    assert_eq!(checkpoints_with_rows(&result), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(unchecked(&result).len(), 6);
    assert_eq!(unchecked(&result)[0], "checkpoint 7 (First block)");
    assert_eq!(result["assessment"]["next"]["checkpoint"], 6);
    // All of it was collected, once: the saved run has the rest.
    let judged = diff().args(["judge", "--format", "json"]).arg(&out).output().unwrap();
    let judged: Value = serde_json::from_str(&texts(&judged).0).unwrap();
    assert_conforms("result", &judged);
    assert_eq!(checkpoints_with_rows(&judged).len(), 13);
    assert!(judged.get("strategy").is_none() && unchecked(&judged).is_empty());

    let (result, code) = run.result(&[bug], &["--strategy", "critical"]);
    let looked: Vec<u64> = serde_json::from_value(result["strategy"]["looked_at"].clone()).unwrap();
    assert_eq!((code, looked.last()), (1, Some(&6)), "{looked:?}");
    assert_eq!(looked[..5], [2, 4, 5, 8, 12], "the critical ones first");

    // Its text survives an erf GELU: backwards there is nothing to see, and nothing is claimed.
    let (stdout, code) = run.text(&[bug], &["--strategy", "backwards"]);
    assert_eq!(code, 4, "{stdout}");
    assert!(stdout.starts_with("INCOMPLETE · bug against numpy: 1 of 13 checkpoints"), "{stdout}");
    assert!(stdout.contains("\nSTRATEGY backwards: looked at 1 of 13; checkpoint 12 passes"));
    assert!(stdout.contains("  checkpoint 6 (FFN output): left out by --strategy backwards"));
    assert!(!stdout.contains("h.1.mlp.act"), "{stdout}");

    let bug = "missing_residual:layer=2:which=mlp";
    let (result, code) = run.result(&[bug], &["--strategy", "backwards"]);
    assert_eq!((code, &result["verdict"]), (1, &json!("FAIL")));
    assert_eq!(result["strategy"]["looked_at"], json!([12, 11, 10, 9, 8, 7]));
    assert_eq!(result["strategy"]["stopped_after"], 7);
    assert_eq!(result["assessment"]["next"]["checkpoint"], 8, "the fault lies just behind it");
}

#[test]
fn a_strategy_that_goes_through_everything_leaves_nothing_out() {
    let run = Run::new();
    let (result, code) = run.result(&[], &["--strategy", "sequential"]);
    assert_eq!((code, &result["verdict"]), (0, &json!("PASS")));
    assert_eq!(result["strategy"]["stopped_after"], Value::Null);
    assert!(unchecked(&result).is_empty());
    assert_eq!(result["assessment"]["level"], "recommended");
}
