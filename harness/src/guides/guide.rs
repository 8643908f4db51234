//! The form of a guide.

use serde::{Deserialize, Serialize};

/// One file of `data/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guide {
    pub checkpoint: u8,
    pub criticality: Criticality,
    /// Why it has that criticality.
    pub criticality_reason: String,
    pub purpose: String,
    /// What is computed, a line an equation, with the shape behind it.
    pub formula: String,
    /// When to check it.
    pub when: String,
    pub checklist: Vec<String>,
    pub reference: Vec<Reference>,
    pub failure: Vec<Failure>,
    pub success: String,
    /// What a real run gave.
    #[serde(default)]
    pub figure: Vec<Figure>,
    pub command: Vec<Command>,
    pub hint: Vec<Hint>,
    pub next: Next,
}

/// How much hangs on a checkpoint; `--strategy critical` looks at the critical ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criticality {
    Critical,
    Important,
    Supporting,
}

/// Where one implementation computes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    pub name: String,
    /// The version in which these lines were looked up.
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    #[serde(default)]
    pub place: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// In the package, or in this repository where it begins with `adapters/`.
    pub file: String,
    /// `58` or `58-63`; absent where only the function is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<String>,
    /// A word that stands in these lines, by which a test finds them again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<String>,
    pub text: String,
}

/// A mistake that people make there, and how it looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub mistake: String,
    pub looks: String,
    /// What `bisect` calls it, where it has a word for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The seeded bug that makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bug: Option<String>,
}

/// Largest differences at one kind of point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub point: String,
    /// llorch-cpud against each of them.
    pub hf: String,
    pub tinygrad: String,
    pub candle: String,
    /// llorch-cpud against the float64 recomputation of the stage.
    pub local: String,
    pub tolerance: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    pub run: String,
    pub text: String,
}

/// What to look at first where one of these stages is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hint {
    pub stages: Vec<String>,
    pub text: String,
}

/// Where to go from here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Next {
    pub pass: String,
    pub fail: String,
}

impl Criticality {
    pub fn name(self) -> &'static str {
        match self {
            Criticality::Critical => "critical",
            Criticality::Important => "important",
            Criticality::Supporting => "supporting",
        }
    }
}

impl Guide {
    /// `04-scores`, the name of its file.
    pub fn file_stem(&self) -> String {
        let checkpoint = &llorch_trace::points::CHECKPOINTS[usize::from(self.checkpoint)];
        format!("{:02}-{}", checkpoint.number, checkpoint.slug)
    }

    pub fn title(&self) -> String {
        let checkpoint = &llorch_trace::points::CHECKPOINTS[usize::from(self.checkpoint)];
        format!("Checkpoint {} · {}", checkpoint.number, checkpoint.name)
    }
}

impl Place {
    /// `modeling_gpt2.py:58-63`.
    pub fn cite(&self) -> String {
        match &self.lines {
            Some(lines) => format!("{}:{lines}", self.file),
            None => self.file.clone(),
        }
    }

    /// Looks whether these lines of a file hold the word that the guide gives for them.
    pub fn find(&self, text: &str) -> Result<(), String> {
        let (Some(lines), Some(word)) = (&self.lines, &self.holds) else { return Ok(()) };
        let (from, to) = lines.split_once('-').unwrap_or((lines, lines));
        let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) else {
            return Err(format!("can't be looked for in lines {lines:?}"));
        };
        let all: Vec<&str> = text.lines().collect();
        let range = from.checked_sub(1).and_then(|from| all.get(from..to));
        let held = range.is_some_and(|lines| lines.iter().any(|line| line.contains(word)));
        let at = || {
            let found = all.iter().enumerate().filter(|(_, line)| line.contains(word));
            found.map(|(i, _)| (i + 1).to_string()).collect::<Vec<_>>().join(", ")
        };
        held.then_some(()).ok_or_else(|| format!("is not there but in lines [{}]", at()))
    }
}
