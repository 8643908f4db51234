//! What llama.cpp's own printer wrote, whole, cut and damaged.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// Printed by llama.cpp's `common/debug.cpp`; `tests/fixtures/dumps/README.md` says how.
const REAL: &str = include_str!("../../../../tests/fixtures/dumps/eval-callback.txt");

fn written(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eval.txt");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn file(text: &str) -> Result<PrintedFile, String> {
    let (_dir, path) = written(text.as_bytes());
    read(&path).map_err(|e| e.to_string())
}

#[test]
fn every_node_is_read_with_the_places_of_what_is_printed() {
    let found = file(REAL).unwrap();
    assert!(found.unusable.is_empty(), "{:?}", found.unusable);
    let node = |name: &str| found.nodes.iter().find(|n| n.name == name).unwrap();
    let ln = &node("attn_norm-0").cells;
    assert_eq!((ln.ne, ln.rounding), ([128, 2, 1, 1], 0.00005));
    let places: Vec<usize> = ln.values.iter().map(|(at, _)| *at).collect();
    assert_eq!(places, [0, 1, 2, 125, 126, 127, 128, 129, 130, 253, 254, 255]);
    // The residual connection says which unnamed node is the attention's output, in the last layer too.
    assert_eq!(node("attn_out-0").cells.ne, [128, 2, 1, 1]);
    assert_eq!(node("attn_out-3").cells.ne, [128, 2, 1, 1]);
    assert_eq!(node("ffn_inp-3").cells.ne, [128, 1, 1, 1]);
    let logits = &node("result_output").cells;
    assert_eq!(logits.values.last().map(|(at, _)| *at), Some(50256));
}

#[test]
fn log_lines_between_nodes_and_rows_change_nothing() {
    let mut text = String::new();
    for (n, line) in REAL.lines().enumerate() {
        text += line;
        text.push('\n');
        if n % 3 == 0 {
            text += "0.01.234.567 I llama_context: graph nodes = 157\n";
        }
    }
    let (plain, logged) = (file(REAL).unwrap(), file(&text).unwrap());
    let values =
        |f: &PrintedFile| f.nodes.iter().map(|n| n.cells.values.clone()).collect::<Vec<_>>();
    assert_eq!(values(&plain), values(&logged));
}

#[test]
fn a_cut_file_keeps_the_nodes_before_the_cut_and_names_the_one_at_it() {
    let at = REAL.find("ffn_gelu-0 =").unwrap() + 200;
    let found = file(&REAL[..at]).unwrap();
    assert_eq!(found.nodes.last().unwrap().name, "ffn_up_b-0");
    let (name, why) = &found.unusable[0];
    assert!(name == "ffn_gelu-0" && why.contains("end before"), "{why}");
}

#[test]
fn decode_steps_are_steps_and_several_prompts_are_refused() {
    let first = REAL.split_inclusive('\n').take(8).collect::<String>();
    let one =
        first.replace("{128, 2, 1, 1}", "{128, 1, 1, 1}").replace("{2, 1, 1, 1}", "{1, 1, 1, 1}");
    let rows: Vec<&str> = one.lines().collect();
    let one: String =
        rows.iter().enumerate().filter(|(n, _)| *n != 4).map(|(_, l)| format!("{l}\n")).collect();
    let found = file(&(first.clone() + &one)).unwrap();
    assert!(found.unusable.is_empty(), "{:?}", found.unusable);
    assert_eq!(found.nodes.iter().map(|n| n.evaluation).collect::<Vec<_>>(), [0, 1]);
    let error = file(&(first.clone() + &first)).unwrap_err();
    assert!(error.contains("of [2, 2] tokens") && error.contains("--no-warmup"), "{error}");
}

#[test]
fn a_text_without_nodes_says_what_was_expected() {
    let error = file("hello\nworld\n").unwrap_err();
    assert!(error.contains("eval.txt") && error.contains("common_debug_cb_eval:"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_text_is_read_or_refused(text in "(\\[|\\]|,|\\.\\.\\.|ggml_debug: x = \\(f32\\) A\\(b\\{1\\}\\) = \\{2, 2, 1, 1\\}|1\\.5|\n| ){0,80}") {
        let _ = file(&text);
    }

    #[test]
    fn any_mutation_is_read_or_refused(
        begin in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)
    ) {
        let begin = begin.index(REAL.len() - 4000);
        let mut bytes = REAL.as_bytes()[begin..begin + 4000].to_vec();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (_dir, path) = written(&bytes);
        let _ = read(&path);
    }
}
