//! The versions that a lock file names.

use crate::references::{Kind, Reference};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub name: String,
    pub version: String,
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// Every `name==version` of a requirements file.
pub(crate) fn read(lock: &str) -> Vec<Pin> {
    let pin = |line: &str| {
        let (name, rest) = line.split_once("==")?;
        let version = rest.split([' ', ';', '\\']).next()?;
        Some(Pin { name: name.trim().to_owned(), version: version.trim().to_owned() })
    };
    lock.lines().filter(|line| !line.starts_with([' ', '#', '-'])).filter_map(pin).collect()
}

/// Every package of a `Cargo.lock`.
fn read_cargo(lock: &str) -> Vec<Pin> {
    let Ok(table) = lock.parse::<toml::Table>() else { return Vec::new() };
    let packages = table.get("package").and_then(toml::Value::as_array);
    let pin = |package: &toml::Value| {
        let text = |key| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        Some(Pin { name: text("name")?, version: text("version")? })
    };
    packages.into_iter().flatten().filter_map(pin).collect()
}

/// Every pin of a reference.
pub(crate) fn all(reference: &Reference, text: &dyn Fn(&str) -> Option<String>) -> Vec<Pin> {
    let lock = text(&super::lock_path(reference)).unwrap_or_default();
    match reference.kind {
        Kind::Python => read(&lock),
        Kind::Cargo => read_cargo(&lock),
    }
}

/// The pins that tell what a reference is: those that its `ref.toml` shows, else those that its
/// `requirements.in` asks for by name, else (cargo) the crates that begin with its own name.
pub(crate) fn telling(reference: &Reference, text: &dyn Fn(&str) -> Option<String>) -> Vec<Pin> {
    let all = all(reference, text);
    let asked = match reference.kind {
        Kind::Python => {
            let asked =
                text(&format!("refs/{}/requirements.in", reference.name)).unwrap_or_default();
            let names = asked.lines().map(|line| {
                line.split(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c))
                    .next()
                    .unwrap_or("")
                    .to_owned()
            });
            names.filter(|name| !name.is_empty()).collect()
        }
        Kind::Cargo => {
            let prefix = format!("{}-", reference.name);
            let names = all.iter().map(|pin| pin.name.clone());
            names.filter(|name| name.starts_with(&prefix)).collect()
        }
    };
    let wanted: Vec<String> =
        if reference.shows.is_empty() { asked } else { reference.shows.clone() };
    wanted.iter().filter_map(|name| all.iter().find(|pin| pin.name == *name).cloned()).collect()
}

/// How many packages a `Cargo.lock` names.
pub(crate) fn count_cargo(lock: &str) -> usize {
    lock.lines().filter(|line| line.trim() == "[[package]]").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_with_their_markers_and_hashes() {
        let lock = "torch==2.13.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n# via x\nanyio==4.16.0 ; sys_platform != 'x' \\\n    --hash=sha256:22\n";
        let pins: Vec<String> = read(lock).iter().map(Pin::to_string).collect();
        assert_eq!(pins, ["torch 2.13.0", "anyio 4.16.0"]);
    }

    #[test]
    fn cargo_locks_are_read() {
        let lock = "version = 4\n\n[[package]]\nname = \"candle-core\"\nversion = \"0.11.1\"\n";
        assert_eq!(
            read_cargo(lock),
            [Pin { name: "candle-core".into(), version: "0.11.1".into() }]
        );
        assert_eq!(count_cargo(lock), 1);
    }
}
