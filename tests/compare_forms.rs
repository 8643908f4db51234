//! `llorch-diff compare`: every form of source, every family of names, every layout.

mod dumps;

use std::collections::BTreeMap;

use dumps::*;
use llorch_diff::result::{RunVerdict, Verdict};
use llorch_trace::Tensor;

/// The eight files of a Candle generator.
const EIGHT: [(&str, &str); 8] = [
    ("checkpoint_00_embeddings", "embeddings"),
    ("checkpoint_01_ln1_output", "h.0.ln_1"),
    ("checkpoint_02_q", "h.0.attn.q"),
    ("checkpoint_02_k", "h.0.attn.k"),
    ("checkpoint_02_v", "h.0.attn.v"),
    ("checkpoint_04_scores", "h.0.attn.scores"),
    ("checkpoint_05_output", "h.0.attn.out"),
    ("checkpoint_06_ffn", "h.0.mlp.out"),
];

fn eight(
    all: &BTreeMap<String, Tensor>,
    who: &str,
    form: impl Fn(&str, &Tensor) -> Tensor,
) -> Vec<(String, Tensor)> {
    EIGHT.iter().map(|(name, point)| (format!("{name}_{who}"), form(point, &all[*point]))).collect()
}

fn borrowed(files: &[(String, Tensor)]) -> Vec<(&str, Tensor)> {
    files.iter().map(|(name, t)| (name.as_str(), t.clone())).collect()
}

#[test]
fn one_folder_whose_files_differ_by_implementation() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(1);
    let mut files = eight(&all, "candle", |_, t| batched(t));
    files.extend(eight(&all, "hf", |_, t| t.clone()));
    write_folder(dir.path(), &borrowed(&files));
    let c = compared(&[dir.path()]);
    assert_eq!(c.verdict, RunVerdict::Pass);
    assert_eq!((c.rows.len(), c.rows[0].a.as_str(), c.rows[0].b.as_str()), (8, "candle", "hf"));
    assert!(c.rows.iter().all(|r| r.metrics.as_ref().unwrap().max_abs == Some(0.0)));
    assert_eq!(c.sources[0].recipes["h.*.attn.out"], "drop the batch axis");
    assert!(c.sources[1].recipes.is_empty() && c.unchecked.is_empty());
}

#[test]
fn heads_after_tokens_and_merged_heads_are_brought_into_one_layout() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(2);
    let by_token = |point: &str, t: &Tensor| match point {
        "h.0.attn.q" | "h.0.attn.k" => batched(&permuted(t, &[1, 0, 2])),
        "h.0.attn.v" => batched(&merged(t)),
        _ => batched(t),
    };
    let a = write_folder(&dir.path().join("a"), &borrowed(&eight(&all, "candle", by_token)));
    let b = write_folder(&dir.path().join("b"), &borrowed(&eight(&all, "hf", |_, t| t.clone())));
    let c = compared(&[&a, &b]);
    assert_eq!((c.verdict, c.rows.len()), (RunVerdict::Pass, 8));
    assert_eq!(c.sources[0].recipes["h.*.attn.q"], "drop the batch axis; [T,H,D] → [H,T,D]");
    assert_eq!(c.sources[0].recipes["h.*.attn.v"], "drop the batch axis; [T,E] → [H,T,D], H = 3");
}

#[test]
fn merged_heads_need_the_number_of_heads_from_somewhere() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(3);
    let ours: Vec<(String, Tensor)> = vec![
        ("h.0.ln_1".into(), all["h.0.ln_1"].clone()),
        ("h.0.attn.c_attn".into(), merged_qkv(&all, 0)),
    ];
    let a = write_folder(&dir.path().join("a"), &borrowed(&ours));
    let b = write_folder(&dir.path().join("b"), &borrowed(&ours));
    let c = compared(&[&a, &b]);
    assert_eq!(points(&c, Verdict::Pass), ["h.0.ln_1"]);
    assert!(
        c.sources[0].unmapped.keys().any(|reason| reason.contains("--heads")),
        "{:?}",
        c.sources[0]
    );
    let mut told = args(&[&a, &b]);
    told.heads = std::num::NonZeroUsize::new(3);
    let c = llorch_diff::dumps::compare::compare(&told).unwrap();
    assert_eq!(points(&c, Verdict::Pass), ["h.0.ln_1", "h.0.attn.q", "h.0.attn.k", "h.0.attn.v"]);
}

#[test]
fn hugging_face_names_in_an_npz_against_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(4);
    let bundle = write_bundle(&dir.path().join("ours"), "llorch-cpud", &all, 1);
    let path = dir.path().join("hf.npz");
    let mut npz = ndarray_npy::NpzWriter::new_compressed(std::fs::File::create(&path).unwrap());
    let mut add = |name: &str, t: &Tensor| {
        let values: Vec<f32> = t.to_f64().into_iter().map(|x| x as f32).collect();
        let array = ndarray::ArrayD::from_shape_vec(batched(t).shape, values).unwrap();
        npz.add_array(name, &array).unwrap();
    };
    add("hidden_states.0", &all["embeddings"]);
    add("hidden_states.1", &all["h.0"]);
    add("hidden_states.2", &all["ln_f"]);
    add("transformer.h.1.attn.c_attn", &merged_qkv(&all, 1));
    add("transformer.h.1.attn.c_proj", &all["h.1.attn.out"]);
    add("past_key_values.1.key", &all["h.1.attn.cache.k"]);
    add("attentions.0", &all["h.0.attn.probs"]);
    add("lm_head", &all["logits"]);
    add("transformer.wte", &all["embeddings"]);
    add("transformer.h.0.ln_1.weight", &all["next.probs"]);
    npz.finish().unwrap();
    let c = compared(&[&bundle, &path]);
    assert_eq!(c.verdict, RunVerdict::Pass, "{:?}", points(&c, Verdict::Fail));
    let names = points(&c, Verdict::Pass).join(" ");
    assert_eq!(
        names,
        "embeddings h.0.attn.probs h.0 h.1.attn.q h.1.attn.k h.1.attn.v h.1.attn.cache.k h.1.attn.out ln_f logits"
    );
    let reasons: Vec<&String> = c.sources[1].unmapped.keys().collect();
    assert!(reasons.iter().any(|r| r.contains("wte[ids] + wpe[pos]")), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("a weight of the model")), "{reasons:?}");
    // What the dump lacks is listed, all layers in one line.
    assert!(
        c.unchecked
            .iter()
            .any(|u| u.what == "h.*.mlp.act, 2 layers" && u.reason.contains("only in llorch-cpud"))
    );
}

#[test]
fn transformer_lens_and_ggml_names_and_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(5);
    let thd = |point: &str| batched(&permuted(&all[point], &[1, 0, 2]));
    let heads = |t: &Tensor| {
        let (t_, e) = (t.shape[0], t.shape[1]);
        batched(&reshaped(t, &[t_, DIMS.n_head, e / DIMS.n_head]))
    };
    let lens = write_safetensors(
        &dir.path().join("lens.safetensors"),
        &[
            ("blocks.0.hook_resid_pre", batched(&all["embeddings"])),
            ("blocks.1.hook_resid_pre", batched(&all["h.0"])),
            ("blocks.0.hook_resid_post", batched(&all["h.0"])),
            ("blocks.1.attn.hook_q", thd("h.1.attn.q")),
            ("blocks.1.attn.hook_z", heads(&all["h.1.attn.context"])),
            ("blocks.1.attn.hook_pattern", batched(&all["h.1.attn.probs"])),
            ("blocks.1.ln1.hook_normalized", batched(&all["h.1.ln_1"])),
        ],
    );
    // ggml writes the fastest axis first, always four of them.
    let ne = |t: &Tensor| {
        let mut shape: Vec<usize> = t.shape.iter().rev().copied().collect();
        shape.resize(4, 1);
        reshaped(t, &shape)
    };
    let ggml = write_folder(
        &dir.path().join("ggml"),
        &[
            ("inpL", ne(&all["embeddings"])),
            ("l_out-0", ne(&all["h.0"])),
            ("Qcur-1", ne(&permuted(&all["h.1.attn.q"], &[1, 0, 2]))),
            ("kqv_out-1", ne(&all["h.1.attn.context"])),
            ("kq-1", ne(&all["h.1.attn.scores"])),
        ],
    );
    let c = compared(&[&lens, &ggml]);
    assert_eq!(c.verdict, RunVerdict::Pass, "{:?}", c.rows);
    assert_eq!(points(&c, Verdict::Pass).join(" "), "embeddings h.0 h.1.attn.q h.1.attn.context");
    assert_eq!(
        c.sources[0].repeated,
        ["blocks.1.hook_resid_pre is blocks.0.hook_resid_post again"]
    );
    assert!(c.sources[0].recipes["h.*.ln_1"].contains("after gain and bias"));
    assert!(c.sources[1].unmapped.keys().any(|r| r.contains("unscaled")));
    assert!(c.sources[1].recipes["h.*.attn.q"].contains("ggml's order"));
}

#[test]
fn three_sources_make_three_pairs_and_a_reference_two() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(6);
    let files: Vec<(String, Tensor)> =
        ["a", "b", "c"].iter().flat_map(|who| eight(&all, who, |_, t| t.clone())).collect();
    write_folder(dir.path(), &borrowed(&files));
    assert_eq!(compared(&[dir.path()]).rows.len(), 24);
    let mut told = args(&[dir.path()]);
    told.reference = Some("b".into());
    let c = llorch_diff::dumps::compare::compare(&told).unwrap();
    assert_eq!(c.rows.len(), 16);
    assert!(c.rows.iter().all(|r| r.b == "b"));
    told.reference = Some("d".into());
    let error = llorch_diff::dumps::compare::compare(&told).unwrap_err().to_string();
    assert!(error.contains("no source d") && error.contains("a, b, c"), "{error}");
}

#[test]
fn two_dumps_of_one_implementation_are_told_apart_by_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(7);
    let before =
        write_folder(&dir.path().join("before"), &borrowed(&eight(&all, "hf", |_, t| t.clone())));
    let after =
        write_folder(&dir.path().join("after"), &borrowed(&eight(&all, "hf", |_, t| t.clone())));
    let c = compared(&[&before, &after]);
    assert_eq!((c.rows[0].a.as_str(), c.rows[0].b.as_str()), ("hf (before)", "hf (after)"));
}

#[test]
fn a_dump_without_cases_goes_with_the_only_one_or_with_the_one_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(8);
    let files = eight(&all, "hf", |_, t| t.clone());
    let plain = write_folder(&dir.path().join("plain"), &borrowed(&files));
    let cased = dir.path().join("cased");
    write_folder(&cased.join("hello"), &borrowed(&eight(&all, "candle", |_, t| t.clone())));
    let c = compared(&[&plain, &cased]);
    assert_eq!((c.rows.len(), c.rows[0].case.as_str()), (8, "hello"));
    write_folder(&cased.join("other"), &borrowed(&eight(&tensors(9), "candle", |_, t| t.clone())));
    assert!(refused(&[&plain, &cased]).contains("--case"));
    let mut told = args(&[&plain, &cased]);
    told.case = Some("hello".into());
    let c = llorch_diff::dumps::compare::compare(&told).unwrap();
    assert_eq!((c.verdict, c.rows.len()), (RunVerdict::Pass, 8));
}
