//! Where records are kept: lines of text, a file a day, appended and never changed.

use std::path::PathBuf;

use super::files::Files;
use super::s3::S3;
use crate::text::has_form;

/// What can go wrong with a place that keeps records.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The place can't be meant: exit code 2.
    #[error("failed to understand the history {place}: {message}")]
    Place { place: String, message: String },
    #[error("failed to {action} the history {place}: {message}")]
    Io { action: &'static str, place: String, message: String },
}

/// A place that keeps records. Whoever appends while others append loses nothing of theirs; a writer
/// that is killed in mid-write leaves at most a torn last line of its own.
pub trait Store: std::fmt::Debug {
    /// As a user names it.
    fn place(&self) -> String;

    /// Adds one line, which holds no newline, to the file of a day (`2026-01-31`). Once it returns, the
    /// line stands there whole.
    fn append(&self, day: &str, line: &str) -> Result<(), StoreError>;

    /// The days of which there are files, the oldest first; none where there is no such place yet.
    fn days(&self) -> Result<Vec<String>, StoreError>;

    /// The whole file of a day. Its last line may be torn.
    fn read(&self, day: &str) -> Result<Vec<u8>, StoreError>;

    /// Whether records could be appended, found out without appending any.
    fn check(&self) -> Result<(), StoreError>;
}

/// Opens a folder, a `file://` URL, or another URL that is understood. Nothing is made yet.
pub fn open(place: &str) -> Result<Box<dyn Store>, StoreError> {
    let not_understood = |message: &str| StoreError::Place {
        place: place.to_string(),
        message: format!(
            "{message}; expected a folder, file:///home/me/history or s3://BUCKET/PREFIX"
        ),
    };
    match place.split_once("://") {
        None if place.is_empty() => Err(not_understood("it is empty")),
        None if place.starts_with("file:") => Err(not_understood("found file: without //")),
        None => Ok(Box::new(Files::new(PathBuf::from(place)))),
        Some(("file", path)) if path.contains('%') => {
            Err(not_understood("found % in a file:// URL; name the folder itself"))
        }
        Some(("file", path)) if path.starts_with('/') => Ok(Box::new(Files::new(path.into()))),
        Some(("file", _)) => Err(not_understood("a file:// URL holds an absolute path")),
        Some(("s3", _)) => Ok(Box::new(S3::open(place)?)),
        Some((scheme, _)) => Err(not_understood(&format!("found {scheme}://"))),
    }
}

/// The extension of a day's file.
pub const EXTENSION: &str = ".jsonl";

/// The day in a file's name, if it is one of ours.
pub fn day_of(name: &str) -> Option<&str> {
    let day = name.strip_suffix(EXTENSION)?;
    has_form(day, "0000-00-00").then_some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_days_are_ours() {
        assert_eq!(day_of("2026-01-31.jsonl"), Some("2026-01-31"));
        for other in ["2026-01-31.json", "notes.jsonl", "2026-1-31.jsonl", "2026-01-31.jsonl.part"]
        {
            assert_eq!(day_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_place_is_a_folder_or_a_url_that_is_known() {
        assert_eq!(open("runs/history").unwrap().place(), "runs/history");
        assert_eq!(open("file:///tmp/h").unwrap().place(), "/tmp/h");
        for (place, found) in [
            ("", "empty"),
            ("ftp://x/y", "ftp://"),
            ("file://x", "absolute"),
            ("file:/x", "without //"),
            ("file:///x%20y", "found %"),
        ] {
            let error = open(place).unwrap_err().to_string();
            assert!(error.contains(found) && error.contains("expected"), "{error}");
        }
    }
}
