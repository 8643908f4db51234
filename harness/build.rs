//! Tells cargo which files travel in the binary, so that a change to any of them (a new one too)
//! is a change of this crate. Mirrors the folders and exclusions of src/assets.rs.

use std::path::Path;

/// All of `golden`, though only parts of it are embedded: a part that comes later is noticed too.
const EMBEDDED: [&str; 4] = ["adapters", "refs", "harness/trace", "golden"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in EMBEDDED {
        let folder = root.join(folder);
        if folder.is_dir() {
            watch(&folder);
        }
    }
}

/// Watches a folder as a whole, unless something below it is left out (a build folder, Python's
/// bytecode): cargo looks at everything below a watched folder, so then its parts are named.
fn watch(folder: &Path) {
    if !has_excluded(folder) {
        println!("cargo:rerun-if-changed={}", folder.display());
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_excluded(&path) {
            continue;
        }
        if path.is_dir() {
            watch(&path);
        } else {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
}

fn has_excluded(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .any(|path| is_excluded(&path) || (path.is_dir() && has_excluded(&path)))
}

fn is_excluded(path: &Path) -> bool {
    let outside = ["target", "__pycache__", ".pytest_cache"];
    // Goldens that wait for a review, and folders that a command works in.
    let unaccepted = |name: &str| name == "pending" || name.starts_with(".re");
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        outside.contains(&name)
            || (path.parent().is_some_and(|p| p.ends_with("golden/nano")) && unaccepted(name))
    })
}
