//! Whatever the bytes: an error or tensors, never a panic, never memory that a claim asks for.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use zip::write::SimpleFileOptions;

use super::*;

/// What torch 2.15 wrote of a model's output; `tests/fixtures/dumps/README.md` says how.
const REAL: &[u8] = include_bytes!("../../../../tests/fixtures/dumps/model_output.pt");

fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump.pt");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A file with that pickle and one storage.
fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("x/data.pkl", pickle), ("x/byteorder", b"little"), ("x/data/0", storage)]
    {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The pickle of `{"a": tensor}` on a storage of floats.
fn pickle(offset: i32, shape: &[i32], stride: &[i32]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    bytes.extend(b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ");
    let int = |n: i32| [b"J".as_slice(), &n.to_le_bytes()].concat();
    bytes.extend(int(offset));
    for sizes in [shape, stride] {
        bytes.push(b'(');
        sizes.iter().for_each(|n| bytes.extend(int(*n)));
        bytes.push(b't');
    }
    bytes.extend(b"\x89NtRs.");
    bytes
}

fn six() -> Vec<u8> {
    (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

fn listed(bytes: &[u8]) -> Result<Listed, String> {
    let (_dir, path) = written(bytes);
    list(&path).map_err(|e| e.to_string())
}

#[test]
fn what_torch_saved_of_a_models_output_is_read_by_its_field_names() {
    let (_dir, path) = written(REAL);
    let found = list(&path).unwrap();
    assert!(found.unusable.is_empty(), "{:?}", found.unusable);
    let names: Vec<&str> = found.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "logits",
            "past_key_values.layers.0.keys",
            "past_key_values.layers.0.values",
            "past_key_values.layers.1.keys",
            "past_key_values.layers.1.values",
            "hidden_states.0",
            "hidden_states.1",
            "hidden_states.2",
            "attentions.0",
            "attentions.1",
        ]
    );
    let probs = found.tensors.iter().find(|t| t.name == "attentions.0").unwrap();
    assert_eq!((probs.dtype, probs.shape.as_slice()), (Dtype::F32, [1, 3, 5, 5].as_slice()));
    // Probabilities: no other window on those bytes has rows that add up to one.
    for row in read(&path, probs).unwrap().to_f64().chunks(5) {
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{row:?}");
    }
}

#[test]
fn transposed_and_offset_views_are_read_through_their_strides() {
    let (_dir, path) = written(&archive(&pickle(0, &[3, 2], &[1, 3]), &six()));
    let found = list(&path).unwrap();
    let read_back = read(&path, &found.tensors[0]).unwrap();
    assert_eq!(read_back, Tensor::f32(vec![3, 2], vec![0., 3., 1., 4., 2., 5.]));
    let (_dir, path) = written(&archive(&pickle(4, &[2], &[1]), &six()));
    let found = list(&path).unwrap();
    assert_eq!(read(&path, &found.tensors[0]).unwrap(), Tensor::f32(vec![2], vec![4., 5.]));
    let (_dir, path) = written(&archive(&pickle(5, &[], &[]), &six()));
    let found = list(&path).unwrap();
    assert_eq!(read(&path, &found.tensors[0]).unwrap(), Tensor::f32(vec![], vec![5.]));
}

#[test]
fn a_window_beyond_its_storage_is_listed_with_what_was_claimed() {
    for (offset, shape, stride, expected) in [
        (0, vec![i32::MAX, i32::MAX, i32::MAX, i32::MAX], vec![0, 0, 0, 0], "on a storage of 6"),
        (0, vec![7], vec![0], "on a storage of 6"),
        (0, vec![2], vec![6], "reaches beyond"),
        (5, vec![2], vec![1], "reaches beyond"),
        (-1, vec![2], vec![1], "a size or stride of -1"),
        (0, vec![2], vec![-1], "a size or stride of -1"),
        (0, vec![2, 1], vec![1], "2 sizes and 1 strides"),
    ] {
        let found = listed(&archive(&pickle(offset, &shape, &stride), &six())).unwrap();
        assert!(found.tensors.is_empty());
        let (name, why) = &found.unusable[0];
        assert!(name == "a" && why.contains(expected), "{why}");
    }
}

#[test]
fn a_name_that_is_not_known_is_refused_by_its_name() {
    // os.system("true"), as the well-known attack has it.
    let attack = b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.";
    let error = listed(&archive(attack, &[])).unwrap_err();
    assert!(error.contains("it needs os.system") && error.contains("dump.pt"), "{error}");
    let hidden = b"\x80\x02}X\x01\0\0\0ac__builtin__\neval\ns.";
    let error = listed(&archive(hidden, &[])).unwrap_err();
    assert!(error.contains("__builtin__.eval"), "{error}");
    let lens = b"\x80\x02ctransformer_lens.ActivationCache\nActivationCache\n)\x81.";
    let error = listed(&archive(lens, &[])).unwrap_err();
    assert!(error.contains("cache.cache_dict"), "{error}");
}

#[test]
fn other_forms_say_how_they_are_converted() {
    let error = listed(&[LEGACY, b"\x80\x02M\xe9\x03."].concat()).unwrap_err();
    assert!(error.contains("torch.load") && error.contains("weights_only=True"), "{error}");
    assert!(listed(b"\x80\x04}.").unwrap_err().contains("torch.save did not write"));
    assert!(
        listed(b"hello").unwrap_err().contains("no zip archive; expected a file that torch.save")
    );
    assert!(listed(b"PK\x03\x04").unwrap_err().contains("a zip archive that is cut"));
    assert!(listed(b"").unwrap_err().contains("the file is empty"));
}

#[test]
fn a_pickle_that_repeats_or_holds_itself_comes_to_an_end() {
    // A list that holds itself.
    let own = b"\x80\x02]q\0h\0a.";
    assert!(listed(&archive(own, &[])).unwrap_err().contains("nested more than 32"));
    // Twenty-five lists, each of which holds the one before ten times.
    let mut bomb = b"\x80\x02]q\0".to_vec();
    for n in 1..=25u8 {
        bomb.extend(b"](");
        (0..10).for_each(|_| bomb.extend([b'h', n - 1]));
        bomb.extend([b'e', b'q', n]);
    }
    bomb.push(b'.');
    assert!(listed(&archive(&bomb, &[])).unwrap_err().contains("too many values"));
}

#[test]
fn every_truncation_is_an_error_and_no_flipped_byte_a_panic() {
    for n in 0..REAL.len() {
        assert!(listed(&REAL[..n]).is_err(), "{n}");
    }
    let (_dir, path) = written(REAL);
    for n in 0..REAL.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = REAL.to_vec();
            bytes[n] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            for tensor in list(&path).unwrap_or_default().tensors {
                let _ = read(&path, &tensor);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_pickle_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(pickle) = machine::read(&bytes) {
            let _ = contents::contents(&pickle, "dump");
        }
    }

    #[test]
    fn any_row_of_known_opcodes_is_read_or_refused(
        picks in prop::collection::vec((0usize..30, any::<u8>()), 0..200)
    ) {
        const KNOWN: &[u8] = b"(01NJKM\x8aGBCX\x8c}])t\x85\x86\x87aesucR\x81bQq";
        let mut bytes = Vec::new();
        for (pick, argument) in picks {
            bytes.extend([KNOWN[pick % KNOWN.len()], argument, b'\n']);
        }
        bytes.push(b'.');
        if let Ok(pickle) = machine::read(&bytes) {
            let _ = contents::contents(&pickle, "dump");
        }
    }

    #[test]
    fn any_mutation_of_the_real_pickle_is_read_or_refused(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let begin = REAL.windows(2).position(|w| w == b"\x80\x02").unwrap();
        let mut bytes = REAL[begin..].to_vec();
        for (at, value) in edits {
            let at = at.index(1200);
            bytes[at] = value;
        }
        if let Ok(pickle) = machine::read(&bytes) {
            let _ = contents::contents(&pickle, "dump");
        }
    }

    #[test]
    fn any_window_lies_in_its_storage_or_is_refused(
        offset in -2i32..8, axes in prop::collection::vec((-1i32..5, -1i32..5), 0..4)
    ) {
        let (shape, stride): (Vec<i32>, Vec<i32>) = axes.into_iter().unzip();
        let (_dir, path) = written(&archive(&pickle(offset, &shape, &stride), &six()));
        for tensor in list(&path).unwrap().tensors {
            let values = read(&path, &tensor).unwrap();
            prop_assert!(values.to_f64().iter().all(|x| (0.0..6.0).contains(x)));
        }
    }
}
