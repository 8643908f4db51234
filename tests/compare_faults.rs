//! `llorch-diff compare` where something is wrong: values, labels, layouts, files.

mod dumps;

use dumps::*;
use llorch_diff::dumps::compare::compare;
use llorch_diff::result::{RunVerdict, Verdict};
use llorch_trace::Tensor;

fn reason(c: &llorch_diff::dumps::compare::Compared, point: &str) -> String {
    let row = c.rows.iter().find(|r| r.point.to_string() == point).unwrap();
    assert_eq!(row.verdict, Verdict::Fail, "{point}");
    row.reason.clone()
}

#[test]
fn tolerances_are_those_of_a_run_block_0_by_its_class_and_deeper_ones_at_1e_3() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(1);
    let moved = all.iter().map(|(name, t)| (name.clone(), nudged(t, 3e-4))).collect();
    let a = write_bundle(&dir.path().join("a"), "a", &moved, 1);
    let b = write_bundle(&dir.path().join("b"), "b", &all, 1);
    let c = compared(&[&a, &b]);
    let failed = points(&c, Verdict::Fail);
    assert!(failed.contains(&"h.0.attn.q".into()) && failed.contains(&"embeddings".into()));
    assert!(!failed.iter().any(|p| p.starts_with("h.1") || p == "logits"), "{failed:?}");
    assert_eq!(c.verdict, RunVerdict::Fail);
    let mut loose = args(&[&a, &b]);
    loose.tolerance = Some(1e-3);
    assert_eq!(compare(&loose).unwrap().verdict, RunVerdict::Pass);
}

#[test]
fn tensors_without_elements_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let empty = [("h.0.mlp.out", Tensor::f32(vec![0, 8], vec![]))];
    let a = write_folder(&dir.path().join("a"), &empty);
    let b = write_folder(&dir.path().join("b"), &empty);
    let c = compared(&[&a, &b]);
    assert_eq!((c.verdict, c.rows[0].verdict), (RunVerdict::Incomplete, Verdict::Unchecked));
    assert!(c.rows[0].reason.contains("[0, 8] has no elements"), "{}", c.rows[0].reason);
}

#[test]
fn masked_cells_of_scores_mean_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(2);
    let scores = &all["h.0.attn.scores"];
    let masked = |with: f32| {
        let cell = |i: usize| match i % TOKENS <= i / TOKENS % TOKENS {
            true => scores.get(i) as f32,
            false => with,
        };
        Tensor::f32(scores.shape.clone(), (0..scores.len()).map(cell).collect())
    };
    let names = ["checkpoint_04_scores_hf", "checkpoint_04_scores_candle"];
    let (hf, candle) = (masked(f32::MIN), masked(f32::NEG_INFINITY));
    write_folder(dir.path(), &[(names[0], hf), (names[1], batched(&candle))]);
    let c = compared(&[dir.path()]);
    assert_eq!((c.verdict, c.rows[0].metrics.as_ref().unwrap().total), (RunVerdict::Pass, 3 * 15));
}

#[test]
fn the_last_hidden_state_labelled_as_a_block_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(3);
    let ours = write_bundle(&dir.path().join("ours"), "hf", &all, 1);
    let theirs = write_folder(
        &dir.path().join("theirs"),
        &[("h.0", all["h.0"].clone()), ("h.1", nudged(&all["ln_f"], 1e-6))],
    );
    let c = compared(&[&ours, &theirs]);
    let said = reason(&c, "h.1");
    assert!(said.contains("labelled h.1 by theirs, but its content is ln_f of hf"), "{said}");
    assert!(said.contains("last hidden state"), "{said}");
}

#[test]
fn exchanged_names_transposed_and_unscaled_tensors_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(4);
    let ours = write_bundle(&dir.path().join("ours"), "hf", &all, 1);
    let scores = &all["h.1.attn.scores"];
    let unscaled = scores.to_f64().iter().map(|x| *x as f32 * 2.0).collect();
    // Rows first, so that the sizes are read off the others.
    let theirs = write_folder(
        &dir.path().join("theirs"),
        &[
            ("embeddings", all["embeddings"].clone()),
            ("h.0.ln_1", all["h.0.ln_1"].clone()),
            ("h.0.attn.q", all["h.0.attn.k"].clone()),
            ("h.0.attn.k", all["h.0.attn.q"].clone()),
            ("h.1.attn.scores", Tensor::f32(scores.shape.clone(), unscaled)),
        ],
    );
    let c = compared(&[&ours, &theirs]);
    assert!(
        reason(&c, "h.0.attn.q").contains("its content is h.0.attn.k"),
        "{}",
        reason(&c, "h.0.attn.q")
    );
    assert!(reason(&c, "h.1.attn.scores").contains("of theirs is 2.000000 times that of hf"));

    // A square matrix whose axes were exchanged has the right shape and the wrong numbers.
    let square = Tensor::f32(vec![4, 4], (0..16).map(|i| (i * i % 11) as f32).collect());
    let turned = permuted(&square, &[1, 0]);
    let a = write_folder(&dir.path().join("a"), &[("h.0.attn.out", square)]);
    let b = write_folder(&dir.path().join("b"), &[("h.0.attn.out", turned)]);
    let said = reason(&compared(&[&a, &b]), "h.0.attn.out");
    assert!(said.contains("with its two axes exchanged"), "{said}");
}

#[test]
fn an_honest_difference_gets_no_far_fetched_explanation() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(5);
    let mut wrong = all.clone();
    wrong.insert("h.1.attn.out".into(), nudged(&all["h.1.attn.out"], 0.25));
    let a = write_bundle(&dir.path().join("a"), "a", &wrong, 1);
    let b = write_bundle(&dir.path().join("b"), "b", &all, 1);
    let c = compared(&[&a, &b]);
    assert_eq!(points(&c, Verdict::Fail), ["h.1.attn.out"]);
    assert_eq!(reason(&c, "h.1.attn.out"), "60 of 60 elements exceed the tolerance");
    let row = c.rows.iter().find(|r| r.verdict == Verdict::Fail).unwrap();
    assert_eq!(row.excerpt.as_ref().unwrap().a.len(), 8);
}

#[test]
fn a_shape_that_no_recipe_explains_is_listed_with_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(6);
    let ours = write_bundle(&dir.path().join("ours"), "hf", &all, 1);
    let wide = Tensor::f32(vec![TOKENS, 13], vec![0.5; TOKENS * 13]);
    let theirs = write_folder(
        &dir.path().join("theirs"),
        &[
            ("embeddings", all["embeddings"].clone()),
            ("h.0", all["h.0"].clone()),
            ("h.0.ln_1", wide),
        ],
    );
    let c = compared(&[&ours, &theirs]);
    let why = c.sources[1].unmapped.keys().next().unwrap();
    assert!(why.contains("shape [5, 13] does not become [5,12]"), "{why}");
    // The other source has that point: it should have been compared, so this is no PASS.
    assert_eq!((c.rows.len(), c.verdict), (2, RunVerdict::Incomplete));
    let lacking = c.unchecked.iter().find(|u| u.what == "h.0.ln_1").unwrap();
    assert!(lacking.reason.contains("has it in a shape that can't be compared"), "{lacking:?}");
}

#[test]
fn a_misshapen_tensor_that_nobody_else_has_lowers_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(6);
    let wide = Tensor::f32(vec![TOKENS, 13], vec![0.5; TOKENS * 13]);
    let with = |name: &str, more: &[(&str, Tensor)]| {
        let mut tensors = vec![("embeddings", all["embeddings"].clone())];
        tensors.extend(more.iter().cloned());
        write_folder(&dir.path().join(name), &tensors)
    };
    let (ours, theirs) = (with("ours", &[]), with("theirs", &[("h.0.ln_1", wide)]));
    assert_eq!(compared(&[&ours, &theirs]).verdict, RunVerdict::Pass);
}

#[test]
fn ambiguous_names_are_listed_and_none_is_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(7);
    let ours = write_bundle(&dir.path().join("ours"), "hf", &all, 1);
    let theirs = write_folder(
        &dir.path().join("theirs"),
        &[
            ("embeddings", all["embeddings"].clone()),
            ("transformer.h.0.attn", all["h.0.attn.out"].clone()),
            ("transformer.h.0.attn.c_proj", all["h.0.mlp.out"].clone()),
        ],
    );
    let said = refused(&[&ours, &theirs]);
    assert!(said.contains("transformer.h.0.attn.c_proj, transformer.h.0.attn"), "{said}");
    assert!(said.contains("h.0.attn.out") && said.contains("none is guessed"), "{said}");
    // A hidden state of a model whose depth nobody knows.
    let state = write_folder(&dir.path().join("state"), &[("hidden_states.3", all["h.0"].clone())]);
    let other = write_folder(&dir.path().join("other"), &[("ln_f", all["ln_f"].clone())]);
    let said = refused(&[&state, &other]);
    assert!(said.contains("h.2 unless the model has 3 layers, when it is ln_f"), "{said}");
    // Exit code 2.
    assert_eq!(llorch_diff::dumps::compare::run(&args(&[&state, &other])).unwrap(), 2);
}

#[test]
fn nothing_in_common_is_incomplete_and_one_source_is_usage() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(8);
    let a = write_folder(&dir.path().join("a"), &[("ln_f", all["ln_f"].clone())]);
    let b = write_folder(&dir.path().join("b"), &[("logits", all["logits"].clone())]);
    let c = compared(&[&a, &b]);
    assert_eq!((c.verdict, c.rows.len(), c.unchecked.len()), (RunVerdict::Incomplete, 0, 2));
    assert_eq!(llorch_diff::dumps::compare::run(&args(&[&a, &b])).unwrap(), 4);
    assert!(refused(&[&a]).contains("give a second source"));
}

#[test]
fn a_name_that_means_nothing_is_listed_once_and_is_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(11);
    let q = all["h.0.attn.q"].clone();
    let files = [
        ("checkpoint_02_q_hf", q.clone()),
        ("checkpoint_02_q_candle", q.clone()),
        ("checkpoint_02_nonsense", q.clone()),
        ("notes", q.clone()),
        ("transformer.h.0.ln_1.weight", q.clone()),
    ];
    write_folder(dir.path(), &files);
    let c = compared(&[dir.path()]);
    assert_eq!((c.verdict, c.rows.len(), c.unchecked.len()), (RunVerdict::Pass, 1, 0));
    let names: Vec<&str> = c.sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["candle", "hf"]);
    assert!(c.sources.iter().all(|s| s.unmapped.is_empty()), "{:?}", c.sources);
    let left_out: Vec<String> =
        c.left_out.iter().map(|l| l.path.file_name().unwrap().display().to_string()).collect();
    let expected = ["checkpoint_02_nonsense.npy", "notes.npy", "transformer.h.0.ln_1.weight.npy"];
    assert_eq!(left_out, expected);
    assert!(c.left_out[1].reason.contains("no program whose names are known"), "{:?}", c.left_out);

    // Beside names of the folder's own kind it is listed with them.
    let own = write_folder(&dir.path().join("own"), &[("ln_f", all["ln_f"].clone()), ("notes", q)]);
    let c = compared(&[&own, &own]);
    assert_eq!((c.sources.len(), c.left_out.len(), c.sources[0].unmapped.len()), (2, 0, 1));
}

#[test]
fn the_oracle_of_a_saved_run_is_no_implementation() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = tensors(12);
    let logits = [("logits.last".to_string(), all.remove("logits.last").unwrap())].into();
    for name in ["mine", "hf"] {
        write_bundle(&dir.path().join(name), name, &all, 1);
    }
    write_bundle(&dir.path().join("oracle"), "oracle", &logits, 1);
    std::fs::write(dir.path().join("result.json"), "{}").unwrap();
    let c = compared(&[dir.path()]);
    assert_eq!((c.verdict, c.sources.len(), c.unchecked.len()), (RunVerdict::Pass, 2, 0));
    assert!(c.left_out[0].path.ends_with("oracle"), "{:?}", c.left_out);
    // By its own name it can be had.
    let c = compared(&[&dir.path().join("oracle"), &dir.path().join("hf")]);
    assert_eq!(c.sources[0].name, "oracle");
}

#[test]
fn bad_files_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(9);
    let good = write_folder(&dir.path().join("good"), &[("ln_f", all["ln_f"].clone())]);
    let torn = write_folder(&dir.path().join("torn"), &[("ln_f", all["ln_f"].clone())]);
    let file = torn.join("ln_f.npy");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let said = refused(&[&good, &torn]);
    assert!(said.contains("ln_f.npy") && said.contains("the file holds"), "{said}");

    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (path, expected) in [
        (write("x.npz", b"PK\x03\x04 not really"), "x.npz"),
        (write("x.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), "x.safetensors"),
        (write("x.pt", b"\x80\x02"), "torch.save did not write"),
        (write("x.txt", b""), "expected a bundle, a folder"),
        (dir.path().join("absent"), "no such file or folder"),
    ] {
        let said = refused(&[&good, &path]);
        assert!(said.contains(expected), "{said}");
    }

    let bundle = write_bundle(&dir.path().join("bundle"), "hf", &all, 1);
    let tensors = bundle.join("tensors.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&tensors, bytes).unwrap();
    assert!(refused(&[&good, &bundle]).contains("sha256"));
    std::fs::remove_file(bundle.join("manifest.json")).unwrap();
    assert!(refused(&[&good, &bundle]).contains("did not finish"));
}

#[test]
fn values_that_are_not_finite_fail_and_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(10);
    let mut broken: Vec<f32> = all["ln_f"].to_f64().iter().map(|x| *x as f32).collect();
    broken[7] = f32::NAN;
    let broken = Tensor::f32(all["ln_f"].shape.clone(), broken);
    let a = write_folder(&dir.path().join("a"), &[("ln_f", broken)]);
    let b = write_folder(&dir.path().join("b"), &[("ln_f", all["ln_f"].clone())]);
    let c = compared(&[&a, &b]);
    assert!(reason(&c, "ln_f").contains("a has values that are not finite"));
    // JSON holds no NaN.
    let json: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&c).unwrap()).unwrap();
    assert!(json["rows"][0]["max_abs"].is_null());
}
