//! A bundle of which some tensors are accepted anew and the others stay, and whose manifest says of
//! each who recorded it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llorch_trace::bundle::{MANIFEST, TENSORS, key};
use llorch_trace::{Bundle, BundleWriter, Manifest};
use serde_json::{Map, Value, json};

use super::changes::{Key, Kind, Unit};
use super::commit::failed;
use super::disk;
use super::pending::Pair;
use crate::golden::stop::Stop;

/// What tells recordings apart in `provenance`.
const RECORDING: [&str; 3] = ["by", "command", "date"];

/// Writes the bundle that is accepted once `accepted` is; all of a pair's changes or some of them.
pub fn write(pair: &Pair, accepted: &[&Unit], to: &Path) -> Result<(), Stop> {
    let all = pair.rejected == 0 && accepted.len() == pair.units.len();
    match &pair.old {
        Some(old) if !all => mixed(old, &pair.new, accepted, to),
        // As it was recorded, to the byte.
        _ => copied(&pair.new, to),
    }
}

/// The bundle as it is, to the byte.
pub fn copied(bundle: &Bundle, to: &Path) -> Result<(), Stop> {
    std::fs::create_dir_all(to).map_err(|e| failed("create", to, &e))?;
    for file in [TENSORS, MANIFEST] {
        let target = to.join(file);
        disk::copy(&bundle.dir.join(file), &target).map_err(|e| failed("write", &target, &e))?;
    }
    disk::sync_folder(to).map_err(|e| failed("write", to, &e))
}

fn mixed(old: &Bundle, new: &Bundle, accepted: &[&Unit], to: &Path) -> Result<(), Stop> {
    let taken: BTreeSet<Key> =
        accepted.iter().flat_map(|u| u.tensors.iter().map(|c| c.key())).collect();
    let is_taken = |e: &llorch_trace::bundle::Entry| {
        taken.contains(&(e.case.clone(), e.step, e.point.clone()))
    };
    let mut writer = BundleWriter::create(to).map_err(Stop::environment)?;
    let mut origins = Origins::default();
    let mut written = BTreeSet::new();
    for e in &old.manifest.tensors {
        let from = if is_taken(e) { new } else { old };
        // A tensor that is gone, and whose going is accepted.
        if !from.contains(&e.case, e.step, &e.point) {
            continue;
        }
        add(&mut writer, &mut origins, from, &e.case, e.step, &e.point)?;
        written.insert((e.case.clone(), e.step, e.point.clone()));
    }
    for e in new.manifest.tensors.iter().filter(|e| is_taken(e)) {
        if !written.contains(&(e.case.clone(), e.step, e.point.clone())) {
            add(&mut writer, &mut origins, new, &e.case, e.step, &e.point)?;
        }
    }
    let mut manifest = old.manifest.clone();
    for unit in accepted.iter().filter(|u| u.kind == Kind::Case) {
        replace_case(&mut manifest, &new.manifest, &unit.what);
    }
    origins.write_into(&mut manifest);
    disk::step();
    let bundle = writer.finish(manifest).map_err(Stop::environment)?;
    let path = to.join(MANIFEST);
    let text = text(&bundle.manifest).map_err(Stop::environment)?;
    disk::write(&path, text.as_bytes()).map_err(|e| failed("write", &path, &e))
}

fn add(
    writer: &mut BundleWriter,
    origins: &mut Origins,
    from: &Bundle,
    case: &str,
    step: usize,
    point: &str,
) -> Result<(), Stop> {
    let tensor = from.get(case, step, point).map_err(Stop::input)?;
    writer.add(case, step, point, &tensor).map_err(Stop::environment)?;
    origins.add(&from.manifest, key(case, step, point));
    Ok(())
}

/// A case's ids, text, prompt and sampling, as they are in the other manifest.
fn replace_case(manifest: &mut Manifest, other: &Manifest, case: &str) {
    match other.cases.get(case) {
        Some(record) => {
            manifest.cases.insert(case.to_string(), record.clone());
        }
        None => {
            manifest.cases.remove(case);
        }
    }
    let told = other.provenance.get("cases").and_then(|cases| cases.get(case)).cloned();
    if let Some(cases) = manifest.provenance.get_mut("cases").and_then(|v| v.as_object_mut()) {
        match told {
            Some(told) => {
                cases.insert(case.to_string(), told);
            }
            None => {
                cases.shift_remove(case);
            }
        }
    }
}

/// Which recording each tensor comes from.
#[derive(Debug, Default)]
struct Origins {
    /// By what `provenance` says of a recording: the keys of its tensors.
    recordings: Vec<(Value, Vec<String>)>,
}

impl Origins {
    fn add(&mut self, manifest: &Manifest, key: String) {
        let recording = origin(manifest, &key);
        match self.recordings.iter_mut().find(|(known, _)| *known == recording) {
            Some((_, keys)) => keys.push(key),
            None => self.recordings.push((recording, vec![key])),
        }
    }

    /// Most tensors' recording is that of the bundle; the others are listed with theirs.
    fn write_into(self, manifest: &mut Manifest) {
        let mut recordings = self.recordings;
        // Stable: of equals the one that was there stays in front.
        recordings.sort_by_key(|(_, keys)| std::cmp::Reverse(keys.len()));
        let mut recordings = recordings.into_iter();
        let Some((most, _)) = recordings.next() else { return };
        let others: Vec<Value> = recordings
            .map(|(mut recording, keys)| {
                recording["tensors"] = json!(keys);
                recording
            })
            .collect();
        let mut provenance = most.as_object().cloned().unwrap_or_default();
        if !others.is_empty() {
            provenance.insert("recordings".into(), Value::Array(others));
        }
        let before = manifest.provenance.as_object().cloned().unwrap_or_default();
        let kept = before
            .into_iter()
            .filter(|(k, _)| k != "recordings" && !RECORDING.contains(&k.as_str()));
        provenance.extend(kept);
        manifest.provenance = Value::Object(provenance);
    }
}

/// What a manifest says of the recording that a tensor comes from.
pub fn origin(manifest: &Manifest, key: &str) -> Value {
    let listed = manifest.provenance.get("recordings").and_then(|r| r.as_array());
    let names_it = |recording: &&Value| {
        let keys = recording["tensors"].as_array();
        keys.is_some_and(|keys| keys.iter().any(|k| k == key))
    };
    let own = listed.into_iter().flatten().find(names_it).unwrap_or(&manifest.provenance);
    let fields = RECORDING.iter().filter_map(|f| Some((f.to_string(), own.get(f)?.clone())));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// Who recorded the tensors of one side of a unit, several where they differ.
pub fn origins_of(manifest: &Manifest, unit: &Unit) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for change in &unit.tensors {
        let key = key(&change.case, change.step, &change.key);
        let by = origin(manifest, &key);
        let by = by["by"].as_str().unwrap_or("unknown").to_string();
        *found.entry(by).or_insert(0) += 1;
    }
    found
}

/// In the form of refs/nano/golden.py, a line a tensor: what changes shows as a line.
fn text(manifest: &Manifest) -> serde_json::Result<String> {
    let mut head = serde_json::to_value(manifest)?;
    let fields = ["schema", "implementation", "hello", "model", "cases", "provenance", "sha256"];
    let ordered: Map<String, Value> =
        fields.iter().map(|f| (f.to_string(), head[f].take())).collect();
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(&ordered, &mut serializer)?;
    let text = String::from_utf8_lossy(&out).into_owned();
    let entries: serde_json::Result<Vec<String>> =
        manifest.tensors.iter().map(|e| Ok(format!("  {}", serde_json::to_string(e)?))).collect();
    let open = text.trim_end_matches('}').trim_end();
    Ok(format!("{open},\n \"tensors\": [\n{}\n ]\n}}\n", entries?.join(",\n")))
}
