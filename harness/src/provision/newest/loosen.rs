//! What asks for exact versions, made to ask for the newest.

use toml::{Table, Value};

/// A requirements file without its `==` pins. What else is asked for says what can't work, and stays:
/// `numpy==2.4.6,<3` becomes `numpy<3`. Extras, markers, options and addresses stay too.
pub(super) fn requirements(text: &str) -> String {
    text.lines().map(|line| requirement(line) + "\n").collect()
}

fn requirement(line: &str) -> String {
    let (text, comment) = match line.find('#') {
        Some(at) => line.split_at(at),
        None => (line, ""),
    };
    // An option, an address, or nothing.
    if text.trim_start().starts_with('-') || text.contains('@') || !text.contains("==") {
        return line.to_owned();
    }
    let (what, marker) = match text.find(';') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let Some(end) = what.find(['=', '<', '>', '!', '~']) else { return line.to_owned() };
    let (name, versions) = what.split_at(end);
    let is_pin = |version: &&str| version.trim_start().starts_with("==");
    let kept: Vec<&str> = versions.split(',').filter(|v| !is_pin(v)).map(str::trim).collect();
    let spaced = |text: &str| match text.trim() {
        "" => String::new(),
        text => format!(" {text}"),
    };
    format!("{}{}{}{}", name.trim_end(), kept.join(","), spaced(marker), spaced(comment))
}

/// A `Cargo.toml` whose exact pins (`=1.2.3`) ask for any version, and that no longer says how old a Rust
/// it supports: the resolver goes by the Rust that is there.
pub(super) fn manifest(text: &str) -> Result<String, String> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    for key in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(Value::Table(dependencies)) = table.get_mut(key) else { continue };
        for (_, dependency) in dependencies.iter_mut() {
            let version = match dependency {
                Value::Table(details) => details.get_mut("version"),
                plain => Some(plain),
            };
            if let Some(Value::String(version)) = version
                && version.trim_start().starts_with('=')
            {
                "*".clone_into(version);
            }
        }
    }
    if let Some(Value::Table(package)) = table.get_mut("package") {
        package.remove("rust-version");
    }
    toml::to_string(&table).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_go_and_everything_else_stays() {
        for (line, expected) in [
            ("torch==2.13.0", "torch"),
            ("numpy", "numpy"),
            (
                "tokenizers[testing] == 0.23.3 ; python_version >= '3.11'",
                "tokenizers[testing] ; python_version >= '3.11'",
            ),
            ("numpy==2.4.6,<3", "numpy<3"),
            ("numpy >=2,==2.*", "numpy>=2"),
            ("safetensors>=0.8  # a reason", "safetensors>=0.8  # a reason"),
            ("torch===2.13.0 # exact", "torch # exact"),
            (
                "--extra-index-url https://example.org/cpu",
                "--extra-index-url https://example.org/cpu",
            ),
            (
                "x @ https://example.org/x-1.whl#sha256==0",
                "x @ https://example.org/x-1.whl#sha256==0",
            ),
            ("# torch==1", "# torch==1"),
            ("", ""),
        ] {
            assert_eq!(requirement(line), expected, "{line}");
        }
    }

    #[test]
    fn exact_crates_become_any_and_ranges_stay() {
        let text = "[package]\nname = \"x\"\nrust-version = \"1.88\"\n[dependencies]\na = \"=0.11.1\"\nb = \"0.2\"\n\
            c = { version = \"=1.0.0\", features = [\"f\"] }\nd = { path = \"../d\" }\n";
        let loosened: Table = manifest(text).unwrap().parse().unwrap();
        let dependencies = loosened["dependencies"].as_table().unwrap();
        assert_eq!(dependencies["a"].as_str(), Some("*"));
        assert_eq!(dependencies["b"].as_str(), Some("0.2"));
        assert_eq!(dependencies["c"]["version"].as_str(), Some("*"));
        assert_eq!(dependencies["c"]["features"][0].as_str(), Some("f"));
        assert_eq!(dependencies["d"]["path"].as_str(), Some("../d"));
        assert!(loosened["package"].get("rust-version").is_none());
    }
}
