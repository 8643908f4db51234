//! `llorch-diff compare` on what other programs wrote: torch, TransformerLens, llama.cpp.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod dumps;
mod run_support;

use std::path::{Path, PathBuf};
use std::process::Command;

use dumps::*;
use llorch_diff::dumps::compare::{Compared, compare};
use llorch_diff::result::{RunVerdict, Verdict};
use run_support::{assert_conforms, diff, repository, texts};

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/dumps").join(name)
}

/// Hugging Face's own tensors of nano.
fn golden() -> PathBuf {
    repository().join("golden/nano/hf-f32")
}

fn hello(sources: &[&Path]) -> Compared {
    let mut told = args(sources);
    told.case = Some("hello".into());
    compare(&told).unwrap()
}

fn passed(compared: &Compared, expected: &[&str]) {
    let found = points(compared, Verdict::Pass);
    for point in expected {
        assert!(found.iter().any(|p| p == point), "{point} is not in {found:?}");
    }
}

/// What there is of a block in both.
const OF_A_BLOCK: [&str; 13] = [
    "ln_1",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.scores",
    "attn.probs",
    "attn.context",
    "attn.out",
    "resid_mid",
    "ln_2",
    "mlp.fc",
    "mlp.act",
    "mlp.out",
];

fn of_blocks(blocks: &[usize]) -> Vec<String> {
    let of = |i: &usize| OF_A_BLOCK.map(|name| format!("h.{i}.{name}"));
    blocks.iter().flat_map(of).collect()
}

#[test]
fn a_cache_of_transformer_lens_2_agrees_with_hugging_face_at_every_point_that_it_has() {
    let c = hello(&[&golden(), &fixture("transformer_lens_2.pt")]);
    assert_eq!(c.verdict, RunVerdict::Pass, "{:?}", c.rows);
    let names = of_blocks(&[0, 1, 2, 3]);
    passed(&c, &names.iter().map(String::as_str).collect::<Vec<_>>());
    passed(&c, &["embeddings", "h.0", "h.3", "ln_f"]);
    let lens = &c.sources[1];
    assert_eq!(lens.form, "torch");
    assert_eq!(lens.recipes["h.*.attn.q"], "drop the batch axis; [T,H,D] → [H,T,D]");
    assert_eq!(lens.recipes["h.*.attn.context"], "drop the batch axis; [T,H,D] → [T,E]");
    assert!(lens.recipes["h.*.ln_1"].contains("after gain and bias"), "{:?}", lens.recipes);
    assert!(
        lens.repeated.iter().any(|line| line.contains("hook_resid_pre")),
        "{:?}",
        lens.repeated
    );
    assert!(lens.unmapped.keys().any(|why| why.contains("the token embedding alone")));
}

#[test]
fn transformer_lens_4_takes_hook_normalized_before_the_gain_and_that_is_seen() {
    let c = hello(&[&golden(), &fixture("transformer_lens_4.pt")]);
    assert_eq!(c.verdict, RunVerdict::Pass, "{:?}", c.rows);
    let names = of_blocks(&[0, 3]);
    passed(&c, &names.iter().map(String::as_str).collect::<Vec<_>>());
    passed(&c, &["tokens", "embeddings", "h.0", "h.2", "ln_f"]);
    let (why, names) = c.sources[1]
        .unmapped
        .iter()
        .find(|(why, _)| why.contains("mean 0 and variance 1"))
        .unwrap();
    assert!(why.contains("hook_out") && names.len() == 5, "{why}: {names:?}");
}

#[test]
fn what_llama_cpp_prints_is_partial_never_pass() {
    let text = fixture("eval-callback.txt");
    let c = hello(&[&golden(), &text]);
    assert_eq!(points(&c, Verdict::Pass), [""; 0]);
    // GELU's table is beyond what four decimals round, and is named where it stands.
    assert_eq!(points(&c, Verdict::Fail), ["h.0.mlp.act", "h.0.mlp.out", "h.0"]);
    let act = c.rows.iter().find(|row| row.point.to_string() == "h.0.mlp.act").unwrap();
    assert!(act.reason.contains("reads GELU from a table in f16"), "{}", act.reason);
    let unchecked = points(&c, Verdict::Unchecked);
    for i in 0..4 {
        for name in ["ln_1", "attn.q", "attn.k", "attn.v", "attn.probs", "attn.context", "attn.out"]
        {
            assert!(unchecked.contains(&format!("h.{i}.{name}")), "h.{i}.{name}: {unchecked:?}");
        }
    }
    let row = c.rows.iter().find(|row| row.point.to_string() == "h.0.ln_1").unwrap();
    assert!(
        row.reason.contains("agrees at the 12 of 256 elements that are printed"),
        "{}",
        row.reason
    );
    // Of the last layer, only the last token's row is there.
    let row = c.rows.iter().find(|row| row.point.to_string() == "h.3.resid_mid").unwrap();
    assert!(row.reason.contains("agrees at the 6 of 256"), "{}", row.reason);
    let recipes = &c.sources[1].recipes;
    assert!(recipes["h.*.attn.q"].contains("ggml's order"), "{recipes:?}");
    assert!(recipes["ln_f"].contains("row 1 of 2"), "{recipes:?}");
    assert!(c.sources[1].unmapped.keys().any(|why| why.contains("unscaled")));
}

#[test]
fn of_a_long_prompt_the_first_and_the_last_tokens_are_held_to_our_engine() {
    let dir = tempfile::tempdir().unwrap();
    let nano = dir.path().join("nano");
    let prompt = golden_ids("unicode");
    let output = diff()
        .args(["export", "--npy"])
        .arg(&nano)
        .args(["--ids", &prompt, "--new-tokens", "1", "--points", "h.*"])
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let c = compare(&args(&[&nano, &fixture("eval-callback-long.txt")])).unwrap();
    let row = |point: &str| c.rows.iter().find(|row| row.point.to_string() == point).unwrap();
    assert!(
        row("h.0.ln_1").reason.contains("agrees at the 36 of 5376"),
        "{}",
        row("h.0.ln_1").reason
    );
    // Of the padded keys those that are visible: three of the first queries, and of the last ones the first three.
    assert_eq!(row("h.0.attn.probs").verdict, Verdict::Unchecked);
    assert_eq!(row("h.0.attn.probs").metrics.as_ref().unwrap().total, 4 * (1 + 2 + 3 + 3 * 3));
    assert_eq!(row("h.3.ln_2").metrics.as_ref().unwrap().total, 6);
    assert_eq!(row("h.3.attn.q").verdict, Verdict::Unchecked);
}

/// The prompt of a case, as `--ids` takes it.
fn golden_ids(case: &str) -> String {
    let manifest = std::fs::read(golden().join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let ids = manifest["cases"][case]["ids"].as_array().unwrap();
    ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn a_wrong_element_that_is_printed_fails_and_exits_1_agreement_exits_4() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("eval-callback.txt")).unwrap();
    let (front, tail) = text.split_at(text.find("attn_norm-1 =").unwrap());
    let at = tail.find("            [").unwrap() + 13;
    let number = &tail[at..at + 12];
    let wrong = format!("{:12.4}", number.trim().parse::<f64>().unwrap() + 0.01);
    let mut changed = format!("{front}{tail}");
    changed.replace_range(front.len() + at..front.len() + at + 12, &wrong);
    let broken = dir.path().join("broken.txt");
    std::fs::write(&broken, &changed).unwrap();
    let output =
        diff().arg("compare").arg(&broken).arg(fixture("eval-callback.txt")).output().unwrap();
    let (stdout, _) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("FAIL 1 of") && stdout.contains("h.1.ln_1"), "{stdout}");
    assert!(stdout.contains("1 of the 12 elements that are printed exceed"), "{stdout}");
    let output = diff()
        .args(["compare", "--format", "json"])
        .args([fixture("eval-callback.txt"), fixture("eval-callback.txt")])
        .output()
        .unwrap();
    let (stdout, _) = texts(&output);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_conforms("compare", &json);
    assert_eq!((output.status.code(), json["verdict"].as_str()), (Some(4), Some("INCOMPLETE")));
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.len() > 50 && rows.iter().all(|row| row["verdict"] == "UNCHECKED"));
}

/// Saved by the torch and transformers that the reference `hf` is pinned to.
fn saved_by_torch(out: &Path) {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{command:?}: {stdout}\n{stderr}");
        stdout
    };
    run(diff().args(["adapters", "setup", "hf"]));
    let command = run(diff().args(["adapters", "command", "hf"]));
    let words = command.split_whitespace().map(|word| word.trim_matches('\''));
    let python = words.into_iter().find(|word| word.ends_with("/bin/python")).unwrap();
    let nano = repository().join("golden/models/nano");
    run(Command::new(python).arg(fixture("save.py")).arg(nano).arg(out));
}

#[test]
fn what_torch_saves_is_read_in_every_form_that_people_save() {
    let dir = tempfile::tempdir().unwrap();
    saved_by_torch(dir.path());
    let at = |name: &str| dir.path().join(name);
    let against_golden = |name: &str| hello(&[&golden(), &at(name)]);
    let states = ["embeddings", "h.0", "h.1", "h.2", "ln_f"];

    for name in ["output.pt", "dict.pt"] {
        let c = against_golden(name);
        assert_eq!(c.verdict, RunVerdict::Pass, "{name}: {:?}", c.rows);
        passed(&c, &states);
        passed(&c, &["h.0.attn.probs", "h.3.attn.probs", "h.3.attn.cache.k", "h.0.attn.cache.v"]);
        assert!(c.sources[1].unmapped.is_empty(), "{:?}", c.sources[1].unmapped);
    }
    for name in ["hidden_states.pt", "strided.pt", "f64.pt", "protocol4.pt"] {
        let c = against_golden(name);
        assert_eq!(
            (c.verdict, points(&c, Verdict::Pass)),
            (RunVerdict::Pass, states.map(String::from).to_vec())
        );
    }
    let c = against_golden("cache.pt");
    assert_eq!((c.verdict, c.rows.len()), (RunVerdict::Pass, 8));
    let c = against_golden("hooked.pt");
    assert_eq!(c.verdict, RunVerdict::Pass, "{:?}", c.rows);
    let of_hooks = OF_A_BLOCK.into_iter().filter(|name| !name.ends_with("scores"));
    let seen = points(&c, Verdict::Pass);
    for name in of_hooks.filter(|name| !["attn.context", "resid_mid", "attn.probs"].contains(name))
    {
        assert!(seen.contains(&format!("h.3.{name}")), "{name}: {seen:?}");
    }

    // Half the digits: read as such, and off by as much as they are.
    for (name, least, most) in [("f16.pt", 1e-5, 1e-2), ("bf16.pt", 1e-4, 1e-1)] {
        let c = against_golden(name);
        let row = c.rows.iter().find(|row| row.point.to_string() == "h.2").unwrap();
        let off = row.metrics.as_ref().unwrap().max_abs.unwrap();
        assert!((least..most).contains(&off), "{name}: {off}");
    }
    let c = against_golden("mixed.pt");
    passed(&c, &["tokens"]);
    passed(&compare(&args(&[&at("dict.pt"), &at("mixed.pt")])).unwrap(), &["logits"]);
    let told = c.sources[1].unmapped.iter().map(|(why, names)| format!("{names:?} {why}"));
    let told = told.collect::<Vec<_>>().join("\n");
    assert!(told.contains("[\"mask\"]") && told.contains(".clone()"), "{told}");
    assert!(told.contains("float8_e4m3fn is no dtype that is compared"), "{told}");

    // A tuple without names is listed, and not guessed.
    let c = against_golden("row.pt");
    assert_eq!(c.verdict, RunVerdict::Incomplete);
    assert!(
        c.sources[1].unmapped.values().flatten().any(|name| name == "row.1.0"),
        "{:?}",
        c.sources[1]
    );
    for (name, expected) in [
        ("legacy.pt", "weights_only=True"),
        ("model.pt", "it needs transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel"),
    ] {
        let said = refused(&[&golden(), &at(name)]);
        assert!(said.contains(expected) && said.contains(name), "{said}");
    }
}

#[test]
fn a_folder_of_pt_files_is_a_source_and_one_of_many_tensors_is_not() {
    let dir = tempfile::tempdir().unwrap();
    saved_by_torch(dir.path());
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let copy =
        |from: &str, to: &str| std::fs::copy(dir.path().join(from), folder.join(to)).unwrap();
    copy("hidden_states.pt", "hidden_states.pt");
    copy("dict.pt", "dict.pt");
    let c = hello(&[&golden(), &folder]);
    assert_eq!((c.verdict, c.rows.len()), (RunVerdict::Pass, 5));
    assert!(c.left_out[0].reason.contains("name the file itself"), "{:?}", c.left_out);
    std::fs::remove_file(folder.join("hidden_states.pt")).unwrap();
    let said = refused(&[&golden(), &folder]);
    assert!(said.contains("sources by themselves") && said.contains("dict.pt"), "{said}");
}
