//! Which of the sources a name belongs to.

use crate::error::ModelError;
use crate::published::PUBLISHED;
use std::path::{Path, PathBuf};

/// A name, understood but not yet looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelName {
    Nano,
    Synth { size: String, seed: u64 },
    Folder(PathBuf),
    Hub { repo: String, revision: Option<String> },
}

impl ModelName {
    /// Reserved names first, then what looks like a path or is a folder, then hub ids.
    pub fn parse(name: &str) -> Result<ModelName, ModelError> {
        let wrong =
            |reason: &str| ModelError::Name { name: name.to_owned(), reason: reason.to_owned() };
        if name.trim().is_empty() {
            return Err(wrong("it is empty"));
        }
        if name == "nano" {
            return Ok(ModelName::Nano);
        }
        if let Some(rest) = name.strip_prefix("synth:") {
            let (size, seed) = rest.split_once('@').unwrap_or((rest, "0"));
            let seed = seed
                .parse()
                .map_err(|_| wrong("the seed after @ is not a whole number from 0 to 2^64-1"))?;
            return Ok(ModelName::Synth { size: size.to_owned(), seed });
        }
        let (id, revision) = match name.split_once('@') {
            Some((id, revision)) if !looks_like_a_path(id) => (id, Some(revision.to_owned())),
            _ => (name, None),
        };
        if revision.as_deref().is_some_and(|revision| !is_revision(revision)) {
            return Err(wrong("what follows @ is not a branch, tag or commit"));
        }
        if let Some(known) = PUBLISHED.iter().find(|known| known.name == id) {
            return Ok(ModelName::Hub { repo: known.repo.to_owned(), revision });
        }
        if looks_like_a_path(id) || Path::new(name).is_dir() {
            return Ok(ModelName::Folder(expand_home(name)));
        }
        check_repo_id(id).map_err(|reason| wrong(&reason))?;
        Ok(ModelName::Hub { repo: id.to_owned(), revision })
    }
}

/// Whether this can be a branch, tag or commit. It becomes part of paths, so nothing may climb out of them.
pub(crate) fn is_revision(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    text.chars().all(good) && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// `id` is a name without its `@revision`, so that a revision may hold slashes.
fn looks_like_a_path(id: &str) -> bool {
    id.starts_with(['.', '/', '~'])
        || id.contains('\\')
        || id.ends_with('/')
        || id.matches('/').count() > 1
}

fn expand_home(name: &str) -> PathBuf {
    match (name.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(name),
    }
}

/// The hub's own rule: one or two parts of letters, digits, `-`, `_`, `.`; at most 96 characters.
fn check_repo_id(id: &str) -> Result<(), String> {
    let good_part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    if id.len() > 96 {
        return Err(format!("a hub id has at most 96 characters, this one {}", id.len()));
    }
    if id.split('/').all(good_part) {
        return Ok(());
    }
    Err("it is neither an existing folder nor a hub id (org/name of letters, digits, `-`, `_` and `.`)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: Option<&str>) -> ModelName {
        ModelName::Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned) }
    }

    #[test]
    fn every_form_of_name_is_understood() {
        assert_eq!(ModelName::parse("nano").unwrap(), ModelName::Nano);
        assert_eq!(ModelName::parse("gpt2").unwrap(), hub("openai-community/gpt2", None));
        assert_eq!(
            ModelName::parse("distilgpt2@v1").unwrap(),
            hub("distilbert/distilgpt2", Some("v1"))
        );
        assert_eq!(
            ModelName::parse("org/some.model@pr/1").unwrap(),
            hub("org/some.model", Some("pr/1"))
        );
        assert_eq!(ModelName::parse("./x@y/z").unwrap(), ModelName::Folder("./x@y/z".into()));
        assert_eq!(ModelName::parse("a/b/c").unwrap(), ModelName::Folder("a/b/c".into()));
        let synth = ModelName::Synth { size: "gpt2".into(), seed: 7 };
        assert_eq!(ModelName::parse("synth:gpt2@7").unwrap(), synth);
        assert_eq!(
            ModelName::parse("synth:tiny").unwrap(),
            ModelName::Synth { size: "tiny".into(), seed: 0 }
        );
    }

    #[test]
    fn malformed_names_are_usage_errors() {
        for name in [
            "",
            " ",
            "org/na me",
            "-x",
            "org/..",
            "synth:gpt2@x",
            "org/name@",
            "gp--t2",
            "org/name@../b",
            "gpt2@",
        ] {
            let error = ModelName::parse(name).expect_err(name);
            assert_eq!(error.exit_code(), 2, "{name}: {error}");
            assert!(
                error.to_string().starts_with("failed to understand the model name"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_existing_folder_wins_over_a_hub_id_but_not_over_a_reserved_name() {
        // Tests run in the package's own folder, which has a `src`.
        assert_eq!(ModelName::parse("src").unwrap(), ModelName::Folder("src".into()));
        assert_eq!(ModelName::parse("srcs").unwrap(), hub("srcs", None));
    }
}
