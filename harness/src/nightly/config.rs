//! What a night runs, as data.
//!
//! ```toml
//! schema = "llorch.nightly/1"
//! [[matrix]]                                # every model with every suite in every precision
//! models = ["nano", "synth:gpt2"]
//! suites = ["canonical"]                    # or files, found beside this one
//! dtypes = ["f32"]
//! references = ["hf", "tinygrad", "candle"] # together in each run
//! versions = ["pinned", "latest"]           # latest: with each reference's newest release beside it
//! published = true                          # the published known answers of these models too
//! ```

use std::path::{Path, PathBuf};

use llorch_trace::Dtype;
use serde::Deserialize;

use crate::assets;
use crate::lineup::JURY;
use crate::run::RunError;
use crate::suite::Suite;

pub const SCHEMA: &str = "llorch.nightly/1";
/// The config that ships.
const SHIPPED: &str = "golden/nightly.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    schema: String,
    #[serde(default)]
    matrix: Vec<Matrix>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    models: Vec<String>,
    #[serde(default = "canonical")]
    suites: Vec<String>,
    #[serde(default = "f32")]
    dtypes: Vec<String>,
    #[serde(default = "jury")]
    references: Vec<String>,
    #[serde(default = "pinned")]
    versions: Vec<Version>,
    #[serde(default)]
    published: bool,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    checkpoints: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Version {
    Pinned,
    Latest,
}

fn canonical() -> Vec<String> {
    vec![CANONICAL.into()]
}

fn f32() -> Vec<String> {
    vec![Dtype::F32.to_string()]
}

fn jury() -> Vec<String> {
    JURY.iter().map(ToString::to_string).collect()
}

fn pinned() -> Vec<Version> {
    vec![Version::Pinned]
}

const CANONICAL: &str = "canonical";

/// One run of the matrix, or one set of published answers.
#[derive(Debug, Clone)]
pub struct Task {
    /// `nano-canonical-f32`, `gpt2-published`.
    pub name: String,
    pub model: String,
    pub subject: Option<String>,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Run { suite: Suite, dtype: Dtype, references: Vec<String>, checkpoints: Vec<String> },
    Published,
}

/// The tasks of a file, or of the config that ships, in the order of the file.
pub fn tasks(file: Option<&Path>, latest: bool) -> Result<Vec<Task>, RunError> {
    let (name, text) = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| bad(&path.display(), &e))?;
            (path.display().to_string(), text)
        }
        None => {
            let bytes = assets::get(SHIPPED).unwrap_or_default();
            (SHIPPED.to_string(), String::from_utf8_lossy(&bytes).into_owned())
        }
    };
    let beside = file.and_then(Path::parent).unwrap_or(Path::new(""));
    plan(&name, &text, beside, latest)
}

fn plan(name: &str, text: &str, beside: &Path, latest: bool) -> Result<Vec<Task>, RunError> {
    let config: Config = toml::from_str(text).map_err(|e| bad(&name, &e))?;
    if config.schema != SCHEMA {
        let found = format!("schema {:?}; expected {SCHEMA:?}", config.schema);
        return Err(bad(&name, &found));
    }
    let mut tasks: Vec<Task> = Vec::new();
    for (i, matrix) in config.matrix.iter().enumerate() {
        let at = |what: String| bad(&name, &format!("matrix[{}]: {what}", i + 1));
        for (axis, empty) in [
            ("models", matrix.models.is_empty()),
            ("suites", matrix.suites.is_empty()),
            ("dtypes", matrix.dtypes.is_empty()),
            ("references", matrix.references.is_empty()),
            ("versions", matrix.versions.is_empty()),
        ] {
            if empty {
                return Err(at(format!("{axis} is empty; expected at least one")));
            }
        }
        for task in block(matrix, beside, latest).map_err(at)? {
            if tasks.iter().any(|t| t.name == task.name) {
                return Err(at(format!("{} is there twice; expected each run once", task.name)));
            }
            tasks.push(task);
        }
    }
    match tasks.is_empty() {
        true => Err(bad(&name, &"found no run; expected at least one [[matrix]] with models")),
        false => Ok(tasks),
    }
}

fn block(matrix: &Matrix, beside: &Path, latest: bool) -> Result<Vec<Task>, String> {
    let mut versions = matrix.versions.clone();
    if latest && !versions.contains(&Version::Latest) {
        versions.push(Version::Latest);
    }
    let mut tasks = Vec::new();
    for name in &matrix.models {
        llorch_models::check_name(name).map_err(|e| e.to_string())?;
        let model = &beside_config(name, beside);
        for suite in &matrix.suites {
            let found = find(suite, beside).map_err(|e| e.to_string())?;
            for dtype in &matrix.dtypes {
                let precision: Dtype = dtype.parse().map_err(|_| unknown_dtype(dtype))?;
                if precision == Dtype::I64 {
                    return Err(unknown_dtype(dtype));
                }
                for version in &versions {
                    let references = with(&matrix.references, *version);
                    crate::lineup::references(&references).map_err(|e| e.to_string())?;
                    let stem = Path::new(suite).file_stem().unwrap_or_default().to_string_lossy();
                    let end = if *version == Version::Latest { "-latest" } else { "" };
                    tasks.push(Task {
                        name: format!("{}-{}-{dtype}{end}", of_model(model), word(&stem)),
                        model: model.clone(),
                        subject: matrix.subject.clone(),
                        kind: Kind::Run {
                            suite: found.clone(),
                            dtype: precision,
                            references,
                            checkpoints: matrix.checkpoints.clone(),
                        },
                    });
                }
            }
        }
        if matrix.published {
            tasks.push(Task {
                name: format!("{}-published", of_model(model)),
                model: model.clone(),
                subject: matrix.subject.clone(),
                kind: Kind::Published,
            });
        }
    }
    Ok(tasks)
}

fn unknown_dtype(found: &str) -> String {
    format!("dtype {found:?}; expected f32, f64, f16 or bf16")
}

fn find(suite: &str, beside: &Path) -> Result<Suite, RunError> {
    match suite {
        CANONICAL => Ok(Suite::canonical()?),
        file => Ok(Suite::read(&beside.join(PathBuf::from(file)))?),
    }
}

/// Pinned references, and with the latest ones each beside its pinned self. A command has no releases.
fn with(references: &[String], version: Version) -> Vec<String> {
    let newest = |name: &String| match (version, name.contains(['=', '@'])) {
        (Version::Latest, false) => vec![name.clone(), format!("{name}@latest")],
        _ => vec![name.clone()],
    };
    references.iter().flat_map(newest).collect()
}

/// A folder that is named from the config's own, as suites are.
fn beside_config(model: &str, beside: &Path) -> String {
    let path = beside.join(model);
    match Path::new(model).is_relative() && llorch_models::may_be_a_folder(model) && path.is_dir() {
        true => path.to_string_lossy().into_owned(),
        false => model.to_string(),
    }
}

/// A folder's last part, a hub id whole.
fn of_model(model: &str) -> String {
    let path = Path::new(model);
    match path.file_name().filter(|_| path.is_dir()) {
        Some(name) => word(&name.to_string_lossy()),
        None => word(model),
    }
}

/// What may stand in the name of a folder.
fn word(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let word: String = text.chars().map(safe).collect();
    word.trim_matches(['-', '.']).to_string()
}

fn bad(file: &dyn std::fmt::Display, what: &dyn std::fmt::Display) -> RunError {
    RunError::Usage(format!("failed to read {file}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str, latest: bool) -> Result<Vec<String>, String> {
        let text = format!("schema = \"{SCHEMA}\"\n{text}");
        let tasks = plan("x.toml", &text, Path::new("."), latest).map_err(|e| e.to_string())?;
        Ok(tasks.into_iter().map(|t| t.name).collect())
    }

    #[test]
    fn a_matrix_is_every_combination() {
        let text = "[[matrix]]\nmodels = [\"nano\", \"synth:gpt2\"]\ndtypes = [\"f32\", \"f64\"]\npublished = true\n";
        let expected = [
            "nano-canonical-f32",
            "nano-canonical-f64",
            "nano-published",
            "synth-gpt2-canonical-f32",
            "synth-gpt2-canonical-f64",
            "synth-gpt2-published",
        ];
        assert_eq!(names(text, false).unwrap(), expected);
    }

    #[test]
    fn the_config_that_ships_is_sound_and_asks_for_the_real_models() {
        let names: Vec<String> = tasks(None, false).unwrap().into_iter().map(|t| t.name).collect();
        for name in [
            "nano-canonical-f32",
            "gpt2-canonical-f32",
            "gpt2-medium-canonical-f32",
            "gpt2-published",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
        }
    }

    #[test]
    fn mistakes_name_the_file_and_the_place() {
        for (text, expected) in [
            ("", "found no run"),
            ("[[matrix]]\nmodels = []\n", "matrix[1]: models is empty"),
            ("[[matrix]]\nmodels = [\"nano\"]\ndtypes = [\"i8\"]\n", "dtype \"i8\"; expected f32"),
            ("[[matrix]]\nmodels = [\"nano\"]\nreferences = [\"nobody\"]\n", "nobody"),
            ("[[matrix]]\nmodels = [\"nano\"]\nsuites = [\"no.toml\"]\n", "no.toml"),
            ("[[matrix]]\nmodels = [\"nano\", \"nano\"]\n", "there twice"),
            ("[[matrix]]\nmodel = [\"nano\"]\n", "unknown field `model`"),
            ("[[matrix]]\nmodels = [\"\"]\n", "empty"),
            ("[[matrix]]\nmodels = [\"synth:nosuch\"]\n", "nosuch"),
        ] {
            let error = names(text, false).unwrap_err();
            assert!(error.contains("x.toml") && error.contains(expected), "{text}: {error}");
        }
        let error = plan("x.toml", "schema = \"other/1\"", Path::new("."), false).unwrap_err();
        assert!(error.to_string().contains("other/1"), "{error}");
    }
}
