//! `export --npy` writes what `compare` reads: round trips without a single different bit.

mod dumps;

use std::path::Path;

use dumps::*;
use llorch_diff::dumps::export;
use llorch_diff::result::RunVerdict;

fn export_args(npy: &Path, from: &Path) -> export::Args {
    export::Args {
        npy: Some(npy.into()),
        gguf: None,
        from: Some(from.into()),
        model: "nano".into(),
        prompt: "Hello.".into(),
        ids: Vec::new(),
        new_tokens: 10,
        references: Vec::new(),
        subject: None,
        points: Vec::new(),
        offline: true,
    }
}

#[test]
fn a_saved_run_goes_out_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let all = tensors(1);
    let bundle = write_bundle(&run.join("hf"), "hf", &all, 3);
    write_bundle(&run.join("candle-upstream"), "candle:upstream", &all, 3);
    let out = dir.path().join("out");
    assert_eq!(export::run(&export_args(&out, &run)).unwrap(), 0);
    for file in [
        "checkpoint_02_q_l01_s02_hf.npy",
        "checkpoint_00_embeddings_hf.npy",
        "checkpoint_08_block_l01_candle:upstream.npy",
        "checkpoint_12_generated_hf.npy",
    ] {
        assert!(out.join("hello").join(file).is_file(), "{file}");
    }
    // The folder alone holds both implementations.
    let both = compared(&[&out]);
    let per_side = 3 * all.len() + 1;
    assert_eq!((both.verdict, both.rows.len()), (RunVerdict::Pass, per_side));

    // Against the bundle that it came from.
    let one = dir.path().join("one");
    assert_eq!(export::run(&export_args(&one, &bundle)).unwrap(), 0);
    let back = compared(&[&bundle, &one]);
    assert_eq!((back.verdict, back.rows.len()), (RunVerdict::Pass, 3 * all.len()));
    assert!(back.rows.iter().all(|r| r.metrics.as_ref().unwrap().max_abs == Some(0.0)));
    assert!(
        back.sources.iter().all(|s| s.recipes.is_empty() && s.unmapped.is_empty()),
        "{:?}",
        back.sources
    );
}

#[test]
fn points_may_be_chosen_and_a_full_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write_bundle(&dir.path().join("hf"), "hf", &tensors(2), 1);
    let out = dir.path().join("out");
    let mut args = export_args(&out, &bundle);
    args.points = vec!["h.*.attn.q".into()];
    assert_eq!(export::run(&args).unwrap(), 0);
    let mut files: Vec<_> =
        std::fs::read_dir(out.join("hello")).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["checkpoint_02_q_hf.npy", "checkpoint_02_q_l01_hf.npy"]);
    assert_eq!(export::run(&args).unwrap(), 2, "the folder is full now");
    args.npy = Some(dir.path().join("other"));
    args.points = vec!["nothing".into()];
    assert_eq!(export::run(&args).unwrap(), 2);
}

#[test]
fn a_manifest_cannot_lead_out_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write_bundle(&dir.path().join("hf"), "../../escape", &tensors(3), 1);
    let out = dir.path().join("a/b/out");
    assert_eq!(export::run(&export_args(&out, &bundle)).unwrap(), 2);
    assert_eq!(
        export::run(&export_args(&dir.path().join("x"), &dir.path().join("nowhere"))).unwrap(),
        2
    );
}
