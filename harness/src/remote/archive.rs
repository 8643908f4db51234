//! The answer to `POST /v1/checkpoints`: an archive with the two files of a bundle, taken in as it comes. Nothing in it
//! is trusted: not its names, not its sizes, and its content only as far as the bundle's own hash goes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use llorch_trace::bundle::{Bundle, MANIFEST, TENSORS};
use llorch_trace::{Dims, Point};

/// How large the two files may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    tensors: u64,
    manifest: u64,
}

/// Around the data of a tensor: its line in the header, and its lines in the manifest.
const AROUND_A_TENSOR: u64 = 1 << 10;
/// Around all of it: what an engine says of itself, its recipes for one.
const AROUND_ALL: u64 = 1 << 20;
/// A token in indented JSON.
const PER_ID: u64 = 64;
/// The widest element that there is.
const WIDEST: u64 = 8;

/// Of one request: 1 GB in f32, half of what llorch-cpud allows.
const MOST_NUMBERS: u64 = 1 << 28;
const MOST_POINTS: usize = 1000;

impl Room {
    /// What these points of so many steps may take after a prompt of `ids` tokens.
    pub fn of(dims: &Dims, points: &[Point], ids: usize, steps: usize) -> Room {
        let all = |point| {
            let numbers = numbers(dims, point, ids, steps).saturating_mul(WIDEST);
            numbers.saturating_add(AROUND_A_TENSOR.saturating_mul(steps as u64))
        };
        let tensors = points.iter().map(|point| all(*point)).fold(AROUND_ALL, u64::saturating_add);
        let messages = (points.len() as u64).saturating_mul(steps as u64);
        let manifest = AROUND_ALL
            .saturating_add(messages.saturating_mul(AROUND_A_TENSOR))
            .saturating_add((ids as u64).saturating_add(steps as u64).saturating_mul(PER_ID));
        Room { tensors, manifest }
    }

    fn all(self) -> u64 {
        self.tensors.saturating_add(self.manifest).saturating_add(AROUND_ALL)
    }
}

/// Points that may be asked for at once, so that neither a daemon's bounds nor a disk's are met: their names are few
/// enough, and their numbers too, unless a single point has more. What is asked for twice comes out the same.
pub fn parts<'a>(dims: &Dims, points: &'a [Point], ids: usize, steps: usize) -> Vec<&'a [Point]> {
    let mut parts = Vec::new();
    let (mut begin, mut held) = (0, 0u64);
    for (n, point) in points.iter().enumerate() {
        let more = numbers(dims, *point, ids, steps);
        held = held.saturating_add(more);
        if n > begin && (held > MOST_NUMBERS || n - begin == MOST_POINTS) {
            parts.push(&points[begin..n]);
            (begin, held) = (n, more);
        }
    }
    parts.push(&points[begin..]);
    parts
}

/// Elements of a point in all steps.
fn numbers(dims: &Dims, point: Point, ids: usize, steps: usize) -> u64 {
    let of_step = |step: usize| -> u64 {
        let (t, s) = if step == 0 { (ids, ids) } else { (1, ids.saturating_add(step)) };
        point.shape(dims, t, s).into_iter().fold(1, |n, size| n.saturating_mul(size as u64))
    };
    (0..steps).map(of_step).fold(0, u64::saturating_add)
}

/// Unpacks the bundle into `dir`. The error says what is wrong with the archive.
pub fn unpack(answer: impl Read, dir: &Path, room: Room) -> Result<Bundle, String> {
    // What the archive says of itself is believed only this far.
    let mut archive = tar::Archive::new(answer.take(room.all()));
    let broken = |error: io::Error| format!("it is no whole archive: {error}");
    let mut found = Vec::new();
    // Raw: names that are written in pieces, or as links, are none of ours.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let entry = entry.map_err(broken)?;
        let Some((name, most)) = ours(&entry.path_bytes(), room) else { continue };
        if !entry.header().entry_type().is_file() {
            return Err(format!("{name} is no plain file in it"));
        }
        if found.contains(&name) {
            return Err(format!("{name} is in it twice"));
        }
        let size = entry.size();
        if size > most {
            return Err(format!("{name} has {size} bytes; expected at most {most}"));
        }
        save(entry, &dir.join(name), size)?;
        found.push(name);
    }
    if let Some(name) = [TENSORS, MANIFEST].into_iter().find(|name| !found.contains(name)) {
        return Err(format!("{name} is not in it"));
    }
    let bundle = Bundle::open(dir).map_err(|e| e.to_string())?;
    bundle.verify().map_err(|e| e.to_string())?;
    Ok(bundle)
}

/// The name as we write it, and how large the file may be: an archive's own path is never used as one.
fn ours(path: &[u8], room: Room) -> Option<(&'static str, u64)> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    [(TENSORS, room.tensors), (MANIFEST, room.manifest)]
        .into_iter()
        .find(|(name, _)| name.as_bytes() == path)
}

fn save(mut entry: impl Read, path: &Path, size: u64) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to save {}: {error}", path.display());
    let mut file = File::create(path).map_err(failed)?;
    match io::copy(&mut entry, &mut file).map_err(failed)? {
        copied if copied == size => Ok(()),
        copied => Err(format!("it ends after {copied} of {size} bytes of {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llorch_trace::bundle::Manifest;
    use llorch_trace::{BundleWriter, Tensor};

    const DIMS: Dims =
        Dims { n_layer: 1, n_head: 2, n_embd: 4, n_inner: 16, vocab_size: 10, n_positions: 8 };

    fn room() -> Room {
        Room::of(&DIMS, &llorch_trace::all_points(1), 2, 1)
    }

    /// The two files of a bundle.
    fn files() -> [Vec<u8>; 2] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = BundleWriter::create(dir.path()).unwrap();
        writer.add("case", 0, "argmax", &Tensor::i64(vec![], vec![13])).unwrap();
        writer.finish(Manifest::default()).unwrap();
        [TENSORS, MANIFEST].map(|name| std::fs::read(dir.path().join(name)).unwrap())
    }

    fn packed(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            // Past what the crate would let through.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn refusal(archive: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("a/b");
        std::fs::create_dir_all(&inside).unwrap();
        let refusal = unpack(archive, &inside, room()).unwrap_err();
        let beside = std::fs::read_dir(dir.path().join("a")).unwrap().count();
        assert_eq!(beside, 1, "nothing is written beside its folder");
        refusal
    }

    #[test]
    fn a_bundle_is_unpacked_whatever_else_is_in_the_archive() {
        let [tensors, manifest] = files();
        let archive = packed(&[
            ("../escaped", b"x"),
            ("./tensors.safetensors", &tensors),
            ("/etc/other", b"x"),
            ("manifest.json", &manifest),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        let bundle = unpack(&archive[..], &inside, room()).unwrap();
        assert_eq!(bundle.get("case", 0, "argmax").unwrap(), Tensor::i64(vec![], vec![13]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_whole_bundle_is_refused_with_the_reason() {
        let [tensors, manifest] = files();
        let whole = packed(&[(TENSORS, &tensors), (MANIFEST, &manifest)]);
        assert!(refusal(b"{\"error\": 1}").contains("no whole archive"));
        assert_eq!(refusal(&[]), "tensors.safetensors is not in it");
        assert_eq!(refusal(&packed(&[(TENSORS, &tensors)])), "manifest.json is not in it");
        // Cut off in the data of its first file, between two files, and in the second.
        for cut in [512 + 20, 1024, 2048 + 100] {
            assert!(!refusal(&whole[..cut]).is_empty(), "{cut}");
        }
        let twice = packed(&[(TENSORS, &tensors), (TENSORS, &tensors), (MANIFEST, &manifest)]);
        assert_eq!(refusal(&twice), "tensors.safetensors is in it twice");
        let mut changed = tensors.clone();
        *changed.last_mut().unwrap() ^= 1;
        let changed = packed(&[(TENSORS, &changed), (MANIFEST, &manifest)]);
        assert!(refusal(&changed).contains("sha256"), "{}", refusal(&changed));
        let nonsense = packed(&[(TENSORS, &tensors), (MANIFEST, b"{}")]);
        assert!(refusal(&nonsense).contains("manifest.json"), "{}", refusal(&nonsense));
    }

    #[test]
    fn what_is_larger_than_what_was_asked_for_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_path(TENSORS).unwrap();
        header.set_size(1 << 50);
        header.set_cksum();
        let refusal = refusal(header.as_bytes());
        assert!(refusal.starts_with("tensors.safetensors has 1125899906842624 bytes"), "{refusal}");
        let (one, all) = (Room::of(&DIMS, &["ln_f".parse().unwrap()], 2, 1), room());
        assert!(one.tensors < all.tensors && one.manifest < all.manifest);
        // [2,4], eight bytes each.
        assert_eq!(one.tensors, AROUND_ALL + AROUND_A_TENSOR + 2 * 4 * 8);
    }

    #[test]
    fn a_part_is_as_much_as_may_be_asked_for_at_once() {
        let points = llorch_trace::all_points(1);
        assert_eq!(parts(&DIMS, &points, 2, 1), [&points[..]]);
        assert_eq!(parts(&DIMS, &[], 2, 1), [&[][..]]);
        let deep = Dims { n_layer: 100, ..DIMS };
        let points = llorch_trace::all_points(100);
        let found = parts(&deep, &points, 2, 1);
        assert!(found.iter().all(|part| part.len() <= MOST_POINTS), "{}", points.len());
        assert_eq!(found.concat(), points);
        // 12 heads of 1024 by 1024 scores and probabilities a layer, and all else.
        let gpt2 = Dims {
            n_layer: 12,
            n_head: 12,
            n_embd: 768,
            n_inner: 3072,
            vocab_size: 50257,
            n_positions: 1024,
        };
        let points = llorch_trace::all_points(12);
        let found = parts(&gpt2, &points, 1024, 1);
        let size = |part: &[Point]| part.iter().map(|p| numbers(&gpt2, *p, 1024, 1)).sum::<u64>();
        assert!(found.len() > 1 && found.iter().all(|part| size(part) <= MOST_NUMBERS));
        assert_eq!(found.concat(), points);
        // One that is too large by itself is asked for by itself.
        let huge = Dims { vocab_size: 1 << 24, ..DIMS };
        let points = ["ln_f", "logits", "argmax"].map(|name| name.parse().unwrap());
        let found = parts(&huge, &points, 1024, 1);
        assert_eq!(found, [&points[..1], &points[1..2], &points[2..]]);
    }
}
