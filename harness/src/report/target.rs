//! Where reports go: `FORMAT=PATH` on the command line, written whole or not at all.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use clap::ValueEnum;

use super::{ReportFormat, Run, Style, export, github};
use crate::run::RunError;

/// `html=report.html`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub format: ReportFormat,
    pub path: PathBuf,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (format, path) = text.split_once('=').ok_or("expected FORMAT=PATH")?;
        let format = ReportFormat::from_str(format, false).map_err(|_| {
            let known: Vec<String> = ReportFormat::value_variants()
                .iter()
                .filter_map(|f| Some(f.to_possible_value()?.get_name().to_string()))
                .collect();
            format!("unknown format {format:?}; expected one of {}", known.join(", "))
        })?;
        if path.is_empty() {
            return Err("the path is empty; expected FORMAT=PATH".into());
        }
        Ok(Target { format, path: path.into() })
    }
}

/// What can be found wrong before a run of minutes is made: a folder that isn't there, one path twice.
pub fn check(targets: &[Target]) -> Result<(), RunError> {
    for (i, target) in targets.iter().enumerate() {
        let path = &target.path;
        let fail = |what: &str| {
            Err(RunError::Usage(format!("failed to write a report to {}: {what}", path.display())))
        };
        if path.is_dir() {
            return fail("it is a folder; expected a file");
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            return fail("its folder is not there");
        }
        if targets[..i].iter().any(|t| t.path == *path) {
            return fail("it was asked for twice");
        }
    }
    Ok(())
}

/// Writes every report that was asked for.
pub fn write_all(run: &Run<'_>, targets: &[Target], style: &Style) -> anyhow::Result<()> {
    // A file is no terminal: no colour, no width.
    let style = Style { pairs: style.pairs, ..Style::default() };
    targets.iter().try_for_each(|t| write(&t.path, &export(run, t.format, &style)?))
}

/// A job of GitHub Actions is told without being asked. On stderr, which it reads as well: stdout may be
/// somebody's JSON.
pub fn tell_github(run: &Run<'_>, style: &Style) -> anyhow::Result<()> {
    if !github::is_here() {
        return Ok(());
    }
    let style = Style { pairs: style.pairs, ..Style::default() };
    github::tell(run.result, &style, &mut std::io::stderr().lock())
}

/// Whether a file may be written there, as far as can be known beforehand.
pub fn writable(path: &Path) -> Result<(), RunError> {
    check(&[Target { format: ReportFormat::Json, path: path.to_path_buf() }])
}

/// Under another name first: nobody ever reads half a report.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    written.with_context(|| format!("failed to write the report to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_format_and_a_path() {
        let target: Target = "junit=out=1.xml".parse().unwrap();
        assert_eq!(target, Target { format: ReportFormat::Junit, path: "out=1.xml".into() });
        let error = "pdf=x".parse::<Target>().unwrap_err();
        assert!(error.contains("\"pdf\"") && error.contains("junit"), "{error}");
        assert!("junit".parse::<Target>().is_err() && "junit=".parse::<Target>().is_err());
    }

    #[test]
    fn what_can_not_be_written_is_found_before_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let target = |name: &str| Target { format: ReportFormat::Md, path: dir.path().join(name) };
        check(&[target("a"), target("b")]).unwrap();
        for (targets, what) in [
            (vec![target("")], "folder; expected a file"),
            (vec![target("no/a")], "folder is not there"),
            (vec![target("a"), target("a")], "twice"),
        ] {
            let error = check(&targets).unwrap_err();
            assert!(error.to_string().contains(what) && error.exit_code() == 2, "{error}");
        }
    }
}
