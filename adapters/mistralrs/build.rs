//! Tells the adapter which releases it is built on: what Cargo.lock says beside it.

fn main() {
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    for package in ["mistralrs-core", "mistralrs-quant", "candle-core"] {
        let name = format!("name = \"{package}\"");
        let after = lock.lines().skip_while(|line| *line != name).nth(1).unwrap_or_default();
        let version = after.strip_prefix("version = ").map(|version| version.trim_matches('"'));
        let variable = package.to_uppercase().replace('-', "_");
        println!("cargo:rustc-env={variable}_VERSION={}", version.unwrap_or("of unknown version"));
    }
}
