//! Embeds nano: writes a table of its files, their contents and their sha256 for `src/nano.rs`.
//!
//! The hashes are taken here so that no start of a program pays for them. A build without the
//! folder succeeds; `nano` is then refused by name at run time.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Everything that a model folder may hold and a loader may read.
const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
];

fn main() -> io::Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let folder = manifest.join("../../golden/models/nano");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", folder.display());

    let mut table = String::from("&[\n");
    for name in FILES {
        let path = folder.join(name);
        if path.is_file() {
            println!("cargo::rerun-if-changed={}", path.display());
            let path = path.canonicalize()?;
            writeln!(
                table,
                "    EmbeddedFile {{ name: {name:?}, sha256: {:?}, bytes: include_bytes!({:?}) }},",
                sha256(&path)?,
                path.display().to_string()
            )
            .map_err(io::Error::other)?;
        }
    }
    table.push_str("]\n");
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    fs::write(out.join("nano_files.rs"), table)
}

fn sha256(path: &Path) -> io::Result<String> {
    Ok(Sha256::digest(fs::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}
