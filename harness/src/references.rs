//! The references that the harness knows: what `refs/<name>/ref.toml` says of each.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use llorch_trace::protocol::Worth;
use serde::Deserialize;

use crate::assets;
use crate::text::has_form;

/// A pinned reference implementation, as its `ref.toml` describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Reference {
    /// The name in reports and on the command line: `hf`, `tinygrad`, `candle`.
    pub name: String,
    /// `semantics`: upstream's own GPT-2 graph. `kernels`: upstream's kernels under our graph.
    pub worth: Worth,
    pub kind: Kind,
    pub licence: String,
    /// What may stand after the colon; handed to the adapter as `--variant`.
    #[serde(default)]
    pub variants: Vec<String>,
    /// Shown before anything is fetched.
    pub download_mb: u64,
    /// Free space that is asked for before anything is fetched.
    pub disk_mb: u64,
    /// Python: the script below `adapters/python`. Cargo: the package folder below `adapters`.
    pub entry: String,
    /// The oldest Python that the pins support, `3.11`.
    #[serde(default)]
    pub python: Option<String>,
    /// Python: the lock file beside `ref.toml`, full versions with hashes.
    #[serde(default)]
    pub requirements: Option<String>,
    /// Python: a package that is built here, because it has no wheels.
    #[serde(default)]
    pub build: Option<Build>,
    pub summary: String,
    /// Cargo: other packages below `adapters` whose sources it compiles too.
    #[serde(default)]
    pub also: Vec<String>,
    /// Python packages or crates that name the pins in one line; read from the lock where absent.
    #[serde(default)]
    pub shows: Vec<String>,
    /// The adapter calls `llorch-diff` for work that is done there: it gets the program in `LLORCH_DIFF`.
    #[serde(default)]
    pub calls_llorch_diff: bool,
    /// Variables that the adapter gets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variants that run another graph: witnesses of their own, part of `--ref all`.
    #[serde(default)]
    pub graphs: Vec<String>,
    /// Left out of `--ref all`: it takes long to install.
    #[serde(default)]
    pub only_by_name: bool,
    /// Left out of `run` unless it is asked for by name (a test double, not a reference).
    #[serde(default)]
    pub hidden: bool,
}

/// A package that a Python reference builds from source with CMake. Its files stand beside `ref.toml`.
#[derive(Debug, Clone, Deserialize)]
pub struct Build {
    pub package: String,
    /// The name of its CMake project.
    pub project: String,
    /// The lock file of what builds it, with hashes.
    pub constraints: String,
    /// Settings, in CMake's language, included at the start of its project.
    pub cmake: String,
    /// About how long it takes on two cores.
    pub minutes: u32,
}

/// How a reference is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A virtual environment from a lock file with hashes.
    Python,
    /// A Rust package with its own lock file, built by cargo.
    Cargo,
}

/// `candle:upstream`, `hf:f64@latest`: a reference, perhaps one of its variants, perhaps another release
/// than the pinned one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName {
    pub name: String,
    pub variant: Option<String>,
    pub release: Option<Release>,
}

/// What may stand after the `@`: another release than the one that is pinned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// The newest there is.
    Latest,
    /// The newest there was at the end of a day (UTC), `2026-10-01`.
    AsOf(String),
}

/// A name on the command line that means no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefNameError {
    #[error(
        "failed to read `{text}` as a reference: expected NAME or NAME:VARIANT, either with @latest behind it"
    )]
    Form { text: String },
    #[error(
        "failed to find release `{release}` of {name}: known are @latest, its newest, and a day as @2026-10-01, its newest then"
    )]
    Release { name: String, release: String },
    #[error(
        "failed to find release `{release}` of {name}: cargo, which builds it, resolves no versions of a day; expected @latest"
    )]
    NoDays { name: String, release: Release },
    #[error("failed to find reference `{name}`: known are {known}")]
    Unknown { name: String, known: String },
    #[error("failed to find variant `{variant}` of {name}: {known}")]
    Variant { name: String, variant: String, known: String },
}

/// A `ref.toml` that can't be used. The files travel in the binary, so this is a fault of ours.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {path}: {message}")]
pub struct RefFileError {
    pub path: String,
    pub message: String,
}

/// Every reference in the order in which they are shown: semantics first, then by name.
pub fn all() -> Vec<Reference> {
    let mut found: Vec<Reference> = read_all().into_iter().filter_map(Result::ok).collect();
    found.sort_by_key(|reference| (reference.worth != Worth::Semantics, reference.name.clone()));
    found
}

/// Every `ref.toml` with what is wrong with it, for tests and `adapters doctor`.
pub fn read_all() -> Vec<Result<Reference, RefFileError>> {
    assets::list("refs/")
        .into_iter()
        .filter(|path| path.ends_with("/ref.toml"))
        .map(|path| {
            let fail = |message: String| RefFileError { path: path.clone(), message };
            let bytes = assets::get(&path).ok_or_else(|| fail("not embedded".into()))?;
            let text = std::str::from_utf8(&bytes).map_err(|error| fail(error.to_string()))?;
            toml::from_str(text).map_err(|error| fail(error.to_string()))
        })
        .collect()
}

pub fn find(name: &str) -> Option<Reference> {
    all().into_iter().find(|reference| reference.name == name)
}

impl FromStr for RefName {
    type Err = RefNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pinned, release) = match text.split_once('@') {
            Some((pinned, release)) => (pinned, Some(release)),
            None => (text, None),
        };
        let (name, variant) = match pinned.split_once(':') {
            Some((name, variant)) => (name, Some(variant)),
            None => (pinned, None),
        };
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !is_word(name) || !variant.is_none_or(is_word) {
            return Err(RefNameError::Form { text: text.to_owned() });
        }
        let unknown = |release: &str| RefNameError::Release {
            name: pinned.to_owned(),
            release: release.to_owned(),
        };
        let release = release.map(|text| Release::read(text).ok_or_else(|| unknown(text)));
        Ok(Self {
            name: name.to_owned(),
            variant: variant.map(str::to_owned),
            release: release.transpose()?,
        })
    }
}

impl Release {
    fn read(text: &str) -> Option<Release> {
        match text {
            "latest" => Some(Release::Latest),
            day if is_day(day) => Some(Release::AsOf(day.to_owned())),
            _ => None,
        }
    }
}

/// `2026-02-28`, and not `2026-02-31`.
fn is_day(text: &str) -> bool {
    if !has_form(text, "0000-00-00") {
        return false;
    }
    let number = |digits: &str| digits.parse::<u32>().unwrap_or(0);
    let (year, month, day) = (number(&text[..4]), number(&text[5..7]), number(&text[8..]));
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// A name in results without its release: `hf` of `hf@latest`. Two releases of one reference share
/// everything but versions: they are two columns and one witness.
pub fn without_release(name: &str) -> &str {
    name.split_once('@').map_or(name, |(pinned, _)| pinned)
}

impl RefName {
    /// The reference that this names; its variant is one that the reference has.
    pub fn resolve(&self) -> Result<Reference, RefNameError> {
        let Some(reference) = find(&self.name) else {
            let known =
                all().iter().filter(|r| !r.hidden).map(|r| r.name.clone()).collect::<Vec<_>>();
            return Err(RefNameError::Unknown { name: self.name.clone(), known: known.join(", ") });
        };
        if let (Some(release @ Release::AsOf(_)), Kind::Cargo) = (&self.release, reference.kind) {
            return Err(RefNameError::NoDays { name: self.name.clone(), release: release.clone() });
        }
        match &self.variant {
            Some(variant) if !reference.variants.contains(variant) => Err(RefNameError::Variant {
                name: self.name.clone(),
                variant: variant.clone(),
                known: match reference.variants.as_slice() {
                    [] => "it has none".to_owned(),
                    variants => format!("it has {}", variants.join(", ")),
                },
            }),
            _ => Ok(reference),
        }
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(variant) = &self.variant {
            write!(f, ":{variant}")?;
        }
        match &self.release {
            Some(release) => write!(f, "@{release}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Latest => "latest",
            Release::AsOf(day) => day,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variants_are_parsed_and_printed_alike() {
        for text in [
            "hf",
            "candle:upstream",
            "llorch-cpud",
            "hf@latest",
            "candle:upstream@latest",
            "hf:f64@2024-02-29",
        ] {
            assert_eq!(text.parse::<RefName>().unwrap().to_string(), text);
        }
        for text in ["", ":", "hf:", ":f64", "a b", "hf:f64:x", "../hf", "@latest", "hf:@latest"] {
            assert!(text.parse::<RefName>().is_err(), "{text:?} was taken for a name");
        }
    }

    #[test]
    fn a_release_is_the_latest_or_a_day_that_there_is() {
        for text in [
            "hf@",
            "hf@newest",
            "hf@5.22.0",
            "hf@2026-02-29",
            "hf@2026-13-01",
            "hf@26-1-1",
            "hf@latest@latest",
            "hf@latest:f64",
        ] {
            let error = text.parse::<RefName>().unwrap_err();
            assert!(matches!(error, RefNameError::Release { .. }), "{text}: {error}");
            assert!(error.to_string().contains("@latest"), "{error}");
        }
        let of_a_day: RefName = "candle@2026-10-01".parse().unwrap();
        assert!(matches!(of_a_day.resolve(), Err(RefNameError::NoDays { .. })));
        assert!("hf@2026-10-01".parse::<RefName>().unwrap().resolve().is_ok());
        assert_eq!(without_release("hf:f64@latest"), "hf:f64");
        assert_eq!(without_release("hf"), "hf");
    }

    #[test]
    fn every_embedded_reference_file_is_sound() {
        for reference in read_all() {
            let reference = reference.unwrap();
            let lock = match reference.kind {
                Kind::Python => {
                    let file = reference
                        .requirements
                        .as_deref()
                        .expect("a Python reference has a lock file");
                    format!("refs/{}/{file}", reference.name)
                }
                Kind::Cargo => format!("adapters/{}/Cargo.lock", reference.entry),
            };
            assert!(assets::get(&lock).is_some(), "{lock} of {} isn't embedded", reference.name);
        }
    }

    #[test]
    fn an_unknown_reference_lists_the_known_ones() {
        let error = "nosuch".parse::<RefName>().unwrap().resolve().unwrap_err();
        assert!(matches!(error, RefNameError::Unknown { .. }), "{error}");
    }
}
