//! The files that a cargo reference is built from, wherever they come from.

use std::path::Path;

use llorch_trace::hash::sha256_bytes;

use super::Provisioner;
use crate::assets;
use crate::references::Reference;

/// Folders that building leaves behind.
const MADE: [&str; 2] = ["target", "__pycache__"];

/// The folders of the repository that a cargo reference is built from.
pub(super) fn of(reference: &Reference) -> Vec<String> {
    let packages = std::iter::once(&reference.entry).chain(&reference.also);
    packages.map(|name| format!("adapters/{name}/")).chain(["harness/trace/".into()]).collect()
}

/// The paths of all files below the folders, sorted within each.
pub(super) fn list(provisioner: &Provisioner, folders: &[String]) -> Vec<String> {
    let root = provisioner.resolved().or(provisioner.sources.as_deref());
    let below = |folder: &String| match root {
        None => assets::list(folder),
        Some(root) => {
            let mut found = Vec::new();
            walk(&root.join(folder), folder, &mut found);
            found.sort();
            found
        }
    };
    folders.iter().flat_map(below).collect()
}

fn walk(dir: &Path, name: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        match entry.path().is_dir() {
            true if MADE.contains(&file.as_str()) => {}
            true => walk(&entry.path(), &format!("{name}{file}/"), found),
            false => found.push(format!("{name}{file}")),
        }
    }
}

/// What names a state of these files: 16 hexadecimal digits.
pub(super) fn fingerprint(provisioner: &Provisioner, folders: &[String]) -> String {
    if provisioner.resolved().is_none() && provisioner.sources.is_none() {
        return assets::fingerprint(&folders.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let mut text = String::new();
    for path in list(provisioner, folders) {
        let bytes = provisioner.bytes(&path).unwrap_or_default();
        text.push_str(&format!("{path} {}\n", sha256_bytes(&bytes)));
    }
    sha256_bytes(text.as_bytes())[..16].to_owned()
}
