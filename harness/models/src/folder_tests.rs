use super::*;
use crate::sha256_file;
use std::path::PathBuf;

const WEIGHTS: &[u8] = b"\x36\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}\0\0\x80\x3f";

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

fn folder(files: Files<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn refusal(files: Files<'_>) -> ModelError {
    let dir = folder(files);
    resolve("x", dir.path(), &dir.path().join("cache")).expect_err("accepted")
}

#[test]
fn a_whole_folder_is_hashed_and_called_trained() {
    let dir = folder(&[
        ("config.json", b"{}"),
        ("model.safetensors", WEIGHTS),
        ("vocab.json", b"{}"),
        ("README.md", b""),
    ]);
    let model = resolve("./x", dir.path(), &dir.path().join("cache")).unwrap();
    assert_eq!(model.kind, ModelKind::Trained);
    assert_eq!(model.revision, None);
    assert!(model.source.starts_with("folder /"), "{}", model.source);
    assert_eq!(model.weights_sha256(), sha256_file(&dir.path().join("model.safetensors")).unwrap());
    let names: Vec<&str> = model.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "vocab.json"]);
    assert!(!model.has_tokenizer(), "vocab.json without merges.txt is no tokenizer");
}

#[test]
fn what_cannot_be_loaded_is_refused_by_name() {
    let cases: [(Files<'_>, &str); 7] = [
        (&[], "found no config.json"),
        (&[("config.json", b"{}")], "found no model.safetensors"),
        (&[("config.json", b"[]"), ("model.safetensors", WEIGHTS)], "not a JSON object"),
        (
            &[("config.json", b"{}"), ("model.safetensors", &WEIGHTS[..WEIGHTS.len() - 4])],
            "of 62 bytes whose header describes 66",
        ),
        (
            &[("config.json", b"{}"), ("model.safetensors", b"version https://git-lfs")],
            "without a safetensors header",
        ),
        (&[("config.json", b"{}"), ("pytorch_model.bin", b"")], "only pytorch_model.bin"),
        (
            &[("config.json", b"{}"), ("model.safetensors.index.json", b"{}")],
            "split over several files",
        ),
    ];
    for (files, expected) in cases {
        let error = refusal(files);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().starts_with("failed to "), "{error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    let bin = refusal(&[("config.json", b"{}"), ("pytorch_model.bin", b"")]).to_string();
    assert!(bin.contains("save_pretrained"), "the way out is missing: {bin}");
}

#[test]
fn a_missing_folder_and_a_file_are_told_apart() {
    let dir = folder(&[("file", b"")]);
    let missing = resolve("x", &dir.path().join("none"), dir.path()).unwrap_err().to_string();
    assert!(missing.contains("no such folder"), "{missing}");
    let file = resolve("x", &dir.path().join("file"), dir.path()).unwrap_err().to_string();
    assert!(file.contains("found a file"), "{file}");
}

/// A snapshot as the hub's libraries lay it out, its weights' blob named `blob`.
#[cfg(unix)]
fn snapshot(repo: &str, blob: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("hub").join(repo);
    let snapshot = root.join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("blobs")).unwrap();
    fs::write(root.join("blobs").join(blob), WEIGHTS).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join("model.safetensors"))
        .unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    (dir, snapshot)
}

#[test]
#[cfg(unix)]
fn a_hub_snapshot_is_real_only_for_published_names_and_proven_bytes() {
    let (_probe, path) = snapshot("models--x--y", "b");
    let sha256 = sha256_file(&path.join("model.safetensors")).unwrap();

    let (dir, path) = snapshot("models--openai-community--gpt2-xl", &sha256);
    let model = resolve("x", &path, &dir.path().join("cache")).unwrap();
    assert_eq!((model.kind, model.revision.as_deref()), (ModelKind::Real, Some("0123abc")));
    assert!(model.source.starts_with("hub openai-community/gpt2-xl"), "{}", model.source);

    // gpt2's hash is known, and these bytes are not gpt2.
    let (dir, path) = snapshot("models--openai-community--gpt2", &sha256);
    assert_eq!(resolve("x", &path, &dir.path().join("cache")).unwrap().kind, ModelKind::Trained);

    let (dir, path) = snapshot("models--someone--gpt2-xl", &sha256);
    let other = resolve("x", &path, &dir.path().join("cache")).unwrap();
    assert_eq!((other.kind, other.revision.as_deref()), (ModelKind::Trained, Some("0123abc")));

    // Not named by a hash: no proof, so nothing is claimed.
    let (dir, path) = snapshot("models--openai-community--gpt2-xl", "weights");
    let unproven = resolve("x", &path, &dir.path().join("cache")).unwrap();
    assert_eq!((unproven.kind, unproven.revision), (ModelKind::Trained, None));

    // Named by another hash: damaged, and said so.
    let (dir, path) = snapshot("models--openai-community--gpt2", &"0".repeat(64));
    let error = resolve("x", &path, &dir.path().join("cache")).unwrap_err();
    assert!(matches!(error, ModelError::WrongHash { .. }), "{error}");
    assert_eq!(error.exit_code(), 3);
}
