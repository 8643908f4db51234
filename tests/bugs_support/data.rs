//! The seeded bugs as they stand in `tests/bugs/*.toml`.
//!
//! ```toml
//! [[bug]]
//! inject = ["eps:layer=2:which=ln_1"]   # as `--bug` of adapters/python/bug; more than one at once, too
//! case = "short"                        # of tests/bugs/cases.toml
//! model = "nano"                        # or `synth:tiny`, or `ties`: nano with two equal tokens
//! point = "h.2.ln_1"                    # the first cause that must be named …
//! step = 0
//! layers = [2]                          # by default that of the point
//! head = 1                              # where only one head or token is wrong
//! token = 3
//! signature = "eps"                     # one, or a list of those that would be right; "none" is null
//! then = { point = "h.3.attn.out" }     # … and the second, of a pair
//! below_limit = "why"                   # nobody can see it: listed, not counted
//! ```
//!
//! What is left out of `case` is `short`, of `model` `nano`, of `step` 0, of `signature` "none".

use std::path::Path;

use llorch_trace::Point;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bug {
    pub inject: Vec<String>,
    #[serde(default = "short")]
    pub case: String,
    #[serde(default = "nano")]
    pub model: String,
    pub point: String,
    #[serde(default)]
    pub step: usize,
    pub layers: Option<Vec<usize>>,
    pub head: Option<usize>,
    pub token: Option<usize>,
    #[serde(default)]
    pub signature: Signature,
    pub then: Option<Cause>,
    pub below_limit: Option<String>,
    /// The file without its ending.
    #[serde(skip)]
    pub file: String,
}

/// Where a bug must be found, and as what.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    pub point: String,
    #[serde(default)]
    pub step: usize,
    pub layers: Option<Vec<usize>>,
    pub head: Option<usize>,
    pub token: Option<usize>,
    #[serde(default)]
    pub signature: Signature,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
pub enum Signature {
    #[default]
    None,
    One(String),
    Any(Vec<String>),
}

impl Signature {
    /// Whether a signature, or none, is one of those that would be right.
    pub fn allows(&self, found: Option<&str>) -> bool {
        let found = found.unwrap_or("none");
        match self {
            Signature::None => found == "none",
            Signature::One(name) => name == found,
            Signature::Any(names) => names.iter().any(|name| name == found),
        }
    }

    fn names(&self) -> String {
        match self {
            Signature::None => "none".into(),
            Signature::One(name) => name.clone(),
            Signature::Any(names) => names.join(" or "),
        }
    }
}

impl Bug {
    /// The causes that must be named, in order.
    pub fn causes(&self) -> Vec<Cause> {
        let first = Cause {
            point: self.point.clone(),
            step: self.step,
            layers: self.layers.clone(),
            head: self.head,
            token: self.token,
            signature: self.signature.clone(),
        };
        [Some(first), self.then.clone()].into_iter().flatten().collect()
    }

    pub fn checkpoint(&self) -> u8 {
        self.causes()[0].point().checkpoint().number
    }

    pub fn name(&self) -> String {
        let case = if self.case == "short" { String::new() } else { format!(" ({})", self.case) };
        let model =
            if self.model == "nano" { String::new() } else { format!(" on {}", self.model) };
        format!("{}{case}{model}", self.inject.join(" + "))
    }
}

impl Cause {
    pub fn point(&self) -> Point {
        self.point.parse().unwrap_or_else(|e| panic!("{}: {e}", self.point))
    }

    pub fn layers(&self) -> Vec<usize> {
        self.layers.clone().unwrap_or_else(|| self.point().layer.into_iter().collect())
    }

    pub fn tell(&self) -> String {
        let part = |name: &str, value: Option<usize>| {
            value.map_or(String::new(), |value| format!(" {name} {value}"))
        };
        let layers = self.layers();
        let layers = if layers.len() > 1 { format!(" layers {layers:?}") } else { String::new() };
        format!(
            "{} step {}{layers}{}{} {}",
            self.point,
            self.step,
            part("head", self.head),
            part("token", self.token),
            self.signature.names()
        )
    }
}

fn short() -> String {
    "short".into()
}

fn nano() -> String {
    "nano".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    bug: Vec<Bug>,
}

/// Every bug of every file, in the order of the files' names.
pub fn read_all(folder: &Path) -> Vec<Bug> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml") && !p.ends_with("cases.toml"));
    // 10 behind 9.
    paths.sort_by_key(|p| {
        let name = p.file_stem().unwrap().to_string_lossy().into_owned();
        let number = name.split('-').next().and_then(|n| n.parse::<u32>().ok());
        (number.unwrap_or(u32::MAX), name)
    });
    let mut bugs = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let file: File =
            toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        bugs.extend(file.bug.into_iter().map(|bug| Bug { file: stem.clone(), ..bug }));
    }
    bugs
}
