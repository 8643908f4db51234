//! `llorch-diff bisect` on engines with known bugs: the first cause, its signature, what it heals or
//! explains, and what can't be told. The NumPy adapter is installed first where it isn't yet.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use std::path::Path;
use std::process::Output;

use run_support::seeded::{Short, subject};
use run_support::{assert_conforms, diff, repository, texts};
use serde_json::Value;

/// A bug, the first cause that must be found, and its signature; in the case `short` where none is said.
struct Seeded {
    bug: &'static str,
    point: &'static str,
    signature: &'static str,
    step: u64,
}

const fn seeded(bug: &'static str, point: &'static str, signature: &'static str) -> Seeded {
    Seeded { bug, point, signature, step: 0 }
}

const fn later(
    bug: &'static str,
    step: u64,
    point: &'static str,
    signature: &'static str,
) -> Seeded {
    Seeded { bug, point, signature, step }
}

/// One of each kind; tests/bugs has many more.
const BUGS: [Seeded; 26] = [
    seeded("position_shift", "embeddings", "positions_shifted"),
    later("restarted_positions", 1, "embeddings", "positions_shifted"),
    seeded("eps:layer=2:which=ln_1", "h.2.ln_1", "eps"),
    seeded("unbiased_variance:layer=3:which=ln_1", "h.3.ln_1", "unbiased_variance"),
    seeded("transposed:layer=0:which=q", "h.0.attn.q", "transposed"),
    seeded("swapped_qkv:layer=1", "h.1.attn.q", "qkv_swapped"),
    seeded("rolled_heads:layer=1:which=k", "h.1.attn.k", "heads_permuted"),
    seeded("interleaved_heads:layer=2:which=v", "h.2.attn.v", "heads_interleaved"),
    seeded("dropped_bias:layer=3:which=v", "h.3.attn.v", "bias_missing"),
    later("stale_cache:layer=1", 1, "h.1.attn.cache.v", "cache_stale"),
    later("missing_cache_row:layer=1:which=k:step=2", 2, "h.1.attn.cache.k", "cache_row_missing"),
    later("shifted_cache:layer=0:step=1", 1, "h.0.attn.cache.v", "cache_shifted"),
    later("stale_cache:layer=1:which=k:hidden=1", 1, "h.1.attn.scores", "cache_stale"),
    seeded("missing_scale:layer=1", "h.1.attn.scores", "scale_missing"),
    seeded("doubled_scale:layer=2", "h.2.attn.scores", "scale_doubled"),
    seeded("scale_by_width:layer=3", "h.3.attn.scores", "scale_by_width"),
    seeded("mask_off:layer=2", "h.2.attn.probs", "mask_shifted"),
    seeded("mask_off:by=-1:layer=2", "h.2.attn.scores", "mask_shifted"),
    seeded("head_scale:layer=1:head=2", "h.1.attn.context", "scaled"),
    seeded("other_layer:layer=1:other=0", "h.1.attn.out", "other_layer"),
    seeded("missing_residual:layer=1", "h.1.resid_mid", "residual_missing"),
    seeded("post_norm:layer=3", "h.3.resid_mid", "post_norm"),
    seeded("erf_gelu:layer=1", "h.1.mlp.act", "gelu_erf"),
    seeded("dropped_bias_element:layer=2:which=mlp.c_fc", "h.2.mlp.fc", "bias_element_missing"),
    seeded("rounded_input:layer=1:to=bf16", "h.1.mlp.fc", "rounded_bf16"),
    seeded("reduced_sum:layer=3:to=f16", "h.3.mlp.fc", "reduced_sum"),
];

#[test]
fn each_kind_of_bug_is_found_named_and_healed() {
    let place = Bisect::new();
    for Seeded { bug, point, signature, step } in BUGS {
        let (found, output) = place.found(&[bug], &[]);
        let cause = &found["causes"][0];
        let told = (&cause["point"], &cause["signature"], &cause["step"]);
        assert_eq!(told, (&point.into(), &signature.into(), &step.into()), "{bug}: {found:#}");
        assert_eq!(cause["heals"], true, "{bug}: {found:#}");
        assert_eq!(found["causes"].as_array().unwrap().len(), 1, "{bug}: {found:#}");
        assert_eq!((output.status.code(), &found["between"]), (Some(1), &Value::Null), "{bug}");
    }
}

#[test]
fn the_first_line_says_all_of_it() {
    let place = Bisect::new();
    let output = place.bisect(&subject(&["transposed:layer=3"]), &["--ref", "numpy"]);
    let stdout = texts(&output).0;
    let first = stdout.lines().next().unwrap();
    assert!(first.starts_with("FIRST CAUSE h.3.attn.out · layer 3 · step 0 · local "), "{first}");
    assert!(
        first.ends_with("× the references · above the rounding bound · matches after transpose"),
        "{first}"
    );
    for part in
        ["certificate: at [", "local there of numpy ", "heals: ", "UNCHECKED real GPT-2 weights: "]
    {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    let last = stdout.lines().last().unwrap();
    assert!(
        last.starts_with("reproduce with: llorch-diff bisect --checkpoint attn --layer 3 "),
        "{last}"
    );

    // One head and one token, and without references the bound is what there is to compare with.
    let bug = "scaled:point=h.1.attn.v:head=3:token=4:value=0.99:step=0";
    let stdout = texts(&place.bisect(&subject(&[bug]), &["--ref", "none"])).0;
    let first = stdout.lines().next().unwrap();
    assert!(first.starts_with("FIRST CAUSE h.1.attn.v · layer 1 · step 0 · local "), "{first}");
    assert!(
        first.ends_with(
            "× the bound · above the rounding bound · head 3 · token 4 · matches after scaling by 0.99"
        ),
        "{first}"
    );

    let stdout = texts(&place.bisect(&subject(&["erf_gelu"]), &["--ref", "none"])).0;
    assert!(
        stdout.starts_with("FIRST CAUSE h.*.mlp.act · layers 0 to 3 · step 0 · local "),
        "{stdout}"
    );
}

#[test]
fn a_mistake_in_several_layers_or_norms_is_one_cause() {
    let place = Bisect::new();
    // In layer 1 alone this is what √E for √D does to four heads: both are said.
    let one = texts(&place.bisect(&subject(&["layer_scale:layer=1"]), &["--ref", "none"])).0;
    assert!(one.contains("matches with the scale 1/√E\n"), "{one}");
    assert!(
        one.contains("it matches as well with scores divided by the layer's number\n"),
        "{one}"
    );
    let (found, _) = place.found(&["layer_scale"], &[]);
    let causes = found["causes"].as_array().unwrap();
    assert_eq!(causes.len(), 1, "{found:#}");
    assert_eq!(causes[0]["signature"], "scale_by_layer");
    assert_eq!(causes[0]["layers"], serde_json::json!([1, 2, 3]));

    let (found, _) = place.found(&["outside_eps:layer=0"], &[]);
    let causes = found["causes"].as_array().unwrap();
    assert_eq!((causes.len(), &causes[0]["also"][0]), (1, &"h.0.ln_2".into()), "{found:#}");

    // The same kind of mistake with other figures in each layer.
    let bugs = ["scaled_scores:layer=1:times=1.5", "scaled_scores:layer=3:times=1.25"];
    let text = texts(&place.bisect(&subject(&bugs), &["--ref", "none"])).0;
    let first = text.lines().next().unwrap();
    assert!(first.contains(" · layers 1 and 3 · "), "{first}");
    assert!(first.ends_with("matches after scaling by 1.5 in layer 1"), "{first}");
}

#[test]
fn tokens_that_were_not_fed_come_before_all_that_they_do() {
    let place = Bisect::new();
    let text = texts(&place.bisect(&subject(&["reversed_tokens"]), &["--ref", "none"])).0;
    assert!(text.starts_with("FIRST CAUSE tokens · step 0\n"), "{text}");
    assert!(text.contains(" 262] where ") && text.contains(" 2975] were fed\n"), "{text}");
    let suite = place.0.suite();
    let run = diff()
        .args(["run", "--quiet", "--checkpoint", "0", "--suite", suite.to_str().unwrap()])
        .args(["--ref", "numpy", "--subject", &subject(&["reversed_tokens"])])
        .output()
        .unwrap();
    let (stdout, _) = texts(&run);
    assert!(stdout.lines().next().unwrap().contains("first at tokens (case short"), "{stdout}");
}

#[test]
fn what_came_in_from_points_that_were_not_looked_at_is_an_interval() {
    let place = Bisect::new();
    let bug = subject(&["missing_residual:layer=1"]);
    for (asked, point, after) in [
        (&["--checkpoint", "8", "--layer", "3"][..], "h.3", None),
        (&["--layer", "3"][..], "h.3.ln_1", None),
        (&["--checkpoint", "1"][..], "h.2.ln_1", Some("h.1.ln_1")),
        (&["--checkpoint", "9"][..], "logits.last", None),
        (&["--checkpoint", "10"][..], "argmax", None),
        (&["--checkpoint", "11"][..], "next.probs", None),
    ] {
        let (found, output) = place.json(&bug, asked);
        assert_eq!(output.status.code(), Some(4), "{asked:?}: {found:#}");
        assert_eq!(found["between"], serde_json::json!([after, point]), "{asked:?}: {found:#}");
        assert!(found["looked_at"][0].as_u64() < found["looked_at"][1].as_u64());
    }
    let asked = ["--ref", "none", "--checkpoint", "8", "--layer", "3"];
    let text = texts(&place.bisect(&bug, &asked)).0;
    assert!(
        text.starts_with("FIRST CAUSE between the input and h.3 · layer 3 · step 0\n"),
        "{text}"
    );
    assert!(text.contains("from points that were not looked at\n"), "{text}");
    // Nothing came in where nothing before was wrong.
    let (found, output) = place.json(&bug, &["--layer", "0"]);
    assert_eq!((output.status.code(), found["causes"].as_array().unwrap().len()), (Some(0), 0));
}

#[test]
fn a_wrong_reference_is_named_beside_a_cause() {
    let place = Bisect::new();
    let wrong = format!("wrong={}", subject(&["eps:layer=1"]));
    let text = texts(&place.bisect(&subject(&["transposed:layer=2"]), &["--ref", &wrong])).0;
    assert!(text.starts_with("FIRST CAUSE h.2.attn.out "), "{text}");
    assert!(text.contains("wrong by the float64 oracle: wrong: h.1.ln_1"), "{text}");
}

#[test]
fn tokens_are_shown_as_whole_numbers_beside_what_was_expected() {
    let place = Bisect::new();
    let text = texts(&place.bisect(&subject(&["second_best"]), &["--ref", "none"])).0;
    let shown = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap_or_else(|e| panic!("{e}: {line}"))
    };
    assert_ne!(shown("bug:"), shown("expected:"), "{text}");
}

#[test]
fn a_reference_that_broke_leaves_an_honest_engine_unconfirmed() {
    let place = Bisect::new();
    let broken = format!("broken={}", subject(&["wrong_shape:point=h.2.mlp.out"]));
    let output = place.bisect(&subject(&[]), &["--ref", &broken]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(4), "{stdout}{stderr}");
    assert!(stdout.starts_with("NO DIVERGENCE\n"), "{stdout}");
    assert!(stdout.contains("INCOMPLETE: broken "), "{stdout}");
}

#[test]
fn an_honest_subject_has_no_divergence() {
    let place = Bisect::new();
    let output = place.bisect(&subject(&[]), &["--ref", "none"]);
    let stdout = texts(&output).0;
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(
        stdout.starts_with("NO DIVERGENCE\nbug agrees with the float64 oracle in 1 case\n"),
        "{stdout}"
    );
}

#[test]
fn a_subject_that_cannot_inject_is_explained() {
    let place = Bisect::new();
    let filtered = |bugs: &[&str]| filtered("--without inject", &subject(bugs));
    let found = place.json(&filtered(&["erf_gelu:layer=1"]), &[]).0;
    let cause = &found["causes"][0];
    assert_eq!(
        (&cause["point"], &cause["signature"], &cause["heals"], &cause["explains"]),
        (&"h.1.mlp.act".into(), &"gelu_erf".into(), &Value::Null, &true.into()),
        "{found:#}"
    );
    // The first of two explains only its part.
    let found = place.json(&filtered(&["missing_residual:layer=1", "erf_gelu:layer=2"]), &[]).0;
    let told: Vec<_> = found["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["point"].as_str().unwrap(), c["explains"].as_bool()))
        .collect();
    assert_eq!(told, [("h.1.resid_mid", Some(false)), ("h.2.mlp.act", Some(true))], "{found:#}");
}

/// Two bugs, and the point and signature of two causes.
type Pair = (&'static [&'static str], [(&'static str, &'static str); 2]);

#[test]
fn two_bugs_are_two_causes_in_order() {
    let place = Bisect::new();
    let pairs: [Pair; 3] = [
        (
            &["transposed:layer=3", "eps:layer=0:which=ln_1"],
            [("h.0.ln_1", "eps"), ("h.3.attn.out", "transposed")],
        ),
        // By step first: the cache shows at step 1.
        (
            &["stale_cache:layer=1:step=1", "erf_gelu:layer=3"],
            [("h.3.mlp.act", "gelu_erf"), ("h.1.attn.cache.v", "cache_stale")],
        ),
        (
            &["swapped_qkv:layer=0", "dropped_bias:layer=0:which=mlp.c_proj"],
            [("h.0.attn.q", "qkv_swapped"), ("h.0.mlp.out", "bias_missing")],
        ),
    ];
    for (bugs, expected) in pairs {
        let (found, _) = place.found(bugs, &[]);
        let causes = found["causes"].as_array().unwrap();
        let told: Vec<_> = causes
            .iter()
            .map(|c| (c["point"].as_str().unwrap(), c["signature"].as_str().unwrap_or("none")))
            .collect();
        assert_eq!(told, expected, "{found:#}");
        assert!(causes.iter().all(|c| c["heals"] == true), "{found:#}");
    }
    // What a NaN hides shows when it is healed.
    let (found, _) = place.found(&["nan:point=h.0.mlp.out", "erf_gelu:layer=2"], &[]);
    let points: Vec<_> =
        found["causes"].as_array().unwrap().iter().map(|c| c["point"].clone()).collect();
    assert!(
        points.contains(&"h.0.mlp.out".into()) && points.contains(&"h.2.mlp.act".into()),
        "{found:#}"
    );
}

#[test]
fn where_inputs_are_hidden_there_is_an_interval() {
    let place = Bisect::new();
    let hide = "--hide 'h.*.attn.scores' --hide 'h.*.attn.probs'";
    let (found, output) = place.json(&filtered(hide, &subject(&["missing_scale:layer=1"])), &[]);
    assert_eq!(output.status.code(), Some(4), "{found:#}");
    assert_eq!(found["between"], serde_json::json!(["h.1.attn.cache.v", "h.1.attn.context"]));
    assert_eq!(found["causes"][0]["local"], Value::Null);
    let (found, output) = place.json(&filtered(hide, &subject(&[])), &[]);
    assert_eq!((output.status.code(), &found["causes"]), (Some(0), &serde_json::json!([])));
}

#[test]
fn a_saved_run_is_judged_anew() {
    let place = Bisect::new();
    let out = place.0.path("out");
    let out = out.to_str().unwrap();
    let run = diff()
        .args([
            "run",
            "--ref",
            "numpy",
            "--quiet",
            "--out",
            out,
            "--suite",
            place.0.suite().to_str().unwrap(),
        ])
        .args(["--subject", &subject(&["transposed:layer=2", "erf_gelu:layer=3"])])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", texts(&run).1);
    // Whatever the saved rows say.
    let file = place.0.path("out/result.json");
    let mut result: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    result["rows"] = serde_json::json!([]);
    std::fs::write(&file, result.to_string()).unwrap();
    let from = |more: &[&str]| {
        let arguments = [&["bisect", "--format", "json", "--from", out], more].concat();
        let output = diff().args(arguments).output().unwrap();
        let found: Value = serde_json::from_str(&texts(&output).0).unwrap();
        assert_conforms("bisect", &found);
        found
    };
    let found = from(&[]);
    assert_eq!(found["causes"][0]["signature"], "transposed");
    assert!(found["causes"][0]["explains"].is_boolean() && found["causes"][1]["explains"] == true);
    let found = from(&["--checkpoint", "ffn"]);
    assert_eq!(found["causes"][0]["point"], "h.3.mlp.act");
    let nothing = diff().args(["bisect", "--from", out, "--checkpoint", "qkv"]).output().unwrap();
    assert!(texts(&nothing).0.contains("points were looked at"), "{}", texts(&nothing).0);
}

#[test]
fn a_wrong_shape_is_said_to_be_one() {
    let place = Bisect::new();
    let output = place.bisect(&subject(&["wrong_shape:point=h.2.mlp.out"]), &["--ref", "none"]);
    let stdout = texts(&output).0;
    assert_eq!(output.status.code(), Some(5), "{stdout}");
    let first = stdout.lines().next().unwrap();
    assert!(
        first.starts_with(
            "NO VERDICT: bug failed: h.2.mlp.out: announced with shape [7, 127]; expected [7, 128]"
        ),
        "{stdout}"
    );
    assert!(!stdout.contains("agrees"), "{stdout}");
}

/// `llorch-diff bisect` on the short suite.
struct Bisect(Short);

impl Bisect {
    fn new() -> Bisect {
        Bisect(Short::new())
    }

    fn bisect(&self, subject: &str, more: &[&str]) -> Output {
        diff()
            .args(["bisect", "--quiet", "--suite", self.0.suite().to_str().unwrap()])
            .args(["--subject", subject])
            .args(more)
            .output()
            .unwrap()
    }

    fn json(&self, subject: &str, more: &[&str]) -> (Value, Output) {
        let arguments = [&["--ref", "none", "--format", "json"], more].concat();
        let output = self.bisect(subject, &arguments);
        let (stdout, stderr) = texts(&output);
        let found: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{subject}: {e}\n{stderr}"));
        assert_conforms("bisect", &found);
        (found, output)
    }

    /// What is found in the NumPy adapter with these bugs.
    fn found(&self, bugs: &[&str], more: &[&str]) -> (Value, Output) {
        self.json(&subject(bugs), more)
    }
}

/// An adapter, showing less.
fn filtered(options: &str, subject: &str) -> String {
    let script: &Path = &repository().join("tests/fixtures/filtered_adapter.py");
    format!("python3 -u '{}' {options} -- {subject}", script.display())
}
